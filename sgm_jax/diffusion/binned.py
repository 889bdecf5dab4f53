"""A loss told apart by noise level: sums and counts, which add up over batches."""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

# Two to a decade: what a network does at one of them says little of the others.
SIGMA_EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@flax.struct.dataclass
class Binned:
    """Of a figure: its sum and how often it came, float32 (bins,), by the bin that another figure is in.

    `edges` (bins - 1) part the bins, which are open at both ends.
    """

    sums: jax.Array
    counts: jax.Array
    edges: tuple[float, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, values: jax.Array, by: jax.Array, edges: Sequence[float] = SIGMA_EDGES) -> 'Binned':
        """Of values (n,) by the figures (n,); traceable."""
        edges = tuple(edges)
        index = jnp.searchsorted(jnp.asarray(edges, jnp.float32), by, side='right')
        where = jax.nn.one_hot(index, len(edges) + 1)
        # Not as a product: on TPUs that would round losses to bfloat16.
        sums = (values[:, None] * where).sum(0)
        return cls(sums=sums, counts=where.sum(0), edges=edges)

    def __add__(self, other: 'Binned') -> 'Binned':
        return self.replace(sums=self.sums + other.sums, counts=self.counts + other.counts)

    def means(self) -> dict[str, float]:
        """The mean of each bin that has any, by the bin's name."""
        names = [f'below_{self.edges[0]:g}']
        names += [
            f'{low:g}_to_{high:g}' for low, high in zip(self.edges, self.edges[1:], strict=False)
        ]
        names.append(f'above_{self.edges[-1]:g}')
        pairs = zip(names, self.sums.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count for name, total, count in pairs if count}

    @staticmethod
    def is_one(x: Any) -> bool:
        """Whether it is one of these; a leaf of a tree that holds some."""
        return isinstance(x, Binned)
