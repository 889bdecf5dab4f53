"""Nodes of sgm's YAML files as nodes of this project's configs: {target, params} to {name, keywords}.

The classes of noise levels, losses, guidance and samplers have the same names on both sides, so their table
is made from ours; the other parts are listed.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sgm_jax.config import lookup
from sgm_jax.diffusion.families import FAMILIES
from sgm_jax.errors import UserError
from sgm_jax.interop.targets import RUN_NETWORK, VIDEO_DECODER

Node = Mapping[str, Any]

# What sgm's params call the families, where it differs from `<family>_config`.
_FAMILY_OF = {
    'scaling_config': 'scaling',
    'discretization_config': 'discretization',
    'sigma_sampler_config': 'sigma_sampling',
    'loss_weighting_config': 'weighting',
    'guider_config': 'guider',
}
# Classes that are called otherwise here.
_RENAMED = {'ZeroSampler': 'ZeroSampling'}
_KEYWORDS = {'loss_type': 'kind'}
# How sgm runs a part, and what only its own code knows.
_DROPPED = {
    'num_steps',
    'verbose',
    'device',
    'dyn_thresh_config',
    'additional_cond_keys',
    'batch2model_keys',
    'weighting_config',
}
# Checkpointing is a choice here, too.
_NETWORK_DROPPED = RUN_NETWORK - {'use_checkpoint'} | {
    'spatial_transformer_attn_type',
    'use_spatial_transformer',
}
_NETWORKS = {'UNetModel': 'unet', 'VideoUNet': 'video_unet'}
_SLOT = ('input_key', 'input_keys', 'ucg_rate', 'legacy_ucg_value', 'is_trainable')


def kind(node: Node, where: str) -> str:
    """The class that a node names, without its module: sgm's was called ldm and sgm."""
    if not isinstance(node, Mapping) or 'target' not in node:
        raise UserError(f'{where}: no target in it; nodes of sgm have target and params')
    return str(node['target']).rsplit('.', 1)[-1]


def params(node: Node) -> dict[str, Any]:
    """A node's params."""
    return dict(node.get('params') or {})


def family(name: str, node: Node, where: str) -> dict[str, Any]:
    """A node of `diffusion`: of the family `name`, with the nodes in it."""
    own = {cls.__name__: key for key, cls in FAMILIES[name].items()}
    found = kind(node, where)
    result = {'name': lookup(own, _RENAMED.get(found, found), f'{where}.target')}
    for key, value in params(node).items():
        if key in _FAMILY_OF:
            inner = _FAMILY_OF[key]
            # Samplers hold these two for sgm; here they lie beside the sampler.
            if name != 'sampler':
                result[inner] = family(inner, value, f'{where}.{key}')
        elif key not in _DROPPED:
            result[_KEYWORDS.get(key, key)] = value
    return result


def network(node: Node, where: str) -> dict[str, Any]:
    """A U-Net's node."""
    name = lookup(_NETWORKS, kind(node, where), f'{where}.target')
    own = {k: v for k, v in params(node).items() if k not in _NETWORK_DROPPED}
    return {'name': name, **own, 'dtype': 'auto', 'attention': 'auto'}


def first_stage(node: Node, where: str) -> dict[str, Any]:
    """An autoencoder's node."""
    found, own = kind(node, where), params(node)
    if found in ('IdentityFirstStage', 'Identity'):
        return {'name': 'none'}
    if found in ('AutoencoderKL', 'AutoencoderKLModeOnly', 'AutoencoderKLInferenceWrapper'):
        return {
            'name': 'autoencoder_kl',
            'embed_dim': own['embed_dim'],
            'ddconfig': _coder(own['ddconfig']),
        }
    if found != 'AutoencodingEngine':
        lookup(dict.fromkeys(('AutoencoderKL', 'AutoencodingEngine')), found, f'{where}.target')
    encoder, decoder = own['encoder_config'], own['decoder_config']
    video = kind(decoder, f'{where}.decoder_config') == 'VideoDecoder'
    result = {
        'name': 'autoencoder',
        'encoder': None if kind(encoder, where) == 'Identity' else _coder(params(encoder)),
        'decoder': {
            **_coder(params(decoder), video),
            'name': 'video_decoder' if video else 'decoder',
        },
    }
    regularizer = own.get('regularizer_config')
    if regularizer is not None:
        result['regularizer'] = _regularizer(regularizer, f'{where}.regularizer_config')
    return result


def _coder(own: Node, video: bool = False) -> dict[str, Any]:
    return {k: v for k, v in own.items() if video or k not in VIDEO_DECODER}


def _regularizer(node: Node, where: str) -> dict[str, Any]:
    names = {
        'Identity': 'identity',
        'IdentityRegularizer': 'identity',
        'DiagonalGaussianRegularizer': 'diagonal_gaussian',
        'VectorQuantizer': 'vector_quantizer',
        'EMAVectorQuantizer': 'ema_vector_quantizer',
        'GumbelQuantizer': 'gumbel_quantizer',
    }
    return {'name': lookup(names, kind(node, where), f'{where}.target'), **params(node)}


def embedder(node: Node, where: str) -> dict[str, Any]:
    """An embedder's node, with its slot's keys."""
    found = kind(node, where)
    made = lookup(_EMBEDDERS, found, f'{where}.target')(params(node), where)
    return {**made, **{key: node[key] for key in _SLOT if key in node}}


def _as(name: str, **always: Any) -> Callable[[Node, str], dict]:
    return lambda own, where: {'name': name, **own, **always}


def _clip(own: Node, where: str) -> dict[str, Any]:
    kept = _without(own, 'version', 'device', 'freeze')
    version = own.get('version', 'openai/clip-vit-large-patch14')
    return {'name': 'clip_text', 'arch': version, 'layer': 'last', **kept, 'dtype': 'auto'}


def _open_clip(own: Node, where: str) -> dict[str, Any]:
    kept = _without(own, 'version', 'device', 'freeze')
    return {'name': 'open_clip_text', 'arch': 'ViT-H-14', **kept, 'dtype': 'auto'}


def _t5(version: str) -> Callable[[Node, str], dict]:
    def make(own: Node, where: str) -> dict[str, Any]:
        kept = _without(own, 'version', 'device', 'freeze')
        return {'name': 't5_text', 'arch': own.get('version', version), **kept, 'dtype': 'auto'}

    return make


def _clip_t5(own: Node, where: str) -> dict[str, Any]:
    kept = _without(own, 'clip_version', 't5_version', 'device')
    archs = {
        'clip_arch': own.get('clip_version', 'openai/clip-vit-large-patch14'),
        't5_arch': own.get('t5_version', 'google/t5-v1_1-xl'),
    }
    return {'name': 'clip_t5_text', **archs, **kept, 'dtype': 'auto'}


def _image(own: Node, where: str) -> dict[str, Any]:
    inner = params(own.get('open_clip_embedding_config', {}))
    return {
        'name': 'open_clip_image',
        'arch': inner.get('arch', 'ViT-H-14'),
        'n_cond_frames': own.get('n_cond_frames', 1),
    }


def _video_prediction(own: Node, where: str) -> dict[str, Any]:
    return {
        'name': 'video_prediction',
        'encoder': first_stage(own['encoder_config'], f'{where}.encoder_config'),
        'n_cond_frames': own.get('n_cond_frames', 1),
        'scale_factor': own.get('scale_factor', 1.0),
    }


def _low_scale(own: Node, where: str) -> dict[str, Any]:
    model = first_stage(own['model_config'], f'{where}.model_config')
    return {'name': 'low_scale', 'model': model, **_without(own, 'model_config')}


def _gaussian(own: Node, where: str) -> dict[str, Any]:
    coder = _without(own, 'weight', 'flatten_output')
    flat = own.get('flatten_output', True)
    return {'name': 'gaussian', 'ddconfig': coder, 'flatten_output': flat}


def _without(own: Node, *names: str) -> dict[str, Any]:
    return {k: v for k, v in own.items() if k not in names}


_EMBEDDERS = {
    'ConcatTimestepEmbedderND': _as('concat_timestep'),
    'ClassEmbedder': _as('class'),
    'IdentityEncoder': _as('identity'),
    'SpatialRescaler': lambda own, where: {
        'name': 'spatial_rescaler',
        **_without(own, 'remap_output'),
    },
    'LowScaleEncoder': _low_scale,
    'GaussianEncoder': _gaussian,
    'FrozenCLIPEmbedder': _clip,
    'FrozenOpenCLIPEmbedder': _open_clip,
    'FrozenOpenCLIPEmbedder2': _open_clip,
    'FrozenT5Embedder': _t5('google/t5-v1_1-xxl'),
    'FrozenByT5Embedder': _t5('google/byt5-base'),
    'FrozenCLIPT5Encoder': _clip_t5,
    'FrozenOpenCLIPImagePredictionEmbedder': _image,
    'VideoPredictionEmbedderWithEncoder': _video_prediction,
}
