"""The training loop."""

import collections
import contextlib
import dataclasses
import logging
import os
import pathlib
import pdb
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from sgm_jax.data import pipeline
from sgm_jax.data.sources import Source
from sgm_jax.errors import UserError
from sgm_jax.interop.workdir_files import read_ema, weights_alone
from sgm_jax.parallel import agreement, hosts, memory
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training import autopsy, measures, notices, report, runs
from sgm_jax.training.ahead import StepsAhead, resized
from sgm_jax.training.checkpoints import Checkpoints, Keep
from sgm_jax.training.heartbeat import Heartbeat
from sgm_jax.training.logs import Logs
from sgm_jax.training.painter import Painter
from sgm_jax.training.profiling import Profiler, Span
from sgm_jax.training.requests import Requests
from sgm_jax.training.setup import Setup
from sgm_jax.training.state import TrainState
from sgm_jax.training.terminal import Progress
from sgm_jax.training.trackers import WeightsAndBiases
from sgm_jax.training.validation import Validation
from sgm_jax.training.window import Window, broken
from sgm_jax.training.workdir import LOGS, SHARED, leaves, open_workdir

LOG = logging.getLogger(__name__)
FEWER_AT_ONCE = (
    'less takes a smaller --config.train.validate_batch; --config.train.validate_every=0 looks at '
    'none'
)
FEWER = (
    'less takes a smaller --config.pictures.max_images or, of a diffusion model, '
    '--config.sample.decode_chunk=1; --config.train.image_every=0 draws none'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended: after which step, with which last logged scalars, and whether it was asked to stop."""

    step: int
    scalars: Mapping[str, float]
    stopped: bool


def train(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    profile: Span | None = None,
) -> Result:
    """Trains until `config.train.steps`, or goes on where the workdir's newest checkpoint is.

    Args:
      profile: the steps that are traced for TensorBoard.

    Raises:
      UserError: the config, the workdir, the data or the checkpoint are not as they must be, or the
        loss is no longer a finite number.
    """
    setup = Setup.from_config(config)
    options, mesh = setup.options, setup.mesh
    source = pipeline.make_source(config.data)
    data = pipeline.make_iterator(
        source,
        batch_size=options.batch_size,
        seed=config.seed,
        rows=meshes.rows(options.batch_size, mesh),
        num_threads=options.data_threads or min(max((os.cpu_count() or 1) // 2, 2), 8),
        prefetch=options.data_ahead,
    )
    setup.check(source)
    workdir = open_workdir(workdir, config)
    agreement.check_same(
        'the list of the data',
        pipeline.identity(source),
        'a file could not be read on one host, or data.path is not the same for all; run again',
    )
    LOG.info('%s', pipeline.describe(source))
    with contextlib.ExitStack() as stack:
        run = _Run(setup, config, workdir, data, stack, profile)
        run.compile_ahead(source)
        return run.train()


class _Run:
    """A run while it goes: what is open, and where it is."""

    def __init__(
        self,
        setup: Setup,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        data: Any,
        stack: contextlib.ExitStack,
        profile: Span | None,
    ):
        self.setup, self.options, self.mesh = setup, setup.options, setup.mesh
        self.workdir, self.data = workdir, data
        options = self.options
        first = jax.process_index() == 0
        keep = Keep(
            newest=options.keep,
            every=options.keep_every,
            best=options.keep_best,
            figure=options.best,
        )
        self.checkpoints = stack.enter_context(Checkpoints(workdir, keep=keep))
        whole = meshes.replicated(self.mesh)
        self.seed = config.seed
        keys = jax.random.split(jax.random.key(self.seed), 3)
        init_key, self.key = (agreement.place(key, whole) for key in keys[:2])
        self.frozen = setup.frozen(keys[0])
        self.state, self.begin = self._first_state(init_key)
        self.step = self.begin
        if first:
            runs.record_start(workdir, step=self.begin)
        tracker = None
        if first and options.wandb:
            tracker = WeightsAndBiases(options.wandb, workdir, leaves(config))
        self.logs = stack.enter_context(
            Logs(workdir, begin=self.begin, enabled=first, tracker=tracker)
        )
        self.logs.hyperparameters(leaves(config))
        if first:
            report.log(self.mesh, self.state, self.frozen, workdir=workdir, options=options)
        # On each host: the work is the same, and none waits for another.
        self.painter = self.validation = None
        if options.image_every:
            self.painter = Painter(setup.engine, config, self.mesh, keys[2], setup.pictures)
        if options.validate_every:
            self.validation = Validation(
                setup.engine,
                config,
                self.mesh,
                keys[2],
                examples=options.validate_examples,
                batch_size=options.validate_batch or options.batch_size,
            )
        self.requests = stack.enter_context(Requests())
        self.wishes = agreement.Wishes(self.mesh, count=2)
        ask_stop = lambda: setattr(self.requests, 'stop', True)
        stack.enter_context(notices.Notices(ask_stop, notices.metadata_server()))
        name = f'process {jax.process_index()}' if jax.process_count() > 1 else ''
        self.pulse = stack.enter_context(Heartbeat(options.heartbeat_minutes, name))
        self.profiler = stack.enter_context(Profiler(workdir / LOGS, profile if first else None))
        self.progress = stack.enter_context(
            Progress(steps=options.steps, begin=self.begin, enabled=first)
        )
        self.work = measures.Work(setup.step, self.mesh)
        self.turns_told: set[str] = set()
        self.ahead = stack.enter_context(StepsAhead(setup.step))
        self.window = Window()
        # By which checkpoints are ranked: of the newest steps that were logged, and of this one's validation.
        self.logged: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self.told_unranked = False
        # Of the last two steps: what they were made of.
        self.made_of = collections.deque(maxlen=2)
        self.saved_at = time.monotonic()

    def compile_ahead(self, source: Source) -> None:
        """Begins with the steps of all sizes of batch that there will be, if there are several."""
        batch_size, seed = self.options.batch_size, self.seed
        sizes = pipeline.sizes_to_come(source, batch_size=batch_size, seed=seed, begin=self.begin)
        if len(sizes) < 2:
            return
        rows = len(meshes.rows(batch_size, self.mesh))
        examples = {k: np.stack([v] * rows) for k, v in source.record(0, None).items()}
        batch = meshes.put_batch(self.setup.engine.prepare(examples), self.mesh)
        turn = self.setup.engine.turn(self.begin)
        for shapes in resized(batch, sizes):
            self.ahead.announce(turn, self.state, self.frozen, shapes, self.key)

    def _first_state(self, key: jax.Array) -> tuple[TrainState, int]:
        begin = self.checkpoints.latest
        agreement.check_same(
            'the newest checkpoint',
            f'{self.workdir} at step {begin}',
            SHARED,
        )
        if begin is None:
            return self.setup.first_state(key), 0
        if weights_alone(self.workdir, begin):
            LOG.info('beginning with the weights in %s', self.workdir)
            params = read_ema(self.workdir, self.setup.wanted.params)
            return self.setup.first_state(key, params), 0
        LOG.info('going on after step %d of %s', begin, self.workdir)
        return self.checkpoints.restore(begin, self.setup.wanted, self.data), begin

    def train(self) -> Result:
        """Until the last step, or until asked to stop."""
        stopped = False
        # Where the data are after `step` batches.
        self.position = self.data.get_state()
        try:
            self._draw_if_due()
            while self.step < self.options.steps and not stopped:
                self._one_step()
                stop, save = self.wishes.agreed(self.requests.stop, self._wants_save())
                stopped = stop
                last = self.step == self.options.steps
                if self.step % self.options.log_every == 0 or last:
                    self._log()
                self._validate_if_due(last)
                if self.step % self.options.checkpoint_every == 0 or last or stop or save:
                    self._save()
                # What may want too much memory comes when the step is safe.
                self._draw_if_due()
                if self.requests.debug:
                    self._debug()
            self.wishes.settle()
            self._log()
        except UserError:
            self._rescue()
            raise
        except Exception as error:
            if not hosts.is_lost(error):
                LOG.error('error in step %d: %s', self.step + 1, error)
            self._rescue()
            raise
        self.checkpoints.settle()
        self._log_saves()
        return Result(
            step=self.step, scalars=self.window.last, stopped=self.step < self.options.steps
        )

    def _one_step(self) -> None:
        self.pulse.at(self.step, 'waiting for data')
        batch = self.window.timed('data_wait', self._next_batch)
        position = self.data.get_state()
        turn = self.setup.engine.turn(self.step)
        arguments = (turn, self.state, self.frozen, batch, self.key)
        flops = self.work.of(*arguments)
        if turn not in self.turns_told:
            # Known from here on, when the first one is still to be compiled.
            self.turns_told.add(turn)
            LOG.info('%s', report.cost(turn, flops, self.mesh))
        self.profiler.before(self.step + 1)
        self.pulse.at(self.step, 'in the step')
        self.state, scalars = self.ahead(*arguments)
        self.step, self.position, self.validated = self.step + 1, position, {}
        self.made_of.append((self.step, turn, batch, position))
        self.profiler.after(self.step, scalars)
        if not self.window.fine():
            self._end(self.step - 1, self.window.newest())
        self.window.add(scalars, flops)
        self.progress.step()

    def _next_batch(self) -> Mapping[str, jax.Array]:
        return meshes.put_batch(self.setup.engine.prepare(next(self.data)), self.mesh)

    def _wants_save(self) -> bool:
        if self.requests.save:
            self.requests.granted('save')
            return True
        minutes = self.options.checkpoint_minutes
        due = bool(minutes) and time.monotonic() - self.saved_at > 60 * minutes
        if due:
            # Asked for once: several processes have their answer a step later.
            self.saved_at = time.monotonic()
        # One clock decides.
        return due and jax.process_index() == 0

    def _log(self) -> None:
        if values := self.window.close(self.options.batch_size):
            values |= self.work.figures(values) | measures.memory()
            self.progress.numbers(values)
            self.logs.scalars(self.step, values, each=self.window.each)
            self.logged = values
        self._log_saves()

    def _log_saves(self) -> None:
        for step, values in self.checkpoints.report().items():
            self.logs.scalars(step, values)

    def _validate_if_due(self, last: bool) -> None:
        if not self.validation or not (self.step % self.options.validate_every == 0 or last):
            return
        self.pulse.at(self.step, 'validating')
        with self.window.paused():
            # As of pictures: made by all hosts together.
            copies = self.validation.copies(self.state, self.frozen)
            with self._spared('validation', FEWER_AT_ONCE):
                self.validated = self.validation(copies)
                self.logs.scalars(self.step, self.validated)

    @contextlib.contextmanager
    def _spared(self, what: str, advice: str) -> Iterator[None]:
        """Too little memory inside costs what was made there, and nothing of the training."""
        try:
            with memory.or_else(advice):
                yield
        except memory.TooLittleError as error:
            if jax.process_index() == 0:
                LOG.warning('no %s after step %d: %s', what, self.step, error)

    def _known(self) -> dict[str, float]:
        return {**self.logged, **self.validated}

    def _draw_if_due(self) -> None:
        every = self.options.image_every
        if not self.setup.pictures.due(self.step, every=every, begin=self.begin):
            return
        self.pulse.at(self.step, 'drawing pictures')
        with self.window.paused():
            # Made by all hosts together: one that cannot ends all of them.
            copies = self.painter.copies(self.state, self.frozen)
            with self._spared('pictures', FEWER):
                for split, pictures in self.painter(copies).items():
                    self.logs.pictures(self.step, pictures, split=split)

    def _save(self) -> None:
        if not self.window.fine():
            self._end(self.step, self.window.newest())
        self.pulse.at(self.step, 'saving')
        known, keep = self._known(), self.checkpoints.keep
        if not keep.ranks(known) and not self.told_unranked and jax.process_index() == 0:
            self.told_unranked = True
            LOG.warning('%s', keep.unranked(self.step, known))
        self.checkpoints.save(self.step, self.state, self.position, known)
        self.saved_at = time.monotonic()

    def _debug(self) -> None:
        self.requests.granted('debug')
        if jax.process_index() == 0 and not sys.stdin.isatty():
            LOG.warning('asked for a debugger, but this process has no terminal; training goes on')
        elif jax.process_index() == 0:
            LOG.info('state, batch and the rest are in `self`; c goes on')
            with self.window.paused():
                pdb.Pdb(nosigint=True).set_trace()

    def _end(self, step: int, values: Mapping[str, float]) -> None:
        """Ends the run: a step's numbers are not finite."""
        found = next(made for made in self.made_of if made[0] == step)
        _, turn, batch, position = found
        folder = autopsy.keep(
            self.workdir,
            step,
            self.state,
            batch,
            position=position,
            values=values,
            turn=turn,
        )
        error = autopsy.error(values, broken(values), step, self.checkpoints.latest, folder)
        self.state = None  # nothing to rescue
        raise error

    def _rescue(self) -> None:
        """Saves the state after the last finished step, where it is still whole."""
        whole = self.state is not None and not any(
            leaf.is_deleted() for leaf in jax.tree.leaves(self.state)
        )
        if not whole or jax.process_count() > 1 or self.step == self.begin:
            return
        try:
            if self.window.fine():
                self.checkpoints.save(self.step, self.state, self.position, self._known())
                self.checkpoints.settle()
        except Exception as error:  # the first error is the one to tell
            LOG.warning('nor could step %d be saved: %s', self.step, error)
