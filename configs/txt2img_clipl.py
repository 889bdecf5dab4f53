"""A text-to-image model of Stable Diffusion 1's size, trained from scratch on CLIP-L's text.

  python train.py --config configs/txt2img_clipl.py --workdir runs/clipl \
      --config.model.checkpoint=encoders.safetensors --config.data.path=/pictures

Variants: '' (256x256: prompts are dropped by zeroing their embeddings), 'legacy_ucg' (by giving the empty
prompt, with the text encoder trained along, as sgm's recipe of that name), and 'tiny' (32x32 pixels, for a
CPU).

The recipes are sgm's example_training/txt2img-clipl.yaml and txt2img-clipl-legacy-ucg-training.yaml: batch
64, learning rate 1e-4 after 10000 steps of warm-up. The network starts at random (model.from_scratch); the
first stage and the text encoder come from model.checkpoint, a file with those two under sgm's names
(first_stage_model. and conditioner.embedders.0.), such as python -m sgm_jax.tools.convert makes.
"""

import pathlib

import ml_collections

from sgm_jax.config import check_variant, load_config

VARIANTS = ('', 'legacy_ucg', 'tiny')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The config of a variant."""
    check_variant(__file__, variant, VARIANTS)
    # Most is as in the other text-to-image models: what differs is the recipe.
    base = pathlib.Path(__file__).with_name('sdxl_base.py')
    tiny = variant == 'tiny'
    config = load_config(f'{base}:{"tiny" if tiny else ""}')
    clip, _, original_size, crop, _ = config.model.conditioner
    dropped = {'ucg_rate': 0.1}
    text = {k: v for k, v in clip.items() if k not in ('layer_idx', 'ucg_group')}
    text = {**text, 'layer': 'last', 'always_return_pooled': True, **dropped}
    if variant == 'legacy_ucg':
        text = {**text, 'legacy_ucg_value': '', 'is_trainable': True}
    config.model.conditioner = (text, {**original_size, **dropped}, {**crop, **dropped})
    config.model.from_scratch = True
    config.model.loss.offset_noise_level = 0.0
    config.sample.guider.scale = 7.5
    config.sample.steps = 50
    config.sample.zero = () if variant == 'legacy_ucg' else ('txt',)
    if tiny:
        config.model.network.update(adm_in_channels=32 + 4 * 16, context_dim=32)
        config.sample.steps = 20
        return config
    config.model.network.update(
        attention_resolutions=(1, 2, 4),
        channel_mult=(1, 2, 4, 4),
        use_linear_in_transformer=False,
        transformer_depth=(1, 1, 1, 1),
        context_dim=768,
        adm_in_channels=1792,
    )
    config.data.update(height=256, width=256)
    config.optimizer.update(learning_rate=1e-4)
    config.schedule.warmup_steps = 10_000
    config.train.steps = 1_000_000
    config.sample.update(height=256, width=256, decode_chunk=0)
    return config
