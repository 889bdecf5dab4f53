"""The demo from end to end, with few steps: the same program, the same clips, the same files."""

import pathlib
import subprocess
import sys

import pytest

from sgm_jax.sampling import media

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHORT = """
from sgm_jax.config import load_config


def get_config(variant=''):
    config = load_config({path!r} + (':' + variant if variant else ''))
    config.train.update(steps=2, image_every=0, batch_size=2)
    config.schedule.warmup_steps = 1
    if 'sample' in config:
        config.sample.steps = 2
    return config
"""


@pytest.mark.slow
def test_demo(tmp_path):
    configs = tmp_path / 'configs'
    configs.mkdir()
    for name in ('svd.py', 'demo_first_stage.py'):
        (configs / name).write_text(SHORT.format(path=str(ROOT / 'configs' / name)))
    folder = tmp_path / 'demo'
    words = ['-m', 'sgm_jax.tools.demo', f'--folder={folder}', f'--configs={configs}']
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    for name in ('video.mp4', 'held_out_and_sampled.png', 'svd/checkpoints'):
        assert str(folder / name) in done.stdout
        assert (folder / name).exists()
    frames, _ = media.read_video(folder / 'video.mp4')
    # Three clips of eight frames of 64x64, side by side; and each below its original.
    assert frames.shape == (8, 64, 192, 3)
    assert media.read_image(folder / 'held_out_and_sampled.png').shape == (6 * 64, 8 * 64, 3)
