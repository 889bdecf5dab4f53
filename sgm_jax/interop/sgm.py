"""Modules from sgm's state dicts and back.

A state dict maps PyTorch names to numpy arrays in PyTorch's layout. Names come from one table
(names.py), layouts from one rule: a kernel's last two axes (in, out) come first and turned (out, in).
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.errors import UserError
from sgm_jax.interop.names import REPEATED, names_of, spread_of

# What Flax's layers call their parameters, in PyTorch's words.
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight'}
_LISTED = 8
# More only hold more in memory: the second already waits for the first's copies.
_READERS = 2


class Entry(NamedTuple):
    """A parameter: the name that PyTorch has for it, where it lives, and what differs in its layout.

    `turned`: its axes are in another order. `spread`: a number per channel, which sgm has as (1, c, 1, 1).
    """

    name: str
    path: tuple[str | int, ...]
    variable: nnx.Variable
    turned: bool = False
    spread: bool = False

    def outward(self, array: np.ndarray) -> np.ndarray:
        """An array of ours in PyTorch's layout; a view."""
        if self.turned:
            return np.moveaxis(array, (-1, -2), (0, 1))
        return array.reshape(self.shape)

    def inward(self, array: np.ndarray) -> np.ndarray:
        """An array of a state dict in our layout; a view."""
        if self.turned:
            return np.moveaxis(array, (0, 1), (-1, -2))
        return array.reshape(self.variable.shape)

    def typed(self, array: np.ndarray) -> np.ndarray:
        """An array in the parameter's own type."""
        return array.astype(self.variable.dtype, copy=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch's layout."""
        shape = self.variable.shape
        if self.spread:
            return (1, *shape, 1, 1)
        return (shape[-1], shape[-2], *shape[:-2]) if self.turned else tuple(shape)


def entries(module: nnx.Module, prefix: str = '', path: tuple = ()) -> Iterator[Entry]:
    """Every parameter and buffer of a module with its PyTorch name."""
    if isinstance(module, nnx.List):
        children, names, spread = enumerate(module), {}, ()
    else:
        children, names, spread = vars(module).items(), names_of(module), spread_of(module)
    for key, child in children:
        name = names.get(key, str(key))
        if isinstance(child, nnx.Variable):
            leaf = name if key in names else _LEAVES.get(name, name)
            here = (*path, key)
            yield Entry(prefix + leaf, here, child, turned=key == 'kernel', spread=key in spread)
        elif isinstance(child, nnx.Module):
            joined = prefix + name + ('.' if name and not name.endswith('_') else '')
            yield from entries(child, joined, (*path, key))


def to_sgm(module: nnx.Module) -> dict[str, np.ndarray]:
    """The state dict of a module, in PyTorch's names and layout.

    An abstract module (of nnx.eval_shape) gives jax.ShapeDtypeStructs instead of arrays.
    """
    return {entry.name: _outward(entry) for entry in entries(module)}


def _outward(entry: Entry):
    value = entry.variable.get_value()
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(entry.shape, value.dtype)
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.signedinteger):
        array = array.astype(np.int64)  # as PyTorch counts
    laid_out = entry.outward(array)
    return np.ascontiguousarray(laid_out) if entry.turned else laid_out


def from_sgm(target: str, params: Mapping[str, Any], state_dict: Mapping[str, Any]) -> nnx.Module:
    """The module that a node of an sgm YAML names, with the weights of a state dict.

    Args:
      target: the class path, such as 'sgm.modules.diffusionmodules.video_model.VideoUNet'.
      params: its params, as in the YAML.
      state_dict: PyTorch names to numpy arrays (or anything numpy can read), PyTorch layouts.

    Raises:
      ValueError: an unknown target or parameter, or missing, unexpected and mis-shaped names, all of
        them in one error.
    """
    from sgm_jax.interop.targets import make

    return load(make(target, params), state_dict)


def load(
    module: nnx.Module,
    state_dict: Mapping[str, Any],
    *,
    prefix: str = '',
    only: Callable[[tuple], bool] = lambda path: True,
    place: Callable[[Entry, np.ndarray], Any] | None = None,
) -> nnx.Module:
    """Fills an (abstract) module from the names of a state dict that begin with `prefix`.

    All names and shapes are checked; values are read for those paths that `only` holds for, and put where
    `place` puts them: by default on the first device, in the module's own type. `place` is called from
    threads, a tensor each: one is read while another is turned into our layout.
    """
    wanted = {prefix + entry.name: entry for entry in entries(module)}
    check_names(
        {name: entry.shape for name, entry in wanted.items()},
        {
            name: _shape(state_dict, name)
            for name in state_dict
            if name.startswith(prefix) and not name.endswith(REPEATED)
        },
    )
    place = place or (lambda entry, array: jnp.asarray(entry.typed(array)))
    chosen = {name: entry for name, entry in wanted.items() if only(entry.path)}
    read = lambda name: chosen[name].inward(np.asarray(state_dict[name]))
    with ThreadPoolExecutor(_READERS) as readers:
        placed = readers.map(lambda name: place(chosen[name], read(name)), chosen)
        for entry, value in zip(chosen.values(), placed, strict=True):
            entry.variable.set_value(value)
    return module


def _shape(state_dict: Mapping[str, Any], name: str) -> tuple[int, ...]:
    # A file knows its shapes without reading.
    shape = getattr(state_dict, 'shape', None)
    return shape(name) if shape else np.shape(state_dict[name])


def check_names(
    wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises one UserError that lists all that is missing, unexpected or of another shape."""
    problems = {
        'missing': [name for name in wanted if name not in given],
        'unexpected': [name for name in given if name not in wanted],
        'mis-shaped': [
            f'{name} {tuple(given[name])} instead of {tuple(shape)}'
            for name, shape in wanted.items()
            if name in given and tuple(given[name]) != tuple(shape)
        ],
    }
    said = [f'{len(names)} {what}: {_listed(names)}' for what, names in problems.items() if names]
    if said:
        raise UserError('the checkpoint does not fit the model; ' + '; '.join(said))


def _listed(names: list[str]) -> str:
    more = f', and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
    return ', '.join(names[:_LISTED]) + more
