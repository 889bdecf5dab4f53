"""What the backward pass computes again instead of keeping: rules by name.

What a rule does not keep is computed twice.
"""

from collections.abc import Callable

import jax

# What attention gives (and, where the gradient is written by hand, its sum of weights) carries this name.
ATTENTION = 'attention'

# By name: whether a layer of the U-Net is computed again; whether each block of a transformer is, by itself;
# and what is kept all the same.
RULES = {
    'none': (False, False, None),
    'block': (True, False, None),
    'layer': (False, True, None),
    'full': (True, True, None),
    'attention': (True, False, jax.checkpoint_policies.save_only_these_names(ATTENTION)),
    'dots': (True, False, jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


def check(name: str | None, use_checkpoint: bool) -> str:
    """The name of a rule; sgm's use_checkpoint means 'block' where none is named."""
    name = name or ('block' if use_checkpoint else 'none')
    if name not in RULES:
        raise ValueError(f'unknown remat {name!r}; choose one of: {", ".join(sorted(RULES))}')
    return name


def layer(function: Callable, name: str) -> Callable:
    """For a layer of the U-Net: a residual block or a whole transformer."""
    wanted, _, policy = RULES[name]
    return jax.checkpoint(function, policy=policy) if wanted else function


def residual_block(function: Callable, name: str) -> Callable:
    """For what has no smaller parts: as `layer`, and by itself where transformers' blocks are."""
    wanted, inner, policy = RULES[name]
    return jax.checkpoint(function, policy=policy) if wanted or inner else function


def transformer_block(function: Callable, name: str) -> Callable:
    """For one block of a transformer."""
    _, wanted, policy = RULES[name]
    return jax.checkpoint(function, policy=policy) if wanted else function
