"""sgm's class paths, and what each builds here from its YAML params. Everything is built abstractly."""

import functools
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import jax.numpy as jnp
from flax import nnx

from sgm_jax.conditioning.text import CLIPT5Text, CLIPText, OpenCLIPText, T5Text
from sgm_jax.config import call, check_keys, lookup, plain
from sgm_jax.errors import UserError
from sgm_jax.networks.autoencoder import Autoencoder, Decoder, Encoder
from sgm_jax.networks.clip import ARCHITECTURES, OpenCLIP, clip_preprocess
from sgm_jax.networks.discriminator import NLayerDiscriminator
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.lpips import LPIPS
from sgm_jax.networks.quantizers import EMAVectorQuantizer, GumbelQuantizer, VectorQuantizer
from sgm_jax.networks.unet import UNetModel
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.networks.video_unet import VideoUNet

# Params of the YAMLs that say how sgm runs a part, or picks one of its equivalent kernels.
RUN_NETWORK = {
    'use_checkpoint',
    'use_fp16',
    'legacy',
    'num_heads_upsample',
    'time_downup',
    'ckpt_path',
    'timesteps',
    'num_video_frames',
    'skip_video',
}
_RUN_AUTOENCODER = {
    'ae_optimizer_args',
    'additional_decode_keys',
    'ckpt_engine',
    'ckpt_path',
    'diff_boost_factor',
    'disc_optimizer_args',
    'disc_start_iter',
    'ema_decay',
    'input_key',
    'loss_config',
    'lossconfig',
    'lr_g_factor',
    'max_batch_size',
    'monitor',
    'optimizer_config',
    'trainable_ae_params',
    'trainable_disc_params',
}
_RUN_EMBEDDER = {'version', 'device', 'init_device', 'freeze', 'ucg_rate'}

# The temporal decoder's, which sgm's other coders take and drop: one node may serve all.
VIDEO_DECODER = {'video_kernel_size', 'alpha', 'merge_strategy', 'time_mode'}
# Between encoder and decoder, and without weights; its reading of the moments is regularizers.py's.
_NO_WEIGHTS = {
    'torch.nn.Identity',
    'sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer',
    'sgm.modules.autoencoding.regularizers.base.IdentityRegularizer',
}


def make(target: str, params: Mapping[str, Any]) -> nnx.Module:
    """An abstract module (no arrays) for a node of an sgm YAML."""
    return nnx.eval_shape(lambda: build(target, params))


def build(target: str, params: Mapping[str, Any]) -> nnx.Module:
    """The module itself, with fresh parameters."""
    return lookup(TARGETS, target, 'target')(plain(params or {}), Keys(0))


def _network(module: Callable, dropped: Set[str] = frozenset(), where: str = '') -> Callable:
    def build(params: dict, rngs: Keys) -> nnx.Module:
        options = {k: v for k, v in params.items() if k not in RUN_NETWORK | dropped}
        return call(module, options, where=where or module.__name__, rngs=rngs)

    return build


def _unet(module: Callable) -> Callable:
    def build(params: dict, rngs: Keys) -> nnx.Module:
        options = dict(params)
        kernel = options.pop('spatial_transformer_attn_type', 'softmax')
        if kernel not in ('softmax', 'softmax-xformers'):
            raise UserError(
                f'unknown spatial_transformer_attn_type {kernel!r}; choose softmax or softmax-xformers'
            )
        # A switch of sgm's first YAMLs; the attention blocks without it have left sgm since.
        if not options.pop('use_spatial_transformer', True):
            raise UserError('use_spatial_transformer: only true is supported')
        return _network(module)(options, rngs)

    return build


def _video_decoder(params: dict, rngs: Keys) -> nnx.Module:
    own = {k: v for k, v in params.items() if k in VIDEO_DECODER}

    # The temporal decoder hands the image decoder's keywords on: check them where they are spelled out.
    @functools.wraps(Decoder.__init__)
    def decoder(**options):
        return VideoDecoder(**own, **options)

    return _network(decoder, VIDEO_DECODER, 'VideoDecoder')(params, rngs)


_ENCODER, _DECODER = _network(Encoder, VIDEO_DECODER), _network(Decoder, VIDEO_DECODER)


def _autoencoder_kl(params: dict, rngs: Keys) -> nnx.Module:
    _check('AutoencoderKL', params, ('embed_dim', 'ddconfig'))
    config = params['ddconfig']
    return Autoencoder(
        _ENCODER(config, rngs),
        _DECODER(config, rngs),
        embed_dim=params['embed_dim'],
        z_channels=config['z_channels'],
        double_z=config.get('double_z', True),
        rngs=rngs,
    )


def _quantizer(module: Callable) -> Callable:
    def build(params: dict, rngs: Keys) -> nnx.Module:
        return call(module, params, where=module.__name__, rngs=rngs)

    return build


_QUANTIZE = 'sgm.modules.autoencoding.regularizers.quantize'
_QUANTIZERS = {
    f'{_QUANTIZE}.{module.__name__}': _quantizer(module)
    for module in (VectorQuantizer, EMAVectorQuantizer, GumbelQuantizer)
}


def _autoencoding_engine(params: dict, rngs: Keys) -> nnx.Module:
    nodes = ('encoder_config', 'decoder_config')
    _check('AutoencodingEngine', params, nodes, {'regularizer_config'})
    encoder, decoder = (params[name] for name in nodes)
    regularizer = params.get('regularizer_config')
    if regularizer is not None:
        choices = {**dict.fromkeys(_NO_WEIGHTS), **_QUANTIZERS}
        weighs = lookup(choices, regularizer.get('target'), 'regularizer_config') is not None
        regularizer = _part(regularizer) if weighs else None
    identity = encoder.get('target') == 'torch.nn.Identity'
    return Autoencoder(
        None if identity else _part(encoder),
        _part(decoder),
        rngs=rngs,
        regularization=regularizer,
    )


def _part(node: Mapping[str, Any]) -> nnx.Module:
    return build(node.get('target'), node.get('params', {}))


def _check(where: str, params: dict, needed: Iterable[str], more: Set[str] = frozenset()) -> None:
    check_keys(params, {*needed, *more, *_RUN_AUTOENCODER}, where=where)
    missing = [name for name in needed if name not in params]
    if missing:
        raise UserError(f'{where}: missing {", ".join(map(repr, missing))}')


class ImageEmbedder(nnx.Module):
    """sgm's FrozenOpenCLIPImageEmbedder: an OpenCLIP model under the name `model`.

    Args (sgm's names): antialias (blur before a reduction), unsqueeze_dim (tokens (n, 1, d) instead of
      (n, d)), repeat_to_max_len (a pair: max_length copies of the token, and the embedding),
      num_image_crops (images (n, crops, h, w, 3) to a pair: the crops' embeddings as tokens, padded with
      zeros to max_length, and the first of them), output_tokens (a pair: the patches' tokens, normed as
      in open_clip today, and the embedding).

    Calls: images (n, h, w, 3) in [-1, 1] -> (n, d), or as above.
    """

    def __init__(
        self,
        model: OpenCLIP,
        *,
        max_length: int = 77,
        antialias: bool = True,
        unsqueeze_dim: bool = False,
        repeat_to_max_len: bool = False,
        num_image_crops: int = 0,
        output_tokens: bool = False,
    ):
        if output_tokens and (repeat_to_max_len or num_image_crops):
            raise ValueError('output_tokens goes without repeat_to_max_len and num_image_crops')
        if unsqueeze_dim and num_image_crops:
            raise ValueError('num_image_crops goes without unsqueeze_dim: crops are tokens already')
        self.model = model
        self.max_length, self.antialias, self.crops = max_length, antialias, num_image_crops
        self.unsqueeze, self.repeat, self.tokens = unsqueeze_dim, repeat_to_max_len, output_tokens

    def __call__(self, images):
        images = images.reshape(-1, *images.shape[-3:])
        images = clip_preprocess(images, self.model.visual.image_size, antialias=self.antialias)
        if self.tokens:
            z, tokens = self.model.visual.with_tokens(images)
            return tokens, z[:, None] if self.unsqueeze else z
        z = self.model.visual(images)
        if self.crops:
            z = z.reshape(-1, self.crops, z.shape[-1])
            z = jnp.pad(z, ((0, 0), (0, self.max_length - self.crops), (0, 0)))
            return z, z[:, 0]
        token = z[:, None]
        z = token if self.unsqueeze else z
        return (jnp.repeat(token, self.max_length, 1), z) if self.repeat else z


_ARCHITECTURE = ('embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu')


def _image_embedder(params: dict, rngs: Keys) -> nnx.Module:
    model = OpenCLIP(**architecture(params), rngs=rngs)
    apart = {'arch', *_ARCHITECTURE, *_RUN_EMBEDDER}
    options = {k: v for k, v in params.items() if k not in apart}
    return call(ImageEmbedder, options, where='FrozenOpenCLIPImageEmbedder', model=model)


def architecture(params: Mapping[str, Any]) -> dict:
    """open_clip's config of the model that `arch` names; or the config itself, in place of a name."""
    if 'text_cfg' in params or 'vision_cfg' in params:
        return {k: params[k] for k in _ARCHITECTURE if k in params}
    arch = params.get('arch', 'ViT-H-14')
    config = dict(arch) if isinstance(arch, Mapping) else lookup(ARCHITECTURES, arch, 'arch')
    # OpenAI's own weights were trained with the quick GELU, whatever the architecture's file says.
    return {**config, 'quick_gelu': True} if params.get('version') == 'openai' else config


# The words of transformers' config.json for the sizes, which may stand in a node in place of a version.
_CLIP_SIZES = {
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'max_position_embeddings',
    'hidden_act',
    'eos_token_id',
}
_T5_SIZES = {
    'vocab_size',
    'd_model',
    'd_kv',
    'd_ff',
    'num_layers',
    'num_heads',
    'relative_attention_num_buckets',
    'relative_attention_max_distance',
    'layer_norm_epsilon',
}
# What a config.json says besides, which the encoder's numbers don't depend on.
_NOT_SIZES = {'bos_token_id', 'pad_token_id', 'projection_dim'}


def _text(module: Callable, version: str, sizes: Set[str]) -> Callable:
    def build(params: dict, rngs: Keys) -> nnx.Module:
        own = {k: v for k, v in params.items() if k in sizes}
        apart = sizes | _RUN_EMBEDDER | _NOT_SIZES
        options = {k: v for k, v in params.items() if k not in apart}
        arch = own or params.get('version', version)
        return call(module, options, where=module.__name__, arch=arch, rngs=rngs)

    return build


def _open_clip_text(params: dict, rngs: Keys) -> nnx.Module:
    apart = {'arch', *_ARCHITECTURE, *_RUN_EMBEDDER}
    options = {k: v for k, v in params.items() if k not in apart}
    arch = architecture(params)
    return call(OpenCLIPText, options, where='OpenCLIPText', arch=arch, rngs=rngs)


def _clip_t5(params: dict, rngs: Keys) -> nnx.Module:
    names = {'clip_version': 'clip_arch', 't5_version': 't5_arch'}
    options = {names.get(k, k): v for k, v in params.items() if k != 'device'}
    return call(CLIPT5Text, options, where='CLIPT5Text', rngs=rngs)


_DIFFUSION = 'sgm.modules.diffusionmodules'
_ENCODERS = 'sgm.modules.encoders.modules'
TARGETS = {
    'sgm.modules.autoencoding.lpips.model.model.NLayerDiscriminator': _network(NLayerDiscriminator),
    f'{_DIFFUSION}.openaimodel.UNetModel': _unet(UNetModel),
    f'{_DIFFUSION}.video_model.VideoUNet': _unet(VideoUNet),
    f'{_DIFFUSION}.model.Encoder': _ENCODER,
    f'{_DIFFUSION}.model.Decoder': _DECODER,
    'sgm.modules.autoencoding.temporal_ae.VideoDecoder': _video_decoder,
    'sgm.models.autoencoder.AutoencoderKL': _autoencoder_kl,
    'sgm.models.autoencoder.AutoencoderKLModeOnly': _autoencoder_kl,
    'sgm.models.autoencoder.AutoencodingEngine': _autoencoding_engine,
    'sgm.modules.autoencoding.lpips.loss.lpips.LPIPS': _network(LPIPS, {'use_dropout'}),
    f'{_ENCODERS}.FrozenOpenCLIPImageEmbedder': _image_embedder,
    f'{_ENCODERS}.FrozenCLIPEmbedder': _text(CLIPText, 'clip-vit-large-patch14', _CLIP_SIZES),
    f'{_ENCODERS}.FrozenOpenCLIPEmbedder': _open_clip_text,
    f'{_ENCODERS}.FrozenOpenCLIPEmbedder2': _open_clip_text,
    f'{_ENCODERS}.FrozenT5Embedder': _text(T5Text, 't5-v1_1-xxl', _T5_SIZES),
    f'{_ENCODERS}.FrozenByT5Embedder': _text(T5Text, 'byt5-base', _T5_SIZES),
    f'{_ENCODERS}.FrozenCLIPT5Encoder': _clip_t5,
    **_QUANTIZERS,
}
