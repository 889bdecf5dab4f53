"""Multiplications and additions of a traced program: what the mathematics asks for, whatever compiles it."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of matrix products and convolutions; a multiply-add is two.

    Attributes:
      total: over all devices.
      again: of these, what is computed anew for a gradient (remat): of products that a block does not keep, a
        third of what it does in the backward pass, for gradients cost twice its forward pass.
      in_kernels: of one device, in kernels that are written by hand (Pallas, cuDNN).
    """

    total: float
    again: float
    in_kernels: float

    def __add__(self, other: 'Flops') -> 'Flops':
        return Flops(
            total=self.total + other.total,
            again=self.again + other.again,
            in_kernels=self.in_kernels + other.in_kernels,
        )

    def times(self, n: float, kernels: float | None = None) -> 'Flops':
        """As often as a loop runs, or over as many devices as do it."""
        kernels = n if kernels is None else kernels
        return Flops(
            total=self.total * n, again=self.again * n, in_kernels=self.in_kernels * kernels
        )


NONE = Flops(total=0.0, again=0.0, in_kernels=0.0)


# Whether a block keeps what an equation gives for the backward pass.
Kept = Callable[[Any], bool]


def count(jaxpr: Any, kept: Kept = lambda equation: True) -> Flops:
    """Of a traced program.

    Loops count as often as they run; Pallas kernels as often as their grid has points, and what they skip as
    if they did not; loops with an unknown end once.
    """
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
    return functools.reduce(operator.add, (_equation(x, kept) for x in jaxpr.eqns), NONE)


def _equation(equation, kept: Kept) -> Flops:
    name, params = equation.primitive.name, equation.params
    once = lambda flops, **more: _work(flops, 0.0 if kept(equation) else flops / 3, **more)
    if name == 'dot_general':
        (contract, _), _ = params['dimension_numbers']
        shape = equation.invars[0].aval.shape
        inner = math.prod(shape[axis] for axis in contract)
        return once(2.0 * math.prod(equation.outvars[0].aval.shape) * inner)
    if name == 'conv_general_dilated':
        numbers, kernel = params['dimension_numbers'], equation.invars[1].aval.shape
        # Of a kernel: all but its output channels; dilated inputs are mostly zeros, which need no work.
        per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        zeros = math.prod(params['lhs_dilation'])
        return once(2.0 * math.prod(equation.outvars[0].aval.shape) * per_output / zeros)
    if name.startswith('dot_product_attention'):
        total = _cudnn_attention(equation)
        return once(total, in_kernels=total)
    if params.get('differentiated') and 'prevent_cse' in params:
        kept = functools.partial(_keeps, params['policy'], kept)
    found = [count(x, kept) for x in _inner(params)]
    inner = functools.reduce(operator.add, found, NONE)
    if name == 'scan':
        return inner.times(params['length'])
    if name == 'cond':
        return max(found, key=lambda x: x.total)
    if name == 'pallas_call':
        total = inner.total * math.prod(params['grid_mapping'].grid)
        return once(total, in_kernels=total)
    if name == 'shard_map':
        spread = _axes(params['in_specs']) & set(_manual(params))
        return inner.times(math.prod(params['mesh'].shape[axis] for axis in spread), kernels=1)
    return inner


def _work(flops: float, again: float, in_kernels: float = 0.0) -> Flops:
    return Flops(total=flops, again=again, in_kernels=in_kernels)


def _keeps(policy: Callable | None, outside: Kept, equation) -> bool:
    """By the policy of a jax.checkpoint, and of those around it."""
    if policy is None or not outside(equation):
        return False
    avals = (x.aval for x in equation.invars)
    return bool(policy(equation.primitive, *avals, **equation.params))


def _cudnn_attention(equation) -> float:
    # Queries (b, n, h, d) and keys (b, m, h, d): two products forward, five backward.
    q, k = (x.aval.shape for x in equation.invars[:2])
    backward = 'bwd' in equation.primitive.name
    return 2.0 * math.prod(q) * k[1] * (5 if backward else 2)


def _manual(params: dict) -> frozenset[str]:
    # The name that it goes by differs between versions of JAX.
    return next(params[key] for key in ('newly_manual_axes', 'manual_axes') if key in params)


def _axes(specs) -> set[str]:
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    found = set()
    for spec in leaves:
        for entry in spec:
            found |= set(entry if isinstance(entry, tuple) else (entry,)) - {None}
    return found


def _inner(params: dict) -> list:
    is_jaxpr = lambda x: hasattr(getattr(x, 'jaxpr', x), 'eqns')
    found = []
    for key, value in params.items():
        if key.endswith(('_thunk', 'fun', 'rule')):
            continue
        found += [
            x for x in (value if isinstance(value, (tuple, list)) else (value,)) if is_jaxpr(x)
        ]
    return found
