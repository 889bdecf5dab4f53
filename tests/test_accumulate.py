"""Gradients of several batches in one step of the optimizer."""

import shutil

import jax
import numpy as np
import pytest
import smallest
from checkpointed import state_of

from sgm_jax.training.loop import train

STEPS = 4


@pytest.fixture(scope='module')
def config():
    found = smallest.config(accumulate=2, steps=STEPS, checkpoint_every=1, keep=9)
    # Without a warm-up, whose first step changes nothing.
    found.schedule = {'name': 'constant'}
    return found


@pytest.fixture(scope='module')
def workdir(config, tmp_path_factory):
    """Of a run that went straight through."""
    workdir = tmp_path_factory.mktemp('accumulated')
    train(config, workdir)
    return workdir


@pytest.fixture(scope='module')
def states(config, workdir):
    """After each of its steps: the state, and where the data are."""
    return {step: state_of(config, workdir, step) for step in range(1, STEPS + 1)}


def same(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_parameters_and_average_change_with_every_second_batch(states):
    params = {step: state.params for step, (state, _) in states.items()}
    average = {step: state.ema_params for step, (state, _) in states.items()}
    assert same(params[1], average[1])  # both as they began
    assert not same(params[1], params[2])
    assert not same(average[1], average[2])
    for trees in (params, average):
        assert same(trees[2], trees[3])
        assert not same(trees[3], trees[4])
    # Of the n-th step of the optimizer, not of the batches: (1 + 2) / (10 + 2) of the second.
    expected = jax.tree.map(lambda old, now: 0.25 * old + 0.75 * now, average[2], params[4])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), average[4], expected)


def test_a_run_goes_on_between_two_batches_of_one_step(states, config, workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / 'run')
    shutil.rmtree(run / 'checkpoints' / str(STEPS))
    train(config, run)
    found = state_of(config, run, STEPS)
    assert same(found[0], states[STEPS][0])
    assert found[1] == states[STEPS][1]
