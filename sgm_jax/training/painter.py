"""The pictures of a run, always of the same examples and with the same noise."""

import jax
import ml_collections
import numpy as np

from sgm_jax.data import pipeline
from sgm_jax.engines import Engine
from sgm_jax.engines.structure import PyTree
from sgm_jax.parallel import agreement
from sgm_jax.training.cards import cards
from sgm_jax.training.options import PictureOptions
from sgm_jax.training.state import TrainState


class Painter:
    """Draws what a state makes of them.

    With several hosts, each draws the same pictures from copies of the weights on its own devices.
    """

    def __init__(
        self,
        engine: Engine,
        config: ml_collections.ConfigDict,
        mesh: jax.sharding.Mesh,
        key: jax.Array,
        options: PictureOptions,
    ):
        self._engine, self._mesh, self._key, self._options = engine, mesh, key, options
        self._batches = {}
        for split in options.splits:
            source = pipeline.make_source(config.data, split=split)
            count = min(options.max_images, config.train.batch_size, len(source))
            self._batches[split] = pipeline.held_out_batch(source, count)

    def copies(self, state: TrainState, frozen: PyTree) -> PyTree:
        """What is drawn with, on this host's devices; all hosts must ask together."""
        return agreement.to_each_host((state.ema_params, frozen, state.players), self._mesh)

    def __call__(self, copies: PyTree) -> dict[str, dict[str, np.ndarray]]:
        """Pictures by name, of each split; this host's own work."""
        ema_params, frozen, players = copies
        found = {}
        for split, batch in self._batches.items():
            found[split] = self._engine.pictures(
                ema_params,
                frozen,
                batch,
                self._key,
                players=players,
                unguided=self._options.unguided,
            )
            told = cards(batch)
            if told is not None:
                found[split]['conditionings'] = told
        return found
