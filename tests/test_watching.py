"""What a run says and shows while it goes: windows of numbers, pictures, cards, progress, heartbeats."""

import http.server
import io
import logging
import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sgm_jax.diffusion.binned import Binned
from sgm_jax.errors import UserError
from sgm_jax.sampling import media
from sgm_jax.training import history
from sgm_jax.training.cards import cards
from sgm_jax.training.heartbeat import Heartbeat
from sgm_jax.training.logs import Logs
from sgm_jax.training.notices import Notices
from sgm_jax.training.options import Options, PictureOptions
from sgm_jax.training.profiling import Span
from sgm_jax.training.terminal import Progress, duration
from sgm_jax.training.window import Window


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / 'logs').mkdir()
    return tmp_path


def test_losses_are_told_apart_by_sigma():
    window = Window()
    for losses, sigmas in (([1.0, 3.0, 10.0], [0.02, 0.02, 5.0]), ([5.0], [0.029])):
        by_sigma = Binned.of(jnp.array(losses), jnp.array(sigmas))
        window.add({'loss': jnp.mean(jnp.array(losses)), 'loss_by_sigma': by_sigma})
    values = window.close(batch_size=2)
    found = {k: v for k, v in values.items() if k.startswith('loss_by_sigma')}
    # Means over examples, not over steps; bins that nobody fell into are not there.
    assert found == {'loss_by_sigma/below_0.03': 3.0, 'loss_by_sigma/3_to_10': 10.0}
    assert [sorted(own) for own in window.each] == [['loss'], ['loss']]


def test_a_step_that_broke_is_seen():
    window = Window()
    assert window.fine()
    window.add({'loss': jnp.float32(1.0), 'finite': jnp.array(True)})
    assert window.fine()
    window.add({'loss': jnp.float32(np.nan), 'finite': jnp.array(False)})
    assert not window.fine()
    # That the window was logged makes it no better.
    window.close(batch_size=1)
    assert not window.fine()
    assert np.isnan(window.newest()['loss'])


def test_pauses_take_no_time_of_a_step(monkeypatch):
    now = [0.0]
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr('sgm_jax.training.window.time', clock)
    window = Window()
    for _ in range(2):
        window.add({'loss': np.float32(1.0)})
        now[0] += 1
    with window.paused():
        now[0] += 60
    assert window.close(batch_size=1)['step_seconds'] == 1


def test_pictures_are_on_the_disk_and_in_tensorboard(workdir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rng = np.random.default_rng(0)
    clips = rng.integers(0, 255, (2, 3, 16, 24, 3), np.uint8)
    images = rng.integers(0, 255, (4, 16, 16, 3), np.uint8)
    with Logs(workdir) as logs:
        logs.pictures(7, {'samples': clips, 'a/b': images}, split='held_out')
        logs.pictures(7, {'samples': images}, split='train')
        logs.hyperparameters({'optimizer.name': 'adamw', 'model.parts': (1, 2)})
    folder = workdir / 'pictures' / 'held_out'
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['0000007_a_b.png', '0000007_samples.mp4', '0000007_samples.png']
    # A row of frames for each clip.
    strip = np.asarray(Image.open(folder / '0000007_samples.png'))
    np.testing.assert_array_equal(strip[16:, 24:48], clips[1, 1])
    assert media.read_video(folder / '0000007_samples.mp4')[0].shape == (3, 16, 48, 3)
    events = EventAccumulator(str(workdir / 'logs'), size_guidance={'tensors': 0})
    events.Reload()
    assert {'samples', 'samples/moving', 'a/b', 'train/samples'} <= set(events.Tags()['tensors'])
    width, height, gif = events.Tensors('samples/moving')[0].tensor_proto.string_val
    moving = Image.open(io.BytesIO(gif))
    assert (int(width), int(height), moving.n_frames) == (*moving.size, 3)


def test_writing_does_not_hold_up_the_step(workdir, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(Logs, '_picture', lambda *_: gate.wait(30))
    start = time.perf_counter()
    with Logs(workdir) as logs:
        logs.pictures(1, {'samples': np.zeros((1, 8, 8, 3), np.uint8)}, split='held_out')
        logs.scalars(1, {'loss': 1.0})
        assert time.perf_counter() - start < 5
        gate.set()
    assert history.read(workdir)['loss'] == {1: 1.0}


def test_what_cannot_be_written_is_told_once_and_tried_again(workdir, monkeypatch, caplog):
    add, full = history.History.add, [True, True, False]

    def sometimes(self, rows):
        file = self._file
        with open('/dev/full', 'ab', 0) as nowhere:
            self._file = nowhere if full.pop(0) else file
            try:
                add(self, rows)
            finally:
                self._file = file

    monkeypatch.setattr(history.History, 'add', sometimes)
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    with caplog.at_level(logging.WARNING), Logs(workdir) as logs:
        for step in (1, 2, 3):
            logs.scalars(step, {'loss': float(step)})
    assert history.read(workdir)['loss'] == {1: 1.0, 2: 2.0, 3: 3.0}
    said = [r.getMessage() for r in caplog.records if 'could not be written' in r.getMessage()]
    assert len(said) == 1
    assert 'No space left on device' in said[0]


def test_cards_are_words_one_can_read():
    batch = {
        'jpg': np.zeros((2, 8, 8, 3)),
        'txt': np.array(['a red bicycle leaning against a wall of old bricks', 'x']),
        'original_size_as_tuple': np.array([[512, 768], [1, 2]]),
        'azimuths_rad': np.deg2rad(np.array([[0.0, 90.0], [180.0, 270.0]])),
    }
    found = cards(batch)
    assert (len(found), found.shape[-1], found.dtype) == (2, 3, np.uint8)
    # The longer text has more ink.
    assert (found[0] < 128).sum() > 1.5 * (found[1] < 128).sum() > 100
    assert cards({'jpg': batch['jpg']}) is None


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, [8, 16]),
        ({'early': True}, [1, 2, 4, 8, 16]),
        ({'first_step': True}, [1, 8, 16]),
        ({'before': True}, [0, 8, 16]),
    ],
)
def test_when_pictures_are_drawn(options, expected):
    found = [n for n in range(17) if PictureOptions(**options).due(n, every=8, begin=0)]
    assert found == expected
    assert not any(PictureOptions(**options).due(n, every=0, begin=0) for n in range(17))


def test_taken_up_the_first_step_is_that_of_the_start():
    options = PictureOptions(first_step=True, before=True)
    assert [n for n in range(20, 30) if options.due(n, every=8, begin=20)] == [20, 21, 24]


def test_progress_in_a_log_file_is_lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    with caplog.at_level(logging.INFO), Progress(steps=100, begin=10) as progress:
        progress.step()
        progress.numbers({'loss': 0.25, 'step_seconds': 60.0})
    assert caplog.messages == ['step 11/100: loss 0.2500, 60.00 s/step, 1:29:00 left']
    assert sys.stderr.getvalue() == ''


def test_durations():
    assert [duration(x) for x in (0, 59.9, 3600, 200_000)] == [
        '0:00:00',
        '0:00:59',
        '1:00:00',
        '2 d 7:33:20',
    ]


def test_a_heartbeat_names_the_last_step_and_what_is_waited_for(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    with caplog.at_level(logging.WARNING), Heartbeat(0.2 / 60, 'process 1') as pulse:
        pulse.at(41, 'waiting for data')
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.02)
    assert 'process 1: nothing has moved for' in caplog.messages[0]
    assert 'step 41 is finished, now waiting for data' in caplog.messages[0]


def test_while_steps_go_on_the_heartbeat_is_silent(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    with caplog.at_level(logging.WARNING), Heartbeat(2 / 60) as pulse:
        for step in range(12):
            pulse.at(step, 'in the step')
            time.sleep(0.05)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ('answers', 'asked'),
    [
        ({'maintenance-event': 'NONE', 'preempted': 'FALSE'}, False),
        ({'maintenance-event': 'TERMINATE_ON_HOST_MAINTENANCE', 'preempted': 'FALSE'}, True),
        ({'maintenance-event': 'NONE', 'preempted': 'TRUE'}, True),
    ],
)
def test_a_notice_of_maintenance_asks_to_stop(answers, asked):
    questions = []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.strip('/')
            questions.append((name, self.headers['Metadata-Flavor']))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[name].encode())

        def log_message(self, *_):
            pass

    stop = threading.Event()
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/'
        with Notices(stop.set, url, seconds=0.1):
            assert stop.wait(10 if asked else 1) == asked
        server.shutdown()
    assert ('maintenance-event', 'Google') in questions


@pytest.mark.parametrize('text', ['5', '0:3', '4:2', 'a:b'])
def test_spans_that_are_none_are_named(text):
    with pytest.raises(UserError, match=r'give FIRST:LAST'):
        Span.parse(text)
    assert Span.parse('3:3') == Span(3, 3)


def test_the_best_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"by train.best='val_ema/loss'.*train.validate_every"):
        Options(batch_size=1, steps=1, keep_best=1)
    with pytest.raises(UserError, match=r"unknown split 'test'; choose from: train, held_out"):
        PictureOptions(splits=('test',))
