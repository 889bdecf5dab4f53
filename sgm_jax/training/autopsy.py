"""What is left of a step whose numbers broke: the state and the batch that it was made of."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.interop.whole_files import whole
from sgm_jax.training.checkpoints import write_state
from sgm_jax.training.state import TrainState

LOG = logging.getLogger(__name__)
BROKEN, STATE, WHAT = 'broken', 'state', 'what.json'


def keep(
    workdir: pathlib.Path,
    step: int,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    *,
    position: Mapping[str, Any],
    values: Mapping[str, float],
    turn: str,
) -> pathlib.Path | None:
    """Writes broken/STEP/: `state` as it was before the step, `batch_PROCESS.npz`, and `what.json`.

    Args:
      state: a broken step has not changed it.
      batch: as the step was given it; each process writes the rows that it has.
      position: of the data, after the batch.
      values: what the step returned.
      turn: who learned.

    Returns:
      The folder; None, and a warning, where it could not be written.
    """
    folder = workdir / BROKEN / str(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / f'batch_{jax.process_index()}.npz') as file:
            np.savez(file, **{name: _rows(array) for name, array in batch.items()})
        if jax.process_index() == 0:
            numbers = {name: repr(float(value)) for name, value in values.items()}
            what = {'step': step, 'turn': turn, 'values': numbers}
            with whole(folder / WHAT) as file:
                file.write((json.dumps(what, indent=2) + '\n').encode())
        write_state(folder / STATE, state, position)
    except (OSError, ValueError, RuntimeError) as error:
        LOG.warning('%s: what broke could not be written (%s)', folder, str(error).splitlines()[0])
        return None
    return folder


def error(
    values: Mapping[str, float], broken: list[str], step: int, saved: int | None, folder: Any
) -> UserError:
    """What is said of it."""
    since = (
        'there is no checkpoint yet' if saved is None else f'the newest checkpoint is step {saved}'
    )
    where = f'; the batch and the state that it came from are in {folder}' if folder else ''
    shown = ', '.join(broken) or 'a number'
    return UserError(
        f'{shown} is no longer finite in step {step}; nothing was saved since ({since}); lower '
        f'optimizer.learning_rate or set train.clip_norm{where}'
    )


def _rows(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {str(shard.index): shard for shard in array.addressable_shards}
    ordered = sorted(shards.values(), key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in ordered])
