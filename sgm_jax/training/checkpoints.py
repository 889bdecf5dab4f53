"""Checkpoints of exactly the trained state, with Orbax: written beside the run, whole or not at all.

One checkpointable per part, so that sampling reads `ema_params` alone. With several hosts each writes its
part of the arrays into the one folder that all of them see, and saving and restoring wait for all.
"""

import asyncio
import json
import logging
import pathlib
from collections.abc import Awaitable
from types import TracebackType
from typing import Any

import grain
import jax
from orbax.checkpoint import v1 as ocp

from sgm_jax.errors import UserError
from sgm_jax.interop.workdir_files import CHECKPOINTS, EMA, PARAMS, PROGRESS, check_fits, damaged
from sgm_jax.parallel import hosts
from sgm_jax.training.state import TrainState

LOG = logging.getLogger(__name__)
# Seconds that a host waits for the others' parts of a checkpoint, before the run ends.
TIMEOUT = 600
_POSITION = 'position.json'


class Checkpoints:
    """The checkpoints of a workdir; a context that ends when the last one is on the disk."""

    def __init__(self, workdir: pathlib.Path, *, keep: int):
        if keep < 1:
            raise UserError(f'train.keep is {keep}; give 1 or more')
        self.folder = workdir / CHECKPOINTS
        # What a killed process left half written has a temporary name, and goes now.
        patience = ocp.Context()
        patience.asynchronous.timeout_secs = TIMEOUT
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            context=patience,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
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
        try:
            self._orbax.close()
        except Exception as late:
            if error is None:
                raise _unwritable(self.folder, late) from late
            # The first error is the one to tell.
            LOG.warning('%s', _unwritable(self.folder, late))

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: TrainState, data: grain.DatasetIterator) -> None:
        """Starts writing; training may go on at once, with the buffers donated.

        Raises:
          UserError: the save before this one, or this one, could not be written.
        """
        try:
            if self.latest != step:
                self._orbax.save_checkpointables_async(step, _parts(state, data), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            if hosts.is_lost(error):
                raise
            raise _unwritable(self.folder, error) from error

    def restore(self, step: int, wanted: TrainState, data: grain.DatasetIterator) -> TrainState:
        """The state of a step, on the mesh of `wanted`; the data go on where they were.

        Raises:
          UserError: the checkpoint has other names or shapes than the model.
        """
        folder = self.folder / str(step)
        check_fits(folder, wanted.ema_params)
        try:
            parts = self._orbax.load_checkpointables(step, _parts(wanted, data))
        except (ValueError, KeyError, OSError) as error:
            raise damaged(folder, error) from error
        return TrainState(params=parts[PARAMS], ema_params=parts[EMA], **parts[PROGRESS])


def _parts(state: TrainState, data: grain.DatasetIterator) -> dict[str, Any]:
    progress = {'step': state.step, 'opt_state': state.opt_state}
    if state.adversary is not None:
        progress |= {
            'adversary': state.adversary,
            'adversary_opt_state': state.adversary_opt_state,
        }
    position = _Position(data)
    return {PARAMS: state.params, EMA: state.ema_params, PROGRESS: progress, 'data': position}


class _Position:
    """Where the data are, as a part of a checkpoint: the number of batches, the same for any number of hosts.

    Grain's own way of saving has a file for each process, and reads that of as many processes only.
    """

    def __init__(self, data: grain.DatasetIterator):
        self._data = data

    async def save(self, directory: Any) -> Awaitable[None]:
        # Now, not in the background: the training goes on.
        state = json.dumps(self._data.get_state())

        async def write() -> None:
            folder = await directory.await_creation()
            if jax.process_index() == 0:
                await asyncio.to_thread((folder / _POSITION).write_text, state)

        return write()

    async def load(self, directory: Any) -> Awaitable[None]:
        async def read() -> None:
            # Before there were several hosts, Grain wrote process_0-of-1.json.
            names = (_POSITION, 'process_0-of-1.json')
            found = [path for path in (directory / name for name in names) if path.exists()]
            if not found:
                raise ValueError(f'{directory} has no {_POSITION}')
            self._data.set_state(json.loads(await asyncio.to_thread(found[0].read_text)))

        return read()


def _unwritable(folder: pathlib.Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return UserError(
        f'{folder}: a checkpoint could not be written ({reason}); free some space and run the same '
        'command again, it goes on from the newest complete checkpoint'
    )
