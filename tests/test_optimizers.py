"""Optimizers beside what their sources say of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from sgm_jax.training.optimizers import make_optimizer, steps_taken
from sgm_jax.training.schedules import make_schedule

SHAPES = {'conv': {'kernel': (3, 3, 8, 16), 'bias': (16,)}, 'linear': {'kernel': (24, 12)}}


def draw(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    of = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return jax.tree.map(of, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def test_muon_makes_updates_orthogonal():
    node = {'name': 'muon', 'b1': 0.9, 'b2': 0.99}
    params, gradient = draw(0), draw(1)
    optimizer = make_optimizer(node, optax.constant_schedule(0.01), params=params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for name in SHAPES:
        matrix = lambda x: np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        update, given = (matrix(tree[name]['kernel']) for tree in (updates, gradient))
        u, _, vh = np.linalg.svd(given, full_matrices=False)
        # What is left of the gradient is its directions; five iterations bring them to 1 within a third.
        along = -np.einsum('mk,mn,kn->k', u, update, vh) / (0.2 * np.sqrt(max(update.shape)))
        assert along.min() > 0.6 * 0.01
        assert along.max() < 1.3 * 0.01
        # Every direction once, so the mean square is known: rank * scale^2 / size.
        rms = np.sqrt(np.square(update).mean())
        assert 0.2 * 0.01 * 0.7 < rms < 0.2 * 0.01 * 1.2
    # Nadam's first step is the sign of the gradient, and what the next would add to it.
    ahead = 1 + 0.9 * (1 - 0.9) / (1 - 0.9**2)
    np.testing.assert_allclose(
        updates['conv']['bias'], -0.01 * ahead * np.sign(gradient['conv']['bias']), rtol=1e-4
    )


@pytest.mark.parametrize('rms', [0.2, None])
def test_muon_is_that_of_optax(rms):
    """Which multiplies the whole matrix in every iteration."""
    matrix = lambda x: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1)
    theirs = optax.contrib.muon(
        0.01,
        weight_decay=0.1,
        adam_weight_decay=0.1,
        adam_b2=0.99,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda x: matrix(x) if x.ndim >= 2 else None, params
        ),
        consistent_rms=rms,
    )
    node = {'name': 'muon', 'b2': 0.99, 'weight_decay': 0.1, 'rms': rms}
    params = draw(0)
    ours = make_optimizer(node, optax.constant_schedule(0.01), params=params)
    states = [optimizer.init(params) for optimizer in (ours, theirs)]
    for number in range(3):
        found = [
            optimizer.update(draw(number), state, params)
            for optimizer, state in zip((ours, theirs), states, strict=True)
        ]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            *(f[0] for f in found),
        )
        states = [f[1] for f in found]


@pytest.mark.parametrize('name', ['adamw', 'muon'])
@pytest.mark.parametrize('groups', [(), ({'pattern': 'conv', 'lr_factor': 0.1},)])
def test_an_optimizer_counts_its_own_steps(name, groups):
    node = {'name': name, 'groups': groups}
    schedule = make_schedule({'name': 'cosine', 'warmup_steps': 1}, peak=1e-3, steps=4)
    params = draw(0)
    optimizer = make_optimizer(node, schedule, accumulate=2, params=params)
    state = optimizer.init(params)
    counts = []
    for number in range(4):
        counts.append(int(steps_taken(state)))
        _, state = optimizer.update(draw(number), state, params)
    assert counts == [0, 0, 1, 1]
    assert int(steps_taken(state)) == 2
