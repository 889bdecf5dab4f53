"""The smallest Stable Video Diffusion that is still one: what the tests of training and sampling share."""

import ml_collections

from sgm_jax.config import load_config

FRAMES, SIZE = 2, 16


def config(**train) -> ml_collections.ConfigDict:
    """svd.py:tiny on pixels, of two frames, on synthetic clips; `train` overrides `config.train`."""
    config = load_config('configs/svd.py:tiny')
    image, fps, motion, frames, aug = config.model.conditioner
    clip = dict(image['arch'])
    clip['embed_dim'] = 16
    clip['vision_cfg'] = dict(image_size=16, layers=1, width=16, head_width=8, patch_size=8)
    clip['text_cfg'] = {**clip['text_cfg'], 'width': 16}
    config.model.conditioner = (
        {**image, 'arch': clip},
        {**fps, 'outdim': 8},
        {**motion, 'outdim': 8},
        frames,
        {**aug, 'outdim': 8},
    )
    config.model.first_stage = {'name': 'none'}
    config.model.network.update(
        in_channels=6,
        out_channels=3,
        model_channels=32,
        channel_mult=(1, 1),
        attention_resolutions=(2,),
        num_head_channels=16,
        adm_in_channels=24,
        context_dim=16,
    )
    config.model.task.num_frames = FRAMES
    config.data = {
        'name': 'synthetic_video',
        'num_frames': FRAMES,
        'height': SIZE,
        'width': SIZE,
        'length': 16,
    }
    config.train = {
        'batch_size': 2,
        'steps': 4,
        'clip_norm': 1.0,
        'ema_decay': 0.9,
        'log_every': 2,
        'image_every': 0,
        'checkpoint_every': 2,
        'keep': 3,
        **train,
    }
    config.optimizer.update(learning_rate=5e-4, b2=0.999)
    config.schedule = {'name': 'constant', 'warmup_steps': 2}
    config.sample.update(steps=2, height=SIZE, width=SIZE)
    return config
