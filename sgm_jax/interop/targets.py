"""sgm's class paths, and what each builds here from its YAML params. Everything is built abstractly."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from sgm_jax.config import call, lookup, plain
from sgm_jax.networks.autoencoder import Autoencoder, Decoder, Encoder
from sgm_jax.networks.clip import ARCHITECTURES, OpenCLIP
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.unet import UNetModel
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.networks.video_unet import VideoUNet

# Params of the YAMLs that say how sgm runs a network, or picks one of its equivalent kernels.
_IGNORED = {
    'spatial_transformer_attn_type',
    'use_checkpoint',
    'legacy',
    'dims',
    'use_fp16',
    'num_heads_upsample',
    'time_downup',
    'ckpt_path',
    'timesteps',
    'num_video_frames',
    'skip_video',
}


def make(target: str, params: Mapping[str, Any]) -> nnx.Module:
    """An abstract module (no arrays) for a node of an sgm YAML."""
    return nnx.eval_shape(lambda: build(target, params))


def build(target: str, params: Mapping[str, Any]) -> nnx.Module:
    """The module itself, with fresh parameters."""
    return lookup(TARGETS, target, 'target')(plain(params), Keys(0))


def _network(module: Callable) -> Callable:
    def build(params: dict, rngs: Keys) -> nnx.Module:
        options = {k: v for k, v in params.items() if k not in _IGNORED}
        return call(module, options, where=module.__name__, rngs=rngs)

    return build


def _video_decoder(params: dict, rngs: Keys) -> nnx.Module:
    return VideoDecoder(**{k: v for k, v in params.items() if k not in _IGNORED}, rngs=rngs)


def _autoencoder_kl(params: dict, rngs: Keys) -> nnx.Module:
    config = dict(params['ddconfig'])
    build = lambda part: _network(part)(config, rngs)
    return Autoencoder(
        build(Encoder),
        build(Decoder),
        embed_dim=params['embed_dim'],
        z_channels=config['z_channels'],
        rngs=rngs,
    )


def _autoencoding_engine(params: dict, rngs: Keys) -> nnx.Module:
    node = lambda name: build(params[name]['target'], params[name].get('params', {}))
    return Autoencoder(node('encoder_config'), node('decoder_config'), rngs=rngs)


class ImageEmbedder(nnx.Module):
    """sgm's FrozenOpenCLIPImageEmbedder: an OpenCLIP model under the name `model`."""

    def __init__(self, model: OpenCLIP):
        self.model = model

    def __call__(self, images):
        return self.model(images)


def _image_embedder(params: dict, rngs: Keys) -> nnx.Module:
    return ImageEmbedder(OpenCLIP(**architecture(params), rngs=rngs))


def architecture(params: Mapping[str, Any]) -> dict:
    """open_clip's config of the model that `arch` names; or the config itself, in place of a name."""
    keys = ('embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu')
    if 'vision_cfg' in params:
        return {k: params[k] for k in keys if k in params}
    arch = params.get('arch', 'ViT-H-14')
    return dict(arch) if isinstance(arch, Mapping) else lookup(ARCHITECTURES, arch, 'arch')


_DIFFUSION = 'sgm.modules.diffusionmodules'
TARGETS = {
    f'{_DIFFUSION}.openaimodel.UNetModel': _network(UNetModel),
    f'{_DIFFUSION}.video_model.VideoUNet': _network(VideoUNet),
    f'{_DIFFUSION}.model.Encoder': _network(Encoder),
    f'{_DIFFUSION}.model.Decoder': _network(Decoder),
    'sgm.modules.autoencoding.temporal_ae.VideoDecoder': _video_decoder,
    'sgm.models.autoencoder.AutoencoderKL': _autoencoder_kl,
    'sgm.models.autoencoder.AutoencoderKLModeOnly': _autoencoder_kl,
    'sgm.models.autoencoder.AutoencodingEngine': _autoencoding_engine,
    'sgm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder': _image_embedder,
}
