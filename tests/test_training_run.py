"""A run: what it leaves behind, and that taking it up again changes nothing."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny
from checkpointed import state_of

from sgm_jax.errors import UserError
from sgm_jax.training import history, testing
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
    wanted = {'loss', 'grad_norm', 'param_norm', 'learning_rate', 'ema_decay', 'step_seconds'}
    assert wanted <= set(names)
    assert {'flops_per_second', 'memory/host_gib', 'checkpoint/waited_seconds'} <= set(names)
    assert any(name.startswith('loss_by_sigma/') for name in names)
    pictures = [n for n in events.Tags()['tensors'] + events.Tags()['images'] if 'sample' in n]
    clips = ('samples', 'samples_unguided')
    assert sorted(pictures) == sorted(f'{name}{end}' for name in clips for end in ('', '/moving'))
    assert {path.suffix for path in (run.workdir / 'pictures/held_out').iterdir()} == {
        '.png',
        '.mp4',
    }


def test_every_step_is_on_record(run):
    found = history.read(run.workdir)
    assert list(found['loss']) == list(range(1, run.result.step + 1))
    # A warm-up of 2, one step after the other.
    np.testing.assert_allclose(
        list(found['learning_rate'].values()), [0, 2.5e-4, 5e-4, 5e-4], rtol=1e-6
    )
    assert found['step_seconds'][run.result.step] > 0


def test_a_validation_is_the_same_every_time(run, tmp_path):
    """From its checkpoint, by the test of a run, the figures that were logged while it was trained."""
    logged = history.read(run.workdir)
    workdir = tmp_path / 'run'
    shutil.copytree(run.workdir, workdir)
    config = tiny.config(test_examples=16)
    figures = testing.test(config, workdir)
    for name in ('loss', 'loss_at_sigma/0.05', 'loss_at_sigma/20'):
        for part in ('', '_ema'):
            np.testing.assert_allclose(
                figures[f'test{part}/{name}'], logged[f'val{part}/{name}'][4], rtol=1e-5
            )
    assert figures['test/loss'] != figures['test_ema/loss']
    saved = json.loads((workdir / 'test.json').read_text())
    assert (saved['step'], saved['examples']) == (4, 16)
    assert saved['test_ema/loss'] == figures['test_ema/loss']


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


@pytest.mark.slow
def test_a_half_written_checkpoint_costs_nothing(run, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(run.workdir, workdir)
    # What a killed process leaves: a folder with a temporary name.
    (workdir / 'checkpoints' / '4').rename(workdir / 'checkpoints' / '4.orbax-checkpoint-tmp-1')
    assert train(run.config, workdir).step == 4
    assert_same_state(run.config, run.workdir, workdir, 4)
    assert not list((workdir / 'checkpoints').glob('*tmp*'))


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
