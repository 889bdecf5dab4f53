"""That TensorBoard shows a run: its own server is asked, and a browser looks at it."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import processes
import pytest
import smallest
from PIL import Image

from sgm_jax.training import history
from sgm_jax.training.loop import train

CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory) -> pathlib.Path:
    """A short run's, with everything logged that can be."""
    folder = tmp_path_factory.mktemp('shown')
    train(smallest.config(image_every=4, validate_every=4), folder)
    return folder


@pytest.fixture(scope='module')
def board(workdir):
    """The address of a TensorBoard on the run's folder."""
    port = processes.free_port()
    line = [sys.executable, '-m', 'tensorboard.main', '--logdir', str(workdir)]
    line += ['--host', '127.0.0.1', '--port', str(port), '--load_fast', 'false']
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f'http://127.0.0.1:{port}'
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError):
                    if ask(url, 'data/plugin/scalars/tags'):
                        break
                assert server.poll() is None
                assert time.monotonic() < deadline, 'TensorBoard does not answer'
                time.sleep(0.3)
            yield url
        finally:
            server.terminate()


def ask(url: str, path: str, **query):
    with urllib.request.urlopen(
        f'{url}/{path}?{urllib.parse.urlencode(query)}', timeout=60
    ) as reply:
        return json.loads(reply.read())


def test_scalars(board, workdir):
    (name,) = ask(board, 'data/plugin/scalars/tags')
    rows = ask(board, 'data/plugin/scalars/scalars', tag='loss', run=name)
    # Means of two steps, every two steps.
    losses = history.read(workdir)['loss']
    expected = {2: (losses[1] + losses[2]) / 2, 4: (losses[3] + losses[4]) / 2}
    assert [step for _, step, _ in rows] == list(expected)
    np.testing.assert_allclose([x for *_, x in rows], list(expected.values()), rtol=1e-5)


def test_images(board):
    tags = ask(board, 'data/plugin/images/tags')
    ((name, found),) = tags.items()
    assert {'inputs', 'reconstructions', 'reconstructions_ema', 'diff', 'conditionings'} <= set(
        found
    )
    (image,) = ask(board, 'data/plugin/images/images', tag='inputs', run=name, sample=0)
    assert image['step'] == 4
    address = f'{board}/data/plugin/images/individualImage?{image["query"]}'
    with urllib.request.urlopen(address, timeout=60) as reply:
        shown = np.asarray(Image.open(reply))
    assert shown.shape == (smallest.SIZE, 2 * smallest.SIZE, 3)
    assert shown.std() > 1


def test_hyperparameters(board):
    found = ask(board, 'data/plugin/hparams/experiment', request='{}')
    names = {info['name'] for info in found['hparamInfos']}
    assert {'optimizer.learning_rate', 'train.batch_size', 'model.first_stage.ddconfig.ch'} <= names


@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium here')
def test_a_browser_sees_the_pictures(board, tmp_path):
    screenshot(f'{board}/#images', tmp_path / 'board.png', tmp_path / 'profile')
    seen = np.asarray(Image.open(tmp_path / 'board.png').convert('RGB')).astype(int)
    colourful = np.abs(seen - seen.mean(-1, keepdims=True)).max(-1) > 40
    # The bar at the top is orange; below it there is colour only in the pictures.
    assert colourful[120:, 320:].sum() > 500


def screenshot(url: str, path: pathlib.Path, profile: pathlib.Path) -> None:
    """What a headless browser makes of a page, when it has come to rest."""
    quiet = ('--disable-background-networking', '--disable-component-update', '--disable-sync')
    line = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', *quiet]
    line += [f'--user-data-dir={profile}', '--window-size=1400,1000', '--virtual-time-budget=30000']
    line += [f'--screenshot={path}', url]
    subprocess.run(line, check=True, timeout=240, capture_output=True)
