"""Whether the data are what a diffusion model is to be trained on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sgm_jax.engines.model import check_pixels
from sgm_jax.engines.tasks import learned
from sgm_jax.errors import UserError


def check_record(
    engine: Any, record: Mapping[str, np.ndarray], *, any_length: bool = False
) -> None:
    """Raises a UserError if an example (without a batch axis) does not fit a DiffusionEngine."""
    shape = record[learned(record)].shape
    if 'moments' in record:
        _check_fingerprint(engine, record)
        factor = engine.first_stage_factor
        shape = *shape[:-3], *(factor * side for side in shape[-3:-1]), shape[-1]
    _check_pictures(engine, shape, any_length)
    wanted = engine.structure.shape.conditioner.reads_beside(record)
    missing = sorted(wanted - set(engine.task.makes) - set(record))
    if missing:
        raise UserError(
            f'the data has no {missing[0]!r}, which model.conditioner reads; it has: '
            f'{", ".join(sorted(record))}; choose another source, or its options'
        )


def _check_pictures(engine: Any, shape: tuple[int, ...], any_length: bool) -> None:
    num_frames = engine.task.num_frames
    if len(shape) != (3 if num_frames is None else 4):
        wanted = 'pictures' if num_frames is None else 'clips'
        raise UserError(
            f'model.task needs {wanted}, and the data gives arrays of shape {shape}; choose another '
            'data.name or model.task'
        )
    if num_frames is not None and shape[0] != num_frames and not any_length:
        raise UserError(
            f'data.num_frames is {shape[0]} and model.task.num_frames is {num_frames}; '
            'give both the same value'
        )
    check_pixels(engine.factor, *shape[-3:-1])


def _check_fingerprint(engine: Any, record: Mapping[str, np.ndarray]) -> None:
    if str(record['fingerprint']) != engine.fingerprint:
        raise UserError(
            f'data: the cache was made by other encoders ({record["fingerprint"]}) than this '
            f"model's ({engine.fingerprint}); make it anew with python -m sgm_jax.tools.cache_latents"
        )
