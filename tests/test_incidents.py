"""What happens to runs: they are asked to stop or save, disks fill up, numbers break; nothing is lost."""

import collections
import dataclasses
import itertools
import json
import logging
import pathlib
import resource
import shutil
import signal
import types

import jax
import numpy as np
import pytest
import smallest
from checkpointed import state_of

from sgm_jax.data import pipeline
from sgm_jax.engines.autoencoding import AutoencodingEngine
from sgm_jax.errors import UserError
from sgm_jax.parallel import agreement
from sgm_jax.training import history, loop, testing
from sgm_jax.training.checkpoints import Checkpoints
from sgm_jax.training.loop import train
from sgm_jax.training.painter import Painter
from sgm_jax.training.run import Choices, run
from sgm_jax.training.window import Window


@pytest.fixture(scope='module')
def straight(tmp_path_factory) -> pathlib.Path:
    """The workdir of four steps that nothing happened to, with everything logged that can be."""
    workdir = tmp_path_factory.mktemp('straight')
    options = dict(log_every=1, image_every=2, validate_every=2)
    assert train(smallest.config(**options), workdir).step == 4
    return workdir


def assert_same_state(one: pathlib.Path, other: pathlib.Path) -> None:
    config = smallest.config()
    first, second = state_of(config, one, 4), state_of(config, other, 4)
    assert len(jax.tree.leaves(first[0])) > 100
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    assert first[1] == second[1]


def test_with_logging_off_the_parameters_are_the_same(straight, tmp_path):
    config = smallest.config(log_every=1000, heartbeat_minutes=0)
    train(config, tmp_path)
    assert_same_state(tmp_path, straight)


def test_the_newest_the_best_and_every_third_are_kept(straight, tmp_path):
    keep = dict(keep=1, keep_every=3, keep_best=1, best='+val/psnr')
    config = smallest.config(
        steps=8, checkpoint_every=1, validate_every=1, validate_examples=2, **keep
    )
    train(config, tmp_path)
    by_step = history.read(tmp_path)['val/psnr']
    best = max(by_step, key=by_step.get)
    kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir()}
    assert kept == {8, 3, 6, best}


# Orbax drops what it was doing when a write fails, and Python complains of its event loop.
dropped = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning',
    'ignore::pytest.PytestUnhandledThreadExceptionWarning',
)


@dropped
def test_a_full_disk_costs_its_checkpoint_and_not_the_run(straight, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    save, free = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def sometimes(self, step, *rest):
        # No file may grow beyond this: what writing meets is the system's own error.
        limit = (50_000, free[1]) if step == 2 else free
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        try:
            save(self, step, *rest)
            self.settle()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, free)

    monkeypatch.setattr(Checkpoints, 'save', sometimes)
    with caplog.at_level(logging.ERROR):
        assert train(smallest.config(checkpoint_every=1), tmp_path).step == 4
    kept = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
    assert kept == ['1', '3', '4']
    assert 'a checkpoint could not be written' in caplog.text
    assert_same_state(tmp_path, straight)


@dropped
def test_if_the_last_checkpoint_fails_the_run_says_so(tmp_path, monkeypatch):
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = Checkpoints.save

    def small(self, *rest):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, free[1]))
        try:
            save(self, *rest)
            self.settle()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, free)

    monkeypatch.setattr(Checkpoints, 'save', small)
    with pytest.raises(UserError, match=r'could not be written.*free some space'):
        train(smallest.config(checkpoint_every=100), tmp_path)


# On a busy machine what the tests above left behind ends here.
@dropped
def test_a_checkpoint_after_some_minutes(tmp_path):
    train(smallest.config(checkpoint_every=100, checkpoint_minutes=1e-6, keep=9), tmp_path)
    kept = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    assert kept == [1, 2, 3, 4]


@dropped
def test_minutes_ask_once_where_answers_come_a_step_later(tmp_path, monkeypatch):
    steps, answers = itertools.count(), collections.deque([(False, False)])
    add = Window.add
    now = [0.0]

    def minute(self, *rest):
        now[0] = 60.0 * (next(steps) + 1)
        add(self, *rest)

    def later(self, *wanted):
        answers.append(wanted)
        return answers.popleft()

    monkeypatch.setattr(Window, 'add', minute)
    monkeypatch.setattr(agreement.Wishes, 'agreed', later)
    monkeypatch.setattr(loop, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
    config = smallest.config(steps=9, checkpoint_every=100, checkpoint_minutes=2.5, keep=9)
    train(config, tmp_path)
    kept = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
    # Asked for after the third minute; the third after that.
    assert kept == [4, 8, 9]


def test_what_ranks_checkpoints_is_known_or_there_is_a_word(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    keep = dict(keep=1, keep_best=1, best='val_ema/loss', validate_every=4, validate_examples=2)
    train(smallest.config(**keep), tmp_path)
    assert "step 2 is none of the best: train.best is 'val_ema/loss', and known" in caplog.text
    assert caplog.text.count('none of the best') == 1


def too_large(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory, 17 GiB')


def test_no_memory_for_pictures_costs_these_alone(straight, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    monkeypatch.setattr(Painter, '__call__', too_large)
    train(smallest.config(image_every=2), tmp_path)
    words = 'no pictures after step 2: a device has too little memory: Out of memory, 17 GiB; less takes'
    assert words in caplog.text
    assert_same_state(tmp_path, straight)


def test_no_memory_for_a_validation_costs_it_alone(straight, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    monkeypatch.setattr(AutoencodingEngine, 'validate', too_large)
    train(smallest.config(validate_every=2), tmp_path)
    words = 'no validation after step 2: a device has too little memory: Out of memory, 17 GiB; less takes'
    assert words in caplog.text
    assert_same_state(tmp_path, straight)


def test_no_memory_for_the_test_leaves_the_run_trained(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    monkeypatch.setattr(testing, 'test', too_large)
    choices = Choices(workdir=str(tmp_path), keep_compiled=False)
    assert run(smallest.config(), choices) == 0
    assert 'not tested: a device has too little memory: Out of memory, 17 GiB' in caplog.text
    with pytest.raises(UserError, match=r'too little memory.*validate_batch'):
        run(smallest.config(), dataclasses.replace(choices, train=False))


def test_a_test_looks_at_as_many_at_once_as_it_is_told(straight, monkeypatch):
    validate, seen = AutoencodingEngine.validate, []

    def counted(self, tree, frozen, batch, key):
        seen.append(len(batch['jpg']))
        return validate(self, tree, frozen, batch, key)

    monkeypatch.setattr(AutoencodingEngine, 'validate', counted)
    testing.test(smallest.config(test_examples=3, validate_batch=1), straight)
    # Of the parameters and of their average.
    assert seen == [1] * 6


def test_a_test_leaves_a_save_that_goes_on_alone(straight):
    half = straight / 'checkpoints' / '9.orbax-checkpoint-tmp'
    half.mkdir()
    try:
        testing.test(smallest.config(test_examples=2), straight)
        assert half.is_dir()
    finally:
        half.rmdir()


@pytest.mark.parametrize(('number', 'ends'), [(signal.SIGINT, True), (signal.SIGUSR1, False)])
def test_signals_save_and_the_rest_follows(straight, tmp_path, monkeypatch, number, ends):
    config = smallest.config(checkpoint_every=100)
    add = Window.add

    def press(self, *rest):
        add(self, *rest)
        if len(self._scalars) == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(Window, 'add', press)
    before = signal.getsignal(number)
    result = train(config, tmp_path)
    assert (result.step, result.stopped) == ((1, True) if ends else (4, False))
    assert signal.getsignal(number) is before
    kept = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
    # After each window's first step, where the run goes on.
    assert kept == (['1'] if ends else ['1', '3', '4'])
    monkeypatch.undo()
    assert train(config, tmp_path).step == 4
    assert_same_state(tmp_path, straight)


# Seldom logged, or in the very step that breaks.
@pytest.mark.parametrize('log_every', [100, 3])
def test_numbers_that_break_end_the_run_and_are_kept(straight, tmp_path, monkeypatch, log_every):
    config = smallest.config(checkpoint_every=1, steps=9, log_every=log_every)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, 'make_iterator', _spoil(pipeline.make_iterator, batch=3))
        with pytest.raises(
            UserError, match=r'loss.* no longer finite in step 3.*learning_rate.*broken/3$'
        ):
            train(config, tmp_path)
    # Each save is preceded by a look at the numbers, however seldom they are logged.
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['1', '2']
    # What broke is there: the state before the step, and the batch.
    folder = tmp_path / 'broken' / '3'
    what = json.loads((folder / 'what.json').read_text())
    assert (what['step'], what['values']['loss']) == (3, 'nan')
    batch = np.load(folder / 'batch_0.npz')
    assert np.isnan(batch['jpg']).any()
    (folder / 'checkpoints').mkdir()
    shutil.move(folder / 'state', folder / 'checkpoints' / '2')
    before, after = state_of(config, tmp_path, 2)[0], state_of(config, folder, 2)[0]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    # The run goes on from the checkpoint before, and ends as if nothing had been.
    assert train(smallest.config(), tmp_path).step == 4
    assert_same_state(tmp_path, straight)


def _spoil(make, batch: int):
    class Spoiled:
        def __init__(self, *args, **kwargs):
            self.data = make(*args, **kwargs)
            self.get_state, self.set_state = self.data.get_state, self.data.set_state
            self.count = 0

        def __next__(self):
            found = next(self.data)
            self.count += 1
            if self.count == batch:
                found['jpg'] = np.where(
                    np.arange(smallest.SIZE)[:, None] == 5, np.nan, found['jpg']
                )
            return found

    return Spoiled
