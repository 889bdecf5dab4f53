"""train.py and sample.py as a user meets them: real processes, exit codes, one line per mistake."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from PIL import Image

from sgm_jax.interop.workdir_files import latest_step
from sgm_jax.sampling import media

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The tests' tiny model as a config file that a command line can name.
CONFIG = (
    'import sys\nsys.path.insert(0, {tests!r})\nimport {model} as model\n\n\n'
    'def get_config(variant=""):\n    return model.config()\n'
)


@pytest.fixture(scope='module')
def config_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp('configs') / 'tiny_config.py'
    path.write_text(CONFIG.format(tests=str(ROOT / 'tests'), model='tiny'))
    return path


@pytest.fixture(scope='module')
def smallest_file(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp('configs') / 'smallest_config.py'
    path.write_text(CONFIG.format(tests=str(ROOT / 'tests'), model='smallest'))
    return path


@pytest.fixture(scope='module')
def cache(tmp_path_factory) -> dict[str, str]:
    """An environment in which processes compile quickly, and share what they have compiled."""
    return {
        **os.environ,
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled_by_processes')),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true',
    }


def command(*words: object, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def assert_mistake(done: subprocess.CompletedProcess, words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert re.match(f'error: .*{words}', lines[0]), lines[0]


SVD = '--config=configs/svd.py:tiny'


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            [SVD, '--workdir=/x', '--config.train.stepz=3'],
            "unknown key 'stepz'; did you mean 'steps'",
        ),
        ([SVD, '--config.model.networc.dtype=x'], "unknown key 'networc'; did you mean 'network'"),
        (['--config=configs/svd.py:big'], "no variant 'big'; choose one of: '', 'xt', 'xt_1_1'"),
        (['--config=configs/svb.py'], 'no config file configs/svb.py; configs has: .*svd.py'),
        ([SVD, '--config.train.steps=many'], 'config.train.steps=many'),
        ([SVD, '--workdir=/x', '--profile=3'], "--profile is '3'; give FIRST:LAST"),
        (['--resume=/nowhere'], '--resume is /nowhere, neither the workdir of a run'),
        (['--workdir=/x'], 'give --config FILE.py'),
        ([SVD, '--wordkir=/x'], "Unknown command line flag 'wordkir'.*workdir"),
        ([SVD, '--workdir=/x', 'more'], "unexpected argument 'more'"),
    ],
)
def test_mistakes_in_the_words_of_train(words, message):
    assert_mistake(command('train.py', *words), message)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['--config.optimizer.name=adam'],
            "optimizer: unknown name 'adam'; choose one of: adafactor, adamw",
        ),
        (
            ['--config.model.denoiser.scaling.name=w'],
            "unknown name 'w'; choose one of: edm, eps, v",
        ),
        # A key that the file leaves to its default is a flag, too.
        (['--config.train.keep_every=-1'], 'train.keep_every is -1; give 0 or more'),
        (['--config.mesh.data=3'], 'mesh: data=3, fsdp=1, context=1 does not fit 1 devices'),
        (['--config.data.name=video_clips', '--config.data.path=/nowhere'], '/nowhere'),
        (['--workdir=/proc/run'], '/proc/run: cannot be used as a workdir'),
    ],
)
def test_mistakes_in_the_config(config_file, tmp_path, words, message):
    if 'data.path' in ' '.join(words):
        words = [SVD, *words[1:], '--config.model.first_stage_checkpoint=/x']
    else:
        words = [f'--config={config_file}', *words]
    assert_mistake(command('train.py', f'--workdir={tmp_path}', *words), message)


def test_frozen_parts_need_files(tmp_path):
    done = command('train.py', SVD, f'--workdir={tmp_path}')
    assert done.returncode == 2
    assert 'first_stage) need weights; give a published checkpoint with' in done.stderr


def test_mistakes_in_the_words_of_sample(run, tmp_path):
    picture = tmp_path / 'picture.png'
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    good = dict(checkpoint=run.workdir, image=picture, output=tmp_path / 'video.mp4')
    broken = tmp_path / 'broken.png'
    broken.write_bytes(picture.read_bytes()[:40])
    for change, message in (
        (dict(image=''), 'give --image'),
        (dict(output=tmp_path / 'video.avi'), 'videos are written as .mp4, .gif, .webp, .png'),
        (dict(image=broken), 'broken.png: not a readable picture'),
        (dict(checkpoint=tmp_path), 'neither the workdir of a run nor a .safetensors file'),
        (dict(height=17), 'size 17x16 is not divisible by 2.*use 16x16'),
        (dict(mesh='data=3'), 'mesh: data=3, fsdp=1, context=1 does not fit 1 devices'),
    ):
        words = [f'--{k}={v}' for k, v in {**good, **change}.items()]
        assert_mistake(command('sample.py', *words), message)
    assert not (tmp_path / 'video.mp4').exists()


@pytest.mark.parametrize(
    'suffix',
    [
        '.mp4',
        pytest.param('.gif', marks=pytest.mark.slow),
        pytest.param('.png', marks=pytest.mark.slow),
    ],
)
def test_a_picture_becomes_a_file(run, cache, tmp_path, suffix):
    picture, output = tmp_path / 'picture.jpg', tmp_path / 'new' / f'video{suffix}'
    Image.fromarray(np.full((30, 20, 3), 99, np.uint8)).save(picture)
    done = command(
        'sample.py', '--checkpoint', run.workdir, '--image', picture, '--output', output, env=cache
    )
    assert done.returncode == 0, done.stderr
    assert f'wrote {output}: 2 frames of 16x16' in done.stderr
    if suffix == '.png':
        assert media.read_image(output).shape == (16, 32, 3)
    else:
        frames, fps = media.read_video(output)
        assert (frames.shape, round(fps)) == ((2, 16, 16, 3), 10)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_newest_checkpoint(run, smallest_file, cache, tmp_path):
    """SIGKILL while checkpoints are being written, at several moments; then the same command."""
    words = [sys.executable, 'train.py', f'--config={smallest_file}', f'--workdir={tmp_path}']
    words.append('--notest')
    many = [*words, '--config.train.steps=4000', '--config.train.checkpoint_every=1']
    reached = 0
    for delay in (0.0, 0.05):
        process = subprocess.Popen(many, cwd=ROOT, env=cache, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 200
            while (latest_step(tmp_path) or 0) <= reached:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kept = latest_step(tmp_path)
        assert kept > reached
        reached = kept
    done = subprocess.run(
        [*words, f'--config.train.steps={reached + 1}'],
        cwd=ROOT,
        env=cache,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f'going on after step {reached}' in done.stderr
    assert latest_step(tmp_path) == reached + 1


@pytest.mark.slow
def test_a_stopped_run_says_so(smallest_file, cache, tmp_path):
    words = [sys.executable, 'train.py', f'--config={smallest_file}', f'--workdir={tmp_path}']
    words.append('--notest')
    process = subprocess.Popen(
        [*words, '--config.train.steps=4000', '--config.train.checkpoint_every=1'],
        cwd=ROOT,
        env=cache,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while latest_step(tmp_path) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=100)[1]
    finally:
        process.kill()
    assert process.returncode == 130, said
    step = latest_step(tmp_path)
    assert f'stopped after step {step}' in said
    assert 'the same command goes on' in said
    assert 'Traceback' not in said


def test_frames_are_as_many_as_trained(run):
    assert run.config.model.task.num_frames == tiny.FRAMES
