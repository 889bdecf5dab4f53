"""The compiled functions of a run: the first state, and the step from one state to the next."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sgm_jax.diffusion.binned import Binned
from sgm_jax.engines import Engine
from sgm_jax.engines.protocol import Players
from sgm_jax.networks import placement
from sgm_jax.parallel import agreement
from sgm_jax.parallel import mesh as meshes
from sgm_jax.parallel.compiler import jit
from sgm_jax.training.optimizers import steps_taken
from sgm_jax.training.state import (
    Average,
    Optimizers,
    TrainState,
    apply_gradients,
    fresh,
    unless_broken,
)

PyTree = Any
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
# Learning rates of one optimizer by name, each of its steps.
Rates = Mapping[str, optax.Schedule]


def first_players(engine: Engine, key: jax.Array) -> Players:
    """At random; traceable."""
    params_key, adversary_key = jax.random.split(key)
    return Players(params=engine.init(params_key), adversary=engine.init_adversary(adversary_key))


def make_init(
    engine: Engine, optimizers: Optimizers, wanted: TrainState
) -> Callable[[jax.Array], TrainState]:
    """A function from a key to the first state; no device ever holds the whole model."""
    # Without out_shardings all moments would be born on device 0.
    return jit(
        lambda key: fresh(first_players(engine, key), optimizers),
        out_shardings=meshes.shardings(wanted),
    )


def start_from(
    params: PyTree, engine: Engine, optimizers: Optimizers, wanted: TrainState, key: jax.Array
) -> TrainState:
    """The first state around parameters that are on the host."""
    placed = agreement.place(params, meshes.shardings(wanted.params))
    start = jit(
        lambda params, key: fresh(first_players(engine, key).replace(params=params), optimizers),
        out_shardings=meshes.shardings(wanted),
        donate_argnums=0,
    )
    return start(placed, key)


def make_step(
    engine: Engine,
    optimizers: Optimizers,
    average: Average,
    rates: tuple[Rates, Rates],
    wanted: TrainState,
) -> Step:
    """The train step: (turn, state, frozen, batch, base key) -> (state, scalars to log).

    `rates` are the learning rates of either optimizer by its own steps, of which it makes one when it is its
    turn. Each of the engine's turns is compiled when it first comes. The state is donated. All randomness is
    a function of the base key and the step. A step whose numbers are not finite leaves the state as it was,
    but for `intact`, and logs `finite` as False. `.trace` takes the same arguments, or their shapes, and
    compiles ahead: `.trace(...).lower().compile()`.
    """
    mesh = wanted.step.sharding.mesh
    whole = meshes.replicated(mesh)

    def step(
        turn: str,
        state: TrainState,
        frozen: PyTree,
        batch: Mapping[str, jax.Array],
        base_key: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(base_key, state.step)
        with placement.over(mesh, **meshes.roles(mesh)):
            gradients = engine.gradients(turn, state.players, frozen, batch, key)
        after = apply_gradients(state, gradients, optimizers, average)
        logs = {**gradients.logs, 'ema_decay': average.decay(after.step)}
        for prefix, own, found, params, opt_state in (
            ('', rates[0], gradients.params, state.params, state.opt_state),
            (
                'disc_',
                rates[1],
                gradients.adversary,
                state.adversary and state.adversary.params,
                state.adversary_opt_state,
            ),
        ):
            if found is not None:
                logs[f'{prefix}grad_norm'] = optax.tree.norm(found)
                logs[f'{prefix}param_norm'] = optax.tree.norm(params)
                steps = steps_taken(opt_state)
                logs |= {f'{prefix}{name}': rate(steps) for name, rate in own.items()}
        numbers = [x for x in logs.values() if not Binned.is_one(x)]
        logs['finite'] = jnp.stack([jnp.isfinite(x) for x in numbers]).all()
        return unless_broken(state, after, logs['finite']), logs

    @functools.cache
    def compiled(turn: str) -> Step:
        return jit(
            functools.partial(step, turn),
            training=True,
            donate_argnums=0,
            out_shardings=(meshes.shardings(wanted), whole),
        )

    def run(turn: str, *arguments: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        return compiled(turn)(*arguments)

    run.trace = lambda turn, *arguments: compiled(turn).trace(*arguments)
    return run
