"""One attention function, with an implementation per platform, and the transformer blocks around it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sgm_jax.networks import placement, remat
from sgm_jax.networks.derivatives import feed_forward
from sgm_jax.networks.layers import Keys, dropout, fold, layer_norm, linear, ready
from sgm_jax.platforms import has_flash_attention, platform

# Below this many keys the scores are small: one batched matrix product beats a loop.
_FEW_KEYS = 256
# From this many queries on, one head's scores fall out of a core's cache.
_MANY_QUERIES, _QUERY_CHUNK = 2048, 1024
_SPLASH_BYTES = 2**19
# cuDNN counts rows in 16 bits (pytorch/pytorch#181235). So many are pixels of clips, whose frames are few.
_MOST_ROWS = 2**16 - 1
# What it has no kernel for is computed a head at a time where all scores would take more than 4 GiB.
_MANY_SCORES = 2**30


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    causal: bool = False,
    implementation: str = 'auto',
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
      q, k, v: (batch, queries, heads, d) and (batch, keys, heads, d); or, as tokens of a video's pixels,
        (batch, pixels, queries, heads, d) and so on, where no token sees another pixel's.
      bias: added to the scores, (1 or batch, heads, queries, keys). All scores are held at once.
      causal: a query sees the keys up to its own place only; there are as many keys as queries.
      implementation: a name in ATTENTION, or 'auto' for the platform's.

    Returns:
      As q.
    """
    queries, keys = q.shape[-3], k.shape[-3]
    if causal and keys != queries:
        raise ValueError(f'causal attention of {queries} queries on {keys} keys')
    if keys == 1:
        # The softmax of one number is one: each query gets the value, and no gradient reaches q and k.
        return jnp.broadcast_to(v, (*q.shape[:-1], v.shape[-1]))
    if implementation == 'auto':
        gpu = 'cudnn' if has_flash_attention() else 'blockwise'
        implementation = {'cpu': 'blockwise', 'gpu': gpu, 'tpu': 'splash'}.get(platform(), 'xla')
    if implementation not in ATTENTION:
        raise ValueError(f'unknown attention {implementation!r}; choose one of {sorted(ATTENTION)}')

    def on_device(q, k, v):
        rows = lambda x: x.reshape(-1, *x.shape[-3:])
        return ATTENTION[implementation](*map(rows, (q, k, v)), bias, causal).reshape(q.shape)

    if bias is not None:
        # Text encoders' and still a batch of few tokens: XLA may lay it as it likes.
        return on_device(q, k, v)
    return checkpoint_name(placement.by_device(on_device, q, k, v, whole=causal), remat.ATTENTION)


def _xla(q, k, v, bias, causal):
    return jax.nn.dot_product_attention(q, k, v, bias, is_causal=causal)


def _cudnn(q, k, v, bias, causal):
    # cuDNN's flash attention has half-precision kernels only, for heads of at most 128.
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = half and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and len(q) <= _MOST_ROWS
    if not fits or bias is not None:
        scores = math.prod(q.shape[:3]) * k.shape[1]
        large = scores > _MANY_SCORES and bias is None and not causal
        return (_blockwise if large else _xla)(q, k, v, bias, causal)
    queries, keys, lengths = q.shape[1], k.shape[1], {}
    if queries % 2 or keys % 2:
        # Odd numbers of tokens (25 frames, 77 words) need a mask for their gradient: one more is masked.
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
        counts = lambda n: jnp.full((len(q),), n, jnp.int32)
        lengths = dict(query_seq_lengths=counts(queries), key_value_seq_lengths=counts(keys))
    attend = jax.nn.dot_product_attention
    return attend(q, k, v, is_causal=causal, implementation='cudnn', **lengths)[:, :queries]


def _blockwise(q, k, v, bias, causal):
    """Never holds more scores than one head's for 1024 queries (few keys: all, they are small)."""
    # Biases and causal attention are text encoders', whose tokens are few.
    if k.shape[1] < _FEW_KEYS or bias is not None or causal:
        return _batched(q, k, v, bias, causal)
    batch, queries, heads, d = q.shape
    rows = lambda x: x.transpose(0, 2, 1, 3).reshape(batch * heads, x.shape[1], d)
    out = _by_head(rows(q), rows(k), rows(v))
    return out.reshape(batch, heads, queries, d).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _by_head(q, k, v):
    """Attention of (heads, n, d) on (heads, m, d), one head after the other."""
    return _by_head_and_lse(q, k, v)[0]


def _by_head_and_lse(q, k, v):
    chunks = q.shape[1] // _QUERY_CHUNK if q.shape[1] >= _MANY_QUERIES else 1
    if q.shape[1] % chunks:
        chunks = 1

    def one_head(qkv):
        q, k, v = qkv
        if chunks == 1:
            return _softmax_product(q, k, v)
        parts = q.reshape(chunks, -1, q.shape[-1])
        out, lse = jax.lax.map(lambda part: _softmax_product(part, k, v), parts)
        return out.reshape(q.shape), lse.reshape(-1, 1)

    return jax.lax.map(one_head, (q, k, v))


def _by_head_forward(q, k, v):
    # By name, for the gradient wants these, not what `attend` gives.
    out, lse = (checkpoint_name(x, remat.ATTENTION) for x in _by_head_and_lse(q, k, v))
    return out, (q, k, v, out, lse)


def _by_head_gradient(kept, g):
    """As flash attention's (arXiv:2205.14135): the weights of one head at a time come back from their sum.

    Automatic differentiation keeps the weights of all heads, or computes softmax anew with jax.checkpoint.
    """

    def one_head(arrays):
        q, k, v, out, lse, g = arrays
        factor = q.shape[-1] ** -0.5
        product = lambda x, y, contract: jax.lax.dot_general(
            x, y, (contract, ((), ())), preferred_element_type=jnp.float32
        )
        weights = jnp.exp(product(q * factor, k, ((1,), (1,))) - lse)
        inner = jnp.sum(out.astype(jnp.float32) * g, -1, keepdims=True)
        dv = product(weights.astype(g.dtype), g, ((0,), (0,)))
        dscores = (weights * (product(g, v, ((1,), (1,))) - inner)).astype(q.dtype)
        dq = factor * product(dscores, k, ((1,), (0,)))
        dk = factor * product(dscores, q, ((0,), (0,)))
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    return jax.lax.map(one_head, (*kept, g))


_by_head.defvjp(_by_head_forward, _by_head_gradient)


def _batched(q, k, v, bias, causal):
    move = lambda x: x.transpose(0, 2, 1, 3)
    return move(_softmax_product(move(q), move(k), move(v), bias, causal)[0])


def _softmax_product(q, k, v, bias=None, causal=False):
    """Attention of (..., n, d) on (..., m, d), and the log-sum-exp of the scores, (..., n, 1).

    Divides after the product, where there is less to divide.
    """
    q = q * (q.shape[-1] ** -0.5)
    scores = jnp.einsum('...nd,...md->...nm', q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    if causal:
        seen = np.tri(*scores.shape[-2:], dtype=bool)
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum(
        '...nm,...md->...nd', weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (out / total).astype(v.dtype), largest + jnp.log(total)


def _splash(q, k, v, bias, causal):
    """Pallas' splash attention; few tokens that don't fill its blocks, and biases, go to XLA."""
    queries, keys, d = q.shape[1], k.shape[1], q.shape[-1]
    filled = _filled(queries), _filled(keys)
    if d % 64 or bias is not None or any(n % 128 for n in filled):
        return _xla(q, k, v, bias, causal)
    # What a block of one head may take: its kernels hold a dozen of them in fast memory.
    most = _SPLASH_BYTES // (d * q.dtype.itemsize)
    kernel = _splash_kernel(*filled, q.shape[2], causal, most)
    if filled != (queries, keys):
        kernel = functools.partial(kernel, segment_ids=_segments((queries, keys), filled))

    def move(x, tokens):
        return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    out = jax.vmap(kernel)(move(q * d**-0.5, filled[0]), move(k, filled[1]), move(v, filled[1]))
    return out.transpose(0, 2, 1, 3)[:, :queries]


def _filled(tokens: int) -> int:
    """With how many more its blocks are large enough: 72x72 pixels are no multiple of 128."""
    return -(-tokens // 512) * 512 if tokens >= 1024 else tokens


def _segments(tokens: tuple[int, int], filled: tuple[int, int]) -> Any:
    """Of queries and keys: what was added is of another segment, which the others do not see."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    added = (
        (jnp.arange(n) >= count).astype(jnp.int32) for count, n in zip(tokens, filled, strict=True)
    )
    return splash.SegmentIds(*added)


def _splash_kernel(queries: int, keys: int, heads: int, causal: bool, most: int) -> Callable:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    def block(n):
        return next(size for size in (1024, 512, 256, 128) if n % size == 0 and size <= most)

    block_q, block_kv = block(queries), block(keys)
    # Scores are float32, and the most of what the kernels hold. With 512 keys at once the hungriest fits the
    # 8 MiB that parallel/compiler.py leaves it.
    scored = min(block_kv, 512)
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=scored,
        block_kv_compute=scored,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=scored,
        block_q_dq=block_q,
        block_kv_dq=scored,
    )
    shape = masks.CausalMask if causal else masks.FullMask
    mask = masks.MultiHeadMask([shape((queries, keys))] * heads)
    return splash.make_splash_mha(
        mask=mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        residual_checkpoint_name=remat.ATTENTION,
    )


ATTENTION = {'xla': _xla, 'blockwise': _blockwise, 'cudnn': _cudnn, 'splash': _splash}


class CrossAttention(nnx.Module):
    """Multi-head attention on a context, or on itself without one. Follows sgm's CrossAttention.

    Calls: x (b, n, query_dim), context (b, m, context_dim) -> (b, n, query_dim); or x (b, s, n, query_dim),
    whose s pixels of a clip share its keys and values.
    """

    def __init__(
        self,
        query_dim: int,
        *,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        dropout: float = 0.0,
        attention: str = 'auto',
        dtype: Any,
        rngs: Keys,
    ):
        inner = heads * dim_head
        make = functools.partial(linear, bias=False, dtype=dtype, rngs=rngs)
        self.to_q = make(query_dim, inner)
        self.to_k = make(context_dim or query_dim, inner)
        self.to_v = make(context_dim or query_dim, inner)
        self.to_out = linear(inner, query_dim, dtype=dtype, rngs=rngs)
        self.heads, self.rate, self.attention = heads, dropout, attention

    def __call__(self, x, context=None, *, key=None):
        context = x if context is None else context
        shared = context.ndim < x.ndim
        share = lambda y: (
            jnp.broadcast_to(y[:, None], (*x.shape[:2], *y.shape[1:])) if shared else y
        )
        if context.shape[-2] == 1:
            # One key only (an image embedding): see attend(). The queries don't matter, so neither they
            # nor more than one row of the output are computed.
            out = share(self.to_out(self.to_v(context)))
            out = jnp.broadcast_to(out, (*x.shape[:-1], out.shape[-1]))
        else:
            split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
            k, v = share(split(self.to_k(context))), share(split(self.to_v(context)))
            out = attend(split(self.to_q(x)), k, v, implementation=self.attention)
            out = self.to_out(out.reshape(*out.shape[:-2], -1))
        return dropout(out, self.rate, key)


class FeedForward(nnx.Module):
    """The gated feed-forward (GEGLU, arXiv:2002.05202), with the exact GELU. Follows sgm's FeedForward."""

    def __init__(
        self,
        dim: int,
        *,
        dim_out: int | None = None,
        mult: int = 4,
        dropout: float = 0.0,
        dtype: Any,
        rngs: Keys,
    ):
        self.proj = linear(dim, dim * mult * 2, dtype=dtype, rngs=rngs)
        self.out = linear(dim * mult, dim_out or dim, dtype=dtype, rngs=rngs)
        self.rate = dropout

    def __call__(self, x, *, key=None):
        dtype, first, second = self.proj.dtype, self.proj, self.out
        x, *first = ready((x, first.kernel[...], first.bias[...]), dtype=dtype)
        _, *second = ready((x, second.kernel[...], second.bias[...]), dtype=dtype)
        hidden = (*x.shape[:-1], self.out.in_features)
        keep = None
        if key is not None and self.rate:
            keep = dropout(jnp.ones(hidden), self.rate, key)
        return feed_forward(x, *first, *second, keep)


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each on normed input with a residual."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        disable_self_attn: bool = False,
        dropout: float = 0.0,
        attention: str = 'auto',
        dtype: Any,
        rngs: Keys,
    ):
        attend_to = functools.partial(
            CrossAttention,
            dim,
            heads=heads,
            dim_head=dim_head,
            dropout=dropout,
            attention=attention,
            dtype=dtype,
            rngs=rngs,
        )
        self.attn1 = attend_to(context_dim=context_dim if disable_self_attn else None)
        self.attn2 = attend_to(context_dim=context_dim)
        self.ff = FeedForward(dim, dropout=dropout, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.norm3 = layer_norm(dim, dtype=dtype, rngs=rngs)
        self.disable_self_attn = disable_self_attn

    def __call__(self, x, context=None, *, key=None):
        first = context if self.disable_self_attn else None
        x = self.attn1(self.norm1(x), first, key=fold(key, 0)) + x
        x = self.attn2(self.norm2(x), context, key=fold(key, 1)) + x
        return self.ff(self.norm3(x), key=fold(key, 2)) + x
