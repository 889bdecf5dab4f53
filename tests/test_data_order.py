"""The order of every source: the same with any number of workers, on any number of hosts, after any step."""

import numpy as np
import pytest
from picture_files import write_array_record, write_folder, write_tar
from video_files import gliding, write_clip_tar, write_frames

from sgm_jax.data import pipeline

CLIP_BUCKETS = ((2, 8, 12), (4, 8, 8), (8, 8, 12))
PICTURES = dict(name='captioned_pictures', height=8, width=8, held_out_fraction=0.1, flip=True)


@pytest.fixture(scope='module')
def nodes(tmp_path_factory):
    """Configs of data, by name."""
    root = tmp_path_factory.mktemp('order')
    write_folder(root / 'folder', 24, size=(9, 14))
    (root / 'tars').mkdir()
    write_tar(root / 'tars' / 'a.tar', range(10))
    write_tar(root / 'tars' / 'b.tar', range(10, 24))
    write_array_record(root / 'records' / 'a.array_record', range(24))
    (root / 'clips').mkdir()
    (root / 'clip_tars').mkdir()
    made = {}
    for number, frames in enumerate((12, 24, 16, 30)):
        # Of two shapes; the last is still, the first has a cut.
        size, speed = ((16, 24), (24, 24))[number % 2], 1 if number < 3 else 0
        shots = gliding(number, frames, speed, size)
        shots += [] if number else gliding(9, 6, 1, size)
        made[str(number)] = write_frames(root / 'clips' / f'{number}.mp4', shots)
    write_clip_tar(root / 'clip_tars' / 'a.tar', made, txt='clip {}')
    clips = dict(name='video_clips', num_frames=3, height=8, width=8, windows_per_video=6)
    clips |= dict(frame_rates=(5, 10), flip=True)
    node = lambda name, **options: {**PICTURES, 'path': str(root / name), **options}
    return {
        'folder': node('folder', repeat=2),
        'tars': node('tars'),
        'array_record': node('records'),
        'buckets': node('tars', buckets=((8, 8), (8, 12)), repeat=2),
        'mixture': {
            'name': 'mixture',
            'sources': (node('folder'), node('tars')),
            'weights': (0.7, 0.3),
        },
        'pictures': {'name': 'pictures', 'path': str(root / 'folder'), 'height': 8, 'width': 6},
        'digits': {'name': 'labelled', 'flip': True},
        'shapes': {'name': 'synthetic_video', 'num_frames': 2, 'height': 8, 'width': 8},
        'clips': {**clips, 'path': str(root / 'clips'), 'cache': True},
        'clip_tars': {**clips, 'path': str(root / 'clip_tars'), 'text': 'sidecar'},
        'clip_buckets': {**clips, 'path': str(root / 'clips'), 'buckets': CLIP_BUCKETS},
        'moving_clips': {**clips, 'path': str(root / 'clips'), 'cuts': 'skip', 'min_motion': 0.005},
    }


PICTURE_NAMES = ('folder', 'tars', 'array_record', 'buckets', 'mixture', 'pictures')
NAMES = (*PICTURE_NAMES, 'digits', 'shapes', 'clips', 'clip_tars', 'clip_buckets', 'moving_clips')


def take(source, count, state=None, **options):
    iterator = pipeline.make_iterator(source, seed=7, **{'batch_size': 6, **options})
    if state is not None:
        iterator.set_state(state)
    found, states = [], [iterator.get_state()]
    for _ in range(count):
        found.append(next(iterator))
        states.append(iterator.get_state())
    return found, states


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize('name', NAMES)
def test_workers_hosts_and_resumes_change_nothing(nodes, name):
    source = pipeline.make_source(nodes[name])
    # More than an epoch of the small ones.
    alone, states = take(source, 9, num_threads=0)
    for workers in (2, 8):
        assert_same(alone, take(source, 9, num_threads=workers)[0])
    hosts = [take(source, 9, rows=range(s, 6, 2), num_threads=2)[0] for s in range(2)]
    for s, batches in enumerate(hosts):
        assert_same([{k: v[s::2] for k, v in batch.items()} for batch in alone], batches)
    for step, state in enumerate(states[:-1]):
        # A source made anew, as after a restart.
        fresh = pipeline.make_source(nodes[name])
        assert_same(alone[step : step + 2], take(fresh, min(2, 9 - step), state)[0])


def test_windows_that_are_filtered_are_in_that_order(nodes):
    source = pipeline.make_source(nodes['moving_clips'])
    take(source, 9, num_threads=0)
    assert source.filters.counts.keys() == {'min_motion', 'cuts'}


def test_an_epoch_of_tars_has_every_example_once(nodes):
    source = pipeline.make_source(nodes['tars'])
    assert len(source) == 21
    batches, _ = take(source, 6, batch_size=7, num_threads=2)
    epochs = [np.concatenate([b['txt'] for b in batches[i : i + 3]]) for i in (0, 3)]
    assert all(len(set(epoch)) == 21 for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()
