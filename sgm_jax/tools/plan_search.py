"""Trying settings until the best that fits is found."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from sgm_jax.errors import UserError
from sgm_jax.parallel.topologies import Topology
from sgm_jax.tools import plan_report
from sgm_jax.tools.planning import Plan, plan_training

Choice = Mapping[str, Any]
# Examples per device.
PER_DEVICE = (1, 2, 4, 8)


def meshes(devices: int) -> Iterator[Choice]:
    """The model split over all devices, over a few neighbours, and not at all."""
    for fsdp in dict.fromkeys((devices, min(devices, 64), min(devices, 8), 1)):
        if devices % fsdp == 0:
            yield {'mesh.data': devices // fsdp, 'mesh.fsdp': fsdp}


def remats(config: ml_collections.ConfigDict) -> Iterator[Choice]:
    """From what keeps most to what computes most again, where the network has rules of remat."""
    if 'remat' not in config.model.get('network', {}):
        return iter([{}])
    return iter([{'model.network.remat': name} for name in ('none', 'dots', 'layer')])


def search(
    config: ml_collections.ConfigDict,
    topology: Topology,
    *,
    found: Callable[[Plan], None],
    show: Callable[[str], None],
) -> Plan | None:
    """The plan with the most examples per second of those that fit, or None.

    Batches grow until one does not fit. `found` is given each plan, `show` a line about it.
    """
    best = None
    for mesh, remat in itertools.product(meshes(topology.size), list(remats(config))):
        for per_device in PER_DEVICE:
            choice = {**mesh, **remat, 'train.batch_size': per_device * topology.size}
            plan = plan_training(chosen(config, choice), topology)
            show(f'{line(choice)}: {plan_report.verdict(plan)}{_speed(plan)}')
            found(plan)
            if not plan_report.fits(plan):
                break
            if best is None or speed(plan) > speed(best):
                best = plan
    if best is None:
        show(f'nothing fits {topology.name}; smaller frames, or chips with more memory')
    return best


def chosen(config: ml_collections.ConfigDict, choice: Choice) -> ml_collections.ConfigDict:
    """A copy of the config with other values."""
    config = config.copy_and_resolve_references()
    for key, value in choice.items():
        node = config
        *path, last = key.split('.')
        for name in path:
            if name not in node:
                raise UserError(f'the config has no {key}')
            node = node[name]
        with node.unlocked():
            node[last] = value
    return config


def speed(plan: Plan) -> float:
    """Examples per second, if no communication is hidden; where time is unknown, those of one step."""
    most = plan_report.seconds(plan)[1]
    return plan.batch_size / most if most == most and most > 0 else plan.batch_size * 1e-9


def _speed(plan: Plan) -> str:
    return (
        f', {speed(plan):.1f} examples/s' if plan_report.fits(plan) and speed(plan) > 1e-6 else ''
    )


def command(plan: Plan) -> str:
    """The flags that make a plan's choice."""
    choice = {f'mesh.{axis}': size for axis, size in plan.mesh.items()}
    choice |= {k: v for k, v in plan.settings.items() if k.endswith('remat')}
    return line({**choice, 'train.batch_size': plan.batch_size})


def line(choice: Choice) -> str:
    """A choice as flags."""
    return ' '.join(f'--config.{key}={value}' for key, value in choice.items())
