"""What a run says of itself before its first step: devices, parameters, memory, and what a step costs."""

import logging
import math
import pathlib
from typing import Any

import jax

from sgm_jax.parallel import mesh as meshes
from sgm_jax.parallel.estimate import EFFICIENCY
from sgm_jax.parallel.mesh import bytes_per_device
from sgm_jax.parallel.topologies import peak_flops
from sgm_jax.training.options import Options
from sgm_jax.training.state import TrainState

PyTree = Any
LOG = logging.getLogger(__name__)


def log(
    mesh: jax.sharding.Mesh,
    state: TrainState,
    frozen: PyTree,
    *,
    workdir: pathlib.Path,
    options: Options,
) -> None:
    """Says it, and where the run is and how long it is to be."""
    LOG.info('run: %s', workdir)
    for line in lines(mesh, state, frozen):
        LOG.info('%s', line)
    LOG.info(
        'steps: %d of %d examples; numbers every %d, pictures every %s, checkpoints every %d%s',
        options.steps,
        options.batch_size,
        options.log_every,
        options.image_every or '0 (none)',
        options.checkpoint_every,
        f' or {options.checkpoint_minutes:g} minutes' if options.checkpoint_minutes else '',
    )


def lines(mesh: jax.sharding.Mesh, state: TrainState, frozen: PyTree) -> list[str]:
    """Arrays, or shapes with shardings, of a state and its frozen parts."""
    axes = ', '.join(f'{name}={size}' for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    said = [
        f'mesh: {axes}; {mesh.size} devices ({device.device_kind}) in {jax.process_count()} '
        f'process{"es" if jax.process_count() > 1 else ""}'
    ]
    parts = {f'{name} (trained)': tree for name, tree in state.params.items()}
    if state.adversary is not None:
        parts['discriminator (trained)'] = state.adversary.params
    parts |= {f'{name} (frozen)': tree for name, tree in frozen.items()}
    counts = {name: parameters(tree) for name, tree in parts.items()}
    said.append(
        'parameters: '
        + ', '.join(f'{name} {_millions(count)}' for name, count in counts.items() if count)
    )
    held = {
        'parameters': (state.params, state.adversary),
        'average': state.ema_params,
        'optimizer': (state.opt_state, state.adversary_opt_state),
        'frozen': frozen,
    }
    sizes = {name: bytes_per_device(tree) for name, tree in held.items()}
    said.append(
        f'per device: {_size(sum(sizes.values()))} of state ('
        + ', '.join(f'{name} {_size(size)}' for name, size in sizes.items() if size)
        + '), besides activations'
    )
    if whole := meshes.unsplit(state.params, mesh):
        fsdp, size = mesh.shape['fsdp'], meshes.fsdp_for_all(state.params, mesh)
        data = mesh.shape['data'] * fsdp // size
        said.append(
            f'whole on every device: {len(whole)} large ({_size(bytes_per_device(whole))}), for fsdp={fsdp} '
            'divides none of their axes; '
            + (
                f'--config.mesh.data={data} --config.mesh.fsdp={size} splits all'
                if size > 1
                else f'nor does a number that divides {fsdp}'
            )
        )
    return said


def cost(turn: str, flops: float, mesh: jax.sharding.Mesh) -> str:
    """What a step of a turn costs each device and, where its peak is known, about how long that takes.

    `flops` are over all devices, without what is computed again.
    """
    each, peak = flops / mesh.size, peak_flops(mesh.devices.flat[0])
    said = f'a step{f" ({turn})" if turn else ""}: {_flops(each)} per device'
    if peak:
        said += (
            f'; {each / (EFFICIENCY * peak):.3g} s at {EFFICIENCY:.0%} of its {_flops(peak)}/s, '
            'an assumption'
        )
    return said


def parameters(tree: PyTree) -> int:
    """How many numbers."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _millions(count: int) -> str:
    return f'{count / 1e6:.1f} M' if count >= 1e5 else str(count)


def _flops(count: float) -> str:
    units = {'T': 1e12, 'G': 1e9, 'M': 1e6}
    unit = next((unit for unit, size in units.items() if count >= size), 'M')
    return f'{count / units[unit]:.4g} {unit}FLOP'


def _size(count: int) -> str:
    return f'{count / 2**30:.2f} GiB' if count >= 2**27 else f'{count / 2**20:.1f} MiB'
