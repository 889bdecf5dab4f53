"""The training loop."""

import collections
import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from sgm_jax.config import call, check_keys, plain
from sgm_jax.data import pipeline
from sgm_jax.engines import Engine
from sgm_jax.engines import build as build_engine
from sgm_jax.errors import UserError
from sgm_jax.interop.workdir_files import read_ema, weights_alone
from sgm_jax.parallel import agreement
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training import report
from sgm_jax.training.checkpoints import Checkpoints
from sgm_jax.training.frozen import check_dtype, hold
from sgm_jax.training.logs import Logs
from sgm_jax.training.optimizers import make_optimizer, scaled
from sgm_jax.training.painter import Painter
from sgm_jax.training.schedules import make_schedule, peak_rate
from sgm_jax.training.state import Average, Optimizers, TrainState, abstract
from sgm_jax.training.step import first_players, make_init, make_step, start_from
from sgm_jax.training.stop import StopRequest
from sgm_jax.training.workdir import open_workdir

PyTree = Any

LOG = logging.getLogger(__name__)

NEEDED = ('seed', 'model', 'data', 'optimizer', 'train')
PARTS = (*NEEDED, 'disc_optimizer', 'schedule', 'mesh', 'sample')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """`config.train`. Steps are batches; `accumulate` of them make one step of the optimizer.

    Attributes:
      batch_size: examples of a batch, over all devices.
      steps: batches in all.
      accumulate: batches per optimizer step.
      clip_norm: the largest global gradient norm; 0 for any.
      ema_decay: of the averaged parameters, at most.
      log_every, image_every, checkpoint_every: in steps; image_every 0 logs no pictures.
      keep: checkpoints that are kept.
      frozen_dtype, first_stage_dtype: in which frozen parts are held, a name in frozen.DTYPES.
    """

    batch_size: int
    steps: int
    accumulate: int = 1
    clip_norm: float = 0.0
    ema_decay: float = 0.9999
    log_every: int = 50
    image_every: int = 1000
    checkpoint_every: int = 1000
    keep: int = 3
    frozen_dtype: str = 'float32'
    first_stage_dtype: str = 'float32'

    def __post_init__(self):
        for name in ('frozen_dtype', 'first_stage_dtype'):
            check_dtype(name, getattr(self, name))
        for name in ('steps', 'accumulate', 'log_every', 'checkpoint_every'):
            if getattr(self, name) < 1:
                raise UserError(f'train.{name} is {getattr(self, name)}; give 1 or more')
        if self.steps % self.accumulate:
            raise UserError(
                f'train.steps is {self.steps}, which train.accumulate={self.accumulate} does not divide; '
                f'use {self.steps - self.steps % self.accumulate + self.accumulate}'
            )
        if self.image_every < 0:
            raise UserError(
                f'train.image_every is {self.image_every}; give 0 (no pictures) or more'
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f'train.ema_decay is {self.ema_decay}; give 0 or more, below 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended: after which step, with which last logged scalars, and whether it was asked to stop."""

    step: int
    scalars: Mapping[str, float]
    stopped: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A run before its first step: everything that the config decides, and nothing computed yet."""

    engine: Engine
    options: Options
    mesh: jax.sharding.Mesh
    optimizers: Optimizers
    wanted: TrainState
    step: Callable

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, devices: Sequence | None = None
    ) -> 'Setup':
        """Checks the config on the way. `devices`, by default all of JAX's, may be ones that are not here.

        Raises:
          UserError: whatever in the config does not fit.
        """
        check_keys(config, PARTS, where='config')
        missing = [name for name in NEEDED if name not in config]
        if missing:
            raise UserError(f'config: missing {", ".join(map(repr, missing))}')
        if 'learning_rate' not in config.optimizer:
            raise UserError("optimizer: missing 'learning_rate'")
        options = call(Options, config.train, where='train')
        mesh = meshes.make_mesh(plain(config.get('mesh', {'data': -1})), devices)
        meshes.check_batch(options.batch_size, mesh)
        engine = build_engine(config)
        schedule = make_schedule(
            config.get('schedule', {'name': 'constant'}),
            peak=peak_rate(
                config.optimizer,
                batch_size=options.batch_size,
                accumulate=options.accumulate,
            ),
            steps=options.steps // options.accumulate,
        )
        players = jax.eval_shape(functools.partial(first_players, engine), jax.random.key(0))
        if players.adversary and options.accumulate > 1 and engine.objective.alternate:
            raise UserError(
                'train.accumulate goes with model.loss.alternate=False: by turns, each would see every other '
                'batch'
            )
        make = functools.partial(
            make_optimizer,
            schedule=schedule,
            clip_norm=options.clip_norm,
            accumulate=options.accumulate,
        )
        nodes = config.optimizer, _disc_optimizer(config)
        optimizers = Optimizers(
            main=make(nodes[0], params=players.params),
            adversary=make(nodes[1], where='disc_optimizer'),
        )
        rates = tuple(scaled(schedule, node) for node in nodes)
        wanted = abstract(players, optimizers, mesh)
        average = Average(limit=options.ema_decay, accumulate=options.accumulate)
        return cls(
            engine=engine,
            options=options,
            mesh=mesh,
            optimizers=optimizers,
            wanted=wanted,
            step=make_step(engine, optimizers, average, rates, wanted),
        )

    def frozen(self, key: jax.Array) -> PyTree:
        """The frozen parts, on the host, in the precision that `config.train` says."""
        return hold(
            self.engine.init_frozen(key),
            dtype=self.options.frozen_dtype,
            first_stage_dtype=self.options.first_stage_dtype,
        )

    def first_state(self, key: jax.Array, params: PyTree | None = None) -> TrainState:
        """From given parameters, or from the engine's checkpoint if it has one, else at random."""
        params = self.engine.pretrained() if params is None else params
        if params is not None:
            return start_from(params, self.engine, self.optimizers, self.wanted, key)
        return make_init(self.engine, self.optimizers, self.wanted)(key)


def _disc_optimizer(config: ml_collections.ConfigDict) -> dict:
    """The discriminator's is the other one, but for the keys that `config.disc_optimizer` has."""
    own = plain(config.get('disc_optimizer', {}))
    shared = {k: v for k, v in plain(config.optimizer).items() if k not in ('groups', 'lr_factor')}
    return {**shared, **own}


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> Result:
    """Trains until `config.train.steps`, or goes on where the workdir's newest checkpoint is.

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
    )
    record = source.record(0, None)
    setup.engine.check(record)
    meshes.check_rows(setup.engine.latent_rows(record), mesh)
    workdir = open_workdir(workdir, config)
    first = jax.process_index() == 0
    LOG.info('%s', pipeline.describe(source))

    whole = meshes.replicated(mesh)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    init_key, step_key = (agreement.place(key, whole) for key in keys[:2])
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=options.keep))
        begin = checkpoints.latest
        agreement.check_same(
            'the newest checkpoint',
            f'{workdir} at step {begin}',
            '--workdir must be one folder that all hosts share',
        )
        frozen = agreement.place(setup.frozen(keys[0]), whole)
        if begin is None:
            state, begin = setup.first_state(init_key), 0
        elif weights_alone(workdir, begin):
            state, begin = setup.first_state(init_key, read_ema(workdir, setup.wanted.params)), 0
            LOG.info('beginning with the weights in %s', workdir)
        else:
            state = checkpoints.restore(begin, setup.wanted, data)
            LOG.info('going on after step %d of %s', begin, workdir)
        logs = stack.enter_context(Logs(workdir, begin=begin, enabled=first))
        if first:
            report.log(mesh, state, frozen)
        # On each host: the work is the same, and none waits for another.
        painter = Painter(setup.engine, config, mesh, keys[2]) if options.image_every else None
        stop = stack.enter_context(StopRequest())
        stopping = agreement.Stop(mesh)
        stopped = False
        bar = stack.enter_context(
            tqdm(total=options.steps, initial=begin, desc='train', unit='step', disable=not first)
        )
        window = _Window()
        put = lambda batch: meshes.put_batch(setup.engine.prepare(batch), mesh)
        step = begin
        while step < options.steps and not stopped:
            batch = window.timed('data_wait', lambda: put(next(data)))
            turn = setup.engine.turn(step)
            state, scalars = setup.step(turn, state, frozen, batch, step_key)
            step += 1
            window.add(scalars)
            bar.update()
            stopped = stopping.agreed(stop.wanted)
            if step % options.log_every == 0 or step == options.steps:
                values = window.close(options.batch_size)
                loss = f'loss {values["loss"]:.4f}, ' if 'loss' in values else ''
                bar.set_postfix_str(f'{loss}{values["step_seconds"]:.2f} s/step')
                logs.scalars(step, values, each=window.each)
                _check_finite(values, step, checkpoints.latest)
            if painter and step % options.image_every == 0:
                figures, pictures = painter(state, frozen)
                logs.scalars(step, figures)
                logs.pictures(step, pictures)
                window.restart_clock()
            due = step % options.checkpoint_every == 0 or step == options.steps
            if due or stopped:
                _check_finite(window.newest(), step, checkpoints.latest)
                checkpoints.save(step, state, data)
        stopping.settle()
        if values := window.close(options.batch_size):
            logs.scalars(step, values, each=window.each)
    return Result(step=step, scalars=window.last, stopped=step < options.steps)


class _Window:
    """The scalars since the last time they were logged; they stay on the devices until then."""

    def __init__(self):
        self.last: dict[str, float] = {}
        # Of the last window that was closed: what each of its steps returned.
        self.each: list[dict[str, float]] = []
        self._scalars, self._seconds = [], collections.Counter()
        self._start = time.perf_counter()

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, whose time counts under `name`."""
        start = time.perf_counter()
        result = work()
        self._seconds[name] += time.perf_counter() - start
        return result

    def add(self, scalars: Mapping[str, jax.Array]) -> None:
        # One step ahead at most: the bar tells the truth, and ctrl-C never waits for a queue of steps.
        if self._scalars:
            jax.block_until_ready(self._scalars[-1])
        self._scalars.append(scalars)

    def newest(self) -> dict[str, float]:
        """The scalars of the last step."""
        return jax.device_get(self._scalars[-1]) if self._scalars else self.last

    def restart_clock(self) -> None:
        """Leaves out what was not training."""
        self._start = time.perf_counter()

    def close(self, batch_size: int) -> dict[str, float]:
        """Their means, and the times; empties the window. Nothing, if it is empty."""
        if not self._scalars:
            return {}
        steps = len(self._scalars)
        found = self.each = jax.device_get(self._scalars)
        # What one turn logs another need not.
        names = dict.fromkeys(name for scalars in found for name in scalars)
        mean = lambda name: np.mean([scalars[name] for scalars in found if name in scalars])
        values = {name: float(mean(name)) for name in names}
        seconds = (time.perf_counter() - self._start) / steps
        values |= {
            'step_seconds': seconds,
            'examples_per_second': batch_size / seconds,
            **{name: total / steps for name, total in self._seconds.items()},
        }
        self._scalars, self._seconds = [], collections.Counter()
        self.restart_clock()
        self.last = values
        return values


def _check_finite(values: Mapping[str, float], step: int, saved: int | None) -> None:
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        since = (
            'there is no checkpoint yet'
            if saved is None
            else f'the newest checkpoint is step {saved}'
        )
        raise UserError(
            f'{", ".join(broken)} is no longer finite in the steps up to {step}; nothing was saved since '
            f'({since}); lower optimizer.learning_rate or set train.clip_norm'
        )
