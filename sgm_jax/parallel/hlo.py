"""What a compiled program does, read from its text: collectives, cycles, kernels.

XLA's own cost analysis counts the body of a loop once, and knows nothing of collectives. The text has the
loops' trip counts and, on TPUs, what the compiler thinks that each fusion takes.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_CALLED = re.compile(
    r'\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Where a compiler says nothing (TPU), a loop counts up to a constant: what its condition compares with. JAX's
# count signed integers by 1; the partitioner's, which compute while slices travel, unsigned ones by more.
_JAX, _PARTITIONER = 's32[]', 'u32[]'
_OPERAND = re.compile(r'%([\w.\-]+)')
_INDEX = re.compile(r'index=(\d+)')
_LESS = re.compile(r'direction=LT\b')
_NUMBER = re.compile(r'^(\d+)\)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_GROUPS = re.compile(r'replica_groups=\{\{([\d,]*)\}')
_IOTA_GROUPS = re.compile(r'replica_groups=\[(\d+),(\d+)\]')
# By the axes of a mesh, or parts of them: mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1':(1)2}
_MESH_GROUPS = re.compile(r'replica_groups=@?\w*mesh\w*\[([^\]]*)\] ?\{([^}]*)\}')
_MESH_SIZE = re.compile(r"'([^']+)'=(\d+)")
_MESH_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_PARTITIONS = re.compile(r'num_partitions=(\d+)')
_BITS = {'pred': 8, 's4': 4, 'u4': 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of a kind, as one device sees them.

    Attributes:
      count: how often.
      size: bytes of the arrays that are gathered, reduced or exchanged, whole.
      sent: bytes that the device sends, in the best case (a ring).
    """

    count: int = 0
    size: float = 0.0
    sent: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What one device does in one run of a compiled program.

    Attributes:
      collectives: by kind.
      cycles: the sum of the compiler's estimates (TPU; 0 elsewhere). Kernels and collectives have none.
      custom_calls: how often each target is called.
      open_loops: loops whose trip count is not in the text, counted once.
    """

    collectives: Mapping[str, Collective]
    cycles: float
    custom_calls: Mapping[str, int]
    open_loops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Instruction:
    name: str
    type: str
    op: str
    rest: str


def read(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations, entry = _parse(text)
    types = {x.name: x.type for instructions in computations.values() for x in instructions}
    everyone = partitions(text)
    one = lambda x, kind: _collective(x, kind, types, everyone)
    found = collections.defaultdict(Collective)
    custom, cycles, open_loops = collections.Counter(), 0.0, 0
    for name, times in _times(computations, entry).items():
        calls, fused = times
        for x in computations[name]:
            kind = x.op.removesuffix('-start')
            if kind in COLLECTIVES:
                found[kind] = _add(found[kind], one(x, kind), calls + fused)
            elif x.op == 'custom-call':
                custom[_TARGET.search(x.rest)[1]] += calls + fused
            elif x.op == 'while' and not _trips(x, computations):
                open_loops += 1
            # A fusion's cycles are those of all that is in it.
            estimate = _CYCLES.search(x.rest)
            cycles += calls * int(estimate[1]) if estimate else 0
    return Program(
        collectives=dict(found), cycles=cycles, custom_calls=dict(custom), open_loops=open_loops
    )


def partitions(text: str) -> int:
    """Over how many devices a program is split."""
    match = _PARTITIONS.search(text.split('\n', 1)[0])
    return int(match[1]) if match else 1


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations, entry, current = {}, '', None
    for line in text.splitlines():
        # A computation ends where the next begins: a brace may be a constant's, which has lines of its own.
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            name, kind, op, rest = match.groups()
            current.append(_Instruction(name=name, type=kind, op=op, rest=rest))
    return computations, entry


def _times(
    computations: Mapping[str, list[_Instruction]], entry: str
) -> dict[str, tuple[int, int]]:
    """How often each computation runs: (by itself, inside a fusion)."""
    times = collections.defaultdict(lambda: (0, 0))

    def visit(name: str, count: int, fused: bool) -> None:
        calls, inside = times[name]
        times[name] = (calls, inside + count) if fused else (calls + count, inside)
        for x in computations[name]:
            for called, often in _called(x, computations):
                if called in computations:
                    visit(called, count * often, fused or x.op == 'fusion')

    visit(entry, 1, False)
    return times


def _called(
    x: _Instruction, computations: Mapping[str, list[_Instruction]]
) -> Iterator[tuple[str, int]]:
    trips = _trips(x, computations) if x.op == 'while' else 1
    for role, name in _CALLED.findall(x.rest):
        # What a reduction adds with is no work of its own.
        if role != 'to_apply' or x.op == 'call':
            yield name, trips or 1
    branches = _BRANCHES.search(x.rest)
    for name in branches[1].split(',') if branches else ():
        yield name.strip().lstrip('%'), 1


def _trips(x: _Instruction, computations: Mapping[str, list[_Instruction]]) -> int | None:
    """How often a loop runs, if that can be read."""
    if match := _TRIPS.search(x.rest):
        return int(match[1])
    parts = dict(_CALLED.findall(x.rest))
    condition = computations.get(parts['condition'], [])
    looked_at = list(condition)
    for y in condition:
        looked_at += computations.get(dict(_CALLED.findall(y.rest)).get('calls'), ())
    compared = [y for y in looked_at if y.op == 'compare']
    ends = [
        (y.type[:5], int(match[1]))
        for y in looked_at
        if y.op == 'constant'
        and y.type.startswith((_JAX, _PARTITIONER))
        and (match := _NUMBER.match(y.rest))
    ]
    if len(compared) != 1 or len(ends) != 1 or not _LESS.search(compared[0].rest):
        return None
    kind, end = ends[0]
    step = 1 if kind == _JAX else _step(condition, computations.get(parts['body'], []))
    return step and math.ceil(end / step)


def _step(condition: list[_Instruction], body: list[_Instruction]) -> int | None:
    """What a loop's counter, which its condition takes from a tuple, grows by in its body."""
    places = [_INDEX.search(y.rest) for y in condition if y.op == 'get-tuple-element']
    if len(places) != 1 or not places[0] or not body or body[-1].op != 'tuple':
        return None
    by_name = {y.name: y for y in body}
    counter = by_name.get(_OPERAND.findall(body[-1].rest)[int(places[0][1])])
    if counter is None or counter.op != 'add':
        return None
    added = [by_name[name] for name in _OPERAND.findall(counter.rest)[:2] if name in by_name]
    steps = [_NUMBER.match(y.rest) for y in added if y.op == 'constant']
    return int(steps[0][1]) if len(steps) == 1 and steps[0] else None


def _collective(x: _Instruction, kind: str, types: Mapping[str, str], everyone: int) -> Collective:
    operands = x.rest.split(')', 1)[0]
    names = _OPERAND.findall(operands)
    size = sum(bytes_of(types.get(name, '')) for name in names)
    n = _group(x.rest, everyone)
    if kind == 'all-gather':
        size *= n
    share = {'all-reduce': 2 * (n - 1) / n, 'collective-permute': 1.0}.get(kind, (n - 1) / n)
    return Collective(count=1, size=size, sent=share * size)


def _group(rest: str, everyone: int) -> int:
    """Devices that take part together."""
    if match := _IOTA_GROUPS.search(rest):
        return int(match[2])
    if match := _MESH_GROUPS.search(rest):
        sizes = dict(_MESH_SIZE.findall(match[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in _MESH_AXIS.findall(match[2]))
    match = _GROUPS.search(rest)
    return len(match[1].split(',')) if match else everyone


def _add(before: Collective, one: Collective, times: int) -> Collective:
    return Collective(
        count=before.count + times * one.count,
        size=before.size + times * one.size,
        sent=before.sent + times * one.sent,
    )


def bytes_of(type_text: str) -> float:
    """Bytes of a type as the text has it: 'bf16[2,3]{1,0}', or a tuple of such."""
    total = 0.0
    for kind, shape in _ARRAY.findall(type_text):
        digits = re.search(r'\d+', kind)
        bits = _BITS.get(kind) or (int(digits[0]) if digits else 0)
        total += math.prod(int(n) for n in shape.split(',') if n) * bits / 8
    return total
