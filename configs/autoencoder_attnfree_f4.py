"""An autoencoder without attention: pictures to 4 channels of a quarter of their side.

  python train.py --config configs/autoencoder_attnfree_f4.py --workdir runs/f4 --config.data.path=/pictures

sgm's example_training/autoencoder/kl-f4/imagenet-attnfree-logvar.yaml: four blocks per level, and the scale
of the reconstruction's error learned. Variants: '' and 'tiny' (for a CPU).
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
    coder.update(attn_type='none', z_channels=4, num_res_blocks=4, ch_mult=(1, 2, 4))
    if variant == 'tiny':
        coder.update(num_res_blocks=1, ch_mult=(1, 2, 2))
    config.model.first_stage = {'name': 'autoencoder', 'encoder': coder, 'decoder': coder}
    return config
