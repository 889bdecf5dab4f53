"""The encoder of T5 1.1, which is ByT5's too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.networks.attention import attend
from sgm_jax.networks.layers import Dtype, Keys, linear, stack


def _sizes(vocab_size: int, d_model: int, d_ff: int, num_layers: int, num_heads: int) -> dict:
    return {
        'vocab_size': vocab_size,
        'd_model': d_model,
        'd_ff': d_ff,
        'num_layers': num_layers,
        'num_heads': num_heads,
    }


# Google's models under the names of their files (arXiv:1910.10683, arXiv:2105.13626).
T5 = {
    't5-v1_1-small': _sizes(32128, 512, 1024, 8, 6),
    't5-v1_1-base': _sizes(32128, 768, 2048, 12, 12),
    't5-v1_1-large': _sizes(32128, 1024, 2816, 24, 16),
    't5-v1_1-xl': _sizes(32128, 2048, 5120, 24, 32),
    't5-v1_1-xxl': _sizes(32128, 4096, 10240, 24, 64),
    'byt5-small': _sizes(384, 1472, 3584, 12, 6),
    'byt5-base': _sizes(384, 1536, 3968, 18, 12),
    'byt5-large': _sizes(384, 1536, 3840, 36, 16),
    'byt5-xl': _sizes(384, 2560, 6720, 36, 32),
    'byt5-xxl': _sizes(384, 4672, 12352, 36, 64),
}


class RMSNorm(nnx.Module):
    """Divides (..., c) by its root mean square, in float32. Follows transformers' T5LayerNorm."""

    def __init__(self, channels: int, *, epsilon: float = 1e-6, dtype: Dtype):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), -1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + self.epsilon) * self.scale[...]).astype(self.dtype)


class T5Block(nnx.Module):
    """Self-attention and a gated feed-forward, each on normed input with a residual."""

    def __init__(
        self,
        d_model: int,
        *,
        d_kv: int,
        d_ff: int,
        num_heads: int,
        epsilon: float,
        attention: str,
        dtype: Dtype,
        rngs: Keys,
    ):
        make = lambda inputs, outputs: linear(inputs, outputs, bias=False, dtype=dtype, rngs=rngs)
        inner = num_heads * d_kv
        self.q, self.k, self.v = (make(d_model, inner) for _ in range(3))
        self.o = make(inner, d_model)
        self.attention_norm = RMSNorm(d_model, epsilon=epsilon, dtype=dtype)
        self.wi_0, self.wi_1 = make(d_model, d_ff), make(d_model, d_ff)
        self.wo = make(d_ff, d_model)
        self.feed_forward_norm = RMSNorm(d_model, epsilon=epsilon, dtype=dtype)
        self.heads, self.attention = num_heads, attention

    def __call__(self, x, bias):
        h = self.attention_norm(x)
        q, k, v = (y(h).reshape(*h.shape[:2], self.heads, -1) for y in (self.q, self.k, self.v))
        # T5 does not scale its scores: its initial values do.
        out = attend(q * q.shape[-1] ** 0.5, k, v, bias=bias, implementation=self.attention)
        x = x + self.o(out.reshape(*h.shape[:2], -1))
        h = self.feed_forward_norm(x)
        return x + self.wo(nnx.gelu(self.wi_0(h), approximate=True) * self.wi_1(h))


class T5Encoder(nnx.Module):
    """T5 1.1's encoder. Follows transformers' T5EncoderModel, whose words its keywords are.

    Calls: tokens (n, m) -> (n, m, d_model). The padding is attended to, as sgm has it.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        d_model: int,
        d_ff: int,
        num_layers: int,
        num_heads: int,
        d_kv: int = 64,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        layer_norm_epsilon: float = 1e-6,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        normal = nnx.initializers.normal
        self.token_embedding = nnx.Embed(
            vocab_size, d_model, embedding_init=normal(1.0), dtype=dtype, rngs=rngs
        )
        self.position_bias = nnx.Embed(
            relative_attention_num_buckets,
            num_heads,
            embedding_init=normal(d_model**-0.5),
            rngs=rngs,
        )
        self.blocks = stack(
            lambda _: T5Block(
                d_model,
                d_kv=d_kv,
                d_ff=d_ff,
                num_heads=num_heads,
                epsilon=layer_norm_epsilon,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
            ),
            [None] * num_layers,
            rngs=rngs,
        )
        self.final_norm = RMSNorm(d_model, epsilon=layer_norm_epsilon, dtype=dtype)
        self.max_distance = relative_attention_max_distance

    def __call__(self, tokens: jax.Array) -> jax.Array:
        places = np.arange(tokens.shape[1])
        buckets = relative_buckets(
            places[None, :] - places[:, None], self.position_bias.num_embeddings, self.max_distance
        )
        bias = self.position_bias(buckets).transpose(2, 0, 1)[None]
        x = self.token_embedding(tokens)
        for block in self.blocks:
            x = block(x, bias)
        return self.final_norm(x).astype(jnp.float32)


def relative_buckets(distances: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance from query to key, (n, m) integers (arXiv:1910.10683, 2.1).

    Half of the buckets are of the keys that come after. In each half, small distances have one each; the
    rest share the distances up to max_distance, and beyond, on a logarithmic scale.
    """
    half = buckets // 2
    exact = half // 2
    far = np.abs(distances)
    # In float32, as the reference: the borders between buckets fall on powers of two.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    scaled = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    shared = np.minimum(exact + scaled.astype(np.int64), half - 1)
    return np.where(far < exact, far, shared) + half * (distances > 0)
