"""Embedders: each turns one entry of a batch into a vector (n, d), tokens (n, m, d) or a map (n, h, w, c)."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sgm_jax.networks.autoencoder import Autoencoder
from sgm_jax.networks.clip import OpenCLIP
from sgm_jax.networks.layers import Keys, timestep_embedding
from sgm_jax.networks.regularizers import DiagonalGaussian


class ConcatTimestepEmbedder(nnx.Module):
    """Embeds each number of (n,) or (n, k) as sinusoids: (n, k * outdim).

    Follows sgm's ConcatTimestepEmbedderND.
    """

    def __init__(self, *, outdim: int):
        self.outdim = outdim

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[:, None] if x.ndim == 1 else x
        return timestep_embedding(x.reshape(-1), self.outdim).reshape(len(x), -1)


class ClassEmbedder(nnx.Module):
    """A table of vectors, one per class: (n,) integers to (n, embed_dim), or tokens (n, 1, embed_dim).

    Follows sgm's ClassEmbedder.
    """

    def __init__(
        self, *, embed_dim: int, n_classes: int = 1000, add_sequence_dim: bool = False, rngs: Keys
    ):
        self.embedding = nnx.Embed(
            n_classes, embed_dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs
        )
        self.add_sequence_dim = add_sequence_dim

    def __call__(self, classes: jax.Array) -> jax.Array:
        out = self.embedding(classes)
        return out[:, None] if self.add_sequence_dim else out


class OpenCLIPImagePrediction(nnx.Module):
    """Conditioning frames through OpenCLIP's image tower: (n * n_cond_frames, h, w, 3) to tokens.

    Follows sgm's FrozenOpenCLIPImagePredictionEmbedder, without its copies: a clip's tokens
    (n, n_cond_frames, embed_dim) are repeated over the frames by the conditioner.
    """

    def __init__(self, open_clip: OpenCLIP, *, n_cond_frames: int = 1):
        self.open_clip = open_clip
        self.n_cond_frames = n_cond_frames

    def __call__(self, frames: jax.Array) -> jax.Array:
        return rearrange(self.open_clip(frames), '(b t) d -> b t d', t=self.n_cond_frames)


class VideoPrediction(nnx.Module):
    """Conditioning frames as latents, side by side in the channels: (n, h, w, n_cond_frames * z).

    The latents are the likeliest ones of an autoencoder, times scale_factor. Without an encoder of its
    own it takes latents (the engine encodes the frames with the first stage).
    Follows sgm's VideoPredictionEmbedderWithEncoder with AutoencoderKLModeOnly.
    """

    def __init__(
        self,
        encoder: Autoencoder | None = None,
        *,
        n_cond_frames: int = 1,
        scale_factor: float = 1.0,
    ):
        self.encoder = encoder
        self.n_cond_frames, self.scale_factor = n_cond_frames, scale_factor

    def __call__(self, frames: jax.Array) -> jax.Array:
        z = frames
        if self.encoder is not None:
            z = DiagonalGaussian.of(self.encoder.encode(frames)).mode()
        z = z * self.scale_factor
        return rearrange(z, '(b t) h w c -> b h w (t c)', t=self.n_cond_frames)


class Identity(nnx.Module):
    """An entry of the batch as it is."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.asarray(x)
