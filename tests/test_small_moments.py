"""Optimizers that hold less than AdamW: beside it, and beside what they promise to hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from sgm_jax.training import small_moments
from sgm_jax.training.optimizers import make_optimizer

RATE = 0.01


def problem():
    """Parameters, and a function whose minimum lies where a random matrix of any scale is reproduced."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 64)).astype(np.float32)
    scales = np.exp(rng.uniform(-3, 1, (1, 96))).astype(np.float32)
    y = x @ rng.standard_normal((64, 96)).astype(np.float32) * scales
    params = {'kernel': jnp.zeros((64, 96)), 'bias': jnp.zeros((96,))}
    loss = lambda p: jnp.mean(jnp.square(x @ p['kernel'] + p['bias'] - y) / scales**2)
    return params, loss


def optimizer(name: str, **options):
    return make_optimizer({'name': name, **options}, optax.constant_schedule(RATE))


def train(made, params, loss, steps: int):
    @jax.jit
    def step(params, state):
        updates, state = made.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = made.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state, step


def held(state) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ('name', 'options', 'share', 'loss_ratio'),
    [
        ('adamw_bf16', {'weight_decay': 0.0}, 0.52, 1.1),
        ('adamw_8bit', {'weight_decay': 0.0}, 0.30, 1.3),
        ('adafactor', {'min_dim_size_to_factor': 32}, 0.05, 2.0),
        ('lion', {'weight_decay': 0.0}, 0.52, 2.0),
    ],
)
def test_they_hold_less_and_learn_alike(name, options, share, loss_ratio):
    params, loss = problem()
    whole, state, _ = train(optimizer('adamw', weight_decay=0.0), params, loss, 150)
    small, small_state, _ = train(optimizer(name, **options), params, loss, 150)
    assert float(loss(whole)) < 0.7 * float(loss(params))
    assert held(small_state) < share * held(state)
    assert float(loss(small)) < loss_ratio * float(loss(whole))


def test_bytes_keep_a_moment_in_the_mean():
    rng = np.random.default_rng(1)
    x = jnp.asarray(
        rng.standard_normal((64, 96)) * np.exp(rng.uniform(-4, 0, (64, 96))), jnp.float32
    )
    draw = jax.vmap(lambda key: small_moments._load(*small_moments._to_bytes(x, key, True)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 400)))
    biggest = np.abs(x).max()
    # No draw is further off than the step of the scale at the largest, and the mean is the value.
    assert np.abs(found - x).max() < 0.035 * biggest
    assert np.abs(found.mean(0) - x).max() < 0.005 * biggest
    second = small_moments._load(*small_moments._to_bytes(jnp.square(x), None, False))
    assert float(second.min()) > 0


def test_a_second_moment_in_bfloat16_moves():
    made = small_moments.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8, bits=16)
    gradient = {'x': jnp.ones((64, 64))}
    state = made.init(gradient)
    update = jax.jit(made.update)
    for _ in range(700):
        _, state = update(gradient, state)
    # 1 - 0.999 ** 700; rounding to the nearest stops at 0.25, where steps are less than half of the last bit.
    assert float(state.nu['x'].astype(jnp.float32).mean()) == pytest.approx(0.5036, rel=0.01)


@pytest.mark.parametrize('name', ['adamw_bf16', 'adamw_8bit'])
def test_they_go_on_bit_for_bit(name, tmp_path):
    params, loss = problem()
    params, state, step = train(optimizer(name), params, loss, 3)
    ocp.save(tmp_path / 'state', (params, state))
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    again = ocp.load(tmp_path / 'state', jax.tree.map(shape, (params, state)))
    for _ in range(2):
        params, state = step(params, state)
        again = step(*again)
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves(again), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_blocks_lie_across_what_is_split():
    assert small_moments.block_axis((3, 3, 320, 640)) == 2
    assert small_moments.block_axis((1280, 1280)) == 1
    assert small_moments.block_axis((3, 3, 4, 320)) is None
    assert small_moments.block_axis((5120,)) is None
