"""OpenCLIP's image tower, and what stands before it."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.networks.attention import attend
from sgm_jax.networks.layers import Keys, conv, layer_norm, linear, stack

# The models that sgm names, with open_clip's values.
ARCHITECTURES = {
    'ViT-L-14': {
        'embed_dim': 768,
        'vision_cfg': {'image_size': 224, 'layers': 24, 'width': 1024, 'patch_size': 14},
        'text_cfg': {
            'context_length': 77,
            'vocab_size': 49408,
            'width': 768,
            'heads': 12,
            'layers': 12,
        },
    },
    'ViT-H-14': {
        'embed_dim': 1024,
        'vision_cfg': {
            'image_size': 224,
            'layers': 32,
            'width': 1280,
            'head_width': 80,
            'patch_size': 14,
        },
        'text_cfg': {
            'context_length': 77,
            'vocab_size': 49408,
            'width': 1024,
            'heads': 16,
            'layers': 24,
        },
    },
    'ViT-bigG-14': {
        'embed_dim': 1280,
        'vision_cfg': {
            'image_size': 224,
            'layers': 48,
            'width': 1664,
            'head_width': 104,
            'mlp_ratio': 4.9231,
            'patch_size': 14,
        },
        'text_cfg': {
            'context_length': 77,
            'vocab_size': 49408,
            'width': 1280,
            'heads': 20,
            'layers': 32,
        },
    },
}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one matrix for q, k and v, as torch.nn.MultiheadAttention."""

    def __init__(
        self, width: int, heads: int, *, causal: bool, attention: str, dtype: Any, rngs: Keys
    ):
        self.in_proj = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out_proj = linear(width, width, dtype=dtype, rngs=rngs)
        self.heads, self.causal, self.attention = heads, causal, attention

    def __call__(self, x):
        q, k, v = jnp.moveaxis(self.in_proj(x).reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        out = attend(q, k, v, causal=self.causal, implementation=self.attention)
        return self.out_proj(out.reshape(x.shape))


class Block(nnx.Module):
    """A pre-norm transformer block of CLIP."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int,
        quick_gelu: bool,
        causal: bool = False,
        self_attention: Callable = SelfAttention,
        attention: str,
        dtype: Any,
        rngs: Keys,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.ln_1 = layer_norm(width, **options)
        self.attn = self_attention(width, heads, causal=causal, attention=attention, **options)
        self.ln_2 = layer_norm(width, **options)
        self.mlp_in = linear(width, hidden, **options)
        self.mlp_out = linear(hidden, width, **options)
        self.quick_gelu = quick_gelu

    def __call__(self, x):
        x = x + self.attn(self.ln_1(x))
        h = self.mlp_in(self.ln_2(x))
        h = h * nnx.sigmoid(1.702 * h) if self.quick_gelu else nnx.gelu(h, approximate=False)
        return x + self.mlp_out(h)


class Transformer(nnx.Module):
    """A stack of blocks."""

    def __init__(
        self, width: int, layers: int, heads: int, *, mlp_ratio: float = 4.0, **options: Any
    ):
        hidden = int(width * mlp_ratio)
        self.resblocks = stack(
            lambda _: Block(width, heads, hidden=hidden, **options),
            [None] * layers,
            rngs=options['rngs'],
        )

    def __call__(self, x):
        return states(self.resblocks, x)[-1]


def states(blocks: Iterable[nnx.Module], x: jax.Array) -> list[jax.Array]:
    """x, and what each block makes of the one before. Under jit, what is not used is not computed."""
    found = [x]
    for block in blocks:
        found.append(block(found[-1]))
    return found


class VisionTransformer(nnx.Module):
    """OpenCLIP's image tower. Follows open_clip.transformer.VisionTransformer with a class token.

    Calls: images (n, image_size, image_size, 3), normalised -> embeddings (n, embed_dim).
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        image_size: int,
        layers: int,
        width: int,
        head_width: int = 64,
        patch_size: int,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        draw = lambda *shape: nnx.Param(
            width**-0.5 * jax.random.normal(rngs.params(), shape, jnp.float32)
        )
        self.class_embedding = draw(width)
        self.positional_embedding = draw((image_size // patch_size) ** 2 + 1, width)
        self.proj = draw(width, embed_dim)
        self.conv1 = conv(
            3, width, patch_size, stride=patch_size, padding='VALID', bias=False, **options
        )
        self.ln_pre = layer_norm(width, **options)
        self.transformer = Transformer(
            width,
            layers,
            width // head_width,
            mlp_ratio=mlp_ratio,
            quick_gelu=quick_gelu,
            attention=attention,
            **options,
        )
        self.ln_post = layer_norm(width, **options)
        self.image_size, self.dtype = image_size, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        return self._project(self.ln_post(self._features(images)[:, 0]))

    def with_tokens(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The embeddings, and the patches' tokens (n, patches, width), normed but not projected."""
        x = self.ln_post(self._features(images))
        return self._project(x[:, 0]), x[:, 1:].astype(jnp.float32)

    def _project(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) @ self.proj[...]

    def _features(self, images: jax.Array) -> jax.Array:
        x = self.conv1(images.astype(self.dtype))
        x = x.reshape(len(x), -1, x.shape[-1])
        first = jnp.broadcast_to(
            self.class_embedding[...].astype(x.dtype), (len(x), 1, x.shape[-1])
        )
        x = jnp.concatenate([first, x], 1) + self.positional_embedding[...].astype(x.dtype)
        return self.transformer(self.ln_pre(x))


class OpenCLIP(nnx.Module):
    """What sgm keeps of an OpenCLIP model to embed images: the image tower, and the text tower's ends.

    The text tower's ends take no part in anything, but published checkpoints hold them.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        vision_cfg: Mapping[str, Any],
        text_cfg: Mapping[str, Any],
        quick_gelu: bool = False,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        self.visual = VisionTransformer(
            embed_dim=embed_dim,
            quick_gelu=quick_gelu,
            attention=attention,
            dtype=dtype,
            rngs=rngs,
            **vision_cfg,
        )
        width, zeros = text_cfg['width'], lambda *shape: nnx.Param(jnp.zeros(shape, jnp.float32))
        self.positional_embedding = zeros(text_cfg['context_length'], width)
        self.text_projection = zeros(width, embed_dim)
        self.logit_scale = nnx.Param(jnp.full((), math.log(1 / 0.07), jnp.float32))
        self.token_embedding = nnx.Embed(
            text_cfg['vocab_size'],
            width,
            embedding_init=nnx.initializers.zeros_init(),
            rngs=rngs,
        )
        self.ln_final = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(n, h, w, 3) in [-1, 1], any size, to (n, embed_dim)."""
        return self.visual(clip_preprocess(images, self.visual.image_size))


def clip_preprocess(images: jax.Array, size: int, *, antialias: bool = True) -> jax.Array:
    """Images (n, h, w, 3) in [-1, 1] as CLIP takes them: (n, size, size, 3), normalised.

    Follows sgm's FrozenOpenCLIPImageEmbedder.preprocess.
    """
    images = (resize_antialiased(images, size, antialias=antialias) + 1.0) / 2.0
    return (images - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD)


def resize_antialiased(images: jax.Array, size: int, *, antialias: bool = True) -> jax.Array:
    """kornia.geometry.resize(bicubic, align_corners=True, antialias) to size x size.

    Blur and resampling are linear and act on one axis at a time, so each axis is one matrix.
    """
    height, width = images.shape[1:3]
    # kornia blurs both axes as soon as one of them shrinks.
    blur = antialias and max(height, width) > size
    rows, columns = _axis_matrix(height, size, blur), _axis_matrix(width, size, blur)
    return resampled(images, rows, columns)


def resampled(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Images (n, h, w, c) to (n, y, x, c) by a matrix for each axis: (y, h) and (x, w)."""
    precise = jax.lax.Precision.HIGHEST
    x = jnp.einsum('yh,nhwc->nywc', rows, images.astype(jnp.float32), precision=precise)
    return jnp.einsum('xw,nywc->nyxc', columns, x, precision=precise)


def cubic(offset: float) -> float:
    """PyTorch's weight of a pixel that is `offset` away: cubic convolution with a = -0.75."""
    a, d = -0.75, abs(offset)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def _axis_matrix(n: int, size: int, blur: bool) -> np.ndarray:
    matrix = _bicubic(n, size)
    return (matrix @ _blur(n, size) if blur else matrix).astype(np.float32)


def _bicubic(n: int, size: int) -> np.ndarray:
    """(size, n): cubic convolution, corners on corners, edges repeated."""
    matrix = np.zeros((size, n))
    positions = np.linspace(0, n - 1, size) if size > 1 else np.zeros(1)
    for row, position in enumerate(positions):
        left = math.floor(position)
        for tap in range(left - 1, left + 3):
            matrix[row, min(max(tap, 0), n - 1)] += cubic(position - tap)
    return matrix


def _blur(n: int, size: int) -> np.ndarray:
    """(n, n): a Gaussian whose width grows with the reduction, reflected at the edges."""
    sigma = max((n / size - 1.0) / 2.0, 0.001)
    taps = int(max(4.0 * sigma, 3)) | 1
    offsets = np.arange(taps) - taps // 2
    weights = np.exp(-(offsets**2) / (2.0 * sigma**2))
    weights /= weights.sum()
    matrix = np.zeros((n, n))
    for row in range(n):
        for offset, weight in zip(offsets, weights, strict=True):
            tap = abs(row + offset)
            matrix[row, tap if tap < n else 2 * (n - 1) - tap] += weight
    return matrix
