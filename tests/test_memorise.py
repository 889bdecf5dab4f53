"""Memorising: trained on one real clip, the sampler gives the clip back from its first frame."""

import numpy as np
import pytest

from sgm_jax.config import load_config
from sgm_jax.data import files, pipeline
from sgm_jax.engines.structure import to_uint8
from sgm_jax.parallel import compiler
from sgm_jax.sampling.load import load
from sgm_jax.training.loop import train

FRAMES, SIZE = 6, 24


@pytest.mark.slow
def test_one_clip_comes_back(tmp_path, monkeypatch):
    # Here it is the running that takes long: compile as users do.
    quick = ('xla_backend_optimization_level', 'xla_llvm_disable_expensive_passes')
    as_ever = {k: v for k, v in compiler.OPTIONS['cpu'].items() if k not in quick}
    monkeypatch.setitem(compiler.OPTIONS, 'cpu', as_ever)
    config = load_config('configs/svd.py:tiny')
    config.model.first_stage = {'name': 'none'}
    config.model.network.update(in_channels=6, out_channels=3)
    config.model.task.num_frames = FRAMES
    # Small pictures hide in less noise than latents of large ones.
    config.model.loss.sigma_sampling.update(p_mean=0.3, p_std=1.5)
    config.model.conditioner = tuple(
        {**node, 'ucg_rate': 0.0} if 'ucg_rate' in node else node
        for node in config.model.conditioner
    )
    config.sample.guider = {'name': 'identity'}
    # One window of one file, the same every time.
    config.data = {
        'name': 'video_clips',
        'path': str(files.demo_clips()[1]),
        'num_frames': FRAMES,
        'height': SIZE,
        'width': SIZE,
        'frame_rates': 10,
        'random': False,
        'held_out_fraction': 0.0,
        'cache': True,
    }
    config.optimizer.update(learning_rate=4e-3, b2=0.99)
    config.schedule = {'name': 'cosine', 'warmup_steps': 20}
    config.train.update(
        batch_size=1, steps=360, ema_decay=0.97, image_every=0, log_every=50, checkpoint_every=360
    )
    train(config, tmp_path)

    source = pipeline.make_source(config.data)
    record = source.record(0, None)
    clip = to_uint8(record['jpg'])
    video = load(tmp_path).sample(
        image=clip[0],
        height=SIZE,
        width=SIZE,
        fps=int(record['fps_id']) + 1,
        motion_bucket=float(record['motion_bucket_id']),
        steps=10,
    )[0]
    assert video.shape == clip.shape
    psnr = lambda a, b: 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))
    # A still of the first frame is what a model that learned no motion would give.
    still = psnr(clip, np.repeat(clip[:1], FRAMES, 0))
    assert psnr(clip, video) > max(22.0, still + 3.0), (psnr(clip, video), still)
