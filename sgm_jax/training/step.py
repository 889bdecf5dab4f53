"""The compiled functions of a run: the first state, and the step from one state to the next."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from sgm_jax.engines import Engine
from sgm_jax.parallel import mesh as meshes
from sgm_jax.parallel.compiler import jit
from sgm_jax.training.state import Average, TrainState, apply_gradients, fresh

PyTree = Any
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_init(
    engine: Engine, optimizer: optax.GradientTransformation, wanted: TrainState
) -> Callable[[jax.Array], TrainState]:
    """A function from a key to the first state; no device ever holds the whole model."""
    # Without out_shardings all moments would be born on device 0.
    return jit(
        lambda key: fresh(engine.init(key), optimizer), out_shardings=meshes.shardings(wanted)
    )


def start_from(
    params: PyTree, optimizer: optax.GradientTransformation, wanted: TrainState
) -> TrainState:
    """The first state around parameters that are on the host."""
    placed = jax.tree.map(jax.device_put, params, meshes.shardings(wanted.params))
    start = jit(
        lambda params: fresh(params, optimizer),
        out_shardings=meshes.shardings(wanted),
        donate_argnums=0,
    )
    return start(placed)


def make_step(
    engine: Engine,
    optimizer: optax.GradientTransformation,
    average: Average,
    schedule: optax.Schedule,
    wanted: TrainState,
) -> Step:
    """The train step: (state, frozen, batch, base key) -> (state, scalars to log).

    The state is donated. All randomness is a function of the base key and the step.
    """
    whole = meshes.replicated(wanted.step.sharding.mesh)

    def step(
        state: TrainState, frozen: PyTree, batch: Mapping[str, jax.Array], base_key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(base_key, state.step)
        loss_of = lambda params: engine.loss(params, frozen, batch, key)
        (_, logs), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        after = apply_gradients(state, gradients, optimizer, average)
        return after, {
            **logs,
            'grad_norm': optax.tree.norm(gradients),
            'learning_rate': schedule(state.step // average.accumulate),
            'ema_decay': average.decay(after.step),
        }

    return jit(step, donate_argnums=0, out_shardings=(meshes.shardings(wanted), whole))
