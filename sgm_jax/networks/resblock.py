"""Residual blocks of convolutions: on images, on video, and their up- and downsampling."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks.layers import (
    Conv3D,
    GroupNorm,
    Keys,
    conv,
    downsample_mean,
    dropout,
    linear,
    upsample_nearest,
)
from sgm_jax.networks.transformer import AlphaBlender

RESAMPLE = {'none': lambda x: x, 'up': upsample_nearest, 'down': downsample_mean}


class Upsample(nnx.Module):
    """Doubles height and width, then convolves if asked. Follows sgm's Upsample."""

    def __init__(self, channels: int, use_conv: bool, *, dims: int = 2, dtype: Any, rngs: Keys):
        options = dict(dims=dims, dtype=dtype, rngs=rngs)
        self.conv = conv(channels, channels, **options) if use_conv else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = upsample_nearest(x)
        return x if self.conv is None else self.conv(x)


class Downsample(nnx.Module):
    """Halves height and width by a convolution of stride 2 or by the mean. Follows sgm's Downsample."""

    def __init__(self, channels: int, use_conv: bool, *, dims: int = 2, dtype: Any, rngs: Keys):
        options = dict(stride=2, dims=dims, dtype=dtype, rngs=rngs)
        self.op = conv(channels, channels, **options) if use_conv else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return downsample_mean(x) if self.op is None else self.op(x)


class ResBlock(nnx.Module):
    """Norm, SiLU, convolution, twice, with the embedding added (or scaling and shifting) in between.

    On images by default; with a `time_kernel` of three sizes, on video; with `dims` 1 or 3, on lines
    (n, l, c) or volumes (n, d, h, w, c). Follows sgm's ResBlock.

    Calls: x (n, h, w, c), emb (n, e) -> (n, h', w', c'); or x (b, t, h, w, c), emb (b, t, e).
    Without emb_channels there is no embedding (the temporal decoder's blocks).
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int | None,
        *,
        out_channels: int | None = None,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        resample: str = 'none',
        time_kernel: Sequence[int] | None = None,
        dims: int = 2,
        dtype: Any,
        rngs: Keys,
    ):
        out_channels = out_channels or channels
        convolve = lambda i, o, zero=False: (
            conv(i, o, zero=zero, dims=dims, dtype=dtype, rngs=rngs)
            if time_kernel is None
            else Conv3D(i, o, time_kernel, zero=zero, dtype=dtype, rngs=rngs)
        )
        self.in_norm = GroupNorm(channels)
        self.in_conv = convolve(channels, out_channels)
        width = out_channels * (2 if use_scale_shift_norm else 1)
        self.emb = linear(emb_channels, width, dtype=dtype, rngs=rngs) if emb_channels else None
        self.out_norm = GroupNorm(out_channels)
        self.out_conv = convolve(out_channels, out_channels, zero=True)
        self.skip = (
            conv(channels, out_channels, 1, dims=dims, dtype=dtype, rngs=rngs)
            if out_channels != channels
            else None
        )
        self.rate, self.scale_shift, self.resample = dropout, use_scale_shift_norm, resample

    def __call__(self, x, emb=None, *, key=None):
        resample = RESAMPLE[self.resample]
        h = self.in_conv(resample(self.in_norm(x, silu=True)))
        x = resample(x)
        if self.emb is not None:
            e = self.emb(nnx.silu(emb))
            ones = (1,) * (h.ndim - e.ndim)
            e = e.reshape(*e.shape[:-1], *ones, e.shape[-1]).astype(h.dtype)
            if self.scale_shift:
                scale, shift = jnp.split(e, 2, -1)
                h = nnx.silu(self.out_norm(h) * (1 + scale) + shift)
            else:
                h = self.out_norm(h + e, silu=True)
        else:
            h = self.out_norm(h, silu=True)
        h = self.out_conv(dropout(h, self.rate, key))
        return (x if self.skip is None else self.skip(x)) + h


class VideoResBlock(nnx.Module):
    """A ResBlock on each frame, one over the frames, and their blend. Follows sgm's VideoResBlock.

    Calls: x (b*t, h, w, c), emb (b*t, e), image_only_indicator (b, t) -> (b*t, h', w', c').
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        *,
        out_channels: int | None = None,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        resample: str = 'none',
        video_kernel_size: Sequence[int] = (3, 3, 3),
        merge_strategy: str = 'fixed',
        merge_factor: float = 0.5,
        dtype: Any,
        rngs: Keys,
    ):
        out_channels = out_channels or channels
        self.spatial = ResBlock(
            channels,
            emb_channels,
            out_channels=out_channels,
            dropout=dropout,
            use_scale_shift_norm=use_scale_shift_norm,
            resample=resample,
            dtype=dtype,
            rngs=rngs,
        )
        self.time_stack = ResBlock(
            out_channels,
            emb_channels,
            dropout=dropout,
            time_kernel=video_kernel_size,
            dtype=dtype,
            rngs=rngs,
        )
        self.time_mixer = AlphaBlender(merge_factor, merge_strategy)

    def __call__(self, x, emb, *, num_frames: int, image_only_indicator=None, key=None):
        key, time_key = (None, None) if key is None else jax.random.split(key)
        x = self.spatial(x, emb, key=key)
        frames = lambda y: y.reshape(-1, num_frames, *y.shape[1:])
        mixed = self.time_stack(frames(x), frames(emb), key=time_key)
        return self.time_mixer(frames(x), mixed, image_only_indicator).reshape(x.shape)
