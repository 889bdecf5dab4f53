"""Optimizers and learning-rate schedules by name. Both count optimizer steps, not accumulated batches."""

from collections.abc import Mapping

import optax

from sgm_jax.config import build, plain
from sgm_jax.errors import UserError


def constant(*, peak: float, warmup_steps: int = 0) -> optax.Schedule:
    """Linear from 0 over `warmup_steps`, then `peak`."""
    _check_warmup(warmup_steps)
    if warmup_steps == 0:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(0.0, peak, warmup_steps)


def cosine(*, peak: float, steps: int, warmup_steps: int = 0, end: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine to `end` at `steps`."""
    _check_warmup(warmup_steps)
    if warmup_steps >= steps:
        raise UserError(f'schedule: warmup_steps is {warmup_steps} of {steps} steps; give fewer')
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps, end)


def _check_warmup(steps: int) -> None:
    if steps < 0:
        raise UserError(f'schedule: warmup_steps is {steps}; give 0 or more')


SCHEDULES = {'constant': constant, 'cosine': cosine}


def adamw(
    *,
    learning_rate: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformation:
    """AdamW as torch.optim.AdamW: decay of every parameter, scaled by the learning rate."""
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


OPTIMIZERS = {'adamw': adamw}


def make_schedule(node: Mapping, *, peak: float, steps: int) -> optax.Schedule:
    """The schedule of `config.schedule`: the learning rate of an optimizer step, counted from 0."""
    return build(SCHEDULES, node, where='schedule', peak=peak, steps=steps)


def make_optimizer(
    node: Mapping, schedule: optax.Schedule, *, clip_norm: float = 0.0, accumulate: int = 1
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`, after clipping, over the mean of `accumulate` batches.

    Args:
      node: `name`, `learning_rate` (which the schedule has already taken) and the optimizer's keywords.
      schedule: learning rate by optimizer step.
      clip_norm: the largest global gradient norm; 0 for any.
      accumulate: batches per optimizer step.
    """
    options = {k: v for k, v in plain(node).items() if k != 'learning_rate'}
    if clip_norm < 0:
        raise UserError(f'train.clip_norm is {clip_norm}; give 0 (no clipping) or more')
    optimizer = build(OPTIMIZERS, options, where='optimizer', learning_rate=schedule)
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer
