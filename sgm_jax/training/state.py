"""What lives from step to step: one pytree, born sharded, and the two functions that change it."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

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
    """

    step: jax.Array
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree


def fresh(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; traceable."""
    # Copies: two leaves must not share a buffer that is donated later.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def abstract(
    params: PyTree, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes and shardings of the state of `params` (arrays or shapes); nothing is computed.

    Moments and accumulated gradients lie as their parameters do.
    """
    params = meshes.abstract(params, mesh)
    whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.replicated(mesh))
    opt_state = optax.tree_map_params(
        optimizer,
        lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=whole,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=meshes.replicated(mesh))
    return TrainState(step, params, params, opt_state)


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
    state: TrainState,
    gradients: PyTree,
    optimizer: optax.GradientTransformation,
    average: Average,
) -> TrainState:
    """The state after one batch's gradients; traceable."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    return TrainState(step, params, average(state.ema_params, params, step), opt_state)
