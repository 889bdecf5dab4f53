"""Checkpoints of exactly the trained state, with Orbax: written beside the run, whole or not at all.

One checkpointable per part, so that sampling reads `ema_params` alone.
"""

import logging
import pathlib
from types import TracebackType
from typing import Any

import grain
from orbax.checkpoint import v1 as ocp

from sgm_jax.errors import UserError
from sgm_jax.interop.workdir_files import CHECKPOINTS, EMA, PARAMS, PROGRESS, check_fits, damaged
from sgm_jax.training.state import TrainState

LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a workdir; a context that ends when the last one is on the disk."""

    def __init__(self, workdir: pathlib.Path, *, keep: int):
        if keep < 1:
            raise UserError(f'train.keep is {keep}; give 1 or more')
        self.folder = workdir / CHECKPOINTS
        # What a killed process left half written has a temporary name, and goes now.
        self._orbax = ocp.training.Checkpointer(
            self.folder,
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
    return {PARAMS: state.params, EMA: state.ema_params, PROGRESS: progress, 'data': data}


def _unwritable(folder: pathlib.Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return UserError(
        f'{folder}: a checkpoint could not be written ({reason}); free some space and run the same '
        'command again, it goes on from the newest complete checkpoint'
    )
