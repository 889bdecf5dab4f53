"""What the backward pass computes again instead of keeping: rules by name.

What a rule does not keep is computed twice. Weights that lie over several devices are gathered twice whatever
the rule, or every device would hold all of them from the forward pass to the backward.
"""

import dataclasses
from collections.abc import Callable

import jax

from sgm_jax.networks import placement

# What attention gives (and, where the gradient is written by hand, its sum of weights) carries this name.
ATTENTION = 'attention'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What is computed again, by itself: a residual block, a whole transformer, each block of one.

    `policy` says what of it is kept all the same.
    """

    residual: bool = False
    transformer: bool = False
    block: bool = False
    policy: Callable | None = None


_POLICIES = jax.checkpoint_policies
_NAMED = _POLICIES.save_only_these_names(ATTENTION)


def _attention(primitive, *avals, **params) -> bool:
    # What cuDNN's gradient wants besides has no name of ours: all that its kernel gives is kept.
    return primitive.name == 'dot_product_attention_fwd_wrapper' or _NAMED(
        primitive, *avals, **params
    )


RULES = {
    'none': Rule(),
    'transformer': Rule(block=True),
    'block': Rule(residual=True, transformer=True),
    'layer': Rule(residual=True, block=True),
    'full': Rule(residual=True, transformer=True, block=True),
    'attention': Rule(residual=True, transformer=True, policy=_attention),
    'dots': Rule(
        residual=True, transformer=True, policy=_POLICIES.dots_with_no_batch_dims_saveable
    ),
}
_ALL_BUT_WEIGHTS = _POLICIES.save_anything_except_these_names(placement.WEIGHTS)


def check(name: str | None, use_checkpoint: bool) -> str:
    """The name of a rule; sgm's use_checkpoint means 'block' where none is named."""
    name = name or ('block' if use_checkpoint else 'none')
    if name not in RULES:
        raise ValueError(f'unknown remat {name!r}; choose one of: {", ".join(sorted(RULES))}')
    return name


def residual_block(function: Callable, name: str) -> Callable:
    """For a layer of the U-Net that has no parts with rules of their own."""
    rule = RULES[name]
    return jax.checkpoint(function, policy=rule.policy) if rule.residual else _keep(function)


def layer(function: Callable, name: str) -> Callable:
    """For a layer whose parts have: a whole transformer, or a change of size."""
    rule = RULES[name]
    return jax.checkpoint(function, policy=rule.policy) if rule.transformer else function


def transformer_block(function: Callable, name: str) -> Callable:
    """For one block of a transformer."""
    rule = RULES[name]
    return jax.checkpoint(function, policy=rule.policy) if rule.block else _keep(function)


def _keep(function: Callable) -> Callable:
    """Keeps everything, but gathered weights."""
    if not placement.weights_are_split():
        return function
    return jax.checkpoint(function, policy=_ALL_BUT_WEIGHTS)
