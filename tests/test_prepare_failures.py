"""Preparing what cannot be prepared: mistakes, damage, full disks, kills; nothing half is left."""

import dataclasses
import logging
import signal
import subprocess
import sys

import pytest
from picture_files import encoded, write_folder
from prepared import made, records
from processes import ROOT, environment
from video_files import write_numbered

from sgm_jax.errors import UserError
from sgm_jax.tools import prepare_files
from sgm_jax.tools.prepare_dataset import Options, prepare


def test_damage_beyond_the_share_ends_it(tmp_path):
    folder = write_folder(tmp_path / 'in', 9)
    for name in ('003.png', '004.png'):
        (folder / name).write_bytes(encoded(3)[:60])
    with pytest.raises(UserError, match=r'2 of 9 pictures cannot be used.*max_damaged=0\.1'):
        made(folder, tmp_path / 'out', max_damaged=0.1)
    assert list((tmp_path / 'out').iterdir()) == []
    _, found = made(folder, tmp_path / 'out', max_damaged=0.3)
    assert found['damaged'].keys() == {'003.png', '004.png'}


WRONG = {
    'no input': (dict(input=''), 'give --input'),
    'nothing there': (dict(input='nowhere'), 'no such file or folder'),
    'a bad share': (dict(held_out=1.0), '--held_out is 1'),
    'a bad limit': (dict(max_damaged=1.5), '--max_damaged is 1.5'),
    'a bad name': (dict(name='My Set'), "--name is 'My Set'"),
    'a bad version': (dict(version='1'), "--version is '1'"),
    'a bad format': (dict(format='zip'), "unknown name 'zip'"),
    'an address': (dict(output='gs://bucket/x'), 'give a folder'),
    'Beam without Beam': (dict(runner='FlinkRunner'), 'are for --beam'),
    'nothing to train on': (dict(held_out=0.999999), 'none is left to train on'),
}


@pytest.mark.parametrize('case', WRONG)
def test_mistakes_are_named(case, tmp_path):
    change, words = WRONG[case]
    write_folder(tmp_path / 'in', 3)
    options = Options(input=str(tmp_path / 'in'), output=str(tmp_path / 'out'), name='a')
    with pytest.raises(UserError, match=words):
        prepare(dataclasses.replace(options, **change))
    assert not list((tmp_path / 'out').glob('*'))


def test_what_is_there_is_kept_and_what_is_read_is_not_written_to(tmp_path):
    write_folder(tmp_path / 'in', 3)
    folder, _ = made(tmp_path / 'in', tmp_path / 'out')
    before = records(folder)
    with pytest.raises(UserError, match='it is there already'):
        made(tmp_path / 'in', tmp_path / 'out')
    assert records(folder) == before
    with pytest.raises(UserError, match='is inside --input'):
        made(tmp_path / 'in', tmp_path / 'in')
    write_numbered(tmp_path / 'in/a.mp4', [0, 100])
    with pytest.raises(UserError, match='both pictures and videos'):
        made(tmp_path / 'in', tmp_path / 'out', version='2.0.0')


def test_a_file_that_changes_meanwhile_ends_it(tmp_path, monkeypatch):
    write_folder(tmp_path / 'in', 3)
    shards = prepare_files.Layout.shards

    def changed(*args):
        (tmp_path / 'in/001.png').write_bytes(encoded(200))
        return shards(*args)

    monkeypatch.setattr(prepare_files.Layout, 'shards', changed)
    with pytest.raises(UserError, match=r'001\.png: has changed since'):
        made(tmp_path / 'in', tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_a_disk_that_is_full_is_a_line(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError('write() failed: No space left on device; writing x; at byte 7')

    write_folder(tmp_path / 'in', 3)
    monkeypatch.setattr(prepare_files.tf_example, 'serialize', full)
    with pytest.raises(UserError, match=r'cannot be written .*No space left on device'):
        made(tmp_path / 'in', tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


KILLED = """import os, signal, sys
from sgm_jax.tools import prepare_dataset, prepare_files
prepare_files.write_metadata = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
prepare_dataset.prepare(prepare_dataset.Options(input=sys.argv[1], output=sys.argv[2], name='set'))
"""


def test_a_run_that_is_killed_leaves_nothing_that_looks_whole(tmp_path, caplog):
    write_folder(tmp_path / 'in', 9)
    command = [sys.executable, '-c', KILLED, str(tmp_path / 'in'), str(tmp_path / 'out')]
    done = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert [p.name[:11] for p in (tmp_path / 'out').iterdir()] == ['.set-1.0.0.']
    with caplog.at_level(logging.WARNING, 'sgm_jax'):
        _, found = made(tmp_path / 'in', tmp_path / 'out')
    assert 'was stopped; then remove it' in caplog.text
    assert found['examples'] == 9


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / 'in').mkdir()
    command = [sys.executable, '-m', 'sgm_jax.tools.prepare_dataset']
    command += [
        '--input',
        str(tmp_path / 'in'),
        '--output',
        str(tmp_path / 'out'),
        '--name',
        'a',
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: ')
    assert 'no pictures there' in line
    assert not (tmp_path / 'out/a').exists()


def test_beam_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    write_folder(tmp_path / 'in', 3)
    with pytest.raises(UserError, match="run 'pip install apache-beam'"):
        made(tmp_path / 'in', tmp_path / 'out', beam=True)
