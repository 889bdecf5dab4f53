"""The mesh, and which axis of which array lies across it.

A mesh has the axes `data` (copies of the model), `fsdp` (the model is split; big_vision's word) and `context`
(the pixels of one example are split, and the model as well). A batch is split over the first two.
Parameters, their averages and the optimizer's moments follow one rule of shape.
"""

import collections
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sgm_jax.config import check_keys
from sgm_jax.errors import UserError

PyTree = Any
AXES = ('data', 'fsdp', 'context')
# Over which a batch is split, one example, and the model.
BATCH, CONTEXT, MODEL = ('data', 'fsdp'), 'context', ('fsdp', 'context')
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
            f'mesh: {said} does not fit {len(devices)} devices; set one axis to -1, and the others to '
            f'sizes whose product divides {len(devices)}'
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    slices = _slices(devices)
    if shape[0] % len(slices):
        raise UserError(
            f'mesh: {said} on {len(slices)} slices, each of which has whole copies of the model; give data a '
            f'multiple of {len(slices)}'
        )
    each = (shape[0] // len(slices), *shape[1:])
    laid = np.concatenate([_laid(each, of_slice) for of_slice in slices])
    return jax.sharding.Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence) -> list[list]:
    """The devices of each slice of TPUs; others are one."""
    of_slice = collections.defaultdict(list)
    for device in devices:
        of_slice[getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0].append(
            device
        )
    return [of_slice[index] for index in sorted(of_slice)]


def _laid(shape: Sequence[int], devices: Sequence) -> np.ndarray:
    """The devices in a mesh of `shape`, of a TPU's axes if that can be, else of parts of them."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def parse(text: str) -> dict[str, int]:
    """The sizes that a flag names: 'data=2,fsdp=-1'.

    Raises:
      UserError: not of that form.
    """
    try:
        pairs = [
            (axis.strip(), int(size)) for axis, size in (w.split('=') for w in text.split(','))
        ]
    except ValueError:
        pairs = []
    if not pairs or len(dict(pairs)) < len(pairs):
        raise UserError(f'mesh is {text!r}; give sizes by axis, as data=2,fsdp=-1')
    return dict(pairs)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis over `data` and `fsdp`; all devices along `context` have the same examples."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def by_shape(
    shape: Sequence[int], mesh: jax.sharding.Mesh, *, min_size: int = MIN_SIZE
) -> NamedSharding:
    """A parameter's sharding: the largest axis that `fsdp` times `context` divides is split over both.

    Where that product divides none, over one of the two.
    """
    spec = [None] * len(shape)
    if math.prod(shape) < min_size:
        return NamedSharding(mesh, PartitionSpec(*spec))
    used = tuple(name for name in MODEL if mesh.shape[name] > 1)
    by_size = sorted(range(len(shape)), key=lambda i: -shape[i])
    for names in dict.fromkeys((used, *((name,) for name in used))):
        count = math.prod(mesh.shape[name] for name in names)
        axis = next((axis for axis in by_size if shape[axis] % count == 0), None)
        if names and axis is not None:
            spec[axis] = names if len(names) > 1 else names[0]
            break
    return NamedSharding(mesh, PartitionSpec(*spec))


def by_shapes(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """The shardings of a tree's arrays, or shapes, by the rule of shape."""
    return jax.tree.map(lambda x: by_shape(x.shape, mesh), tree)


def roles(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What `networks.placement.over` is told of a mesh: which axes are for what, how weights lie."""
    split = any(mesh.shape[axis] > 1 for axis in MODEL)
    weights = functools.partial(by_shape, mesh=mesh) if split else None
    return {'batch': BATCH, 'context': CONTEXT, 'weights': weights}


def like(sharding: NamedSharding, shape: Sequence[int], wanted: Sequence[int]) -> NamedSharding:
    """For an array of shape `wanted` that is made from a parameter of `shape` with a sharding.

    The axes that the two have in common are split alike, as those of a moment's scales. Where the shapes do
    not correspond (sums over an axis), the rule of shape is asked again.
    """
    if len(shape) != len(wanted):
        return by_shape(wanted, sharding.mesh)
    spec = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    kept = (
        name if have == want else None for name, have, want in zip(spec, shape, wanted, strict=True)
    )
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def abstract(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Shapes of a tree of parameters with their shardings by the rule of shape."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_shape(x.shape, mesh)), tree
    )


def shardings(tree: PyTree) -> PyTree:
    """The shardings of an abstract tree."""
    return jax.tree.map(lambda x: x.sharding, tree)


def bytes_per_device(tree: PyTree) -> int:
    """What one device holds of arrays, or of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def unsplit(tree: PyTree, mesh: jax.sharding.Mesh) -> list:
    """Of arrays, or shapes with shardings: the large ones that every device has whole, for all `fsdp`."""
    if mesh.shape['fsdp'] == 1:
        return []
    return [x for x in _large(tree) if x.sharding.is_fully_replicated]


def fsdp_for_all(tree: PyTree, mesh: jax.sharding.Mesh) -> int:
    """The most devices of those along `fsdp` that divide an axis of each large array; 1 if none do."""
    size, shapes = mesh.shape['fsdp'], [x.shape for x in _large(tree)]
    divides = lambda n: all(any(axis % n == 0 for axis in shape) for shape in shapes)
    return next((n for n in range(size, 1, -1) if size % n == 0 and divides(n)), 1)


def _large(tree: PyTree) -> list:
    return [x for x in jax.tree.leaves(tree) if math.prod(x.shape) >= MIN_SIZE]


def check_batch(batch_size: int, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError unless a global batch divides over the mesh."""
    count = math.prod(mesh.shape[axis] for axis in BATCH)
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


def check_rows(rows: int, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError unless `context` divides the rows of an example's latents (or pixels)."""
    size = mesh.shape[CONTEXT]
    if rows % size:
        fitting = [n for n in range(1, size) if rows % n == 0 and mesh.size % n == 0]
        raise UserError(
            f'mesh.context is {size}, which does not divide the {rows} rows of the latents that the network '
            f'works on; use {fitting[-1]} (of {mesh.size} devices), or another height'
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The part of a global batch that this host has read, on the devices."""
    sharding = over_batch(mesh)
    blocks = math.prod(mesh.shape[axis] for axis in BATCH)
    held = rows(blocks, mesh)

    def put(value: np.ndarray) -> jax.Array:
        size = len(value) // len(held)

        def block(index: tuple[slice, ...]) -> np.ndarray:
            # Those that a host holds need not be neighbours: a mesh follows the wires, not the hosts.
            first = held.index((index[0].start or 0) // size) * size
            return value[first : first + size]

        return jax.make_array_from_callback((blocks * size, *value.shape[1:]), sharding, block)

    return {key: put(value) for key, value in batch.items()}
