"""The smallest thing that trains: for tests of what is around a step, which every model shares.

An autoencoder of synthetic frames, in a tenth of the time that the smallest video model takes to compile.
"""

import ml_collections

from sgm_jax.config import load_config

SIZE = 8


def config(**train) -> ml_collections.ConfigDict:
    """demo_first_stage.py with eight channels and one level; `train` overrides `config.train`."""
    config = load_config('configs/demo_first_stage.py')
    coder = {
        'double_z': True,
        'z_channels': 2,
        'resolution': SIZE,
        'in_channels': 3,
        'out_ch': 3,
        'ch': 8,
        'ch_mult': (1, 1),
        'num_res_blocks': 1,
        'attn_resolutions': (),
        'attn_type': 'none',
        'dropout': 0.0,
        'norm_groups': 4,
    }
    config.model.first_stage = {'name': 'autoencoder_kl', 'embed_dim': 2, 'ddconfig': coder}
    config.data = {
        'name': 'synthetic_video',
        'num_frames': 1,
        'height': SIZE,
        'width': SIZE,
        'length': 16,
    }
    config.train = {
        'batch_size': 2,
        'steps': 4,
        'ema_decay': 0.9,
        'log_every': 2,
        'image_every': 0,
        'checkpoint_every': 2,
        'keep': 3,
        **train,
    }
    config.schedule = {'name': 'constant', 'warmup_steps': 2}
    return config
