"""What a run costs: floating point operations, memory."""

import resource
from typing import Any

import jax

from sgm_jax.parallel import flops
from sgm_jax.parallel.topologies import peak_flops
from sgm_jax.training.ahead import sized

GIB = 2**30


class Work:
    """FLOPs of a step of each turn, and what they come to per second."""

    def __init__(self, step: Any, mesh: jax.sharding.Mesh):
        self._step = step
        self._peak = peak_flops(mesh.devices.flat[0]) * mesh.size
        self._found: dict[tuple, float] = {}

    def of(self, turn: str, *arguments: Any) -> float:
        """Of one step, over all devices: what the mathematics asks for. Traced when its shapes first come."""
        _, _, batch, _ = arguments
        key = sized(turn, batch)
        if key not in self._found:
            counted = flops.count(self._step.trace(turn, *arguments).jaxpr)
            self._found[key] = counted.total - counted.again
        return self._found[key]

    def figures(self, values: dict[str, float]) -> dict[str, float]:
        """`mfu`: the share of what the devices could do at most, where that is known."""
        if 'flops_per_second' not in values or not self._peak:
            return {}
        return {'mfu': values['flops_per_second'] / self._peak}


def memory() -> dict[str, float]:
    """The most that was ever in use, in GiB: of the process, and of its first device where that counts."""
    # Kilobytes, on Linux.
    found = {'memory/host_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
        found['memory/device_gib'] = stats['peak_bytes_in_use'] / GIB
    return found
