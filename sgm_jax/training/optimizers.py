"""Optimizers by name. They count optimizer steps, not accumulated batches."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from sgm_jax.config import build, plain
from sgm_jax.errors import UserError
from sgm_jax.training import small_moments
from sgm_jax.training.muon import scale_by_muon

PyTree = Any


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


def _adamw_of(bits: int):
    def make(
        *,
        learning_rate: optax.Schedule,
        b1: float = 0.9,
        b2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> optax.GradientTransformation:
        return optax.chain(
            small_moments.scale_by_adam(b1=b1, b2=b2, eps=eps, bits=bits),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return make


def adafactor(
    *,
    learning_rate: optax.Schedule,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adafactor (arXiv:1804.04235): of a matrix's second moment, its rows' and columns' means alone.

    No first moment. With multiply_by_parameter_scale, as in the paper, the learning rate is relative to the
    parameters' size; without, it is AdamW's.
    """
    return optax.chain(
        optax.adafactor(
            None,
            min_dim_size_to_factor=min_dim_size_to_factor,
            decay_rate=decay_rate,
            multiply_by_parameter_scale=multiply_by_parameter_scale,
            clipping_threshold=clipping_threshold,
            weight_decay_rate=None,
        ),
        # It ends with the sign of descent, which decay has the other way round.
        optax.scale(-1.0),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def lion(
    *,
    learning_rate: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.1,
) -> optax.GradientTransformation:
    """Lion (arXiv:2302.06675): the sign of a momentum. Learning rates are a third to a tenth of AdamW's."""
    return optax.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)


def muon(
    *,
    learning_rate: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    beta: float = 0.95,
    rms: float | None = 0.2,
) -> optax.GradientTransformation:
    """Muon for matrices and kernels (what they read by what they give), NAdamW for everything else.

    An update's entries have the root mean square `rms`, times the learning rate: 0.2 is about Adam's, so that
    one learning rate does for both. Source for `rms`: Liu et al. 2025 (arXiv:2502.16982), equation 4.
    With None its singular values are the learning rate, times sqrt(out / in) where a layer widens: small
    matrices move as far, for their size, as large ones. Learning rates are then a few times larger, which
    biases and scales want a group of their own for.
    """
    matrices = optax.chain(
        scale_by_muon(beta=beta, rms=rms),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    others = optax.nadamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return optax.partition(
        {'matrix': matrices, 'other': others},
        lambda params: jax.tree.map(lambda x: 'matrix' if x.ndim >= 2 else 'other', params),
    )


OPTIMIZERS = {
    'adamw': adamw,
    'adamw_bf16': _adamw_of(16),
    'adamw_8bit': _adamw_of(8),
    'adafactor': adafactor,
    'lion': lion,
    'muon': muon,
}


def scaled(schedule: optax.Schedule, node: Mapping) -> optax.Schedule:
    """The learning rate of an optimizer's own steps: the schedule's, times the node's `lr_factor`."""
    factor = node.get('lr_factor', 1.0)
    return schedule if factor == 1.0 else lambda step: factor * schedule(step)


def rates(schedule: optax.Schedule, node: Mapping) -> dict[str, optax.Schedule]:
    """Learning rates by the name that they are logged under: the optimizer's, and that of each group."""
    node = plain(node)
    found = {'learning_rate': scaled(schedule, node)}
    for group in node.get('groups', ()):
        own = scaled(schedule, {**node, **group})
        found[f'learning_rate/{group.get("pattern", "")}'] = own
    return found


def steps_taken(opt_state: PyTree) -> jax.Array:
    """How many steps an optimizer has made, () int32: its own, whatever else happened meanwhile."""
    # Every part of it counts; accumulated batches that are no step yet are counted elsewhere.
    return optax.tree.get_all_with_path(opt_state, 'count')[0][1]


def make_optimizer(
    node: Mapping,
    schedule: optax.Schedule,
    *,
    clip_norm: float = 0.0,
    accumulate: int = 1,
    params: PyTree = None,
    where: str = 'optimizer',
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`, after clipping, over the mean of `accumulate` batches.

    Args:
      node: `name`, `learning_rate` and `scale_lr` (which the schedule has taken), its keywords, and
        `lr_factor`, times the learning rate; `groups`, each a node of a `pattern` and of what differs for the
        parameters whose dotted paths it matches from their start. The first that matches counts.
      schedule: learning rate by optimizer step.
      clip_norm: the largest global gradient norm; 0 for any.
      accumulate: batches per optimizer step.
      params: the trained tree (arrays or shapes), which groups are checked against.
      where: the node's name, for errors.
    """
    options = {k: v for k, v in plain(node).items() if k not in ('learning_rate', 'scale_lr')}
    groups = options.pop('groups', ())
    if clip_norm < 0:
        raise UserError(f'train.clip_norm is {clip_norm}; give 0 (no clipping) or more')
    optimizer = _one(options, schedule, where)
    if groups:
        optimizer = _by_group(groups, options, schedule, params, where)
    if clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    if accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer


def _one(options: Mapping, schedule: optax.Schedule, where: str) -> optax.GradientTransformation:
    own = {k: v for k, v in options.items() if k != 'lr_factor'}
    return build(OPTIMIZERS, own, where=where, learning_rate=scaled(schedule, options))


def _by_group(groups, options, schedule, params, where):
    patterns, parts = [], {'rest': _one(options, schedule, where)}
    for index, group in enumerate(groups):
        place = f'{where}.groups[{index}]'
        if 'pattern' not in group:
            raise UserError(f"{place}: missing 'pattern'")
        own = {k: v for k, v in group.items() if k != 'pattern'}
        patterns.append(re.compile(group['pattern']))
        parts[str(index)] = _one({**options, **own}, schedule, place)

    def label(path: tuple, _: jax.Array) -> str:
        name = '.'.join(str(getattr(key, 'key', key)) for key in path)
        found = (str(i) for i, pattern in enumerate(patterns) if pattern.match(name))
        return next(found, 'rest')

    labels = lambda tree: jax.tree_util.tree_map_with_path(label, tree)
    used = set(jax.tree.leaves(labels(params)))
    for index, group in enumerate(groups):
        if str(index) not in used:
            raise UserError(
                f'{where}.groups[{index}]: no parameter begins with {group["pattern"]!r}'
            )
    return optax.partition(parts, labels)
