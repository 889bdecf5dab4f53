"""What the processes of a run decide together, and how arrays pass between one process and all of them.

With one process each of these functions does nothing, or what plain JAX does.
"""

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sgm_jax.errors import UserError

PyTree = Any
# Seconds that one process waits for the others, which may be compiling.
PATIENCE = 3600
_MEETINGS = itertools.count()


def check_same(what: str, value: str, hint: str) -> None:
    """Raises a UserError, in every process, unless all of them have the same `value`."""
    found = _of_all(what, zlib.crc32(value.encode()))
    other = [index for index, code in enumerate(found) if code != found[0]]
    if other:
        raise UserError(
            f'{what} differs between the {len(found)} processes (process {other[0]} from process 0; this '
            f'is process {jax.process_index()}, with {value[:80]}); {hint}'
        )


def where(what: str, happened: bool) -> list[int]:
    """The processes in which it happened, in every one."""
    return [index for index, value in enumerate(_of_all(what, int(happened))) if value]


def _of_all(what: str, number: int) -> list[int]:
    """Each process's number, of 32 bits."""
    if jax.process_count() == 1:
        return [number]
    from jax.experimental import multihost_utils

    wait_for_all(what)
    return multihost_utils.process_allgather(np.uint32(number)).tolist()


def of_first(number: int) -> int:
    """The first process's number, from 0 to 2**32 - 1, in every one."""
    return _of_all('a number of the first', number)[0]


def wait_for_all(name: str) -> None:
    """Goes on when every process has come here, however long it has compiled before.

    Not a collective on the devices: Gloo gives up connecting after 30 seconds.
    """
    if jax.process_count() > 1:
        from jax._src import distributed  # no public name has it

        count = next(_MEETINGS)
        distributed.global_state.client.wait_at_barrier(f'sgm_jax {count} {name}', 1000 * PATIENCE)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays that each process holds whole, over all devices; `shardings` is one, or a tree of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_place, tree, shardings)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
    # jax.device_put would first compare the whole array between all processes.
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def to_each_host(tree: PyTree, mesh: Mesh) -> PyTree:
    """Global arrays as arrays of this process, which it may work with alone; every process must call this.

    What was split over all devices is then split over those of each host: a device holds more of it than
    before, but never the whole.
    """
    if jax.process_count() == 1:
        return tree
    devices = sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id))
    axes = ('hosts', 'local')
    both = Mesh(np.array(devices).reshape(jax.process_count(), -1), axes)
    mine = Mesh(np.array([d for d in devices if d.process_index == jax.process_index()]), axes[1:])

    def over_local(x: jax.Array) -> PartitionSpec:
        count = mine.size
        if x.is_fully_replicated:
            return PartitionSpec()
        divisible = [axis for axis in range(x.ndim) if x.shape[axis] % count == 0]
        spec = [None] * x.ndim
        if divisible:
            spec[max(divisible, key=lambda axis: x.shape[axis])] = 'local'
        return PartitionSpec(*spec)

    def localised(x: jax.Array) -> jax.Array:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = localised(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        spec = over_local(x)
        spread = jax.device_put(x, NamedSharding(both, spec))
        return jax.make_array_from_single_device_arrays(
            x.shape, NamedSharding(mine, spec), [s.data for s in spread.addressable_shards]
        )

    return jax.tree.map(localised, tree)


class Wishes:
    """Yes or no to a few questions, decided by all processes after the same step.

    A signal reaches one process, or all of them at different moments; clocks differ. After each step the
    wishes are joined by a small program on the devices, whose answer is read one step later, when it costs no
    waiting.
    """

    def __init__(self, mesh: Mesh, count: int):
        self._alone = jax.process_count() == 1
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._shape = (mesh.size, count)
        self._answer = None
        self._any: Callable = _any_of(NamedSharding(mesh, PartitionSpec()))

    def agreed(self, *wanted: bool) -> tuple[bool, ...]:
        """For each, whether anyone wanted it when this was last called; alone, whether this process does."""
        if self._alone:
            return wanted
        before, one = self._answer, np.array([wanted], bool)
        wishes = jax.make_array_from_callback(self._shape, self._sharding, lambda index: one)
        self._answer = self._any(wishes)
        if before is None:
            return (False,) * len(wanted)
        return tuple(map(bool, np.asarray(before)))

    def settle(self) -> None:
        """Waits for what was asked last: a process does not leave others in the middle of an answer."""
        jax.block_until_ready(self._answer)


@functools.cache
def _any_of(whole: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda wishes: wishes.any(0), out_shardings=whole)
