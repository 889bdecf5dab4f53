"""Checkpoints of exactly the trained state, with Orbax: written beside the run, whole or not at all.

One checkpointable per part, so that sampling reads `ema_params` alone. With several hosts each writes its
part of the arrays into the one folder that all of them see, and saving and restoring wait for all.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import Any

import grain
import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from sgm_jax.errors import UserError
from sgm_jax.interop.workdir_files import CHECKPOINTS, EMA, PARAMS, PROGRESS, check_fits, damaged
from sgm_jax.parallel import agreement, hosts
from sgm_jax.training.state import TrainState

LOG = logging.getLogger(__name__)
# Seconds that writing a checkpoint may take, and a host waits for the others' parts, before the save failed.
TIMEOUT = 3600
# What a host must be able to write before a save begins.
_TRIED = bytes(2**20)
_POSITION = 'position.json'
_POLICIES = ocp.training.preservation_policies
_ERRORS = (OSError, ValueError, RuntimeError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay: those for which any of these speaks.

    Attributes:
      newest: so many of the newest.
      every: those of steps that this divides, for ever; 0 for none.
      best: so many of the best; 0 for none.
      figure: the number that tells the best: the least, or the greatest with a '+' before its name.
    """

    newest: int
    every: int = 0
    best: int = 0
    figure: str = ''

    def policy(self) -> Any:
        """For Orbax."""
        kept = [_POLICIES.LatestN(self.newest)]
        if self.every:
            kept.append(_POLICIES.EveryNSteps(self.every))
        if self.best:
            kept.append(
                _POLICIES.BestN(
                    get_metric_fn=lambda metrics: metrics['rank'],
                    n=self.best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        return _POLICIES.AnyPreservationPolicy(kept)

    def ranks(self, values: Mapping[str, float]) -> bool:
        """Whether the figure is among what is known of a step, or none is asked for."""
        return not self.best or self.figure.lstrip('+') in values

    def unranked(self, step: int, values: Mapping[str, float]) -> str:
        """A word for a step that is not."""
        there = ', '.join(sorted(values)) or 'nothing'
        return (
            f'step {step} is none of the best: train.best is {self.figure!r}, and known of it is {there}; '
            'let validate_every divide checkpoint_every'
        )

    def metrics(self, values: Mapping[str, float]) -> dict[str, float] | None:
        """What is written with a checkpoint, so that it can be ranked: more is better. None if unknown."""
        name = self.figure.lstrip('+')
        if not self.best or not self.ranks(values):
            return None
        value = float(values[name])
        return {'rank': value if self.figure.startswith('+') else -value, name: value}


@dataclasses.dataclass(kw_only=True)
class _Pending:
    """A save that goes on in the background."""

    step: int
    start: float
    waited: float
    response: Any
    end: float | None = None

    def ended(self, _: object) -> None:
        self.end = time.perf_counter()


class Checkpoints:
    """The checkpoints of a workdir; a context that ends when the last one is on the disk.

    A save that fails (a full disk, a bucket that does not answer) is told, costs its own checkpoint and no
    other, and the run goes on; only if it was the last one does the context end with an error.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: Keep | int, reads: bool = False):
        """Opens them.

        Args:
          workdir: the run's folder.
          keep: which ones stay when another was written.
          reads: nothing is written, and what a run that goes on is writing meanwhile is left alone.
        """
        self.keep = Keep(newest=keep) if isinstance(keep, int) else keep
        self.folder = workdir / CHECKPOINTS
        # Of saves since the last `report`: numbers to log, by the step they are of.
        self._reports: dict[int, dict[str, float]] = {}
        self._pending: _Pending | None = None
        self._failure: Exception | None = None
        self._orbax = self._open(cleans=not reads)

    def _open(self, *, cleans: bool) -> ocp.training.Checkpointer:
        patience = ocp.Context()
        patience.asynchronous.timeout_secs = TIMEOUT
        return ocp.training.Checkpointer(
            self.folder,
            context=patience,
            preservation_policy=self.keep.policy(),
            # What a killed process, or a failed save, left half written has a temporary name, and goes now.
            cleanup_tmp_directories=cleans,
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and jax.process_count() > 1:
            return  # the others may be gone: what is not complete by now is removed at the next start
        self.settle()
        try:
            self._orbax.close()
        except _ERRORS as late:
            self._failed(late)
        if error is None and self._failure is not None:
            raise _unwritable(self.folder, self._failure) from self._failure

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(
        self,
        step: int,
        state: TrainState,
        position: Mapping[str, Any],
        values: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing; training may go on at once, with the buffers donated. Waits for the save before.

        Args:
          position: of the data, as its iterator's `get_state` gives it.
          values: what is logged of this step, among which the figure that ranks it may be.
        """
        self.settle()
        if self.latest == step:
            return
        if trouble := self._trouble():
            self._failed(trouble, step)
            return
        start = time.perf_counter()
        try:
            response = self._orbax.save_checkpointables_async(
                step,
                _parts(state, position),
                force=True,
                metrics=self.keep.metrics(values or {}),
            )
        except _ERRORS as error:
            self._failed(error)
            return
        waited = time.perf_counter() - start
        self._pending = _Pending(step=step, start=start, waited=waited, response=response)
        response.on_complete(self._pending.ended)

    def settle(self) -> None:
        """Waits until what was saved last is complete, or has failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.response.result()
        except _ERRORS as error:
            self._failed(error, pending.step)
            return
        if self._failure is not None and jax.process_count() == 1:
            # What there is of saves that failed: while they do, threads of Orbax still write into it.
            for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
                shutil.rmtree(path, ignore_errors=True)
        self._failure = None
        seconds = (pending.end or time.perf_counter()) - pending.start
        size = _size(self.folder / str(pending.step))
        LOG.info(
            'saved step %d: %.2f GB in %.1f s, of which training waited %.1f s',
            pending.step,
            size / 1e9,
            seconds,
            pending.waited,
        )
        self._reports[pending.step] = {
            'checkpoint/gigabytes': size / 1e9,
            'checkpoint/seconds': seconds,
            'checkpoint/waited_seconds': pending.waited,
        }

    def report(self) -> dict[int, dict[str, float]]:
        """Numbers of the saves that were completed since the last report, by step."""
        if self._pending and self._pending.end is not None:
            self.settle()
        found, self._reports = self._reports, {}
        return found

    def _trouble(self) -> OSError | None:
        """Why no save can begin, of several processes: a host where even a small file cannot be written.

        Were it to fail in its part of a save, it alone would know, and the others wait for it.
        """
        if jax.process_count() == 1:
            return None
        own, file = None, self.folder.parent / f'.tried-{jax.process_index()}'
        try:
            file.write_bytes(_TRIED)
        except OSError as error:
            own = error
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        if troubled := agreement.where('a checkpoint can be written', own is not None):
            return own or OSError(f'process {troubled[0]} cannot write there')
        return None

    def _failed(self, error: Exception, step: int | None = None) -> None:
        if hosts.is_lost(error):
            raise error
        self._failure = error
        LOG.error(
            'error: %s%s; training goes on, and the next checkpoint is tried as usual',
            _unwritable(self.folder, error),
            '' if step is None else f' (step {step})',
        )
        if jax.process_count() == 1:
            # Orbax's own goes on as if the step were saved. Its threads may still write into what is half
            # written: that is left until a save succeeds.
            self._orbax = self._open(cleans=False)

    def restore(
        self, step: int, wanted: TrainState, data: grain.DatasetIterator | None = None
    ) -> TrainState:
        """The state of a step, on the mesh of `wanted`; the data, if given, go on where they were.

        Raises:
          UserError: the checkpoint has other names or shapes than the model.
        """
        folder = self.folder / str(step)
        check_fits(folder, wanted.ema_params)
        position = _Position()
        try:
            parts = self._orbax.load_checkpointables(step, _parts(wanted, position))
        except (ValueError, KeyError, OSError) as error:
            raise damaged(folder, error) from error
        if data is not None:
            data.set_state(position.state)
        intact = jax.device_put(jnp.ones((), bool), wanted.intact.sharding)
        return TrainState(
            params=parts[PARAMS], ema_params=parts[EMA], intact=intact, **parts[PROGRESS]
        )


def write_state(folder: pathlib.Path, state: TrainState, position: Mapping[str, Any]) -> None:
    """A checkpoint outside the run's own, and waits for it."""
    ocp.save_checkpointables(folder, _parts(state, position))


def _parts(state: TrainState, position: 'Mapping[str, Any] | _Position') -> dict[str, Any]:
    progress = {'step': state.step, 'opt_state': state.opt_state}
    if state.adversary is not None:
        progress |= {
            'adversary': state.adversary,
            'adversary_opt_state': state.adversary_opt_state,
        }
    data = position if isinstance(position, _Position) else _Position(position)
    return {PARAMS: state.params, EMA: state.ema_params, PROGRESS: progress, 'data': data}


class _Position:
    """Where the data are, as a part of a checkpoint: the number of batches, the same for any number of hosts.

    Grain's own way of saving has a file for each process, and reads that of as many processes only.
    """

    def __init__(self, state: Mapping[str, Any] | None = None):
        self.state = state

    async def save(self, directory: Any) -> Awaitable[None]:
        async def write() -> None:
            folder = await directory.await_creation()
            if jax.process_index() == 0:
                await asyncio.to_thread((folder / _POSITION).write_text, json.dumps(self.state))

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            # Before there were several hosts, Grain wrote process_0-of-1.json.
            names = (_POSITION, 'process_0-of-1.json')
            found = [path for path in (directory / name for name in names) if path.exists()]
            if not found:
                raise ValueError(f'{directory} has no {_POSITION}')
            self.state = json.loads(await asyncio.to_thread(found[0].read_text))

        return read()


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def _unwritable(folder: pathlib.Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    way_out = 'free some space'
    if isinstance(error, TimeoutError):
        reason, way_out = f'it took more than {TIMEOUT} s', 'take a faster disk'
    return UserError(
        f'{folder}: a checkpoint could not be written ({reason}); {way_out} and run the same command again, '
        'it goes on from the newest complete checkpoint'
    )
