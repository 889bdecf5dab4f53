"""In what precision a run holds the parts that it does not train."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.errors import UserError
from sgm_jax.platforms import auto_dtype

PyTree = Any
DTYPES = ('float32', 'bfloat16', 'auto')
# First stages, what an autoencoder keeps of its own, and what measures its pictures.
_FIRST_STAGE = ('first_stage', 'autoencoder', 'perceptual', 'encoder')


def check_dtype(name: str, value: str) -> None:
    """Raises a UserError that lists the choices."""
    if value not in DTYPES:
        raise UserError(f'train.{name} is {value!r}; choose one of: {", ".join(DTYPES)}')


def hold(frozen: PyTree, *, dtype: str, first_stage_dtype: str) -> PyTree:
    """The same tree, its float32 numbers in the dtypes asked for.

    'auto' is bfloat16 on accelerators, float32 on a CPU. Computing widens them again. A first stage (that of
    a conditioner, too) has a dtype of its own: its latents are what is learned from.
    """

    def one(path: tuple, x: Any) -> Any:
        names = {str(getattr(key, 'key', key)) for key in path}
        name = first_stage_dtype if names & set(_FIRST_STAGE) else dtype
        wanted = jnp.dtype(auto_dtype() if name == 'auto' else name)
        if x.dtype != jnp.float32 or wanted == jnp.float32:
            return x
        return x.astype(wanted) if isinstance(x, jax.Array) else np.asarray(x).astype(wanted)

    return jax.tree_util.tree_map_with_path(one, frozen)
