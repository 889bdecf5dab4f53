"""CLIP's text encoders: the one that transformers' files hold, and OpenCLIP's text tower."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.networks.attention import attend
from sgm_jax.networks.clip import Block, Transformer, states
from sgm_jax.networks.layers import Keys, layer_norm, linear, stack

# OpenAI's models under the names of their files, with transformers' words for their sizes.
CLIP_TEXT = {
    'clip-vit-base-patch16': {
        'vocab_size': 49408,
        'hidden_size': 512,
        'intermediate_size': 2048,
        'num_hidden_layers': 12,
        'num_attention_heads': 8,
    },
    'clip-vit-base-patch32': {
        'vocab_size': 49408,
        'hidden_size': 512,
        'intermediate_size': 2048,
        'num_hidden_layers': 12,
        'num_attention_heads': 8,
    },
    'clip-vit-large-patch14': {
        'vocab_size': 49408,
        'hidden_size': 768,
        'intermediate_size': 3072,
        'num_hidden_layers': 12,
        'num_attention_heads': 12,
    },
}
_TEXT_CFG = {'context_length', 'vocab_size', 'width', 'heads', 'layers', 'mlp_ratio'}
ACTIVATIONS = ('quick_gelu', 'gelu')


class SeparateSelfAttention(nnx.Module):
    """Multi-head self-attention with a matrix each for q, k and v, as transformers' CLIPAttention."""

    def __init__(
        self, width: int, heads: int, *, causal: bool, attention: str, dtype: Any, rngs: Keys
    ):
        make = lambda: linear(width, width, dtype=dtype, rngs=rngs)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = make(), make(), make(), make()
        self.heads, self.causal, self.attention = heads, causal, attention

    def __call__(self, x):
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
        q, k, v = (split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        out = attend(q, k, v, causal=self.causal, implementation=self.attention)
        return self.out_proj(out.reshape(x.shape))


class EncoderLayer(Block):
    """CLIP's block under the names that transformers has for its parts (CLIPEncoderLayer)."""

    def __init__(self, width: int, heads: int, **options: Any):
        super().__init__(width, heads, self_attention=SeparateSelfAttention, **options)


class CLIPTextModel(nnx.Module):
    """CLIP's text encoder. Follows transformers' CLIPTextModel, whose words its keywords are.

    Calls: tokens (n, m), padded with the end's id -> the last hidden state (n, m, hidden_size), normed, and
    of that the row at the end of each text (n, hidden_size).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        max_position_embeddings: int = 77,
        hidden_act: str = 'quick_gelu',
        eos_token_id: int | None = None,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        if hidden_act not in ACTIVATIONS:
            raise ValueError(
                f'unknown hidden_act {hidden_act!r}; choose one of: {", ".join(ACTIVATIONS)}'
            )
        self.token_embedding = _embed(vocab_size, hidden_size, 0.02, dtype, rngs)
        self.position_embedding = _embed(max_position_embeddings, hidden_size, 0.02, dtype, rngs)
        self.layers = stack(
            lambda _: EncoderLayer(
                hidden_size,
                num_attention_heads,
                hidden=intermediate_size,
                quick_gelu=hidden_act == 'quick_gelu',
                causal=True,
                attention=attention,
                dtype=dtype,
                rngs=rngs,
            ),
            [None] * num_hidden_layers,
            rngs=rngs,
        )
        self.final_layer_norm = layer_norm(hidden_size, dtype=dtype, rngs=rngs)
        # The vocabulary's last entry, in CLIP's own. Old config.json files say 2 and mean that one, too.
        self.eos_token_id = vocab_size - 1 if eos_token_id in (None, 2) else eos_token_id

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.normed(tokens, self.hidden_states(tokens)[-1])

    def hidden_states(self, tokens: jax.Array) -> list[jax.Array]:
        """The embeddings and each layer's output, (n, m, hidden_size), none of them normed."""
        x = _placed(self.token_embedding(tokens), self.position_embedding.embedding[...])
        return states(self.layers, x)

    def normed(self, tokens: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The last layer's output normed, and of that the row at the first end of each text."""
        x = self.final_layer_norm(x).astype(jnp.float32)
        return x, _row(x, jnp.argmax(tokens == self.eos_token_id, -1))


class OpenCLIPTextModel(nnx.Module):
    """OpenCLIP's model without its image tower, as sgm keeps it to embed text.

    Args: open_clip's embed_dim and text_cfg; vision_cfg is of no use here.

    Calls: tokens (n, m), padded with zeros -> the last state (n, m, width), normed, and the embeddings
    (n, embed_dim).
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        text_cfg: Mapping[str, Any],
        vision_cfg: Mapping[str, Any] | None = None,
        quick_gelu: bool = False,
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        unknown = sorted(set(text_cfg) - _TEXT_CFG)
        if unknown:
            raise ValueError(
                f'text_cfg: {unknown[0]!r} is not known; known are {sorted(_TEXT_CFG)}'
            )
        width = text_cfg['width']
        draw = lambda deviation, *shape: nnx.Param(
            deviation * jax.random.normal(rngs.params(), shape, jnp.float32)
        )
        self.positional_embedding = draw(0.01, text_cfg['context_length'], width)
        self.text_projection = draw(width**-0.5, width, embed_dim)
        # Takes no part in anything, but published checkpoints hold it.
        self.logit_scale = nnx.Param(jnp.full((), math.log(1 / 0.07), jnp.float32))
        self.transformer = Transformer(
            width,
            text_cfg['layers'],
            text_cfg['heads'],
            mlp_ratio=text_cfg.get('mlp_ratio', 4.0),
            quick_gelu=quick_gelu,
            causal=True,
            attention=attention,
            dtype=dtype,
            rngs=rngs,
        )
        self.token_embedding = _embed(text_cfg['vocab_size'], width, 0.02, dtype, rngs)
        self.ln_final = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        last = self.norm(self.hidden_states(tokens)[-1])
        return last, self.pool(tokens, last)

    def hidden_states(self, tokens: jax.Array) -> list[jax.Array]:
        """The embeddings and each layer's output, (n, m, width), none of them normed."""
        x = _placed(self.token_embedding(tokens), self.positional_embedding[...])
        return states(self.transformer.resblocks, x)

    def norm(self, x: jax.Array) -> jax.Array:
        """ln_final of a state, in float32."""
        return self.ln_final(x).astype(jnp.float32)

    def pool(self, tokens: jax.Array, last: jax.Array) -> jax.Array:
        """The projection of the row at each text's end, whose id is the largest: (n, embed_dim)."""
        return _row(last, jnp.argmax(tokens, -1)) @ self.text_projection[...]


def _embed(entries: int, width: int, deviation: float, dtype: Any, rngs: Keys) -> nnx.Embed:
    init = nnx.initializers.normal(deviation)
    return nnx.Embed(entries, width, embedding_init=init, dtype=dtype, rngs=rngs)


def _placed(x: jax.Array, places: jax.Array) -> jax.Array:
    if x.shape[1] > len(places):
        raise ValueError(f'{x.shape[1]} tokens; the model has places for {len(places)}')
    # As under autocast: what the layers are added to stays float32, whatever they compute in.
    return x.astype(jnp.float32) + places[: x.shape[1]].astype(jnp.float32)


def _row(x: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, places[:, None, None], axis=1)[:, 0]
