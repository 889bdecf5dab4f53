"""Text embedders: each turns token ids (n, m) into tokens to attend to (n, m, d), or into a vector.

The ids come from the host (tokenizers.py). An embedder's `tokenizer` names the tokenizer that made them and
`max_length` says how many there are: `make_tokenizer(embedder.tokenizer)(texts, embedder.max_length)`.

All CLIP encoders share one tokenisation: the beginning's id, the text's, the end's, then zeros.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.config import call, lookup
from sgm_jax.networks.clip import ARCHITECTURES
from sgm_jax.networks.clip_text import CLIP_TEXT, CLIPTextModel, OpenCLIPTextModel
from sgm_jax.networks.layers import Keys
from sgm_jax.networks.t5 import T5, T5Encoder

Arch = str | Mapping[str, Any]


class CLIPText(nnx.Module):
    """CLIP's text encoder of transformers. Follows sgm's FrozenCLIPEmbedder.

    Args:
      arch: a name in CLIP_TEXT, or transformers' sizes as a mapping.
      layer: 'last' (the last state, normed), 'pooled' (of that the row at the text's end, as one token
        (n, 1, d)), or 'hidden' (hidden_states[layer_idx], not normed; 0 are the embeddings).
      always_return_pooled: adds that row (n, d) as a vector.
      max_length: ids per text; None: as many as the model has places for.

    Calls: ids (n, m) -> (n, m, d), or that and (n, d).
    """

    def __init__(
        self,
        *,
        arch: Arch = 'clip-vit-large-patch14',
        layer: str = 'last',
        layer_idx: int | None = None,
        always_return_pooled: bool = False,
        max_length: int | None = None,
        tokenizer: str = 'clip',
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        _check_layer(layer, ('last', 'pooled', 'hidden'))
        self.transformer = _network(CLIPTextModel, CLIP_TEXT, arch, attention, dtype, rngs)
        states = len(self.transformer.layers) + 1
        if layer == 'hidden' and (layer_idx is None or not -states <= layer_idx < states):
            raise ValueError(
                f'layer_idx {layer_idx} is none of the {states} hidden states; choose 0 to {states - 1}'
            )
        self.max_length = _length(max_length, self.transformer.position_embedding.num_embeddings)
        self.layer, self.layer_idx, self.pooled = layer, layer_idx, always_return_pooled
        self.tokenizer = tokenizer

    def __call__(self, tokens: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        # CLIP was trained with the end's id as padding, too. Its pooled row is that of the first end.
        end = self.transformer.eos_token_id
        tokens = jnp.where(jnp.cumsum(tokens == end, -1) > 0, end, tokens)
        states = self.transformer.hidden_states(tokens)
        last, pooled = self.transformer.normed(tokens, states[-1])
        if self.layer == 'hidden':
            z = states[self.layer_idx].astype(jnp.float32)
        else:
            z = last if self.layer == 'last' else pooled[:, None]
        return (z, pooled) if self.pooled else z


class OpenCLIPText(nnx.Module):
    """OpenCLIP's text tower. Follows sgm's FrozenOpenCLIPEmbedder2, and with `legacy` FrozenOpenCLIPEmbedder.

    Args:
      arch: a name in ARCHITECTURES, or open_clip's embed_dim and text_cfg as a mapping.
      layer: 'last' or 'penultimate'.
      always_return_pooled: adds the text's embedding (n, embed_dim) as a vector; goes without `legacy`.
      legacy: the layer's output is normed by ln_final (SD 2.1); otherwise it is left as it is (SDXL).
      max_length: ids per text; None: as many as the model has places for.

    Calls: ids (n, m) -> (n, m, d), or that and (n, embed_dim).
    """

    def __init__(
        self,
        *,
        arch: Arch = 'ViT-H-14',
        layer: str = 'last',
        always_return_pooled: bool = False,
        legacy: bool = True,
        max_length: int | None = None,
        tokenizer: str = 'clip',
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        _check_layer(layer, ('last', 'penultimate'))
        if legacy and always_return_pooled:
            raise ValueError('always_return_pooled goes without legacy; set legacy=False')
        self.model = _network(OpenCLIPTextModel, ARCHITECTURES, arch, attention, dtype, rngs)
        self.max_length = _length(max_length, self.model.positional_embedding.shape[0])
        self.layer, self.pooled, self.legacy = layer, always_return_pooled, legacy
        self.tokenizer = tokenizer

    def __call__(self, tokens: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        states = self.model.hidden_states(tokens)
        z = states[-1 if self.layer == 'last' else -2]
        if self.legacy:
            return self.model.norm(z)
        z = z.astype(jnp.float32)
        return (z, self.model.pool(tokens, self.model.norm(states[-1]))) if self.pooled else z


class T5Text(nnx.Module):
    """T5's or ByT5's encoder. Follows sgm's FrozenT5Embedder and FrozenByT5Embedder.

    Args:
      arch: a name in T5, or transformers' sizes as a mapping.
      max_length: ids per text.
      tokenizer: ByT5's is 'byt5'; T5's vocabulary is the tokenizer.json of its files, named by its path.

    Calls: ids (n, m) -> (n, m, d_model).
    """

    def __init__(
        self,
        *,
        arch: Arch = 't5-v1_1-xxl',
        max_length: int = 77,
        tokenizer: str = '',
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        self.transformer = _network(T5Encoder, T5, arch, attention, dtype, rngs)
        bytes_only = isinstance(arch, str) and _short(arch).startswith('byt5')
        self.tokenizer = tokenizer or ('byt5' if bytes_only else '')
        self.max_length = max_length

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.transformer(tokens)


class CLIPT5Text(nnx.Module):
    """CLIP and T5 on the same text. Follows sgm's FrozenCLIPT5Encoder.

    `tokenizer` and `max_length` are pairs, CLIP's first, and the ids of both lie side by side.

    Calls: ids (n, m + k) -> (n, m, d) of CLIP, and (n, k, d_model) of T5.
    """

    def __init__(
        self,
        *,
        clip_arch: Arch = 'clip-vit-large-patch14',
        t5_arch: Arch = 't5-v1_1-xl',
        clip_max_length: int | None = None,
        t5_max_length: int = 77,
        clip_tokenizer: str = 'clip',
        t5_tokenizer: str = '',
        attention: str = 'auto',
        dtype: Any = jnp.float32,
        rngs: Keys,
    ):
        options = dict(attention=attention, dtype=dtype, rngs=rngs)
        self.clip_encoder = CLIPText(
            arch=clip_arch, max_length=clip_max_length, tokenizer=clip_tokenizer, **options
        )
        self.t5_encoder = T5Text(
            arch=t5_arch, max_length=t5_max_length, tokenizer=t5_tokenizer, **options
        )
        parts = (self.clip_encoder, self.t5_encoder)
        self.tokenizer = tuple(part.tokenizer for part in parts)
        self.max_length = tuple(part.max_length for part in parts)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        clip, t5 = jnp.split(tokens, [self.max_length[0]], axis=1)
        return self.clip_encoder(clip), self.t5_encoder(t5)


def _network(
    make: type, table: Mapping[str, Any], arch: Arch, attention: str, dtype: Any, rngs: Keys
) -> nnx.Module:
    sizes = arch if isinstance(arch, Mapping) else lookup(table, _short(arch), 'arch')
    return call(make, {**sizes, 'attention': attention, 'dtype': dtype}, where='arch', rngs=rngs)


def _short(arch: str) -> str:
    # openai/clip-vit-large-patch14 is how sgm's YAMLs name it.
    return arch.rsplit('/', 1)[-1]


def _check_layer(layer: str, layers: tuple[str, ...]) -> None:
    if layer not in layers:
        raise ValueError(f'unknown layer {layer!r}; choose one of: {", ".join(layers)}')


def _length(wanted: int | None, places: int) -> int:
    if wanted is not None and wanted > places:
        raise ValueError(
            f'max_length {wanted} is more than the {places} places that the model knows'
        )
    return places if wanted is None else wanted
