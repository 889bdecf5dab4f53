"""Learning-rate schedules by name. All count optimizer steps, not accumulated batches."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sgm_jax.config import build
from sgm_jax.errors import UserError


def constant(*, peak: float, warmup_steps: int = 0) -> optax.Schedule:
    """Linear from 0 over `warmup_steps`, then `peak`."""
    _check_warmup(warmup_steps)
    if warmup_steps == 0:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(0.0, peak, warmup_steps)


def cosine(*, peak: float, steps: int, warmup_steps: int = 0, end: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine to `end` at `steps`."""
    _check_within(warmup_steps, steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, end)


def linear(*, peak: float, steps: int, warmup_steps: int = 0, end: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup_steps`, then linear to `end` at `steps`."""
    _check_within(warmup_steps, steps)
    down = optax.linear_schedule(peak, end, steps - warmup_steps)
    return _after_warmup(down, peak, warmup_steps)


def exponential(
    *, peak: float, decay_steps: int, decay_rate: float, warmup_steps: int = 0, end: float = 0.0
) -> optax.Schedule:
    """Linear from 0 over `warmup_steps`, then times `decay_rate` per `decay_steps`, down to `end`."""
    _check_warmup(warmup_steps)
    down = optax.exponential_decay(peak, decay_steps, decay_rate, end_value=end)
    return _after_warmup(down, peak, warmup_steps)


def inverse_sqrt(*, peak: float, warmup_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup_steps`, then with one over the root of the step."""
    if warmup_steps < 1:
        raise UserError(f'schedule: warmup_steps is {warmup_steps}; give 1 or more')
    # Also asked before it is its turn.
    down = lambda step: peak * jnp.sqrt(warmup_steps / (jnp.maximum(step, 0) + warmup_steps))
    return _after_warmup(down, peak, warmup_steps)


def piecewise(
    *, peak: float, boundaries: Sequence[int], factors: Sequence[float], warmup_steps: int = 0
) -> optax.Schedule:
    """`peak`, and from each step of `boundaries` on times one more of `factors`."""
    _check_warmup(warmup_steps)
    if len(boundaries) != len(factors):
        raise UserError(
            f'schedule: {len(boundaries)} boundaries and {len(factors)} factors; give as many'
        )
    down = optax.piecewise_constant_schedule(peak, dict(zip(boundaries, factors, strict=True)))
    warm = lambda step: jnp.minimum(1.0, step / max(warmup_steps, 1))
    return (lambda step: warm(step) * down(step)) if warmup_steps else down


def warmup_cosine(
    *,
    peak: float,
    warm_up_steps: int,
    lr_min: float,
    lr_max: float,
    lr_start: float,
    max_decay_steps: int,
) -> optax.Schedule:
    """Linear from lr_start to lr_max over warm_up_steps, half a cosine to lr_min at max_decay_steps.

    All three are factors of `peak`, as in sgm, whose configs say 1.0 there. Follows sgm's
    LambdaWarmUpCosineScheduler.
    """
    return multi_cycle_cosine(
        peak=peak,
        warm_up_steps=(warm_up_steps,),
        f_min=(lr_min,),
        f_max=(lr_max,),
        f_start=(lr_start,),
        cycle_lengths=(max_decay_steps,),
    )


def multi_cycle_cosine(
    *,
    peak: float,
    warm_up_steps: Sequence[int],
    f_min: Sequence[float],
    f_max: Sequence[float],
    f_start: Sequence[float],
    cycle_lengths: Sequence[int],
) -> optax.Schedule:
    """Cycles one after the other, each a warm-up and half a cosine: a number per cycle in each list.

    f_start, f_max and f_min are factors of `peak`. A cycle's last step is that of its length: the next begins
    one later. After the last it stays. Follows sgm's LambdaWarmUpCosineScheduler2.
    """

    def down(n, warm, low, high, length):
        t = jnp.minimum((n - warm) / (length - warm), 1.0)
        return low + 0.5 * (high - low) * (1 + jnp.cos(jnp.pi * t))

    return _cycles(peak, down, warm_up_steps, f_min, f_max, f_start, cycle_lengths)


def multi_cycle_linear(
    *,
    peak: float,
    warm_up_steps: Sequence[int],
    f_min: Sequence[float],
    f_max: Sequence[float],
    f_start: Sequence[float],
    cycle_lengths: Sequence[int],
) -> optax.Schedule:
    """As multi_cycle_cosine, with a straight line down, whose height f_max would be at the cycle's step 0.

    Follows sgm's LambdaLinearScheduler.
    """
    down = lambda n, warm, low, high, length: low + (high - low) * (length - n) / length
    return _cycles(peak, down, warm_up_steps, f_min, f_max, f_start, cycle_lengths)


def _cycles(peak: float, down: Callable, *lists: Sequence[float]) -> optax.Schedule:
    names = ('warm_up_steps', 'f_min', 'f_max', 'f_start', 'cycle_lengths')
    counts = {name: len(values) for name, values in zip(names, lists, strict=True)}
    if len(set(counts.values())) != 1 or not lists[0]:
        said = ', '.join(f'{name} {count}' for name, count in counts.items())
        raise UserError(f'schedule: lists of different lengths ({said}); give one number per cycle')
    for warm, length in zip(lists[0], lists[-1], strict=True):
        if not 0 <= warm < length:
            raise UserError(
                f'schedule: {warm} warm-up steps of {length}; give 0 or more, fewer than all'
            )
    tables = [np.asarray(values, np.float32) for values in lists]
    ends = np.cumsum(np.asarray(lists[-1], np.int64))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.float32)

    def schedule(step: jax.Array) -> jax.Array:
        n = jnp.minimum(jnp.asarray(step, jnp.float32), float(ends[-1]))
        cycle = jnp.searchsorted(jnp.asarray(ends, jnp.float32), n)
        warm, low, high, first, length = (jnp.asarray(table)[cycle] for table in tables)
        n = n - jnp.asarray(starts)[cycle]
        up = first + (high - first) * n / jnp.maximum(warm, 1)
        return peak * jnp.where(n < warm, up, down(n, warm, low, high, length))

    return schedule


def _after_warmup(down: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
    if not warmup_steps:
        return down
    up = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([up, down], [warmup_steps])


def _check_warmup(steps: int) -> None:
    if steps < 0:
        raise UserError(f'schedule: warmup_steps is {steps}; give 0 or more')


def _check_within(warmup_steps: int, steps: int) -> None:
    _check_warmup(warmup_steps)
    if warmup_steps >= steps:
        raise UserError(f'schedule: warmup_steps is {warmup_steps} of {steps} steps; give fewer')


SCHEDULES = {
    'constant': constant,
    'cosine': cosine,
    'linear': linear,
    'exponential': exponential,
    'inverse_sqrt': inverse_sqrt,
    'piecewise': piecewise,
    'warmup_cosine': warmup_cosine,
    'multi_cycle_cosine': multi_cycle_cosine,
    'multi_cycle_linear': multi_cycle_linear,
}


def make_schedule(node: Mapping, *, peak: float, steps: int) -> optax.Schedule:
    """The schedule of `config.schedule`: the learning rate of an optimizer step, counted from 0."""
    return build(SCHEDULES, node, where='schedule', peak=peak, steps=steps)


def peak_rate(node: Mapping, *, batch_size: int, accumulate: int) -> float:
    """`optimizer.learning_rate`; with `scale_lr`, times the examples of an optimizer step, as sgm's main.py.

    There it is accumulated batches x devices x examples per device x base rate.
    """
    examples = accumulate * batch_size if node.get('scale_lr', False) else 1
    return node['learning_rate'] * examples
