"""The conditioner: all embedders, put together by rank, some of them left out at random."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.conditioning.tokenizers import make_tokenizer
from sgm_jax.errors import UserError

# By the embedding's rank: its name, as the network wrapper takes it. Always joined on the last axis.
KINDS = {2: 'vector', 3: 'crossattn', 4: 'concat'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """How one embedder is used.

    Attributes:
      input_key: the entry of the batch that it reads; input_keys: several, handed over in this order.
      ucg_rate: the share of training examples whose embedding is zeroed (u.c.g. is sgm's word for
        guidance without a classifier).
      ucg_group: embedders of one group are zeroed together, by one coin; None tosses its own.
      legacy_ucg_value: not None replaces the entry itself by this value ('' for a prompt) instead of
        zeroing what it is embedded to; whoever else reads the entry sees the value too.
      is_trainable: whether its weights are trained with the network's.
    """

    input_key: str = ''
    input_keys: tuple[str, ...] = ()
    ucg_rate: float = 0.0
    ucg_group: str | None = None
    legacy_ucg_value: Any = None
    is_trainable: bool = False

    def __post_init__(self):
        if bool(self.input_key) == bool(self.input_keys):
            raise ValueError("missing 'input_key' (or 'input_keys'; one of the two)")

    @property
    def keys(self) -> tuple[str, ...]:
        """All entries that it reads."""
        return self.input_keys or (self.input_key,)


class GeneralConditioner(nnx.Module):
    """Embeds a batch. Follows sgm's GeneralConditioner.

    Embeddings of rank 2 make up `vector`, of rank 3 `crossattn`, of rank 4 `concat`, each joined on the
    last axis in the order of the embedders. An embedder may give several.
    """

    def __init__(self, embedders: Sequence[nnx.Module], slots: Sequence[Slot]):
        self.embedders = nnx.List(embedders)
        self.slots = tuple(slots)

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        zero: Mapping[str, Any] | None = None,
        examples: int | None = None,
        num_frames: int = 1,
    ) -> dict[str, jax.Array]:
        """Embeds a batch.

        Args:
          batch: the embedders' entries, by key; prompts as `tokenize` leaves them.
          key: tosses the coins of the dropout, and draws what embedders draw; without it (sampling)
            nothing is dropped or drawn.
          zero: entries whose embeddings are zeros where the value, a boolean that may be traced, is true:
            what the unconditional pass does not know.
          examples, num_frames: for video, an embedding of `examples` clips is repeated over the frames
            of each, to (examples * num_frames, ...).

        Returns:
          Those of 'vector', 'crossattn' and 'concat' that there are.

        Raises:
          UserError: the batch lacks an entry, or an embedding has another rank.
        """
        batch, zero, parts = dict(batch), zero or {}, {}
        for index, (embedder, slot) in enumerate(zip(self.embedders, self.slots, strict=True)):
            coin = None
            if key is not None and slot.ucg_rate > 0.0:
                coin = self._coin(index, key)
            if coin is not None and slot.legacy_ucg_value is not None:
                self._replace(batch, slot, coin)
            found = _kept(batch, index) or _embed(embedder, slot, batch, index, key)
            for embedding in found:
                name = ', '.join(slot.keys)
                if not slot.is_trainable:
                    embedding = jax.lax.stop_gradient(embedding)
                if embedding.ndim not in KINDS:
                    raise UserError(
                        f'the embedding of {name!r} has shape {embedding.shape}; it must have '
                        'rank 2 (vector), 3 (tokens) or 4 (map)'
                    )
                if coin is not None and slot.legacy_ucg_value is None:
                    embedding = _zeroed(embedding, coin(len(embedding)))
                if slot.input_key in zero:
                    embedding = jnp.where(zero[slot.input_key], 0.0, embedding)
                if num_frames > 1 and len(embedding) == examples:
                    embedding = jnp.repeat(embedding, num_frames, axis=0)
                parts.setdefault(KINDS[embedding.ndim], []).append(embedding)
        return {kind: jnp.concatenate(found, -1) for kind, found in parts.items()}

    @property
    def reads(self) -> frozenset[str]:
        """All entries that it reads."""
        return self.reads_beside(())

    def reads_beside(self, names: Iterable[str]) -> frozenset[str]:
        """The entries that it reads of a batch which has entries of these names: those of `embeddings` do."""
        names = set(names)
        return frozenset(
            key
            for index, slot in enumerate(self.slots)
            if f'embedded/{index}/0' not in names
            for key in slot.keys
        )

    def embeddings(
        self, batch: Mapping[str, jax.Array], indices: Sequence[int]
    ) -> dict[str, jax.Array]:
        """What some embedders make of a batch, as entries of another: their own are not needed then."""
        return {
            f'embedded/{index}/{number}': embedding
            for index in indices
            for number, embedding in enumerate(
                _embed(self.embedders[index], self.slots[index], batch, index, None)
            )
        }

    def tokenize(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the host with the tokens of its prompts in place of the prompts."""
        texts = list(self._texts())
        told = {key: x for key, x in batch.items() if key not in {name for _, name in texts}}
        for embedder, key in texts:
            if key in batch:
                prompts = [str(text) for text in np.asarray(batch[key]).reshape(-1)]
                told[_entry(key, embedder)] = _tokens(embedder, prompts)
        return told

    def _texts(self) -> Iterator[tuple[nnx.Module, str]]:
        for embedder, slot in zip(self.embedders, self.slots, strict=True):
            if hasattr(embedder, 'tokenizer'):
                yield embedder, slot.input_key

    def _coin(self, index: int, key: jax.Array):
        slot = self.slots[index]
        if slot.ucg_group is not None:
            groups = [other.ucg_group for other in self.slots]
            index = groups.index(slot.ucg_group)
        return lambda count: (
            jax.random.uniform(jax.random.fold_in(key, index), (count,)) < slot.ucg_rate
        )

    def _replace(self, batch: dict[str, jax.Array], slot: Slot, coin) -> None:
        """Writes the slot's value over the examples whose coin says so, for all who read the entry."""
        value, key = slot.legacy_ucg_value, slot.input_key
        values = {
            _entry(key, embedder): _tokens(embedder, [value])[0]
            for embedder, other in self._texts()
            if other == key
        }
        for other, reader in enumerate(self.slots):
            if key in reader.keys:
                for number, kept in enumerate(_kept(batch, other)):
                    dropped = coin(len(kept)).reshape(-1, *(1,) * (kept.ndim - 1))
                    name = f'{other}/{number}'
                    batch[f'embedded/{name}'] = jnp.where(dropped, batch[f'empty/{name}'], kept)
        for name, constant in (values or {key: value}).items():
            if name in batch:
                x = jnp.asarray(batch[name])
                dropped = coin(len(x)).reshape(-1, *(1,) * (x.ndim - 1))
                batch[name] = jnp.where(dropped, jnp.asarray(constant, x.dtype), x)


def _entry(key: str, embedder: nnx.Module) -> str:
    """Where the tokens of the prompts in `key` are: two tokenizers may read the same prompts."""
    if not hasattr(embedder, 'tokenizer'):
        return key
    return f'{key}/{embedder.tokenizer}/{embedder.max_length}'


def _tokens(embedder: nnx.Module, prompts: Sequence[str]) -> np.ndarray:
    """(n, max_length) ids; a pair of tokenizers has them side by side."""
    names, lengths = embedder.tokenizer, embedder.max_length
    if isinstance(names, str):
        names, lengths = (names,), (lengths,)
    parts = [make_tokenizer(name)(prompts, n) for name, n in zip(names, lengths, strict=True)]
    return np.concatenate(parts, 1)


def _embed(
    embedder: nnx.Module, slot: Slot, batch: Mapping, index: int, key: jax.Array | None
) -> Sequence[jax.Array]:
    keys = tuple(_entry(name, embedder) for name in slot.keys)
    for name in keys:
        if name not in batch:
            raise UserError(
                f'the batch has no {name!r}, which {type(embedder).__name__} reads; '
                f'it has: {", ".join(sorted(batch))}'
            )
    drawn = {}
    if getattr(embedder, 'draws', False):
        drawn['key'] = None if key is None else jax.random.fold_in(key, 2**16 + index)
    found = embedder(*(batch[name] for name in keys), **drawn)
    return found if isinstance(found, (tuple, list)) else (found,)


def _kept(batch: Mapping, index: int) -> list[jax.Array]:
    """What an embedder made of the batch before; see `GeneralConditioner.embeddings`."""
    found = []
    while (name := f'embedded/{index}/{len(found)}') in batch:
        found.append(batch[name])
    return found


def _zeroed(embedding: jax.Array, dropped: jax.Array) -> jax.Array:
    return jnp.where(dropped.reshape(-1, *(1,) * (embedding.ndim - 1)), 0.0, embedding)
