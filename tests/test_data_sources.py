"""Records of the sources: splits, crops, rates, damaged files, the cache."""

import numpy as np
import pytest
from video_files import damage_packets, write_damaged, write_numbered

from sgm_jax.config import build
from sgm_jax.data import clips, files
from sgm_jax.data.framing import Framing
from sgm_jax.data.sources import SOURCES, VideoClips
from sgm_jax.errors import UserError

SHAPE = dict(num_frames=4, height=16, width=24)


def _record(source, index, seed=0):
    return source.record(index, np.random.default_rng([seed, index]))


def _levels(record):
    """Frame numbers of a record of `write_numbered`."""
    grey = (record['jpg'].mean(axis=(1, 2, 3)) + 1) * 127.5
    return [round((g - 10) / 8) for g in grey]


@pytest.fixture
def numbered(tmp_path):
    """A folder with a clip of 30 frames in 3 s."""
    write_numbered(tmp_path / 'good.mp4', [100 * i for i in range(30)], faststart=True)
    return tmp_path


@pytest.mark.parametrize('name', ['synthetic_video', 'video_clips'])
def test_record_contract(name):
    path = {'path': 'demo'} if name == 'video_clips' else {}
    source = build(SOURCES, {'name': name, **path, **SHAPE, 'frame_rates': (7, 12)}, where='data')
    for index in (0, len(source) - 1):
        record = _record(source, index)
        assert {k: (v.dtype, v.shape) for k, v in record.items()} == {
            'jpg': (np.float32, (4, 16, 24, 3)),
            'fps_id': (np.float32, ()),
            'motion_bucket_id': (np.float32, ()),
        }
        assert -1 <= record['jpg'].min() < record['jpg'].max() <= 1
        assert 6 <= record['fps_id'] <= 11
        assert 0 <= record['motion_bucket_id'] <= 255
        again = _record(source, index)
        for key in record:
            np.testing.assert_array_equal(record[key], again[key])
        assert (record['jpg'] != _record(source, index, seed=1)['jpg']).any()
    assert name in source.describe()


def test_one_frame_is_a_picture():
    source = VideoClips(path='demo', num_frames=1, height=16, width=16)
    record = _record(source, 0)
    assert record['jpg'].shape == (1, 16, 16, 3)
    assert record['motion_bucket_id'] == 0


def test_splits_never_share_a_frame(numbered):
    options = dict(path=str(numbered), **SHAPE, frame_rates=(3, 10), windows_per_video=40)
    train = VideoClips(**options, held_out_fraction=0.4)
    held = VideoClips(**options, held_out_fraction=0.4, split='held_out')
    seen = {n for seed in range(3) for i in range(40) for n in _levels(_record(train, i, seed))}
    kept = {n for i in range(40) for n in _levels(_record(held, i))}
    # 60% of 30 frames, each reached by some window.
    assert seen == set(range(18))
    assert min(kept) == 18
    assert max(kept) >= 28


def test_rate_is_what_fps_id_says(numbered):
    source = VideoClips(path=str(numbered), **SHAPE, frame_rates=(2, 60), windows_per_video=30)
    rates = set()
    for index in range(30):
        record = _record(source, index)
        rate = float(record['fps_id']) + 1
        rates.add(rate)
        steps = np.diff(_levels(record))
        # 10 frames per second in the file; rounding to frames moves an end by up to half a frame each.
        assert abs(steps.sum() - 3 * 10 / rate) <= 1
    # No faster than the file.
    assert rates <= {2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0}
    assert len(rates) > 4


def test_not_random_is_one_centred_window_from_the_start(tmp_path):
    write_numbered(tmp_path / 'a.mp4', [100 * i for i in range(20)], size=(32, 64))
    source = VideoClips(path=str(tmp_path), **SHAPE, frame_rates=5, random=False, flip=True)
    assert len(source) == 1
    first, second = _record(source, 0, seed=1), _record(source, 0, seed=2)
    assert _levels(first) == [0, 2, 4, 6]
    assert first['fps_id'] == 4
    np.testing.assert_array_equal(first['jpg'], second['jpg'])


def test_cache_changes_no_number():
    options = dict(path='demo', num_frames=5, height=24, width=32, windows_per_video=4)
    for split in ('train', 'held_out'):
        plain = VideoClips(**options, split=split)
        cached = VideoClips(**options, split=split, cache=True)
        # Room for one of the files: the others are read as without a cache.
        partly = VideoClips(**options, split=split, cache=True, cache_bytes=2**20)
        assert 'kept decoded' in cached.describe()
        for index in range(6):
            expected = _record(plain, index)
            for source in (cached, partly):
                found = _record(source, index)
                for key in expected:
                    np.testing.assert_array_equal(found[key], expected[key])


def test_damaged_files_are_skipped_counted_and_named(numbered, caplog):
    reasons = write_damaged(numbered, numbered / 'good.mp4')
    source = VideoClips(path=str(numbered), num_frames=8, height=16, width=24, max_damaged=1)
    assert [info.path for info in source.infos] == [str(numbered / 'good.mp4')]
    assert {path.rsplit('/')[-1] for path in source.skipped} == set(reasons)
    for path, reason in source.skipped.items():
        assert reasons[path.rsplit('/')[-1]] in reason
        assert path in caplog.text
    assert '6 files skipped' in source.describe()
    assert _record(source, 0)['jpg'].shape == (8, 16, 24, 3)


def test_nothing_left_is_one_line(tmp_path):
    (tmp_path / 'empty.mp4').write_bytes(b'')
    with pytest.raises(
        UserError, match=r'none of the 1 videos .*empty\.mp4: the file is empty'
    ) as error:
        VideoClips(path=str(tmp_path), **SHAPE)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('cache', [False, True])
def test_damage_inside_a_file_moves_on_to_the_next_window(tmp_path, caplog, cache):
    for name in ('a.mp4', 'b.mp4'):
        write_numbered(tmp_path / name, [100 * i for i in range(30)])
    damage_packets(tmp_path / 'b.mp4', range(10, 20))
    source = VideoClips(path=str(tmp_path), **SHAPE, windows_per_video=12, cache=cache)
    assert len(source) == 24
    for index in range(24):
        assert all(0 <= n < 24 for n in _levels(_record(source, index)))
    assert list(source.failures) == [str(tmp_path / 'b.mp4')]
    assert 0 < source.failures[str(tmp_path / 'b.mp4')] < 24
    assert caplog.text.count('damaged video') == 1


def test_file_that_vanishes_ends_in_one_line(numbered):
    source = VideoClips(path=str(numbered), **SHAPE)
    (numbered / 'good.mp4').unlink()
    with pytest.raises(UserError, match=r'20 windows in a row .*good\.mp4'):
        _record(source, 0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'split': 'test'}, 'split'),
        ({'frame_rates': (9, 3)}, 'frame_rates'),
        ({'frame_rates': 7.5}, 'frame_rates'),
        ({'num_frames': 0}, 'num_frames'),
        ({'held_out_fraction': 1.0}, 'held_out_fraction'),
        ({'held_out_fraction': 0.0, 'split': 'held_out'}, 'held_out_fraction is 0'),
        ({'crop_scale': (0.0, 1.0)}, 'crop_scale'),
        ({'hieght': 3}, "did you mean 'height'"),
    ],
)
def test_wrong_options(options, message):
    node = {'name': 'video_clips', 'path': 'demo', **SHAPE, **options}
    with pytest.raises(UserError, match=message):
        build(SOURCES, node, where='data')


def _ramp(height, width):
    """A frame whose red is the row and whose green is the column, in steps of 2."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing='ij')
    return np.stack([2 * rows, 2 * columns, 0 * rows], axis=-1).astype(np.uint8)


def test_crops_are_where_the_box_says():
    frames = _ramp(100, 120)[None]
    framing = Framing(size=(20, 20), scale=(0.4, 0.9), flip=True)
    sides, mirrored = [], 0
    for seed in range(40):
        left, top, right, bottom = framing.box((100, 120), np.random.default_rng(seed))
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 100
        assert right - left == pytest.approx(bottom - top)
        sides.append(right - left)
        shown = framing(frames, np.random.default_rng(seed))[0].astype(float)
        # A ramp's mean is its value at the box's centre.
        assert shown[..., 0].mean() / 2 + 0.5 == pytest.approx((top + bottom) / 2, abs=0.6)
        assert shown[..., 1].mean() / 2 + 0.5 == pytest.approx((left + right) / 2, abs=0.6)
        mirrored += shown[0, 0, 1] > shown[0, -1, 1]
    assert 40 <= min(sides) < 50
    assert 80 < max(sides) <= 90
    assert 10 < mirrored < 30


def test_crops_are_not_enlarged_needlessly():
    framing = Framing(size=(64, 64), scale=(0.2, 1.0))
    sides = [np.diff(framing.box((80, 100), np.random.default_rng(s))[::2])[0] for s in range(50)]
    assert 64 - 1e-6 <= min(sides) < 67
    # A frame below the target's size: whole, and enlarged.
    assert framing.box((32, 32), np.random.default_rng(0)) == (0, 0, 32, 32)


def test_working_size_serves_the_smallest_crop():
    framing = Framing(size=(64, 64), scale=(0.5, 1.0))
    assert framing.working_size((720, 1280)) == (128, 228)
    assert framing.working_size((100, 200)) == (100, 200)
    assert framing.working_size((40, 50)) == (40, 50)
    centred = Framing(size=(64, 64))
    assert centred.working_size((720, 1280)) == (64, 114)


def test_real_crop_matches_the_frame():
    # Centre crop of a real frame: the mean colour is that of the middle of the whole frame.
    source = VideoClips(path='demo', num_frames=2, height=36, width=36, random=False)
    info = clips.read_info(files.demo_clips()[0])
    whole = clips.read_frames(info, [0.0], size=(180, 320))[0, :, 70:250].astype(float)
    shown = (source.record(0)['jpg'][0] + 1) * 127.5
    blocks = whole.reshape(36, 5, 36, 5, 3).mean(axis=(1, 3))
    assert np.abs(shown - blocks).mean() < 5


@pytest.mark.parametrize('size', [(832, 1216), (768, 1344), (448, 832)])
def test_the_largest_crop_of_any_frame_lies_within_it(size):
    framing = Framing(size=size)
    for frame in np.random.default_rng(0).integers(64, 6000, (2000, 2)).tolist():
        left, top, right, bottom = framing.box(tuple(frame), None)
        assert 0 <= left < right <= frame[1]
        assert 0 <= top < bottom <= frame[0]
    # Of these the size's arithmetic leaves a height that is larger by its last digit.
    assert framing(np.zeros((1, 1600, 900, 3), np.uint8), None).shape == (1, *size, 3)
