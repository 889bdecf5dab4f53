"""A first stage with a codebook (VQGAN): pictures to the nearest of 16384 codes, one for each 8x8 pixels.

  python train.py --config configs/autoencoder_vq_f8.py --workdir runs/vq_f8 --config.data.path=/pictures

The size is that of Rombach et al. 2022 (arXiv:2112.10752), table 8: 16384 codes of 4 channels. Variants:
'' and 'tiny' (256 codes that are running averages, for a CPU). `val_ema/dead_codes` says how many codes no
held-out latent is nearest to.
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
    coder = {**config.model.first_stage.ddconfig, 'double_z': False, 'z_channels': 4}
    quantizer = {'name': 'vector_quantizer', 'n_e': 16384, 'e_dim': 4, 'beta': 0.25}
    if variant == 'tiny':
        quantizer = {
            'name': 'ema_vector_quantizer',
            'n_embed': 256,
            'embedding_dim': 4,
            'beta': 0.25,
        }
    config.model.first_stage = {
        'name': 'autoencoder',
        'encoder': coder,
        'decoder': coder,
        'regularizer': quantizer,
        'embed_dim': 4,
    }
    config.model.loss.regularization_weights = ml_collections.ConfigDict({'loss/vq': 1.0})
    return config
