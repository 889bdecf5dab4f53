"""What a run's checkpoints hold, for tests that compare runs."""

import pathlib

import jax
import ml_collections
import numpy as np

from sgm_jax.data import pipeline
from sgm_jax.training.checkpoints import Checkpoints
from sgm_jax.training.setup import Setup
from sgm_jax.training.state import TrainState


def state_of(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, step: int
) -> tuple[TrainState, dict]:
    """A checkpoint's state, as numpy, and the position of its data."""
    data = pipeline.make_iterator(config.data, batch_size=config.train.batch_size, seed=99)
    with Checkpoints(workdir, keep=9) as checkpoints:
        state = checkpoints.restore(step, Setup.from_config(config).wanted, data)
    return jax.tree.map(np.asarray, state), data.get_state()
