"""SDXL refiner: the last steps of a picture that base began, or a better version of a finished one.

  python sample.py --checkpoint sd_xl_base_1.0.safetensors --refiner sd_xl_refiner_1.0.safetensors \
      --handoff 0.2 --prompt 'a red fox in the snow' --output fox.png
  python sample.py --checkpoint sd_xl_refiner_1.0.safetensors --image fox.jpg --strength 0.3 \
      --prompt 'a red fox in the snow' --output better.png

Variants: '' (1024x1024, as sd_xl_refiner_1.0.safetensors) and 'tiny' (32x32 pixels, for a CPU).

SDXL base with another network, one text encoder, and an aesthetic score in place of the target size; the
values are those of sgm's sd_xl_refiner.yaml. The unconditional pass is told the empty prompt and a low score
(2.5 against 6), as in sgm's demo, and so is the training that drops the prompt. The paper trained it on the
200 noise levels with the least noise (arXiv:2307.01952, section 2.5).
"""

import pathlib

import ml_collections

from sgm_jax.config import check_variant, load_config

VARIANTS = ('', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    base = pathlib.Path(__file__).with_name('sdxl_base.py')
    config = load_config(f'{base}:{variant}')
    _, text, original_size, crop, target_size = config.model.conditioner
    text = {k: v for k, v in text.items() if k != 'ucg_group'}
    config.model.conditioner = (
        {**text, 'legacy_ucg_value': ''},
        original_size,
        crop,
        {**target_size, 'input_key': 'aesthetic_score'},
    )
    config.model.loss.sigma_sampling.idx_range = (0, 200)
    config.data.aesthetic_score = 6.0
    config.sample.zero = ()
    config.sample.update(aesthetic_score=6.0, negative_aesthetic_score=2.5)
    if variant == 'tiny':
        config.model.network.update(adm_in_channels=32 + 5 * 16, context_dim=32)
    else:
        config.model.network.update(
            model_channels=384,
            channel_mult=(1, 2, 4, 4),
            transformer_depth=(4, 4, 4, 4),
            context_dim=1280,
            adm_in_channels=2560,
        )
    return config
