"""What lives from step to step: one pytree, born sharded, and the two functions that change it."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sgm_jax.engines.protocol import Gradients, Players
from sgm_jax.parallel import mesh as meshes

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint needs to go on as if nothing had happened.

    Attributes:
      step: batches seen, int32 ().
      params: trainable parameters, float32.
      ema_params: their running average, which samples are drawn with.
      opt_state: the optimizer's.
      adversary: of an adversarial training, the discriminator (params and statistics); else None.
      adversary_opt_state: its optimizer's.
      intact: whether every step so far gave finite numbers, bool (). One that did not is not made: from then
        on nothing changes any more, so that what broke can be looked at. Not in a checkpoint.
    """

    step: jax.Array
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    adversary: Any = None
    adversary_opt_state: PyTree = None
    intact: Any = None

    @property
    def players(self) -> Players:
        """What learns."""
        return Players(params=self.params, adversary=self.adversary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizers:
    """One for the parameters, one for the adversary's."""

    main: optax.GradientTransformation
    adversary: optax.GradientTransformation


def fresh(players: Players, optimizers: Optimizers) -> TrainState:
    """The state before the first step; traceable."""
    params, adversary = players.params, players.adversary
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Copies: two leaves must not share a buffer that is donated later.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizers.main.init(params),
        adversary=adversary,
        adversary_opt_state=optimizers.adversary.init(adversary.params) if adversary else None,
        intact=jnp.ones((), bool),
    )


def abstract(players: Players, optimizers: Optimizers, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes and shardings of the state of `players` (arrays or shapes); nothing is computed.

    Moments and accumulated gradients lie as their parameters do.
    """
    players = meshes.abstract(players, mesh)
    params, adversary = players.params, players.adversary
    moments = functools.partial(_abstract_moments, mesh=mesh)
    scalar = functools.partial(jax.ShapeDtypeStruct, (), sharding=meshes.replicated(mesh))
    return TrainState(
        step=scalar(jnp.int32),
        params=params,
        ema_params=params,
        opt_state=moments(optimizers.main, params),
        adversary=adversary,
        adversary_opt_state=moments(optimizers.adversary, adversary.params) if adversary else None,
        intact=scalar(bool),
    )


def _abstract_moments(
    optimizer: optax.GradientTransformation, params: PyTree, *, mesh: jax.sharding.Mesh
) -> PyTree:
    whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.replicated(mesh))
    # Where a group has an optimizer of its own, the others' moments are masked.
    masked = lambda x: isinstance(x, optax.MaskedNode)
    like = lambda x, p: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=meshes.like(p.sharding, p.shape, x.shape)
    )
    return optax.tree_map_params(
        optimizer,
        lambda x, p: x if masked(x) else like(x, p),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=whole,
        is_leaf=masked,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average:
    """The running average of the parameters, which adapts faster at the start.

    decay = min(limit, (1 + n) / (10 + n)) at the n-th optimizer step, n from 1. Source: sgm's LitEma.
    """

    limit: float
    accumulate: int = 1

    def decay(self, step: jax.Array) -> jax.Array:
        """The decay at the end of batch number `step` (from 1); 1 where the optimizer did not step."""
        n = (step // self.accumulate).astype(jnp.float32)
        decay = jnp.minimum(self.limit, (1 + n) / (10 + n))
        return jnp.where(step % self.accumulate == 0, decay, 1.0)

    def __call__(self, ema_params: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        decay = self.decay(step)
        return jax.tree.map(lambda e, p: e - (1.0 - decay) * (e - p), ema_params, params)


def apply_gradients(
    state: TrainState, gradients: Gradients, optimizers: Optimizers, average: Average
) -> TrainState:
    """The state after one batch's gradients; traceable."""
    step = state.step + 1
    params, opt_state = state.params, state.opt_state
    if gradients.params is not None:
        updates, opt_state = optimizers.main.update(gradients.params, opt_state, params)
        params = _replaced(optax.apply_updates(params, updates), gradients.after)
    adversary = gradients.adversary_after
    adversary = state.adversary if adversary is None else adversary
    adversary_opt_state = state.adversary_opt_state
    if gradients.adversary is not None:
        updates, adversary_opt_state = optimizers.adversary.update(
            gradients.adversary, adversary_opt_state, adversary.params
        )
        adversary = adversary.replace(params=optax.apply_updates(adversary.params, updates))
    return TrainState(
        step=step,
        params=params,
        ema_params=average(state.ema_params, params, step),
        opt_state=opt_state,
        adversary=adversary,
        adversary_opt_state=adversary_opt_state,
        intact=state.intact,
    )


def unless_broken(before: TrainState, after: TrainState, fine: jax.Array) -> TrainState:
    """`after`, if its step gave finite numbers (`fine`) and all before it did, else `before`; traceable."""
    intact = before.intact & fine
    # A scalar choice for each leaf: jnp.where would trace and lower a function for each.
    kept = jax.tree.map(lambda old, new: jax.lax.select_n(intact, old, new), before, after)
    return kept.replace(intact=intact)


def _replaced(tree: PyTree, part: PyTree) -> PyTree:
    """A tree of dicts with the leaves that `part` has of it."""
    if not isinstance(part, dict):
        return part
    return {**tree, **{key: _replaced(tree[key], node) for key, node in part.items()}}
