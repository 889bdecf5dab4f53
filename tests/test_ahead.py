"""Steps that are compiled before their batches come."""

import jax
import numpy as np
import pytest
import smallest

from sgm_jax.parallel import mesh as meshes
from sgm_jax.training.ahead import StepsAhead
from sgm_jax.training.setup import Setup

SIZES = (8, 4)


@pytest.fixture(scope='module')
def parts():
    """A run's setup, and a batch of each size."""
    setup = Setup.from_config(smallest.config())
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    batches = [meshes.put_batch({'jpg': pictures[:, :n, :n]}, setup.mesh) for n in SIZES]
    return setup, batches


def first(setup: Setup):
    whole = meshes.replicated(setup.mesh)
    frozen = jax.device_put(setup.frozen(jax.random.key(0)), whole)
    key = jax.device_put(jax.random.key(1), whole)
    return setup.first_state(key), frozen, key


def test_announced_sizes_are_compiled_before_they_come(parts, compilations):
    setup, batches = parts
    turn = setup.engine.turn(0)
    state, frozen, key = first(setup)
    wanted, logs = jax.device_get(setup.step(turn, state, frozen, batches[0], key))
    with StepsAhead(setup.step) as ahead:
        for batch in batches[::-1]:
            state, frozen, key = first(setup)
            ahead.announce(turn, state, frozen, batch, key)
            ahead.announce(turn, state, frozen, batch, key)  # once more: nothing is to be done
        for made in ahead._made.values():
            made.result()
        assert len(ahead._made) == len(SIZES)
        for batch in batches[::-1]:
            state, frozen, key = first(setup)
            with compilations() as count:
                after, told = ahead(turn, state, frozen, batch, key)
            assert count() == 0
    assert told['loss'] == logs['loss']
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), wanted)


def test_a_size_that_was_not_announced_is_compiled_when_it_comes(parts):
    setup, batches = parts
    turn = setup.engine.turn(0)
    state, frozen, key = first(setup)
    with StepsAhead(setup.step) as ahead:
        state, logs = ahead(turn, state, frozen, batches[0], key)
    assert np.isfinite(logs['loss'])
    assert int(state.step) == 1


def test_what_cannot_be_compiled_is_an_error_when_it_comes(parts):
    setup, batches = parts
    turn = setup.engine.turn(0)
    state, frozen, key = first(setup)
    odd = meshes.put_batch({'jpg': np.zeros((2, 7, 8, 3), np.float32)}, setup.mesh)
    with StepsAhead(setup.step) as ahead:
        ahead.announce(turn, state, frozen, odd, key)
        ahead(turn, state, frozen, batches[0], key)
        state, frozen, key = first(setup)
        with pytest.raises(Exception, match=r'shape|divisible'):
            ahead(turn, state, frozen, odd, key)
