"""The image autoencoder: encoder, decoder, and the two together as a first stage."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks import placement
from sgm_jax.networks.attention import attend
from sgm_jax.networks.layers import (
    GroupNorm,
    Keys,
    conv,
    downsample_mean,
    dropout,
    upsample_nearest,
)
from sgm_jax.networks.regularizers import DiagonalGaussianRegularizer


class ResnetBlock(nnx.Module):
    """Norm, SiLU, convolution, twice, with a residual. Follows sgm's ResnetBlock without an embedding."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        dropout: float = 0.0,
        groups: int = 32,
        dtype: Any,
        rngs: Keys,
    ):
        self.norm1 = GroupNorm(channels, groups=groups, epsilon=1e-6)
        self.conv1 = conv(channels, outputs, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups=groups, epsilon=1e-6)
        self.conv2 = conv(outputs, outputs, dtype=dtype, rngs=rngs)
        self.nin_shortcut = (
            conv(channels, outputs, 1, dtype=dtype, rngs=rngs) if channels != outputs else None
        )
        self.rate = dropout

    def __call__(self, x, *, num_frames=None, key=None):
        h = self.conv1(self.norm1(x, silu=True))
        h = self.conv2(dropout(self.norm2(h, silu=True), self.rate, key))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class AttentionBlock(nnx.Module):
    """Single-headed attention over the pixels of (n, h, w, c). Follows sgm's AttnBlock."""

    def __init__(
        self, channels: int, *, attention: str = 'auto', groups: int = 32, dtype: Any, rngs: Keys
    ):
        self.norm = GroupNorm(channels, groups=groups, epsilon=1e-6)
        self.q = conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.k = conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.v = conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.proj_out = conv(channels, channels, 1, dtype=dtype, rngs=rngs)
        self.attention = attention

    def attend(self, x: jax.Array) -> jax.Array:
        """What the pixels gather, before the projection and the residual."""
        h = self.norm(x)
        tokens = lambda y: placement.tokens(placement.flatten_pixels(y))[:, :, None]
        q, k, v = tokens(self.q(h)), tokens(self.k(h)), tokens(self.v(h))
        out = attend(q, k, v, implementation=self.attention)[:, :, 0]
        return placement.unflatten_pixels(out, *x.shape[1:3])

    def __call__(self, x, *, num_frames=None):
        return x + self.proj_out(self.attend(x))


class LinearAttentionBlock(nnx.Module):
    """Attention that is linear in the number of pixels. Follows sgm's LinAttnBlock, which has no residual."""

    def __init__(
        self, channels: int, *, attention: str = 'auto', groups: int = 32, dtype: Any, rngs: Keys
    ):
        self.to_qkv = conv(channels, 3 * channels, 1, bias=False, dtype=dtype, rngs=rngs)
        self.to_out = conv(channels, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, num_frames=None):
        qkv = self.to_qkv(x).reshape(len(x), -1, 3, x.shape[-1])
        q, k, v = qkv[:, :, 0], jax.nn.softmax(qkv[:, :, 1], 1), qkv[:, :, 2]
        context = jnp.einsum('bnd,bne->bde', k, v)
        return self.to_out(jnp.einsum('bde,bnd->bne', context, q).reshape(x.shape))


ATTENTION_BLOCKS = {
    'vanilla': AttentionBlock,
    'vanilla-xformers': AttentionBlock,
    'linear': LinearAttentionBlock,
    # sgm asks for this one by a condition that is never true, and falls through to the linear one.
    'memory-efficient-cross-attn': LinearAttentionBlock,
    'none': None,
}


def attention_block(kind: str) -> Callable[..., nnx.Module] | None:
    """The block that sgm calls `attn_type`; None for 'none'."""
    if kind not in ATTENTION_BLOCKS:
        raise ValueError(
            f'unknown attn_type {kind!r}; choose one of: {", ".join(sorted(ATTENTION_BLOCKS))}'
        )
    return ATTENTION_BLOCKS[kind]


class Downsample(nnx.Module):
    """Halves height and width, padded on the right and below only. Follows sgm's Downsample."""

    def __init__(self, channels: int, with_conv: bool, *, dtype: Any, rngs: Keys):
        options = dict(stride=2, padding=((0, 1), (0, 1)), dtype=dtype, rngs=rngs)
        self.conv = conv(channels, channels, **options) if with_conv else None

    def __call__(self, x):
        return downsample_mean(x) if self.conv is None else self.conv(x)


class Upsample(nnx.Module):
    """Doubles height and width. Follows sgm's Upsample."""

    def __init__(self, channels: int, with_conv: bool, *, dtype: Any, rngs: Keys):
        self.conv = conv(channels, channels, dtype=dtype, rngs=rngs) if with_conv else None

    def __call__(self, x):
        x = upsample_nearest(x)
        return x if self.conv is None else self.conv(x)


class Level(nnx.Module):
    """The blocks at one resolution, and the way to the next."""

    def __init__(self, blocks, attention, *, downsample=None, upsample=None):
        self.block = nnx.List(blocks)
        self.attention = nnx.List(attention)
        self.downsample, self.upsample = downsample, upsample

    def __call__(self, x, **video):
        for i, block in enumerate(self.block):
            x = placement.feature_map(block(x, **video))
            if len(self.attention):
                x = self.attention[i](x, **video)
        for resample in (self.downsample, self.upsample):
            x = x if resample is None else placement.feature_map(resample(x))
        return x


class Middle(nnx.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, res_block: Callable, attention: Callable | None):
        self.block_1 = res_block(channels, channels)
        self.attn_1 = attention(channels) if attention else None
        self.block_2 = res_block(channels, channels)

    def __call__(self, x, **video):
        x = placement.feature_map(self.block_1(x, **video))
        x = x if self.attn_1 is None else self.attn_1(x, **video)
        return placement.feature_map(self.block_2(x, **video))


class Encoder(nnx.Module):
    """Images to moments. Follows sgm.modules.diffusionmodules.model.Encoder, keywords and all.

    Calls: x (n, h, w, in_channels) -> (n, h / f, w / f, 2 z_channels), or z_channels without double_z;
    f is 2 ** (levels - 1). `resolution` only says at which level attn_resolutions lie. out_ch,
    give_pre_end and tanh_out are the Decoder's: one config serves both. norm_groups is ours (sgm: 32):
    narrow networks need fewer, for a flat area leaves a group of two channels as plus and minus one.
    """

    def __init__(
        self,
        *,
        ch: int,
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        out_ch: int | None = None,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        double_z: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = 'vanilla',
        give_pre_end: bool = False,
        tanh_out: bool = False,
        norm_groups: int = 32,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        normed = dict(groups=norm_groups, **options)
        res_block = lambda i, o: ResnetBlock(i, o, dropout=dropout, **normed)
        kind = attention_block('linear' if use_linear_attn else attn_type)
        attend_at = None if kind is None else (lambda c: kind(c, attention=attention, **normed))
        self.conv_in = conv(in_channels, ch, **options)
        channels, levels = ch, []
        for level, mult in enumerate(ch_mult):
            blocks, attentions = [], []
            for _ in range(num_res_blocks):
                blocks.append(res_block(channels, ch * mult))
                channels = ch * mult
                if resolution // 2**level in attn_resolutions and attend_at:
                    attentions.append(attend_at(channels))
            last = level == len(ch_mult) - 1
            down = None if last else Downsample(channels, resamp_with_conv, **options)
            levels.append(Level(blocks, attentions, downsample=down))
        self.down = nnx.List(levels)
        self.mid = Middle(channels, res_block, attend_at)
        self.norm_out = GroupNorm(channels, groups=norm_groups, epsilon=1e-6)
        self.conv_out = conv(channels, z_channels * (2 if double_z else 1), **options)
        self.factor, self.dtype = 2 ** (len(ch_mult) - 1), dtype

    def __call__(self, x):
        height, width = x.shape[1:3]
        if height % self.factor or width % self.factor:
            near = lambda n: max(self.factor, round(n / self.factor) * self.factor)
            raise ValueError(
                f'the encoder needs a height and width divisible by {self.factor}, got '
                f'{height}x{width}; use {near(height)}x{near(width)}'
            )
        h = placement.feature_map(self.conv_in(placement.feature_map(x.astype(self.dtype))))
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.conv_out(self.norm_out(h, silu=True)).astype(jnp.float32)


class Decoder(nnx.Module):
    """Latents to images. Follows sgm.modules.diffusionmodules.model.Decoder, keywords and all.

    Calls: z (n, h, w, z_channels) -> (n, f h, f w, out_ch). The video decoder gives blocks of its own.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        z_channels: int,
        in_channels: int | None = None,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        double_z: bool = True,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: str = 'vanilla',
        norm_groups: int = 32,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
        res_block: Callable | None = None,
        attend_at: Callable | None = None,
        conv_out: Callable | None = None,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        normed = dict(groups=norm_groups, **options)
        res_block = res_block or (lambda i, o: ResnetBlock(i, o, dropout=dropout, **normed))
        if attend_at is None:
            kind = attention_block('linear' if use_linear_attn else attn_type)
            if kind is not None:
                attend_at = lambda c: kind(c, attention=attention, **normed)
        # sgm doubles the lowest resolution on the way up: with an odd one it isn't the encoder's.
        self.factor = 2 ** (len(ch_mult) - 1)
        lowest = resolution // self.factor
        channels = ch * ch_mult[-1]
        self.conv_in = conv(z_channels, channels, **options)
        self.mid = Middle(channels, res_block, attend_at)
        levels = []
        for level, mult in reversed(list(enumerate(ch_mult))):
            blocks, attentions = [], []
            for _ in range(num_res_blocks + 1):
                blocks.append(res_block(channels, ch * mult))
                channels = ch * mult
                if lowest * self.factor // 2**level in attn_resolutions and attend_at:
                    attentions.append(attend_at(channels))
            up = Upsample(channels, resamp_with_conv, **options) if level else None
            levels.insert(0, Level(blocks, attentions, upsample=up))
        self.up = nnx.List(levels)
        self.norm_out = GroupNorm(channels, groups=norm_groups, epsilon=1e-6)
        self.conv_out = (conv_out or (lambda i, o: conv(i, o, **options)))(channels, out_ch)
        self.give_pre_end, self.tanh_out, self.dtype = give_pre_end, tanh_out, dtype

    # Of the decoder's parts, where its last layer is: an adversarial loss weighs gradients there.
    last_layer = ('conv_out', 'kernel')

    def __call__(self, z, **video):
        h = self.features(z, **video)
        return h.astype(jnp.float32) if self.give_pre_end else self.head(h, **video)

    def features(self, z, **video):
        """All but the last layer."""
        h = self.mid(placement.feature_map(self.conv_in(z.astype(self.dtype))), **video)
        for level in reversed(self.up):
            h = level(h, **video)
        return h if self.give_pre_end else self.norm_out(h, silu=True)

    def head(self, h, **video):
        """The last layer: features to images."""
        h = (self.conv_out(h, **video) if video else self.conv_out(h)).astype(jnp.float32)
        return jnp.tanh(h) if self.tanh_out else h


class Autoencoder(nnx.Module):
    """An encoder and a decoder as a first stage. Follows sgm's AutoencodingEngine.

    With an `embed_dim` it has the two 1x1 convolutions of sgm's AutoencoderKL (quant_conv before the
    moments, or, without double_z, before embed_dim channels; post_quant_conv before the decoder).
    Without an encoder (files of SV3D) encoding leaves everything as it is.
    `regularization` is what stands between the two if it has weights, such as a codebook (quantizers.py);
    encoding ends, and decoding begins, on either side of it.
    """

    def __init__(
        self,
        encoder: Encoder | None,
        decoder: nnx.Module,
        *,
        embed_dim: int | None = None,
        z_channels: int | None = None,
        double_z: bool = True,
        dtype: Any = jnp.float32,
        rngs: Keys,
        regularization: nnx.Module | None = None,
    ):
        self.encoder, self.decoder, self.regularization = encoder, decoder, regularization
        one = lambda i, o: conv(i, o, 1, dtype=dtype, rngs=rngs) if embed_dim else None
        moments = 2 if double_z else 1
        self.quant_conv = one(moments * (z_channels or 0), moments * (embed_dim or 0))
        self.post_quant_conv = one(embed_dim, z_channels)

    @property
    def factor(self) -> int:
        """Pixels per latent, along one side."""
        return self.decoder.factor

    def encode(self, x: jax.Array) -> jax.Array:
        """(n, h, w, 3) in [-1, 1] to moments (n, h / f, w / f, 2 z): mean and log-variance."""
        h = x if self.encoder is None else self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h).astype(jnp.float32)

    def regularized(
        self, moments: jax.Array, key: jax.Array | None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the decoder is given for what the encoder said, and the regularizer's losses and figures.

        Without a key nothing is drawn. By default the moments are of a diagonal Gaussian.
        """
        regularizer = self.regularization or DiagonalGaussianRegularizer()
        return regularizer(moments, key, train=train)

    def decode(self, z: jax.Array, *, num_frames: int | None = None) -> jax.Array:
        """Latents (n, h, w, z) to images (n, f h, f w, 3); a temporal decoder needs `num_frames`."""
        return self.decoder(self._unquantized(z), **_video(num_frames))

    def features(self, z: jax.Array, *, num_frames: int | None = None) -> jax.Array:
        """Latents to what the decoder's last layer sees."""
        return self.decoder.features(self._unquantized(z), **_video(num_frames))

    def _unquantized(self, z):
        return z if self.post_quant_conv is None else self.post_quant_conv(z)

    def head(self, h: jax.Array, *, num_frames: int | None = None) -> jax.Array:
        """The decoder's last layer."""
        return self.decoder.head(h, **_video(num_frames))

    @property
    def last_layer(self) -> tuple[str, ...]:
        """The path of the decoder's last kernel."""
        return ('decoder', *self.decoder.last_layer)


def _video(num_frames: int | None) -> dict[str, int]:
    return {} if num_frames is None else {'num_frames': num_frames}
