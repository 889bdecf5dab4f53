r"""The temporal decoder of Stable Video Diffusion, trained from a decoder of pictures; the encoder is frozen.

  python train.py --config configs/svd_decoder.py --workdir runs/svd_decoder \
      --config.model.checkpoint=vae.safetensors --config.data.path=/videos

The checkpoint is an image autoencoder's (sgm's names, alone or inside a whole model) or a workdir of
autoencoder_kl_f8.py; what mixes time starts fresh, as it begins: a block over time adds nothing. With
svd.safetensors instead, the published temporal decoder is trained on.

Source: Blattmann et al. 2023 (SVD, arXiv:2311.15127), appendix D: the decoder is fine-tuned on clips, the
encoder kept. Variants: '' (8 frames of 256x256), and 'tiny' (4 frames of 64x64, for a CPU).
"""

import pathlib

import ml_collections

from sgm_jax.config import check_variant, load_config

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    base = pathlib.Path(__file__).with_name('autoencoder_kl_f8.py')
    config = load_config(f'{base}:{variant}')
    coder = dict(config.model.first_stage.ddconfig)
    config.model.first_stage = {
        'name': 'autoencoder',
        'encoder': coder,
        'decoder': {'name': 'video_decoder', 'video_kernel_size': (3, 1, 1), **coder},
        'embed_dim': coder['z_channels'],
    }
    config.model.trained = ('decoder',)
    size = 64 if variant == 'tiny' else 256
    config.data = {
        'name': 'video_clips',
        'path': 'demo' if variant == 'tiny' else '',
        'num_frames': 4 if variant == 'tiny' else 8,
        'height': size,
        'width': size,
        'frame_rates': (6, 30),
        'min_motion': 0.0,
        'cuts': 'keep',
        'buckets': (),  # sizes (frames, height, width)
        'max_damaged': 0.01,
    }
    config.train.batch_size = 2 if variant == 'tiny' else 16
    config.optimizer.learning_rate = 5e-4 if variant == 'tiny' else 1e-5
    if variant == 'tiny':
        config.schedule.end = 5e-5
    return config
