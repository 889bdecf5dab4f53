"""Schedules beside tables of their published formulas."""

import math

import numpy as np
import pytest

from sgm_jax.errors import UserError
from sgm_jax.training.schedules import make_schedule, peak_rate

LISTS = {
    'warm_up_steps': (4, 2),
    'f_min': (0.1, 0.2),
    'f_max': (1.0, 0.5),
    'f_start': (0.01, 0.3),
    'cycle_lengths': (10, 20),
}


def rates(node: dict, steps, peak: float = 2.0) -> np.ndarray:
    schedule = make_schedule(node, peak=peak, steps=100)
    return np.array([float(schedule(step)) for step in steps])


def test_warm_up_and_cosine():
    node = dict(
        name='warmup_cosine',
        warm_up_steps=10,
        lr_min=0.1,
        lr_max=1.0,
        lr_start=0.2,
        max_decay_steps=50,
    )
    # Up in equal steps of 0.08; then by the cosine at 0, an eighth, half and all of the way down.
    table = {
        0: 0.2,
        1: 0.28,
        9: 0.92,
        10: 1.0,
        15: 0.1 + 0.45 * (1 + math.cos(math.pi / 8)),
        30: 0.55,
        50: 0.1,
        70: 0.1,
    }
    np.testing.assert_allclose(rates(node, table), 2 * np.array(list(table.values())), rtol=1e-6)


def test_cycles_of_cosines():
    table = {
        0: 0.01,
        2: 0.505,
        4: 1.0,
        7: 0.55,  # half way from 4 to 10
        10: 0.1,  # the cycle's last step is its own
        11: 0.4,  # the next one's first: half way up from 0.3 to 0.5
        12: 0.5,
        21: 0.35,  # half way from 12 to 30
        30: 0.2,
        99: 0.2,
    }
    found = rates({'name': 'multi_cycle_cosine', **LISTS}, table)
    np.testing.assert_allclose(found, 2 * np.array(list(table.values())), rtol=1e-6)


def test_cycles_of_lines():
    table = {
        0: 0.01,
        2: 0.505,
        4: 0.64,  # 0.1 + 0.9 * 6 / 10: the line is that of the whole cycle
        7: 0.37,
        10: 0.1,
        11: 0.4,
        12: 0.47,  # 0.2 + 0.3 * 18 / 20
        20: 0.35,
        30: 0.2,
        99: 0.2,
    }
    found = rates({'name': 'multi_cycle_linear', **LISTS}, table)
    np.testing.assert_allclose(found, 2 * np.array(list(table.values())), rtol=1e-6)


@pytest.mark.parametrize(
    ('node', 'table'),
    [
        ({'name': 'linear', 'warmup_steps': 20}, {0: 0, 10: 1, 20: 2, 60: 1, 100: 0}),
        ({'name': 'exponential', 'decay_steps': 10, 'decay_rate': 0.5}, {0: 2, 10: 1, 30: 0.25}),
        ({'name': 'inverse_sqrt', 'warmup_steps': 4}, {0: 0, 2: 1, 4: 2, 16: 1, 64: 0.5}),
        (
            {'name': 'piecewise', 'boundaries': (10, 20), 'factors': (0.5, 0.1), 'warmup_steps': 4},
            {0: 0, 2: 1, 4: 2, 9: 2, 10: 1, 20: 0.1},
        ),
    ],
)
def test_others(node, table):
    np.testing.assert_allclose(rates(node, table), list(table.values()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'f_min': (0.1,)}, 'f_min 1, f_max 2'),
        ({'warm_up_steps': (4, 20)}, '20 warm-up steps of 20'),
    ],
)
def test_cycles_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        make_schedule({'name': 'multi_cycle_cosine', **LISTS, **changes}, peak=1.0, steps=10)


def test_rates_are_scaled_by_the_examples_of_a_step():
    # sgm: accumulate 2 x 8 devices x 4 a device x 1e-6.
    node = {'learning_rate': 1e-6, 'scale_lr': True}
    assert peak_rate(node, batch_size=32, accumulate=2) == pytest.approx(6.4e-5)
    assert peak_rate({**node, 'scale_lr': False}, batch_size=32, accumulate=2) == 1e-6
