"""A latent diffusion model: the network, what it is told, and the first stage around it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.conditioning.conditioner import GeneralConditioner
from sgm_jax.conditioning.embedders import VideoPrediction
from sgm_jax.config import build
from sgm_jax.engines.conditioners import build_conditioner
from sgm_jax.engines.first_stages import build_first_stage, typed
from sgm_jax.errors import UserError
from sgm_jax.networks import placement
from sgm_jax.networks.autoencoder import Autoencoder
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.regularizers import DiagonalGaussian
from sgm_jax.networks.unet import UNetModel
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.networks.video_unet import VideoUNet

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
        return self.latents(self.moments(x), key)

    def latents(self, moments: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Scaled latents of `moments`: drawn, or the likeliest without a key."""
        posterior = DiagonalGaussian.of(moments)
        z = posterior.mode() if key is None else posterior.sample(key)
        return z * self.scale_factor

    def moments(self, x: jax.Array) -> jax.Array:
        """Mean and log-variance (n, h, w, 2 z) of images' latents, not scaled."""
        # A clip's frames one after the other: the encoder's activations are the largest there are.
        return placement.in_chunks(self._encoder().encode, x, self.encode_chunk)

    def _encoder(self) -> Autoencoder:
        """The first stage, or, where its file has no encoder (SV3D's), the conditioner's copy of it."""
        if self.first_stage.encoder is not None:
            return self.first_stage
        for embedder in self.conditioner.embedders:
            if isinstance(embedder, VideoPrediction) and embedder.encoder is not None:
                return embedder.encoder
        raise UserError(
            'model.first_stage has no encoder, and model.conditioner has none to take its place; '
            'give model.first_stage an encoder'
        )

    def decode(self, z: jax.Array, *, num_frames: int | None = None) -> jax.Array:
        """Scaled latents to images in about [-1, 1]."""
        if self.first_stage is None:
            return z
        video = isinstance(self.first_stage.decoder, VideoDecoder)
        return self.first_stage.decode(
            z / self.scale_factor, num_frames=(num_frames or len(z)) if video else None
        )

    def condition(
        self,
        batch: Mapping[str, jax.Array],
        *,
        key=None,
        zero: Mapping[str, Any] | None = None,
        **video: int,
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
        build(NETWORKS, typed(config['network']), where='model.network', rngs=keys),
        build_conditioner(config.get('conditioner', ()), keys),
        first_stage,
        scale_factor=config.get('scale_factor', 1.0),
        encode_chunk=config.get('encode_chunk', 0),
    )


def check_pixels(model_factor: int, height: int, width: int) -> None:
    """Raises a UserError that says which size would do, when a size does not fit the model."""
    empty = height < 1 or width < 1
    if empty or height % model_factor or width % model_factor:
        near = lambda n: max(model_factor, round(n / model_factor) * model_factor)
        wrong = 'has no pixels' if empty else f'is not divisible by {model_factor}'
        raise UserError(
            f'the size {height}x{width} {wrong}, which this model needs; '
            f'use {near(height)}x{near(width)}'
        )


def check_chunk(chunk: int | None) -> None:
    """Raises a UserError for a number of pictures to be decoded at once that is none."""
    if chunk is not None and chunk < 0:
        raise UserError(f'decode_chunk is {chunk}; give 1 or more, or 0 for all at once')
