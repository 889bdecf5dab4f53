"""The conditioner: all embedders, put together by rank, some of them left out at random."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.errors import UserError

# By the embedding's rank: its name, as the network wrapper takes it. Always joined on the last axis.
KINDS = {2: 'vector', 3: 'crossattn', 4: 'concat'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """How one embedder is used.

    Attributes:
      input_key: the entry of the batch that it reads.
      ucg_rate: the share of training examples whose embedding is zeroed (u.c.g. is sgm's word for
        guidance without a classifier).
      ucg_group: embedders of one group are zeroed together, by one coin; None tosses its own.
      is_trainable: whether its weights are trained with the network's.
    """

    input_key: str
    ucg_rate: float = 0.0
    ucg_group: str | None = None
    is_trainable: bool = False


class GeneralConditioner(nnx.Module):
    """Embeds a batch. Follows sgm's GeneralConditioner.

    Embeddings of rank 2 make up `vector`, of rank 3 `crossattn`, of rank 4 `concat`, each joined on the
    last axis in the order of the embedders.
    """

    def __init__(self, embedders: Sequence[nnx.Module], slots: Sequence[Slot]):
        self.embedders = nnx.List(embedders)
        self.slots = tuple(slots)

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        zero: Collection[str] = (),
        examples: int | None = None,
        num_frames: int = 1,
    ) -> dict[str, jax.Array]:
        """Embeds a batch.

        Args:
          batch: the embedders' entries, by key.
          key: tosses the coins of the dropout; without it (sampling) nothing is dropped.
          zero: input keys whose embeddings are zeros: what the unconditional pass does not know.
          examples, num_frames: for video, an embedding of `examples` clips is repeated over the frames
            of each, to (examples * num_frames, ...).

        Returns:
          Those of 'vector', 'crossattn' and 'concat' that there are.

        Raises:
          UserError: the batch lacks an entry, or an embedding has another rank.
        """
        parts = {}
        for index, (embedder, slot) in enumerate(zip(self.embedders, self.slots, strict=True)):
            if slot.input_key not in batch:
                raise UserError(
                    f'the batch has no {slot.input_key!r}, which {type(embedder).__name__} reads; '
                    f'it has: {", ".join(sorted(batch))}'
                )
            embedding = embedder(batch[slot.input_key])
            if not slot.is_trainable:
                embedding = jax.lax.stop_gradient(embedding)
            if embedding.ndim not in KINDS:
                raise UserError(
                    f'the embedding of {slot.input_key!r} has shape {embedding.shape}; it must have '
                    'rank 2 (vector), 3 (tokens) or 4 (map)'
                )
            if slot.input_key in zero:
                embedding = jnp.zeros_like(embedding)
            elif key is not None and slot.ucg_rate > 0.0:
                embedding = self._drop(embedding, index, key)
            if num_frames > 1 and len(embedding) == examples:
                embedding = jnp.repeat(embedding, num_frames, axis=0)
            parts.setdefault(KINDS[embedding.ndim], []).append(embedding)
        return {kind: jnp.concatenate(found, -1) for kind, found in parts.items()}

    def _drop(self, embedding: jax.Array, index: int, key: jax.Array) -> jax.Array:
        slot = self.slots[index]
        if slot.ucg_group is not None:
            groups = [other.ucg_group for other in self.slots]
            index = groups.index(slot.ucg_group)
        coin = jax.random.uniform(jax.random.fold_in(key, index), embedding.shape[:1])
        keep = coin >= slot.ucg_rate
        return jnp.where(keep.reshape(-1, *(1,) * (embedding.ndim - 1)), embedding, 0.0)
