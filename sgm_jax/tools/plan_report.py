"""A plan in words and numbers."""

import math
from collections.abc import Iterable

from sgm_jax.parallel.estimate import Estimate, estimate
from sgm_jax.parallel.topologies import GIB, parse
from sgm_jax.tools.planning import Compiled, Plan

_UNSPLIT = 'parameters of which fsdp divides no axis; another size of it may'


def report(plan: Plan) -> str:
    """All of it, for a terminal."""
    topology = parse(plan.topology)
    mesh = ', '.join(f'{axis}={size}' for axis, size in plan.mesh.items())
    lines = [
        f'{plan.work} on {plan.topology}: {plan.devices} x {topology.kind}'
        + (f', mesh {mesh}' if mesh else '')
        + f', batch {plan.batch_size}',
        *(f'  {key} = {value}' for key, value in plan.settings.items()),
        '',
        'memory per device, GiB',
        *(_row(name, gib(size)) for name, size in plan.parts.items()),
        *([_row('unsplit', gib(plan.unsplit), _UNSPLIT)] if plan.unsplit else []),
    ]
    for name, program in plan.programs.items():
        lines += ['', f'{name} (compiled in {program.seconds:.0f} s; runs {plan.runs[name]}x)']
        lines += _program(plan, name)
    lines += ['', verdict(plan)]
    return '\n'.join(line.rstrip() for line in lines)


def _program(plan: Plan, name: str) -> Iterable[str]:
    program, chip = plan.programs[name], parse(plan.topology).chip
    if program.needed:
        yield _row('needed', gib(program.needed))
        return
    yield _row('arguments', gib(program.arguments))
    yield _row(
        'temporaries', gib(program.temporaries), 'activations, gradients, gathered parameters'
    )
    yield _row('peak', gib(program.peak), f'of {gib(chip.memory)}')
    yield _row('GFLOP', f'{program.flops / 1e9:.1f}', f'{program.again / 1e9:.1f} of it twice')
    yield _row('GB accessed', f'{program.accessed / 1e9:.2f}' if program.accessed else 'unknown')
    for kind, found in program.collectives.items():
        yield _row(kind, f'{found["count"]}x', f'{found["size"] / 1e9:.3f} GB')
    for kind, count in program.custom_calls.items():
        yield _row('kernel', f'{count}x', kind)
    if program.open_loops:
        yield _row('loops', f'{program.open_loops}', 'of unknown length, counted once')
    found = estimated(plan, name)
    if not math.isnan(found.most):
        yield _row(
            'ms',
            milliseconds(found),
            f'compute {1e3 * found.compute:.1f}, kernels {1e3 * found.kernels:.1f}, '
            f'collectives {1e3 * found.collectives:.1f}',
        )
        yield _row('MFU', f'{found.mfu:.1%}', 'if no communication is hidden')
        yield f'  rests on: {found.basis}'


def estimated(plan: Plan, name: str) -> Estimate:
    """How long a run of one of its programs may take."""
    program = plan.programs[name]
    return estimate(
        parse(plan.topology).chip,
        cycles=program.cycles,
        flops=program.flops,
        again=program.again,
        kernel_flops=program.kernel_flops,
        accessed=program.accessed,
        sent=sum(found['sent'] for found in program.collectives.values()),
    )


def seconds(plan: Plan) -> tuple[float, float]:
    """Of a step, or of a whole sample: at least and at most."""
    found = [(estimated(plan, name), runs) for name, runs in plan.runs.items()]
    return sum(e.least * n for e, n in found), sum(e.most * n for e, n in found)


def peak(plan: Plan) -> float:
    """Bytes on a device at once at most. All weights stay on it while a sample is drawn."""
    return max(_with_all_weights(plan, program) for program in plan.programs.values())


def _with_all_weights(plan: Plan, program: Compiled) -> float:
    if program.needed:
        return program.needed
    if plan.work == 'train':
        return program.peak
    return sum(plan.parts.values()) + program.outputs + program.temporaries


def fits(plan: Plan) -> bool:
    """Whether it runs."""
    compiles = not any(program.needed for program in plan.programs.values())
    return compiles and peak(plan) <= parse(plan.topology).chip.memory


def verdict(plan: Plan) -> str:
    """One line: whether it fits, and if not, what would make it."""
    memory, need = parse(plan.topology).chip.memory, peak(plan)
    if fits(plan):
        return f'fits: {gib(need)} of {gib(memory)} GiB'
    return f'does not fit: {gib(need)} of {gib(memory)} GiB; {advice(plan)}'


def advice(plan: Plan) -> str:
    """What would make it fit."""
    ways = []
    if plan.work == 'sample':
        if plan.settings.get('dtype') == 'float32' and parse(plan.topology).platform != 'cpu':
            ways.append('--dtype=bfloat16')
        if plan.settings.get('sample.decode_chunk', 1) > 1:
            ways.append('a smaller --config.sample.decode_chunk')
        context = 2 * plan.mesh.get('context', 1)
        ways.append(f'--mesh context={context} (a sample over {context} devices)')
        return '; '.join([*ways, 'smaller pictures, or a chip with more memory'])
    context = plan.mesh.get('context', 1)
    if plan.batch_size > plan.devices // context:
        examples = 'one example per device' if context == 1 else f'one for each {context} devices'
        ways.append(f'--config.train.batch_size={plan.devices // context} ({examples})')
    rule = plan.settings.get('model.network.remat', '')
    if rule in ('none', 'transformer', 'dots', 'attention'):
        ways.append('--config.model.network.remat=layer')
    elif rule in ('block', 'layer'):
        ways.append('--config.model.network.remat=full')
    if plan.mesh.get('data', 1) > 1:
        ways.append('--config.mesh.data=1 --config.mesh.fsdp=-1')
    if plan.devices % (2 * context) == 0:
        batch = f'--config.train.batch_size={plan.devices // (2 * context)}'
        ways.append(
            f'--config.mesh.context={2 * context} {batch} (an example over several devices)'
        )
    ways.append('smaller frames, or chips with more memory')
    return '; '.join(ways)


def gib(size: float) -> str:
    """Bytes in GiB."""
    return 'unlimited' if math.isinf(size) else f'{size / GIB:.2f}'


def milliseconds(found: Estimate) -> str:
    """A range, if communication may or may not be hidden."""
    least, most = 1e3 * found.least, 1e3 * found.most
    return f'{least:.1f}' if most < 1.01 * least else f'{least:.1f} to {most:.1f}'


def _row(name: str, value: str, note: str = '') -> str:
    return f'  {name:<20} {value:>12}  {note}'
