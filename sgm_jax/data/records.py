"""What a record of video holds; every source ends here."""

import numpy as np

from sgm_jax.data.motion import bucket_of, motion_bucket_id
from sgm_jax.errors import UserError
from sgm_jax.sampling.inputs import to_float


def video_record(
    frames: np.ndarray, rate: float, flow: float | None = None
) -> dict[str, np.ndarray]:
    """The record of uint8 frames (t, h, w, 3) at `rate` frames per second, with their mean `flow` if known.

    Returns:
      `jpg` float32 (t, h, w, 3) in [-1, 1]; `fps_id` float32 (), the rate minus one, as SVD was conditioned
      (sgm: scripts/sampling/simple_video_sample.py); `motion_bucket_id` float32 () in 0..255
      (`sgm_jax.data.motion`).
    """
    bucket = motion_bucket_id(frames) if flow is None else bucket_of(flow)
    return {
        'jpg': to_float(frames),
        'fps_id': np.float32(rate - 1),
        'motion_bucket_id': np.float32(bucket),
    }


def check_split(split: str) -> None:
    """Raises a UserError unless a source has this split."""
    if split not in ('train', 'held_out'):
        raise UserError(f'data: split is {split!r}; choose train or held_out')


def rate_range(frame_rates: int | tuple[int, int]) -> tuple[int, int]:
    """(lowest, highest) whole frames per second, of a source's `frame_rates`."""
    pair = tuple(frame_rates) if isinstance(frame_rates, (tuple, list)) else (frame_rates,) * 2
    whole = len(pair) == 2 and all(rate == int(rate) for rate in pair)
    if not whole or not 1 <= pair[0] <= pair[1]:
        raise UserError(
            f'data: frame_rates is {frame_rates}; it must be a whole number, or a pair of them with '
            '1 <= lowest <= highest'
        )
    return int(pair[0]), int(pair[1])
