"""The devices that samples are made on: the first one, or a mesh that weights and samples lie over."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sgm_jax.errors import UserError
from sgm_jax.networks import placement
from sgm_jax.parallel import mesh as meshes

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Where the arrays of sampling lie; without a mesh, where JAX puts them.

    Weights follow the rule of shape. Examples are split over `data` and `fsdp`, or the larger of the two that
    divides them, else they are on all devices along both; guidance makes two of each. Rows of latents and
    of pixels are split over `context`.
    """

    mesh: Mesh | None = None

    def axes(self, examples: int) -> tuple[str, ...]:
        """The axes of the mesh that so many examples are split over: as many devices as divide them."""
        size = lambda names: math.prod(self.mesh.shape[name] for name in names)
        count = len(meshes.BATCH)
        chosen = (c for n in range(count + 1) for c in itertools.combinations(meshes.BATCH, n))
        return max((names for names in chosen if examples % size(names) == 0), key=size)

    def share(self, examples: int) -> int:
        """How many devices the work on so many examples is split over; the others repeat it."""
        if self.mesh is None:
            return 1
        split = (*self.axes(examples), meshes.CONTEXT)
        return math.prod(self.mesh.shape[name] for name in split)

    def over(self, examples: int) -> contextlib.AbstractContextManager:
        """What is traced inside is laid over the mesh, for so many examples."""
        if self.mesh is None:
            return contextlib.nullcontext()
        roles = {**meshes.roles(self.mesh), 'batch': self.axes(examples)}
        return placement.over(self.mesh, **roles)

    def sharding(self, shape: Sequence[int]) -> NamedSharding:
        """Of latents or pixels (..., h, w, c), or of anything else that a program is given besides weights.

        Rows are split, and not the examples, which guidance puts together with themselves: the network takes
        its part of them, and all it is given is small beside what it makes of it.
        """
        spec = [None] * len(shape)
        if len(shape) > 3 and shape[-3] % self.mesh.shape[meshes.CONTEXT] == 0:
            spec[-3] = meshes.CONTEXT
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def put(self, tree: PyTree) -> PyTree:
        """Arrays on the host, or on any devices, where `sharding` says; the same without a mesh."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda x: jax.device_put(x, self.sharding(x.shape)), tree)

    def put_weight(self, array: Any) -> jax.Array:
        """A parameter from the host, each device's part to that device alone."""
        if self.mesh is None:
            return jax.device_put(array)
        return jax.device_put(array, meshes.by_shape(array.shape, self.mesh))

    def abstract(self, tree: PyTree) -> PyTree:
        """Shapes of parameters with the shardings that `put_weight` gives them."""
        return tree if self.mesh is None else meshes.abstract(tree, self.mesh)

    def abstract_inputs(self, tree: PyTree) -> PyTree:
        """Shapes of what else a program is given, with the shardings that `put` gives it, on a mesh."""
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding(x.shape))
        return jax.tree.map(place, tree)


ONE = Devices()


def over_mesh(engine: Any, sizes: Mapping[str, int], devices: Sequence | None = None) -> Any:
    """The same engine, whose samples are made over a mesh of `sizes`; see `parallel.mesh.make_mesh`.

    Raises:
      UserError: the devices do not fit, belong to several processes, or the engine samples nothing.
    """
    if devices is None and jax.process_count() > 1:
        raise UserError(
            f'mesh: there are {jax.process_count()} processes, and one process makes samples, on its own '
            'devices; start one, or leave the mesh out'
        )
    mesh = meshes.make_mesh(sizes, devices)
    if not hasattr(engine, 'devices'):
        raise UserError('mesh: a first stage has nothing to sample; leave the mesh out')
    return dataclasses.replace(engine, devices=Devices(mesh=mesh))
