"""A run's history and its curves."""

import json

import numpy as np
import pytest
from PIL import Image

from sgm_jax.errors import UserError
from sgm_jax.tools import curves
from sgm_jax.training import history


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / 'logs').mkdir()
    return tmp_path


def write(workdir, rows, begin=0):
    book = history.History(workdir, begin=begin)
    book.add(rows)
    book.close()


def test_numbers_come_back_by_name_and_step(workdir):
    write(workdir, {1: {'loss': 2.0, 'learning_rate': 0.1}, 2: {'loss': 1.5}})
    write(workdir, {3: {'loss': np.float32(0.25), 'psnr': 30}}, begin=2)
    assert history.read(workdir) == {
        'loss': {1: 2.0, 2: 1.5, 3: 0.25},
        'learning_rate': {1: 0.1},
        'psnr': {3: 30.0},
    }


def test_steps_that_are_made_again_are_told_once(workdir):
    write(workdir, {step: {'loss': 10.0 + step} for step in range(1, 8)})
    # The newest checkpoint was step 4.
    write(workdir, {5: {'loss': 1.0}}, begin=4)
    assert history.read(workdir)['loss'] == {1: 11.0, 2: 12.0, 3: 13.0, 4: 14.0, 5: 1.0}


def test_half_a_line_of_a_killed_process_is_left_out(workdir):
    write(workdir, {1: {'loss': 1.0}})
    with (workdir / 'logs' / history.NAME).open('a') as file:
        file.write('{"step": 2, "lo')
    write(workdir, {2: {'loss': 3.0}}, begin=1)
    assert history.read(workdir)['loss'] == {1: 1.0, 2: 3.0}


def test_what_is_not_finite_is_json_all_the_same(workdir):
    write(workdir, {1: {'loss': float('nan')}})
    line = (workdir / 'logs' / history.NAME).read_text()
    refuse = lambda word: pytest.fail(f'{word} is no JSON')
    assert json.loads(line, parse_constant=refuse) == {'step': 1, 'loss': None}
    assert np.isnan(history.read(workdir)['loss'][1])


def test_a_folder_without_history_is_named(tmp_path):
    with pytest.raises(UserError, match=r'there is no .*history\.jsonl'):
        history.read(tmp_path)


def test_curves_are_drawn(workdir, tmp_path):
    steps = range(1, 41)
    write(workdir, {n: {'loss': 1 / n, 'learning_rate': 1e-4 * n, 'grad_norm': 2.0} for n in steps})
    output = tmp_path / 'pictures' / 'curves.png'
    curves.draw(history.read(workdir), output, smooth=5)
    pixels = np.asarray(Image.open(output).convert('RGB')).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    # A panel each, side by side, and a curve in each.
    assert all(part.any() for part in np.array_split(blue, 3, axis=1))


def test_running_averages_skip_what_is_not_finite():
    found = curves.running_average(np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan]), 2)
    np.testing.assert_allclose(found, [1.0, 2.0, 3.0, 5.0, 5.0, np.nan])
