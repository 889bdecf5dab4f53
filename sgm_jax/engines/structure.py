"""A module taken apart: its structure, which is static, and two trees of parameters."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.errors import UserError
from sgm_jax.networks.layers import Keys

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """How a module is built and which of its parameters are trained.

    Attributes:
      build: makes the module, given the keys of its initial values.
      trainable: says of a parameter's path (attribute names and list indices) whether it is trained.
        Buffers never are.
      kinds: the variables among which the trained ones are. With Statistics they lie beside the parameters,
        to be replaced after each step.
    """

    build: Callable[[Keys], nnx.Module]
    trainable: Callable[[tuple], bool] = lambda path: True
    kinds: tuple[type, ...] = (nnx.Param,)

    def module(self) -> nnx.Module:
        """The module with shapes in place of arrays, to be filled."""
        # A copy: building SDXL takes ten times as long.
        return nnx.merge(*nnx.split(self.shape))

    @functools.cached_property
    def shape(self) -> nnx.Module:
        """`module`, to be looked at, not to be filled."""
        return nnx.eval_shape(lambda: self.build(Keys(shapes_only=True)))

    def split(self, module: nnx.Module) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        """(structure, trainable, frozen) of a module."""
        trained = lambda path, value: isinstance(value, self.kinds) and self.trainable(path)
        graphdef, params, frozen = nnx.split(module, trained, ...)
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)

    @functools.cached_property
    def abstract(self) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        """`split` with shapes in place of arrays."""
        return self.split(self.shape)

    def check_patterns(self, patterns: Sequence[str], *, where: str) -> None:
        """Raises a UserError for the first pattern that no dotted path begins with."""
        names = ['.'.join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(self.shape))]
        for pattern in patterns:
            if not any(re.match(pattern, name) for name in names):
                parts = sorted({name.split('.')[0] for name in names})
                raise UserError(
                    f'{where}: no parameter begins with {pattern!r}; there are: {", ".join(parts)}'
                )

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Fresh (trainable, frozen) parameters; traceable."""
        keys = Keys(key, together=True)
        return keys.drawn(self.split(self.build(keys))[1:])

    def constants(self) -> PyTree:
        """The frozen tree, where all there is in it are constants that the config states."""
        return jax.jit(lambda: self.init(jax.random.key(0))[1])()

    def merge(self, params: PyTree, frozen: PyTree) -> nnx.Module:
        """The module with these parameters, which may be held in fewer bits than its own float32."""
        return nnx.merge(self.abstract[0], *jax.tree.map(_widened, (params, frozen)))


def has_path(tree: PyTree, path: tuple) -> bool:
    """Whether a tree of nested dicts has something at a path."""
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _widened(x: jax.Array) -> jax.Array:
    half = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != jnp.float32
    return x.astype(jnp.float32) if half else x


def to_uint8(images: jax.Array) -> np.ndarray:
    """[-1, 1] to 0..255."""
    return np.asarray(
        ((np.asarray(images, np.float32) + 1.0) * 127.5).round().clip(0, 255), np.uint8
    )
