"""What `--dtype` of sampling means: the dtype that weights are held in, and computed in."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sgm_jax.engines.first_stages import DTYPES
from sgm_jax.errors import UserError

PyTree = Any


def compute_in(config: ml_collections.ConfigDict, dtype: str) -> None:
    """Makes a config's network and text encoders compute in it.

    Raises:
      UserError: a dtype that is none of DTYPES, or the config is of a first stage, which keeps its own.
    """
    if config.model.name != 'diffusion':
        raise UserError('dtype: a first stage is held in its own; leave --dtype out')
    if dtype not in DTYPES:
        raise UserError(f'unknown dtype {dtype!r}; choose one of: {", ".join(DTYPES)}')
    config.model.network.dtype = dtype
    config.model.conditioner = tuple(
        {**node, 'dtype': dtype} if 'dtype' in node else node for node in config.model.conditioner
    )


def held(path: tuple, array: np.ndarray, dtype: str | None) -> np.ndarray:
    """A weight as it is held: the first stage is never rounded, and None keeps them all."""
    if dtype is None or path[0] == 'first_stage' or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(dtype)


def hold(tree: PyTree, dtype: str | None) -> PyTree:
    """A tree of weights as they are held."""
    names = lambda path: tuple(getattr(key, 'key', key) for key in path)
    return jax.tree_util.tree_map_with_path(lambda path, x: held(names(path), x, dtype), tree)
