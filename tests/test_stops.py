"""Every way to stop a run, with real processes; the same command again, and nothing has been lost."""

import os
import pathlib
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import processes
import pytest
import smallest
from checkpointed import state_of

from sgm_jax.interop.workdir_files import latest_step
from sgm_jax.parallel import hosts

STEPS = 8
TRAIN = dict(
    batch_size=4, steps=STEPS, log_every=1, checkpoint_every=3, keep=9, heartbeat_minutes=0
)
MESHES = {1: {'data': 1}, 2: {'data': 2}}
# Breaks something once, where the file `flag` is; run inside of train.py by its config.
FAULTS = {
    'none': '',
    'data': """
        from sgm_jax.data.synthetic import SyntheticVideo
        record = SyntheticVideo.record
        seen = []
        def failing(self, index, rng=None):
            seen.append(index)
            if len(seen) > 14 and flag.exists():
                flag.unlink(missing_ok=True)
                raise OSError('the disk with the data is gone')
            return record(self, index, rng)
        SyntheticVideo.record = failing
    """,
    'step': """
        from sgm_jax.engines.autoencoding import AutoencodingEngine
        def failing(self, step):
            if step == 4 and flag.exists():
                import time
                time.sleep(1)  # until each process has seen the file
                flag.unlink(missing_ok=True)
                raise RuntimeError('the step is no more')
            return turn(self, step)
        turn, AutoencodingEngine.turn = AutoencodingEngine.turn, failing
    """,
    'disk': """
        import resource
        from sgm_jax.training.checkpoints import Checkpoints
        save = Checkpoints.save
        def failing(self, step, *rest):
            free = resource.getrlimit(resource.RLIMIT_FSIZE)
            if flag.exists() and step > 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, free[1]))
            try:
                save(self, step, *rest)
                self.settle()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, free)
        Checkpoints.save = failing
    """,
    # So slow that a signal meets it in the middle.
    'slow': """
        import time
        from sgm_jax.training.loop import _Run
        step = _Run._one_step
        def slowly(self):
            step(self)
            time.sleep(0.3)
        _Run._one_step = slowly
    """,
}


def write(folder: pathlib.Path, count: int, fault: str) -> list[str]:
    """The words of a run with a fault; `folder/flag` arms it."""
    lines = [f'import pathlib; flag = pathlib.Path({str(folder / "flag")!r})']
    lines += [line[4:] for line in FAULTS[fault].splitlines() if line.strip()]
    config = processes.write_config(
        folder / 'config.py',
        model='smallest',
        mesh=MESHES[count],
        more='\n'.join(lines).lstrip(),
        **TRAIN,
    )
    return [f'--config={config}', f'--workdir={folder / "run"}']


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """What a run in one or two processes ends with."""
    found = {}

    def of(count: int):
        if count not in found:
            folder = tmp_path_factory.mktemp(f'undisturbed_{count}')
            assert_ends(folder, write(folder, count, 'none'), count)
            found[count] = state_of(smallest.config(**TRAIN), folder / 'run', STEPS)
        return found[count]

    return of


def run(folder: pathlib.Path, words: list[str], count: int):
    return processes.started(words, folder, count=count, devices=1)


def assert_ends(folder: pathlib.Path, words: list[str], count: int) -> None:
    with run(folder, words, count) as these:
        codes = these.wait()
        assert codes == [0] * count, these.said(0)


def assert_as_undisturbed(folder: pathlib.Path, expected) -> None:
    found = state_of(smallest.config(**TRAIN), folder / 'run', STEPS)
    assert found[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals(undisturbed, tmp_path, count, number):
    words = [*write(tmp_path, count, 'slow'), '--config.train.checkpoint_every=50']
    with run(tmp_path, words, count) as these:
        these.wait_until(lambda: f'step 4/{STEPS}' in these.said(0))
        # One of them is asked; all do it after the same step.
        these.processes[-1].send_signal(number)
        codes = these.wait()
        saved = [int(step) for step in re.findall(r'saved step (\d+)', these.said(0))]
        assert 'Traceback' not in these.said(0)
    if number == signal.SIGUSR1:
        assert codes == [0] * count
        assert set(saved) - {STEPS}, 'no step was saved besides the last'
    else:
        assert codes == [130] * count
        assert latest_step(tmp_path / 'run') < STEPS
        assert_ends(tmp_path, words, count)
    assert_as_undisturbed(tmp_path, undisturbed(count))


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('trial', range(3))
def test_a_kill_during_a_save(undisturbed, tmp_path, count, trial):
    words = write(tmp_path, count, 'none')
    folder = tmp_path / 'run' / 'checkpoints'
    with run(tmp_path, words, count) as these:
        these.wait_until(lambda: any('tmp' in path.name for path in folder.glob('3*')))
        time.sleep(random.Random(trial).uniform(0, 0.15))
        these.processes[trial % count].send_signal(signal.SIGKILL)
        codes = these.wait(100)
    assert codes[trial % count] == -signal.SIGKILL
    if count == 2:
        assert codes[1 - trial % count] == hosts.LOST
    assert_ends(tmp_path, words, count)
    assert_as_undisturbed(tmp_path, undisturbed(count))


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize(
    ('fault', 'words_of_it'),
    [('data', 'the disk with the data is gone'), ('step', 'the step is no more')],
)
def test_an_exception(undisturbed, tmp_path, count, fault, words_of_it):
    words = write(tmp_path, count, fault)
    (tmp_path / 'flag').touch()
    with run(tmp_path, words, count) as these:
        codes = these.wait()
        told = ''.join(map(these.said, range(count)))
    assert 0 not in codes, told
    assert words_of_it in told
    if count == 1:
        # All that was done is saved: nothing is lost but what broke.
        failed = int(re.search(r'error in step (\d+): ', told)[1])
        # Two threads read ahead: the fifteenth record is of the third batch or the fourth.
        assert latest_step(tmp_path / 'run') == failed - 1 >= 2
    (tmp_path / 'flag').unlink(missing_ok=True)
    assert_ends(tmp_path, words, count)
    assert_as_undisturbed(tmp_path, undisturbed(count))


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_a_full_disk(undisturbed, tmp_path, count):
    words = write(tmp_path, count, 'disk')
    (tmp_path / 'flag').touch()
    with run(tmp_path, words, count) as these:
        codes = these.wait()
        told = these.said(0)
    # It went on to the end; that the last checkpoint is not there is an error.
    assert 0 not in codes
    assert 'could not be written' in told
    assert latest_step(tmp_path / 'run') == 3
    if count == 1:
        assert codes == [2]
        assert f'step {STEPS}/{STEPS}' in told
    (tmp_path / 'flag').unlink()
    assert_ends(tmp_path, words, count)
    assert_as_undisturbed(tmp_path, undisturbed(count))


@pytest.mark.slow
def test_a_debugger_on_a_terminal(tmp_path):
    words = [*write(tmp_path, 1, 'slow'), '--notest', '--config.train.checkpoint_every=50']
    ours, theirs = pty.openpty()
    line = [sys.executable, 'train.py', *words]
    options = dict(stdin=theirs, stdout=theirs, stderr=theirs, env=processes.environment(1))
    process = subprocess.Popen(line, cwd=processes.ROOT, start_new_session=True, **options)
    os.close(theirs)
    seen = ''

    def until(words: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 200
        while words not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096).decode('utf-8', 'replace')

    try:
        until(f'3/{STEPS}')
        process.send_signal(signal.SIGUSR2)
        until('(Pdb)')
        os.write(ours, b'p self.step + 1000\n')
        until('\n100')
        os.write(ours, b'c\n')
        until(f'trained {STEPS} steps')
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
