"""Trying settings until the best that fits is found."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from sgm_jax.errors import UserError
from sgm_jax.parallel.topologies import Topology
from sgm_jax.tools import plan_report
from sgm_jax.tools.planning import Plan, latent_rows, plan_training

Choice = Mapping[str, Any]
# Examples per device, or per `context` of them.
PER_DEVICE = (1, 2, 4, 8)


# These save memory for more time of an example: tried where nothing else fits.
LAST, OVER = 'full', (2, 4, 8)


def meshes(devices: int, context: int = 1) -> Iterator[Choice]:
    """The model split over all devices, over a few neighbours, and not at all; an example over `context`."""
    groups = devices // context
    for fsdp in dict.fromkeys((groups, min(groups, 64), min(groups, 8), 1)):
        if groups % fsdp == 0:
            yield {'mesh.data': groups // fsdp, 'mesh.fsdp': fsdp, 'mesh.context': context}


def remats(config: ml_collections.ConfigDict) -> list[Choice]:
    """The config's own, then from what keeps most to what computes most again."""
    network = config.model.get('network', {})
    if 'remat' not in network:
        return [{}]
    names = dict.fromkeys((network.remat, 'none', 'transformer', 'dots', 'layer'))
    return [{'model.network.remat': name} for name in names if name]


def attempts(
    config: ml_collections.ConfigDict, devices: int
) -> Iterator[Iterable[tuple[Choice, Choice]]]:
    """Meshes with rules of remat, in groups: the next is tried where nothing of those before it fits."""
    own, rules = max(1, config.get('mesh', {}).get('context', 1)), remats(config)
    if devices % own:
        raise UserError(f'mesh.context is {own}, which does not divide {devices} devices')
    yield itertools.product(meshes(devices, own), rules)
    if rules != [{}]:
        yield itertools.product(meshes(devices, own), [{'model.network.remat': LAST}])
    rows = latent_rows(config)
    for context in OVER:
        if own == 1 and devices % context == 0 and rows % context == 0:
            yield itertools.product(meshes(devices, context), rules[:1])


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
    for group in attempts(config, topology.size):
        for mesh, remat in group:
            copies = topology.size // mesh['mesh.context']
            for each in PER_DEVICE:
                choice = {**mesh, **remat, 'train.batch_size': each * copies}
                plan = plan_training(chosen(config, choice), topology)
                show(f'{line(choice)}: {plan_report.verdict(plan)}{_speed(plan)}')
                found(plan)
                if not plan_report.fits(plan):
                    break
                if best is None or speed(plan) > speed(best):
                    best = plan
        if best is not None:
            break
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
