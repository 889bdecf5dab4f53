"""The number for how much a clip moves."""

import numpy as np
import pytest
from PIL import Image

from sgm_jax.data import clips, files, motion


def _gliding(pixels_per_frame: float, height: int = 128) -> np.ndarray:
    """Soft noise that slides sideways: 8 frames, square."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, 60, 3), dtype=np.uint8)
    wall = np.asarray(Image.fromarray(noise).resize((480, height), Image.Resampling.BICUBIC))
    starts = (np.arange(8) * pixels_per_frame).round().astype(int)
    return np.stack([wall[:, s : s + height] for s in starts])


def test_still_is_zero():
    assert motion.motion_bucket_id(_gliding(0)) == 0
    assert motion.motion_bucket_id(_gliding(0)[:1]) == 0


def test_translation_is_measured_in_frame_heights():
    assert motion.mean_flow(_gliding(4)) == pytest.approx(4 / 128, rel=0.15)
    down = _gliding(4).swapaxes(1, 2)
    assert motion.mean_flow(down) == pytest.approx(4 / 128, rel=0.15)


def test_faster_is_larger():
    buckets = [motion.motion_bucket_id(_gliding(speed)) for speed in (0, 0.5, 1, 2, 4, 8)]
    assert buckets == sorted(set(buckets))
    assert all(0 <= b <= 255 and b == int(b) for b in buckets)


def test_one_percent_per_frame_is_the_middle():
    # 2 of 200 rows or columns per frame.
    assert motion.motion_bucket_id(_gliding(2, height=200)) == pytest.approx(127, abs=12)


def test_real_clips_are_told_apart():
    medians = []
    for path in files.demo_clips():
        info = clips.read_info(path)
        size = (72, round(72 * info.width / info.height))
        frames, available = clips.read_span(info, (0.0, 4.0), size=size)
        windows = [start + np.arange(8) / 7 for start in np.linspace(0, 2.8, 8)]
        medians.append(
            np.median(
                [
                    motion.motion_bucket_id(frames[clips.nearest(info, available, w)])
                    for w in windows
                ]
            )
        )
    animation, phone, street = medians[0], medians[2], medians[1]
    assert 30 < animation < phone < street < 245
