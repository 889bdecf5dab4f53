"""Small models of the published kinds, whole, for comparisons with diffusers: sgm's words, and weights."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))

import golden

from sgm_jax.interop import to_sgm
from sgm_jax.interop.targets import make

_DIFFUSION, _ENCODERS = 'sgm.modules.diffusionmodules', 'sgm.modules.encoders.modules'
NETWORK, STAGE, FRAME = (
    'model.diffusion_model.',
    'first_stage_model.',
    'conditioner.embedders.3.encoder.',
)
IMAGE = 'conditioner.embedders.0.'
TEXTS = ('conditioner.embedders.0.', 'conditioner.embedders.1.')
WORDS, LAYERS, HEAD, FRAMES = 60, 3, 16, 3

_SIZES = {
    'in_channels': 4,
    'out_channels': 4,
    'model_channels': 32,
    'num_res_blocks': 2,
    'num_head_channels': 32,
    'use_linear_in_transformer': True,
    'num_classes': 'sequential',
}
_PICTURES = {
    'z_channels': 4,
    'in_channels': 3,
    'out_ch': 3,
    'ch': 32,
    'ch_mult': [1, 2],
    'num_res_blocks': 1,
    'attn_resolutions': [],
    'double_z': True,
    'resolution': 16,
}
_AUTOENCODER = (
    'sgm.models.autoencoder.AutoencoderKL',
    {'embed_dim': 4, 'ddconfig': _PICTURES},
)
# As many blocks as the middle has, which diffusers' temporal decoder needs.
_FRAMES = {**_PICTURES, 'num_res_blocks': 2}
SDXL = {
    NETWORK: (
        f'{_DIFFUSION}.openaimodel.UNetModel',
        {
            **_SIZES,
            'channel_mult': [1, 2],
            'attention_resolutions': [2],
            'transformer_depth': [1, 2],
            'context_dim': 96,
            'adm_in_channels': 64 + 6 * 8,
        },
    ),
    STAGE: _AUTOENCODER,
}
SVD = {
    NETWORK: (
        f'{_DIFFUSION}.video_model.VideoUNet',
        {
            **_SIZES,
            'in_channels': 8,
            'channel_mult': [1, 2, 2],
            'attention_resolutions': [2, 1],
            'transformer_depth': 1,
            'context_dim': 24,
            'adm_in_channels': 3 * 8,
            'use_spatial_context': True,
            'extra_ff_mix_layer': True,
            'merge_strategy': 'learned_with_images',
            'video_kernel_size': [3, 1, 1],
        },
    ),
    STAGE: (
        'sgm.models.autoencoder.AutoencodingEngine',
        {
            'encoder_config': {'target': f'{_DIFFUSION}.model.Encoder', 'params': _FRAMES},
            'decoder_config': {
                'target': 'sgm.modules.autoencoding.temporal_ae.VideoDecoder',
                'params': {**_FRAMES, 'video_kernel_size': [3, 1, 1]},
            },
        },
    ),
    FRAME: (_AUTOENCODER[0], {'embed_dim': 4, 'ddconfig': _FRAMES}),
    IMAGE: (
        f'{_ENCODERS}.FrozenOpenCLIPImageEmbedder',
        {
            'embed_dim': 24,
            'vision_cfg': {
                'image_size': 32,
                'layers': 2,
                'width': 2 * HEAD,
                'head_width': HEAD,
                'patch_size': 8,
            },
            'text_cfg': {
                'context_length': 4,
                'vocab_size': WORDS,
                'width': 24,
                'heads': 1,
                'layers': 0,
            },
        },
    ),
}
TEXT_TARGETS = (
    (
        f'{_ENCODERS}.FrozenCLIPEmbedder',
        {
            'vocab_size': WORDS,
            'hidden_size': 32,
            'intermediate_size': 128,
            'num_hidden_layers': LAYERS,
            'num_attention_heads': 32 // HEAD,
            'eos_token_id': WORDS - 1,
            'layer': 'hidden',
            'layer_idx': -2,
        },
    ),
    (
        f'{_ENCODERS}.FrozenOpenCLIPEmbedder2',
        {
            'embed_dim': 64,
            'text_cfg': {
                'context_length': 77,
                'vocab_size': WORDS,
                'width': 64,
                'heads': 64 // HEAD,
                'layers': LAYERS,
            },
            'layer': 'penultimate',
            'legacy': False,
            'always_return_pooled': True,
        },
    ),
)


def weights(model: dict) -> dict[str, np.ndarray]:
    """A whole checkpoint, made from its names; of SDXL with its text encoders."""
    shapes = {}
    for prefix, (target, params) in model.items():
        # Inside sgm's embedder the model is under one more name.
        inner = f'{prefix}open_clip.' if prefix == IMAGE else prefix
        shapes |= {inner + name: x.shape for name, x in to_sgm(make(target, params)).items()}
    if model is SDXL:
        shapes |= _texts()
    return {name: golden.generate(name, shape) for name, shape in shapes.items()}


def _texts() -> dict[str, tuple[int, ...]]:
    """SDXL's two text encoders: a 24th of CLIP-L's width, a 20th of bigG's, and few layers."""
    shapes, words = {}, {49408: WORDS, 77: 77}
    for name, shape in golden.manifest('sd_xl_base').items():
        layer = next((int(part) for part in name.split('.')[3:] if part.isdigit()), -1)
        if name.startswith(TEXTS) and layer < LAYERS:
            by = 24 if name.startswith(TEXTS[0]) else 20
            shapes[name] = tuple(words.get(n, n // by) for n in shape)
    return shapes
