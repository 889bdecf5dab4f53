"""The temporal decoder of Stable Video Diffusion: the image decoder, with time mixed in."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks import placement
from sgm_jax.networks.autoencoder import AttentionBlock, Decoder, ResnetBlock
from sgm_jax.networks.layers import MLP, Conv3D, Keys, conv, timestep_embedding
from sgm_jax.networks.resblock import ResBlock
from sgm_jax.networks.transformer import AlphaBlender, VideoTransformerBlock


class VideoResnetBlock(nnx.Module):
    """A ResnetBlock on each frame, then a block over time. Follows sgm's temporal_ae.VideoResBlock.

    Here alpha is the share of time, unlike in the U-Net.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        dropout: float = 0.0,
        kernel: Sequence[int] = (3, 1, 1),
        alpha: float = 0.0,
        merge_strategy: str = 'learned',
        groups: int = 32,
        dtype: Any,
        rngs: Keys,
    ):
        self.spatial = ResnetBlock(
            channels, outputs, dropout=dropout, groups=groups, dtype=dtype, rngs=rngs
        )
        self.time_stack = ResBlock(
            outputs, None, dropout=dropout, time_kernel=kernel, dtype=dtype, rngs=rngs
        )
        self.blend = AlphaBlender(alpha, merge_strategy)

    def __call__(self, x, *, num_frames):
        x = self.spatial(x)
        frames = x.reshape(-1, num_frames, *x.shape[1:])
        return self.blend(self.time_stack(frames), frames).reshape(x.shape)


class VideoAttentionBlock(nnx.Module):
    """Attention over pixels, then over frames. Follows sgm's temporal_ae.VideoBlock."""

    def __init__(
        self,
        channels: int,
        *,
        alpha: float = 0.0,
        merge_strategy: str = 'learned',
        attention: str = 'auto',
        groups: int = 32,
        dtype: Any,
        rngs: Keys,
    ):
        options = dict(attention=attention, dtype=dtype, rngs=rngs)
        self.spatial = AttentionBlock(channels, groups=groups, **options)
        self.time_mix_block = VideoTransformerBlock(
            channels, heads=1, dim_head=channels, ff_in=True, **options
        )
        self.video_time_embed = MLP(channels, 4 * channels, channels, dtype=dtype, rngs=rngs)
        self.blend = AlphaBlender(alpha, merge_strategy)
        self.channels = channels

    def __call__(self, x, *, num_frames):
        space = placement.flatten_pixels(self.spatial.attend(x))
        frames = self.video_time_embed(timestep_embedding(jnp.arange(num_frames), self.channels))
        frames = jnp.tile(frames, (len(x) // num_frames, 1))[:, None]
        time = self.time_mix_block(space + frames, num_frames=num_frames)
        mixed = placement.unflatten_pixels(self.blend(space, time), *x.shape[1:3])
        return x + self.spatial.proj_out(mixed)


class TimeMixConv(nnx.Module):
    """A convolution on each frame, then one over time. Follows sgm's temporal_ae.AE3DConv."""

    def __init__(
        self, channels: int, outputs: int, kernel: Sequence[int], *, dtype: Any, rngs: Keys
    ):
        self.spatial = conv(channels, outputs, dtype=dtype, rngs=rngs)
        self.time_mix_conv = Conv3D(outputs, outputs, kernel, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, num_frames):
        x = self.spatial(x)
        return self.time_mix_conv(x.reshape(-1, num_frames, *x.shape[1:])).reshape(x.shape)


class FrameConv(nnx.Module):
    """A convolution on each frame, deaf to time."""

    def __init__(self, channels: int, outputs: int, *, dtype: Any, rngs: Keys):
        self.spatial = conv(channels, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, num_frames):
        return self.spatial(x)


class VideoDecoder(nnx.Module):
    """Latents of clips to frames. Follows sgm.modules.autoencoding.temporal_ae.VideoDecoder.

    Args: the Decoder's (norm_groups: of what works on frames), video_kernel_size, alpha and merge_strategy
      ('learned' or 'fixed') of the blends, and time_mode: where time is mixed, 'all', 'conv-only' (as
      published) or 'attn-only'. sgm itself cannot build the modes with attention; here they do what its
      parts say.

    Calls: z (b*t, h, w, z_channels), num_frames t -> (b*t, f h, f w, out_ch).
    """

    def __init__(
        self,
        *,
        video_kernel_size: int | Sequence[int] = 3,
        alpha: float = 0.0,
        merge_strategy: str = 'learned',
        time_mode: str = 'conv-only',
        attention: str = 'auto',
        dropout: float = 0.0,
        norm_groups: int = 32,
        dtype: Any = jnp.float32,
        rngs: Keys,
        **decoder: Any,
    ):
        modes = ('all', 'conv-only', 'attn-only')
        if time_mode not in modes:
            raise ValueError(f'unknown time_mode {time_mode!r}; choose one of: {", ".join(modes)}')
        if merge_strategy not in ('learned', 'fixed'):
            raise ValueError(
                f'unknown merge_strategy {merge_strategy!r}; choose one of: learned, fixed'
            )
        kind = 'linear' if decoder.get('use_linear_attn') else decoder.get('attn_type', 'vanilla')
        if time_mode != 'conv-only' and kind not in ('vanilla', 'vanilla-xformers'):
            raise ValueError(
                f'time_mode {time_mode!r} needs attn_type vanilla or vanilla-xformers, got {kind!r}'
            )
        if isinstance(video_kernel_size, int):
            video_kernel_size = (video_kernel_size,) * 3
        kernel = tuple(video_kernel_size)
        options = dict(dtype=dtype, rngs=rngs)
        merge = dict(alpha=alpha, merge_strategy=merge_strategy, groups=norm_groups)
        parts = {}
        if time_mode == 'attn-only':
            parts['conv_out'] = lambda i, o: FrameConv(i, o, **options)
        else:
            parts['conv_out'] = lambda i, o: TimeMixConv(i, o, kernel, **options)
            parts['res_block'] = lambda i, o: VideoResnetBlock(
                i, o, dropout=dropout, kernel=kernel, **merge, **options
            )
        if time_mode != 'conv-only':
            parts['attend_at'] = lambda c: VideoAttentionBlock(
                c, attention=attention, **merge, **options
            )
        same = dict(attention=attention, dropout=dropout, norm_groups=norm_groups)
        self.decoder = Decoder(**same, **decoder, **parts, **options)

    @property
    def factor(self) -> int:
        """Pixels per latent, along one side."""
        return self.decoder.factor

    @property
    def last_layer(self) -> tuple[str, ...]:
        """The path of the last kernel: of the convolution over time, where there is one."""
        part = 'spatial' if isinstance(self.decoder.conv_out, FrameConv) else 'time_mix_conv'
        return ('decoder', 'conv_out', part, 'kernel')

    def __call__(self, z: jax.Array, *, num_frames: int) -> jax.Array:
        return self.decoder(_whole_clips(z, num_frames), num_frames=num_frames)

    def features(self, z: jax.Array, *, num_frames: int) -> jax.Array:
        """All but the last layer."""
        return self.decoder.features(_whole_clips(z, num_frames), num_frames=num_frames)

    def head(self, h: jax.Array, *, num_frames: int) -> jax.Array:
        """The last layer: features to frames."""
        return self.decoder.head(h, num_frames=num_frames)


def _whole_clips(z: jax.Array, num_frames: int) -> jax.Array:
    if len(z) % num_frames:
        raise ValueError(f'{len(z)} frames do not divide into clips of {num_frames}')
    return z
