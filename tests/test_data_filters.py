"""Windows that do not move, or go over a cut: left out on request, with the same stand-ins every time."""

import logging

import numpy as np
import pytest
from video_files import gliding, write_frames

from sgm_jax.data import clips, cuts, files, motion, pipeline
from sgm_jax.errors import UserError

# Seconds at which the street clip of the demo cuts to another shot (looked at, frame by frame).
STREET_CUTS = (1.2, 3.04, 5.48, 7.48, 9.68)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Clips of 2 s: one moves, one is still, one moves and has a cut after 1 s."""
    root = tmp_path_factory.mktemp('filters')
    write_frames(root / 'moving.mp4', gliding(1, 20, 2))
    write_frames(root / 'still.mp4', gliding(2, 20, 0))
    write_frames(root / 'twoshots.mp4', gliding(3, 10, 2) + gliding(4, 10, 2))
    return root


def source(folder, split='train', **options):
    node = dict(name='video_clips', num_frames=4, height=24, width=32, frame_rates=(5, 10))
    node |= dict(path=str(folder), windows_per_video=6)
    return pipeline.make_source({**node, **options}, split=split)


def records(found):
    return [found.record(i, np.random.default_rng(i)) for i in range(len(found))]


def flow_of(record):
    bucket = float(record['motion_bucket_id'])
    return 0.01 * bucket / (255 - bucket)


def test_cuts_of_a_real_clip_are_found_and_fast_shots_are_none():
    street = clips.read_info(files.demo_clips()[1])
    frames, times = clips.read_span(street, (0.0, 99.0), size=(72, 168))
    for rate in (6, 25):
        seen = set()
        for start in np.arange(0.0, 10 - 8 / rate, 0.3):
            at = clips.nearest(street, times, start + np.arange(8) / rate)
            first, last = times[at[0]] + 1e-3, times[at[-1]] + 1e-3
            expected = any(first < cut <= last for cut in STREET_CUTS)
            assert cuts.has_cut(frames[at]) == expected
            seen.add(expected)
        assert seen == {True, False}
    for name in (0, 2):  # without cuts
        info = clips.read_info(files.demo_clips()[name])
        frames, times = clips.read_span(info, (0.0, 99.0), size=(72, 96))
        for start in np.arange(0.0, info.duration - 8 / 6, 0.5):
            at = clips.nearest(info, times, start + np.arange(8) / 6)
            assert not cuts.has_cut(frames[at])


def test_cuts_of_drawn_shots():
    fast, other = gliding(1, 10, 8), gliding(5, 10, 8)
    assert not cuts.has_cut(np.stack(fast))
    # A fifth of the width per frame: too fast for the flow, but all pairs are alike.
    assert not cuts.has_cut(np.stack(gliding(1, 10, 12)))
    assert not cuts.has_cut(np.stack(fast[:1] * 5))
    assert not cuts.has_cut(np.stack(fast[:1]))
    for where in (1, 5, 9):
        assert cuts.has_cut(np.stack(fast[:where] + other[where:]))
    assert cuts.has_cut(np.stack([fast[0], other[0]]))
    montage = [gliding(seed, 1, 0)[0] for seed in range(6)]
    assert cuts.has_cut(np.stack(montage))


def test_still_windows_are_left_out(folder):
    every = records(source(folder))
    assert sum(r['motion_bucket_id'] < 50 for r in every) == 6
    found = source(folder, min_motion=0.01)
    moving = records(found)
    assert len(moving) == 18
    assert all(flow_of(r) > 0.0095 for r in moving)
    # The next one stands in: of the file behind it.
    assert found.filters.counts == {'min_motion': 6}
    assert 'of 24 windows read, left out: 6 that move less than data.min_motion=0.01' in (
        found.describe()
    )
    assert source(folder).filters.lines() == []


def test_windows_over_a_cut_are_left_out(folder):
    shown = lambda r: ((r['jpg'] + 1) * 127.5).round().astype(np.uint8)
    over = lambda found: sum(cuts.has_cut(shown(r)) for r in records(found))
    options = dict(windows_per_video=20, held_out_fraction=0)
    found = source(folder / 'twoshots.mp4', cuts='skip', **options)
    assert over(found) == 0
    assert found.filters.counts['cuts'] >= over(source(folder / 'twoshots.mp4', **options)) > 3


def test_held_out_windows_are_filtered_too(folder):
    options = dict(held_out_fraction=0.5, min_motion=0.01)
    held_out = source(folder, 'held_out', **options)
    found = [held_out.record(i) for i in range(len(held_out))]
    assert all(flow_of(r) > 0.0095 for r in found)
    assert held_out.filters.counts['min_motion'] == 6
    again = [held_out.record(i) for i in range(len(held_out))]
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one['jpg'], other['jpg'])


def test_twenty_in_a_row_name_the_key(folder):
    words = r'20 windows in a row cannot be used, the last from .*still\.mp4: 20 move less than '
    with pytest.raises(UserError, match=words + r'data\.min_motion=0\.001; lower data\.min_mot'):
        source(folder / 'still.mp4', min_motion=0.001).record(0, np.random.default_rng(0))


def test_counts_are_logged_now_and_then(folder, caplog):
    found = source(folder, min_motion=0.01)
    with caplog.at_level(logging.INFO, 'sgm_jax'):
        for _ in range(2):
            records(found)
    assert caplog.text.count('windows read, left out: 10 that move less') == 1


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(cuts='drop'), "cuts is 'drop'; choose one of: keep, skip"),
        (dict(min_motion=-1), 'min_motion is -1; give 0 or more'),
        (dict(min_motion=0.1, num_frames=1), 'min_motion need windows of 2 frames or more'),
    ],
)
def test_mistakes_are_named(folder, options, words):
    with pytest.raises(UserError, match=words):
        source(folder, **options)


def test_a_filter_costs_milliseconds():
    # The same measure decides and is told: nothing is measured twice.
    frames = np.stack(gliding(1, 14, 2))
    assert motion.bucket_of(motion.mean_flow(frames)) == motion.motion_bucket_id(frames)
    assert cuts.residuals(frames).shape == (13,)
    assert cuts.residuals(frames).max() < 0.05
