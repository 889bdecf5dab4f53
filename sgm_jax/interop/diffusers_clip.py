"""The tables of CLIP's towers: sgm's names (open_clip's, or those of transformers) and transformers'.

See diffusers_names.py. Sources: open_clip's model.py and transformer.py, transformers' modeling_clip.py.
"""

import re
from collections.abc import Iterable

from sgm_jax.interop.diffusers_names import Pairs, Table

_BLOCK = [
    ('ln_1.', 'layer_norm1.'),
    ('ln_2.', 'layer_norm2.'),
    ('attn.q_proj.', 'self_attn.q_proj.'),
    ('attn.k_proj.', 'self_attn.k_proj.'),
    ('attn.v_proj.', 'self_attn.v_proj.'),
    ('attn.out_proj.', 'self_attn.out_proj.'),
    ('mlp.c_fc.', 'mlp.fc1.'),
    ('mlp.c_proj.', 'mlp.fc2.'),
]
_TEXT = [
    ('token_embedding.', 'text_model.embeddings.token_embedding.'),
    ('positional_embedding', 'text_model.embeddings.position_embedding.weight'),
    ('ln_final.', 'text_model.final_layer_norm.'),
]
_VISION = [
    ('visual.class_embedding', 'vision_model.embeddings.class_embedding'),
    ('visual.conv1.', 'vision_model.embeddings.patch_embedding.'),
    ('visual.positional_embedding', 'vision_model.embeddings.position_embedding.weight'),
    ('visual.ln_pre.', 'vision_model.pre_layrnorm.'),
    ('visual.ln_post.', 'vision_model.post_layernorm.'),
    ('visual.proj', 'visual_projection.weight'),
]
_OURS, _THEIRS = r'\w*\.?transformer\.resblocks\.(\d+)\.', r'\w+_model\.encoder\.layers\.(\d+)\.'


def layers_of(names: Iterable[str]) -> int:
    """How many layers a tower has, by the names of either side."""
    numbers = (re.match(_OURS, name) or re.match(_THEIRS, name) for name in names)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def _blocks(layers: int, ours: str, theirs: str) -> Pairs:
    return [
        (f'{ours}.{index}.{a}', f'{theirs}.{index}.{b}')
        for index in range(layers)
        for a, b in _BLOCK
    ]


def _text(names: Iterable[str]) -> Pairs:
    blocks = _blocks(layers_of(names), 'transformer.resblocks', 'text_model.encoder.layers')
    return [*_TEXT, *blocks]


def _text_with_projection(names: Iterable[str]) -> Pairs:
    return [*_text(names), ('text_projection', 'text_projection.weight')]


def _penultimate(names: Iterable[str]) -> Pairs:
    # Before the last layer, where Stable Diffusion 2 takes the text's embedding, diffusers' copy ends.
    last = layers_of(names) - 1
    return [pair for pair in _text(names) if not pair[0].startswith(f'{_RESBLOCKS}{last}.')]


def _vision(names: Iterable[str]) -> Pairs:
    blocks = _blocks(
        layers_of(names), 'visual.transformer.resblocks', 'vision_model.encoder.layers'
    )
    return [*_VISION, *blocks]


_RESBLOCKS = 'transformer.resblocks.'
# transformers 5 leaves its prefix out where a model is a text tower and nothing else.
_PLAIN = [(f'text_model.{part}.', f'{part}.') for part in ('embeddings', 'encoder')]
_PLAIN += [('text_model.final_layer_norm.', 'final_layer_norm.')]

TEXT = Table(
    of_sgm=lambda names: [('text_model.', 'text_model.')],
    of_diffusers=lambda names: [('text_model.', 'text_model.'), *_PLAIN],
)
OPEN_CLIP_TEXT = Table(
    of_sgm=_text_with_projection,
    of_diffusers=_text_with_projection,
    turned='text_projection',
    spare='logit_scale',
    fused=True,
)
OPEN_CLIP_PENULTIMATE = Table(
    of_sgm=_penultimate,
    of_diffusers=_text,
    spare=r'logit_scale|text_projection|transformer\.resblocks\.\d+\..*',
    fused=True,
)
OPEN_CLIP_VISION = Table(
    of_sgm=_vision,
    of_diffusers=_vision,
    turned=r'visual\.proj',
    spare=r'logit_scale|text_projection|positional_embedding|token_embedding\..*|ln_final\..*',
    fused=True,
)
