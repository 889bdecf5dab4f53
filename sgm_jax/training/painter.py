"""The pictures of a run, always of the same held-out examples and with the same noise."""

import jax
import ml_collections
import numpy as np

from sgm_jax.data import pipeline
from sgm_jax.engines import Engine
from sgm_jax.parallel import agreement
from sgm_jax.training.logs import MAX_EXAMPLES
from sgm_jax.training.state import TrainState


class Painter:
    """Draws what a state makes of them.

    With several hosts, each draws the same pictures from copies of the weights on its own devices; all must
    be asked at the same step, for the copies are made together.
    """

    def __init__(
        self,
        engine: Engine,
        config: ml_collections.ConfigDict,
        mesh: jax.sharding.Mesh,
        key: jax.Array,
    ):
        self.engine, self.mesh, self.key = engine, mesh, key
        source = pipeline.make_source(config.data, split='held_out')
        count = min(MAX_EXAMPLES, config.train.batch_size, len(source))
        self.batch = pipeline.held_out_batch(source, count)

    def __call__(
        self, state: TrainState, frozen: object
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Figures and pictures, by name."""
        ema_params, frozen, players = agreement.to_each_host(
            (state.ema_params, frozen, state.players), self.mesh
        )
        averaged = (ema_params, frozen, self.batch)
        pictures = self.engine.pictures(*averaged, self.key, players=players)
        return self.engine.metrics(*averaged), pictures
