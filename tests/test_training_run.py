"""A run: what it leaves behind, and that taking it up again changes nothing."""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import tiny
from checkpointed import state_of

from sgm_jax.errors import UserError
from sgm_jax.training import history, loop
from sgm_jax.training.loop import train


def assert_same_state(config, one: pathlib.Path, other: pathlib.Path, step: int) -> None:
    first, second = state_of(config, one, step), state_of(config, other, step)
    assert len(jax.tree.leaves(first[0])) > 100
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    assert first[1] == second[1]


def test_a_run_leaves_config_checkpoints_and_logs(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (run.result.step, run.result.stopped) == (4, False)
    saved = json.loads((run.workdir / 'config.json').read_text())
    assert saved['train']['batch_size'] == 2
    assert sorted(p.name for p in (run.workdir / 'checkpoints').iterdir()) == ['2', '4']
    events = EventAccumulator(str(run.workdir / 'logs'), size_guidance={'tensors': 0})
    events.Reload()
    names = events.Tags()['tensors'] + events.Tags()['scalars']
    assert {'loss', 'grad_norm', 'learning_rate', 'ema_decay', 'step_seconds'} <= set(names)
    pictures = [n for n in events.Tags()['tensors'] + events.Tags()['images'] if 'sample' in n]
    assert pictures == ['samples']


def test_every_step_is_on_record(run):
    found = history.read(run.workdir)
    assert list(found['loss']) == list(range(1, run.result.step + 1))
    # A warm-up of 2, one step after the other.
    np.testing.assert_allclose(
        list(found['learning_rate'].values()), [0, 2.5e-4, 5e-4, 5e-4], rtol=1e-6
    )
    assert found['step_seconds'][run.result.step] > 0


def test_warm_up_and_average_follow_the_step(run):
    # The last two steps: a warm-up of 2 is over, and min(0.9, (1 + n) / (10 + n)) of n = 3 and 4.
    np.testing.assert_allclose(run.result.scalars['learning_rate'], 5e-4, rtol=1e-6)
    np.testing.assert_allclose(run.result.scalars['ema_decay'], (4 / 13 + 5 / 14) / 2, rtol=1e-6)


def test_resume_is_exact(run, tmp_path):
    # Stopped after 2 of 4 steps, and taken up by a new process's objects.
    first = tiny.config(steps=2)
    assert train(first, tmp_path).step == 2
    assert_same_state(run.config, run.workdir, tmp_path, 2)
    result = train(tiny.config(image_every=4), tmp_path)
    assert result.step == 4
    assert result.scalars['loss'] == run.result.scalars['loss']
    assert_same_state(run.config, run.workdir, tmp_path, 4)


def test_the_same_command_after_the_end_does_nothing(run):
    before = state_of(run.config, run.workdir, 4)
    result = train(run.config, run.workdir)
    assert (result.step, result.stopped) == (4, False)
    jax.tree.map(np.testing.assert_array_equal, before, state_of(run.config, run.workdir, 4))


def test_a_half_written_checkpoint_costs_nothing(run, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(run.workdir, workdir)
    # What a killed process leaves: a folder with a temporary name.
    (workdir / 'checkpoints' / '4').rename(workdir / 'checkpoints' / '4.orbax-checkpoint-tmp-1')
    assert train(run.config, workdir).step == 4
    assert_same_state(run.config, run.workdir, workdir, 4)
    assert not list((workdir / 'checkpoints').glob('*tmp*'))


def test_ctrl_c_saves_and_the_rest_follows(run, tmp_path, monkeypatch):
    config = tiny.config(checkpoint_every=100)
    add = loop._Window.add

    def press(self, scalars):
        add(self, scalars)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop._Window, 'add', press)
    before = signal.getsignal(signal.SIGINT)
    result = train(config, tmp_path)
    assert (result.step, result.stopped) == (1, True)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert train(config, tmp_path).step == 4
    assert_same_state(run.config, run.workdir, tmp_path, 4)


def test_a_workdir_of_another_config_is_refused(run):
    changed = tiny.config()
    changed.model.network.model_channels = 64
    changed.optimizer.learning_rate = 1.0
    words = (
        r'model\.network\.model_channels was 32, is 64; optimizer\.learning_rate was 0\.0005, is '
        r'1\.0; choose another --workdir'
    )
    with pytest.raises(UserError, match=words):
        train(changed, run.workdir)


def test_numbers_that_break_end_the_run_and_keep_its_checkpoints(run, tmp_path, monkeypatch):
    config = tiny.config(checkpoint_every=1, steps=9, log_every=100)
    monkeypatch.setattr(loop._Window, 'add', _spoil(loop._Window.add, after=3))
    with pytest.raises(
        UserError, match=r'loss is no longer finite in the steps up to 3.*learning_rate'
    ):
        train(config, tmp_path)
    # Each save is preceded by a look at the numbers, however seldom they are logged.
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['1', '2']


def _spoil(add, after: int):
    def spoiled(self, scalars):
        add(self, scalars)
        if len(self._scalars) == after:
            self._scalars[-1] = {**scalars, 'loss': np.float32(np.nan)}

    return spoiled


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(batch_size=0), 'batch_size is 0'),
        (dict(steps=0), 'train.steps is 0'),
        (dict(ema_decay=1.0), 'ema_decay is 1.0'),
        (dict(keep=0), 'keep is 0'),
        (dict(clip_norm=-1.0), 'clip_norm is -1.0'),
        (dict(accumulate=0), 'accumulate is 0'),
        (dict(stepz=3), "unknown key 'stepz'; did you mean 'steps'"),
    ],
)
def test_impossible_numbers_are_named(change, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(tiny.config(**change), tmp_path)
