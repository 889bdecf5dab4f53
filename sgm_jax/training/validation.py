"""What a run is worth on held-out examples: the same ones with the same noise, every time."""

import collections
from typing import Any

import jax
import ml_collections

from sgm_jax.data import pipeline
from sgm_jax.engines import Engine
from sgm_jax.parallel import agreement
from sgm_jax.training.state import TrainState

PyTree = Any


class Validation:
    """Measures a state's parameters (`val/...`) and their average (`val_ema/...`), as sgm names them.

    With several hosts, each measures the same from copies of the weights on its own devices.

    Args:
      examples: held-out ones that are looked at, at most.
      batch_size: at once.
    """

    def __init__(
        self,
        engine: Engine,
        config: ml_collections.ConfigDict,
        mesh: jax.sharding.Mesh,
        key: jax.Array,
        *,
        examples: int,
        batch_size: int,
    ):
        self._engine, self._mesh, self._key = engine, mesh, key
        source = pipeline.make_source(config.data, split='held_out')
        count = min(examples, len(source))
        size = min(batch_size, count)
        # Whole batches: another size would be compiled for a few examples more.
        self._batches = pipeline.held_out_batches(source, count // size, size)
        self.examples = count // size * size

    def copies(self, state: TrainState, frozen: PyTree) -> PyTree:
        """What is measured, on this host's devices; all hosts must ask together."""
        return agreement.to_each_host((state.params, state.ema_params, frozen), self._mesh)

    def __call__(self, copies: PyTree, *, prefix: str = 'val') -> dict[str, float]:
        """Figures by name; this host's own work."""
        params, ema_params, frozen = copies
        figures = collections.defaultdict(list)
        # Examples are read once for both.
        for index, batch in enumerate(self._batches()):
            key = jax.random.fold_in(self._key, index)
            for name, tree in ((f'{prefix}_ema', ema_params), (prefix, params)):
                for figure, value in self._engine.validate(tree, frozen, batch, key).items():
                    figures[f'{name}/{figure}'].append(value)
        return {name: sum(values) / len(values) for name, values in figures.items()}
