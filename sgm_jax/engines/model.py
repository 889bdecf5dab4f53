"""A latent diffusion model: the network, what it is told, and the first stage around it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.conditioning.conditioner import GeneralConditioner, Slot
from sgm_jax.conditioning.embedders import (
    ClassEmbedder,
    ConcatTimestepEmbedder,
    Identity,
    OpenCLIPImagePrediction,
    VideoPrediction,
)
from sgm_jax.config import build, call, check_keys, lookup, plain
from sgm_jax.errors import UserError
from sgm_jax.networks.attention import ATTENTION
from sgm_jax.networks.autoencoder import Autoencoder, Decoder, Encoder
from sgm_jax.networks.clip import ARCHITECTURES, OpenCLIP
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.quantizers import EMAVectorQuantizer, GumbelQuantizer, VectorQuantizer
from sgm_jax.networks.regularizers import (
    DiagonalGaussian,
    DiagonalGaussianRegularizer,
    IdentityRegularizer,
)
from sgm_jax.networks.unet import UNetModel
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.networks.video_unet import VideoUNet

DTYPES = ('float32', 'bfloat16', 'float16')
NETWORKS = {'unet': UNetModel, 'video_unet': VideoUNet}


class DiffusionModel(nnx.Module):
    """What a published checkpoint holds. Follows sgm's DiffusionEngine, without what it does.

    Without a first stage (None) the network works on pixels.
    """

    def __init__(
        self,
        network: nnx.Module,
        conditioner: GeneralConditioner,
        first_stage: Autoencoder | None,
        *,
        scale_factor: float = 1.0,
        encode_chunk: int = 0,
    ):
        self.network, self.conditioner, self.first_stage = network, conditioner, first_stage
        self.scale_factor, self.encode_chunk = scale_factor, encode_chunk

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images (n, h, w, 3) in [-1, 1] to scaled latents: drawn, or the likeliest without a key."""
        if self.first_stage is None:
            return x
        posterior = DiagonalGaussian.of(self._moments(x))
        z = posterior.mode() if key is None else posterior.sample(key)
        return z * self.scale_factor

    def _moments(self, x: jax.Array) -> jax.Array:
        chunk = self.encode_chunk
        if not chunk or len(x) <= chunk or len(x) % chunk:
            return self.first_stage.encode(x)
        # A clip's frames one after the other: the encoder's activations are the largest there are.
        moments = jax.lax.map(self.first_stage.encode, x.reshape(-1, chunk, *x.shape[1:]))
        return moments.reshape(len(x), *moments.shape[2:])

    def decode(self, z: jax.Array, *, num_frames: int | None = None) -> jax.Array:
        """Scaled latents to images in about [-1, 1]."""
        if self.first_stage is None:
            return z
        video = isinstance(self.first_stage.decoder, VideoDecoder)
        return self.first_stage.decode(
            z / self.scale_factor, num_frames=(num_frames or len(z)) if video else None
        )

    def condition(
        self, batch: Mapping[str, jax.Array], *, key=None, zero: Collection[str] = (), **video: int
    ) -> dict[str, jax.Array]:
        """`GeneralConditioner.__call__`; frames without an own encoder go through the first stage."""
        shared = {
            slot.input_key
            for embedder, slot in zip(
                self.conditioner.embedders, self.conditioner.slots, strict=True
            )
            if isinstance(embedder, VideoPrediction) and embedder.encoder is None
        }
        batch = {k: self.encode(x) if k in shared else x for k, x in batch.items()}
        return self.conditioner(batch, key=key, zero=zero, **video)

    def apply(self, x, c_noise, cond: Mapping[str, jax.Array], **inputs: Any) -> jax.Array:
        """The network, told by name. Follows sgm's OpenAIWrapper."""
        if 'concat' in cond:
            x = jnp.concatenate([x, cond['concat']], -1)
        return self.network(
            x, c_noise, context=cond.get('crossattn'), y=cond.get('vector'), **inputs
        )


def build_model(config: Mapping, keys: Keys) -> DiffusionModel:
    """The model of `config.model`: network, conditioner, first_stage, scale_factor, encode_chunk."""
    first_stage = build_first_stage(config.get('first_stage', {'name': 'none'}), keys)
    return DiffusionModel(
        build(NETWORKS, _typed(config['network']), where='model.network', rngs=keys),
        build_conditioner(config.get('conditioner', ()), keys),
        first_stage,
        scale_factor=config.get('scale_factor', 1.0),
        encode_chunk=config.get('encode_chunk', 0),
    )


def build_conditioner(nodes: Any, keys: Keys) -> GeneralConditioner:
    """Embedders in their order; a node's keys are those of its Slot and of its embedder."""
    embedders, slots = [], []
    slot_keys = set(Slot.__dataclass_fields__)
    for index, node in enumerate(nodes):
        where, node = f'model.conditioner[{index}]', plain(node)
        slots.append(call(Slot, {k: v for k, v in node.items() if k in slot_keys}, where=where))
        options = {k: v for k, v in node.items() if k not in slot_keys}
        embedders.append(build(EMBEDDERS, options, where=where, rngs=keys))
    return GeneralConditioner(embedders, slots)


def build_first_stage(node: Mapping, keys: Keys) -> Autoencoder | None:
    """'none', 'autoencoder_kl' (embed_dim and ddconfig) or 'autoencoder' (encoder, decoder, regularizer)."""
    return build(FIRST_STAGES, node, where='model.first_stage', rngs=keys)


def _typed(node: Mapping) -> dict:
    """A dtype by name becomes one; 'auto' is bfloat16, but float32 on CPUs, which have no use for it."""
    node = plain(node)
    if node.get('attention', 'auto') != 'auto':
        lookup(ATTENTION, node['attention'], 'attention')
    if 'dtype' not in node:
        return node
    name = node['dtype']
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    if name not in DTYPES:
        raise UserError(f'unknown dtype {name!r}; choose one of: auto, {", ".join(DTYPES)}')
    return {**node, 'dtype': jnp.dtype(name)}


def _autoencoder_kl(*, embed_dim: int, ddconfig: Mapping, rngs: Keys) -> Autoencoder:
    where = 'autoencoder_kl.ddconfig'
    return Autoencoder(
        call(Encoder, _typed(ddconfig), where=where, rngs=rngs),
        call(Decoder, _typed(ddconfig), where=where, rngs=rngs),
        embed_dim=embed_dim,
        z_channels=ddconfig['z_channels'],
        rngs=rngs,
    )


def _autoencoder(
    *,
    encoder: Mapping,
    decoder: Mapping,
    regularizer: Mapping | None = None,
    embed_dim: int | None = None,
    rngs: Keys,
) -> Autoencoder:
    return Autoencoder(
        call(Encoder, _typed(encoder), where='first_stage.encoder', rngs=rngs),
        _decoder(decoder, rngs),
        embed_dim=embed_dim,
        z_channels=encoder['z_channels'],
        double_z=encoder.get('double_z', True),
        rngs=rngs,
        regularization=regularizer
        and build(REGULARIZERS, regularizer, where='first_stage.regularizer', rngs=rngs),
    )


def _decoder(node: Mapping, keys: Keys) -> nnx.Module:
    node, where = _typed(node), 'first_stage.decoder'
    name = node.pop('name', 'decoder')
    if lookup(DECODERS, name, where) is Decoder:
        return call(Decoder, node, where=where, rngs=keys)
    # The temporal decoder hands the image decoder's keywords on.
    own = call_keys(VideoDecoder) | call_keys(Decoder)
    check_keys(node, own, where=where)
    return VideoDecoder(**node, rngs=keys)


def call_keys(module: Callable) -> set[str]:
    """The keywords of a module's constructor."""
    return set(module.__init__.__kwdefaults__ or ()) | set(module.__init__.__annotations__) - {
        'return',
        'rngs',
    }


def _open_clip_image(
    *,
    arch: str | Mapping = 'ViT-H-14',
    n_cond_frames: int = 1,
    attention: str = 'auto',
    dtype: str = 'float32',
    rngs: Keys,
) -> OpenCLIPImagePrediction:
    options = dict(arch) if isinstance(arch, Mapping) else lookup(ARCHITECTURES, arch, 'arch')
    run = _typed({'attention': attention, 'dtype': dtype})
    clip = OpenCLIP(**options, **run, rngs=rngs)
    return OpenCLIPImagePrediction(clip, n_cond_frames=n_cond_frames)


def _video_prediction(
    *,
    encoder: Mapping | None = None,
    n_cond_frames: int = 1,
    scale_factor: float = 1.0,
    rngs: Keys,
) -> VideoPrediction:
    return VideoPrediction(
        build(FIRST_STAGES, encoder, where='video_prediction.encoder', rngs=rngs)
        if encoder
        else None,
        n_cond_frames=n_cond_frames,
        scale_factor=scale_factor,
    )


REGULARIZERS = {
    'diagonal_gaussian': DiagonalGaussianRegularizer,
    'identity': IdentityRegularizer,
    'vector_quantizer': VectorQuantizer,
    'ema_vector_quantizer': EMAVectorQuantizer,
    'gumbel_quantizer': GumbelQuantizer,
}
DECODERS = {'decoder': Decoder, 'video_decoder': VideoDecoder}
FIRST_STAGES = {
    'none': lambda: None,
    'autoencoder_kl': _autoencoder_kl,
    'autoencoder': _autoencoder,
}
EMBEDDERS = {
    'concat_timestep': ConcatTimestepEmbedder,
    'class': ClassEmbedder,
    'open_clip_image': _open_clip_image,
    'video_prediction': _video_prediction,
    'identity': Identity,
}


def check_pixels(model_factor: int, height: int, width: int) -> None:
    """Raises a UserError that says which size would do, when a size does not fit the model."""
    if height % model_factor or width % model_factor:
        near = lambda n: max(model_factor, round(n / model_factor) * model_factor)
        raise UserError(
            f'the size {height}x{width} is not divisible by {model_factor}, which this model needs; '
            f'use {near(height)}x{near(width)}'
        )
