"""Where runs are: their names, what is gone on with, and what is known of their starts."""

import json
import pathlib
import re
import subprocess

import pytest

from sgm_jax.errors import UserError
from sgm_jax.training import runs
from sgm_jax.training.run import Choices, run


@pytest.fixture
def workdir(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / 'mine' / 'checkpoints' / str(step)).mkdir(parents=True)
    (tmp_path / 'mine' / 'config.json').write_text('{"model": {}}')
    return tmp_path / 'mine'


def test_names_have_time_config_and_postfix():
    name = runs.new_workdir('configs/svd.py:tiny', '_a b/c')
    assert re.fullmatch(r'logs/\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d_svd_tiny_a_b_c', str(name))
    assert str(runs.new_workdir('sdxl_base.py')).endswith('_sdxl_base')


def test_a_run_is_taken_up_by_its_folder_or_a_checkpoint(workdir):
    assert runs.resumed(workdir) == (workdir, None)
    assert runs.resumed(workdir / 'checkpoints' / '4') == (workdir, 4)
    runs.back_to(workdir, 4)
    kept = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
    assert kept == ['2', '4']
    # Not thrown away.
    assert [path.name for path in (workdir / 'aside').glob('*/*')] == ['6']


@pytest.mark.parametrize(
    ('path', 'words'),
    [
        ('checkpoints/5', r'is not there; .* has steps \[2, 4, 6\]'),
        ('checkpoints', r'neither the workdir of a run nor one of its checkpoints/STEP'),
        ('nowhere', r'neither the workdir'),
    ],
)
def test_what_is_no_run_is_named(workdir, path, words):
    with pytest.raises(UserError, match=words):
        runs.resumed(workdir / path)


def test_a_run_without_a_checkpoint_is_not_resumed(tmp_path):
    (tmp_path / 'config.json').write_text('{"model": {}}')
    with pytest.raises(UserError, match=r'no complete checkpoint yet; give --workdir'):
        runs.resumed(tmp_path)


def test_each_start_is_on_record(tmp_path):
    runs.record_start(tmp_path, step=0)
    runs.record_start(tmp_path, step=40)
    rows = [json.loads(line) for line in (tmp_path / 'starts.jsonl').read_text().splitlines()]
    assert [row['after_step'] for row in rows] == [0, 40]
    assert rows[0]['packages']['jax'].count('.') == 2
    root = pathlib.Path(runs.__file__).parents[2]
    head = subprocess.run(
        ['git', '-C', root, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert (rows[0]['commit'] or '').rstrip('+') == head


def test_debug_runs_are_moved_aside(tmp_path):
    (tmp_path / 'logs' / 'x').mkdir(parents=True)
    assert runs.move_aside(tmp_path / 'logs' / 'x') == tmp_path / 'logs' / 'debug_runs' / 'x'
    assert (tmp_path / 'logs' / 'debug_runs' / 'x').is_dir()


@pytest.mark.parametrize(
    ('choices', 'words'),
    [
        ({'train': False, 'test': False}, '--notrain and --notest leave nothing to do'),
        ({'workdir': 'a', 'resume': 'b'}, '--workdir and --resume both name the run'),
        ({'profile': '9'}, 'give FIRST:LAST'),
    ],
)
def test_flags_that_do_not_fit_are_named(choices, words):
    with pytest.raises(UserError, match=words):
        run({}, Choices(**choices))
