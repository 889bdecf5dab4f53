"""The mesh, and which axis of which array lies across it.

A mesh has the axes `data` (copies of the model) and `fsdp` (the model is split; big_vision's word). A batch
is split over both. Parameters, their averages and the optimizer's moments follow one rule of shape.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sgm_jax.config import check_keys
from sgm_jax.errors import UserError

PyTree = Any
AXES = ('data', 'fsdp')
# Smaller arrays are replicated: gathering them costs more than holding them.
MIN_SIZE = 2**16


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None) -> jax.sharding.Mesh:
    """A mesh of `sizes`, of which at most one is -1 and takes the devices that are left.

    Raises:
      UserError: an unknown axis, or sizes that the number of devices does not fit.
    """
    devices = jax.devices() if devices is None else list(devices)
    check_keys(sizes, AXES, where='mesh')
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    said = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, shape, strict=True))
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f'mesh: {said}; give positive sizes, one of which may be -1 (the rest)')
    known = math.prod(size for size in shape if size != -1)
    if len(devices) % known or (-1 not in shape and known != len(devices)):
        raise UserError(
            f'mesh: {said} does not fit {len(devices)} devices; set one axis to -1, and the other to '
            f'a divisor of {len(devices)}'
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def by_shape(
    shape: Sequence[int], mesh: jax.sharding.Mesh, *, min_size: int = MIN_SIZE
) -> NamedSharding:
    """A parameter's sharding: the largest axis that `fsdp` divides is split over it."""
    spec = [None] * len(shape)
    if math.prod(shape) >= min_size and mesh.shape['fsdp'] > 1:
        for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if shape[axis] % mesh.shape['fsdp'] == 0:
                spec[axis] = 'fsdp'
                break
    return NamedSharding(mesh, PartitionSpec(*spec))


def abstract(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Shapes of a tree of parameters with their shardings by the rule of shape."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_shape(x.shape, mesh)), tree
    )


def shardings(tree: PyTree) -> PyTree:
    """The shardings of an abstract tree."""
    return jax.tree.map(lambda x: x.sharding, tree)


def check_batch(batch_size: int, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError unless a global batch divides over the mesh and the hosts."""
    count = max(mesh.size, jax.process_count())
    if batch_size < 1:
        raise UserError(f'train.batch_size is {batch_size}; give 1 or more')
    if batch_size % count:
        near = max(count, round(batch_size / count) * count)
        raise UserError(
            f'train.batch_size is {batch_size}, which {count} devices do not divide; use {near}'
        )


def rows(batch_size: int, mesh: jax.sharding.Mesh) -> list[int]:
    """Which rows of a global batch the devices of this host hold, in the order of `put_batch`."""
    held = over_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (part,) in held for row in range(batch_size)[part]})


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The part of a global batch that this host has read, on the devices."""
    sharding = over_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }
