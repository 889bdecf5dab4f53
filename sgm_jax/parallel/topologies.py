"""Hardware by name, here or not: how many devices, what each can do, and JAX devices to compile for.

A topology that is not here is described by the vendor's compiler, which needs no hardware: libtpu for TPUs,
the CUDA plugin for GPUs.
"""

import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from sgm_jax.errors import UserError
from sgm_jax.parallel import h100

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device of a kind, as JAX counts them.

    Attributes:
      platform: 'tpu', 'gpu' or 'cpu'.
      memory: bytes that a program can have: of TPUs as their compiler counts them, of GPUs what a process
        takes.
      flops: matrix products per second in bfloat16, at most.
      bandwidth: bytes per second between the device and its memory.
      link: bytes per second, over all its links, that a device can send to its neighbours.
      clock: cycles per second that TPU's compiler counts in; 0 where it does not.
      axes: of a topology; host: chips of one host along them; largest: devices of one slice or node.
      source: where the numbers stand.
    """

    platform: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    clock: float = 0.0
    axes: int = 1
    host: tuple[int, ...] = (1,)
    largest: int = 1
    source: str = ''


_TPU_PAGES = 'cloud.google.com/tpu/docs'
CHIPS = {
    'v4': Chip(
        platform='tpu',
        memory=30.75 * GIB,
        flops=275e12,
        bandwidth=1228e9,
        link=300e9,
        clock=1.05e9,
        axes=3,
        host=(2, 2, 1),
        largest=4096,
        source=f'{_TPU_PAGES}/v4',
    ),
    'v5e': Chip(
        platform='tpu',
        memory=15.75 * GIB,
        flops=197e12,
        bandwidth=819e9,
        link=200e9,
        clock=1.5e9,
        axes=2,
        host=(2, 2, 1),
        largest=256,
        source=f'{_TPU_PAGES}/v5e',
    ),
    'v5p': Chip(
        platform='tpu',
        memory=95.74 * GIB,
        flops=459e12,
        bandwidth=2765e9,
        link=600e9,
        clock=1.75e9,
        axes=3,
        host=(2, 2, 1),
        largest=6144,
        source=f'{_TPU_PAGES}/v5p',
    ),
    'v6e': Chip(
        platform='tpu',
        memory=31.25 * GIB,
        flops=918e12,
        bandwidth=1640e9,
        link=448e9,
        clock=1.75e9,
        axes=2,
        host=(2, 2, 1),
        largest=256,
        source=f'{_TPU_PAGES}/v6e',
    ),
    'H100': Chip(
        platform='gpu',
        # What CUDA counts, of which the launchers have a process take 0.92. JAX by itself takes 0.75.
        memory=0.92 * 84978434048,
        flops=989e12,
        bandwidth=3.35e12,
        link=450e9,
        largest=8,
        source='nvidia.com/en-us/data-center/h100 (SXM, without sparsity)',
    ),
    # No figures: what a CPU can do differs too much. For looking at memory and collectives.
    'cpu': Chip(
        platform='cpu',
        memory=math.inf,
        flops=math.nan,
        bandwidth=math.nan,
        link=math.nan,
        largest=64,
    ),
}

# As they are sold. Google counts v4 and v5p in TensorCores, two to a chip; JAX has one device per chip.
NAMED = {
    'v4-8': 'v4:2x2x1',
    'v4-16': 'v4:2x2x2',
    'v4-32': 'v4:2x2x4',
    'v4-64': 'v4:2x4x4',
    'v4-128': 'v4:4x4x4',
    'v5e-1': 'v5e:1x1',
    'v5e-4': 'v5e:2x2',
    'v5e-8': 'v5e:2x4',
    'v5e-16': 'v5e:4x4',
    'v5e-32': 'v5e:4x8',
    'v5e-64': 'v5e:8x8',
    'v5e-128': 'v5e:8x16',
    'v5e-256': 'v5e:16x16',
    'v5p-8': 'v5p:2x2x1',
    'v5p-16': 'v5p:2x2x2',
    'v5p-32': 'v5p:2x2x4',
    'v5p-64': 'v5p:2x4x4',
    'v5p-128': 'v5p:4x4x4',
    'v5p-256': 'v5p:4x4x8',
    'v6e-1': 'v6e:1x1',
    'v6e-4': 'v6e:2x2',
    'v6e-8': 'v6e:2x4',
    'v6e-16': 'v6e:4x4',
    'v6e-32': 'v6e:4x8',
    'v6e-64': 'v6e:8x8',
    'v6e-128': 'v6e:8x16',
    'v6e-256': 'v6e:16x16',
    '1xH100': 'H100:1',
    '2xH100': 'H100:2',
    '4xH100': 'H100:4',
    '8xH100': 'H100:8',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """So many devices of a kind. `name` is as it was asked for, `shape` how they lie."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What each device can do."""
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        """Devices."""
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        """'tpu', 'gpu' or 'cpu'."""
        return self.chip.platform

    def one(self) -> 'Topology':
        """A single device of this kind."""
        shape = (1,) * self.chip.axes
        return Topology(name=f'one {self.kind}', kind=self.kind, shape=shape)

    def devices(self) -> Sequence[Any]:
        """JAX devices to compile for.

        Raises:
          UserError: the vendor's compiler is not installed, or refuses.
        """
        if self.platform == 'cpu':
            return _cpu_devices(self)
        return _tpu_devices(self) if self.platform == 'tpu' else h100.devices(self.size)


def parse(name: str) -> Topology:
    """'v5e-16', '8xH100' (names of NAMED), or 'KIND:AxB[xC]' such as 'v5p:4x4x4'; 'cpu:8'.

    Raises:
      UserError: there is no such topology; names those that are near.
    """
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', NAMED.get(name, name))
    if not match or match[1] not in CHIPS:
        known = [
            *NAMED,
            *(f'{kind}:{"x".join("ABC"[: chip.axes])}' for kind, chip in CHIPS.items()),
        ]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise UserError(
            f'there is no topology {name!r}; '
            + (f'near it: {", ".join(near)}; ' if near else '')
            + f'known: {", ".join(known)}'
        )
    kind, shape = match[1], tuple(map(int, match[2].split('x')))
    chip = CHIPS[kind]
    topology = Topology(name=name, kind=kind, shape=shape)
    fits = len(shape) == chip.axes and 1 <= topology.size <= chip.largest
    if fits and topology.size > 1:
        fits = all(n % m == 0 for n, m in zip(shape, chip.host, strict=False))
    if not fits:
        near = sorted(
            (n for n, t in NAMED.items() if t.startswith(f'{kind}:')),
            key=lambda n: abs(math.log(_size(NAMED[n]) / max(1, topology.size))),
        )
        host = 'x'.join(map(str, chip.host[: chip.axes]))
        raise UserError(
            f'{kind} has no topology {match[2]}: '
            f'give {chip.axes} sizes, multiples of {host}, of at most {chip.largest} devices'
            + (f'; near it: {", ".join(f"{n} ({NAMED[n]})" for n in near[:3])}' if near else '')
        )
    return topology


# What JAX calls the devices of a kind.
_DEVICE_KINDS = {
    'TPU v4': 'v4',
    'TPU v5 lite': 'v5e',
    'TPU v5e': 'v5e',
    'TPU v5': 'v5p',
    'TPU v5p': 'v5p',
    'TPU v6 lite': 'v6e',
    'TPU v6e': 'v6e',
}


def peak_flops(device: Any) -> float:
    """What a device can do at most, FLOPs per second in bfloat16; 0 where that is not known."""
    kind = kind_of(device)
    return CHIPS[kind].flops if kind else 0.0


def kind_of(device: Any) -> str:
    """A device's kind, of CHIPS; '' of others."""
    kind = device.device_kind
    return 'H100' if 'H100' in kind else _DEVICE_KINDS.get(kind, '')


def _size(name: str) -> int:
    return math.prod(map(int, name.split(':')[1].split('x')))


def prepare_process(topology: Topology) -> None:
    """Sets the environment that compiling for `topology` needs; JAX must not have started.

    JAX itself computes on the CPU, wherever this runs.
    """
    os.environ['JAX_PLATFORMS'] = 'cpu'
    # Or libtpu waits for a metadata server that only Google's machines have.
    os.environ['TPU_SKIP_MDS_QUERY'] = '1'
    # Nor is there a TPU that two processes could quarrel about.
    os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-1')
    flags = os.environ.get('XLA_FLAGS', '')
    if topology.platform == 'cpu':
        flags = f'{flags} --xla_force_host_platform_device_count={topology.size}'
    if topology.platform == 'gpu':
        flags = f'{flags} {h100.xla_flags()}'
    if flags:
        os.environ['XLA_FLAGS'] = flags.strip()
    if 'jax' in sys.modules:
        import jax

        jax.config.update('jax_platforms', 'cpu')


def _cpu_devices(topology: Topology) -> Sequence[Any]:
    import jax

    found = jax.devices('cpu')
    if len(found) < topology.size:
        raise UserError(
            f'{topology.name} needs {topology.size} devices, and this process has {len(found)}; start it '
            f'with XLA_FLAGS=--xla_force_host_platform_device_count={topology.size}'
        )
    return found[: topology.size]


def _tpu_devices(topology: Topology) -> Sequence[Any]:
    import importlib.util

    import jax
    from jax.experimental import topologies

    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f'{topology.name}: compiling for TPUs needs libtpu, which runs without one; '
            f'pip install "jax[tpu]=={jax.__version__}" (or this package with the extra tpu)'
        )
    options = {}
    if topology.size == 1:
        options = dict(chips_per_host_bounds=(1, 1, 1), num_slices=1)
    if topology.kind == 'v4':
        options['chip_config_name'] = 'megacore'
    shape = 'x'.join(map(str, topology.shape))
    try:
        return topologies.get_topology_desc(
            platform='tpu', topology_name=f'{topology.kind}:{shape}', **options
        ).devices
    except Exception as error:
        raise UserError(f'{topology.name}: libtpu refuses: {error}') from error
