"""SDXL Turbo: pictures from prompts in one to four steps, without guidance.

  python sample.py --config configs/sdxl_turbo.py --checkpoint sd_xl_turbo_1.0.safetensors \
      --prompt 'a red fox in the snow' --output fox.png

Variants: '' (512x512, as sd_xl_turbo_1.0.safetensors) and 'tiny' (as sdxl_base.py:tiny).

SDXL base with other weights and another way to sample: its tensors have the same names and shapes, so a
file is taken for this model only when this config is named. The steps begin at the noise levels 0, 100, 200
and 300 of the model's thousand, from the noisiest, and ancestral noise is added between them, as in sgm's
turbo demo (its SubstepSampler). What made Turbo of base, adversarial distillation (arXiv:2311.17042), is
not part of sgm; training here is plain training, as of base.
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
    config.sample.sampler = {'name': 'euler_ancestral'}
    config.sample.discretization = {'name': 'subset', 'subset': (0, 100, 200, 300)}
    config.sample.guider = {'name': 'identity'}
    config.sample.update(zero=(), steps=1)
    if not variant:
        config.data.update(height=512, width=512)
        config.sample.update(height=512, width=512)
    return config
