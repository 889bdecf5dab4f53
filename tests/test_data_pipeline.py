"""Batches: the same for any number of threads and hosts, and after a resume."""

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from sgm_jax.data import pipeline
from sgm_jax.errors import UserError

CLIPS = dict(
    name='video_clips',
    path='demo',
    num_frames=3,
    height=16,
    width=16,
    windows_per_video=4,
    cache=True,
)
SHAPES = dict(name='synthetic_video', num_frames=2, height=8, width=8, length=10)


def _take(iterator, count):
    return [next(iterator) for _ in range(count)]


def _assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


@pytest.mark.parametrize('config', [CLIPS, SHAPES], ids=['clips', 'shapes'])
def test_same_batches_for_any_number_of_threads(config):
    source = pipeline.make_source(config)
    runs = [
        _take(pipeline.make_iterator(source, batch_size=4, seed=3, num_threads=threads), 6)
        for threads in (0, 1, 4)
    ]
    _assert_same(runs[0], runs[1])
    _assert_same(runs[0], runs[2])
    assert runs[0][0]['jpg'].shape == (
        4,
        config['num_frames'],
        config['height'],
        config['width'],
        3,
    )
    assert runs[0][0]['fps_id'].shape == runs[0][0]['motion_bucket_id'].shape == (4,)
    other = next(pipeline.make_iterator(source, batch_size=4, seed=4))
    assert (other['jpg'] != runs[0][0]['jpg']).any()


def test_resume_from_a_checkpoint_gives_the_next_batches(tmp_path):
    iterator = pipeline.make_iterator(CLIPS, batch_size=3, seed=1)
    _take(iterator, 5)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(5, {'data': iterator})
    expected = _take(iterator, 4)
    resumed = pipeline.make_iterator(CLIPS, batch_size=3, seed=1, num_threads=0)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.load_checkpointables(5, {'data': resumed})
    _assert_same(_take(resumed, 4), expected)
    again = pipeline.make_iterator(CLIPS, batch_size=3, seed=1)
    again.set_state(iterator.get_state())
    _assert_same(_take(again, 1), _take(iterator, 1))


def test_two_hosts_share_one_hosts_batches():
    # Step by step: what two hosts take together is what one takes alone, draws included.
    source = pipeline.make_source(CLIPS)
    alone = _take(pipeline.make_iterator(source, batch_size=4, seed=2), 7)
    hosts = [
        _take(pipeline.make_iterator(source, batch_size=4, seed=2, rows=rows), 7)
        for rows in ([0, 1], [2, 3])
    ]
    for whole, first, second in zip(alone, *hosts, strict=True):
        for key in whole:
            np.testing.assert_array_equal(whole[key][:2], first[key])
            np.testing.assert_array_equal(whole[key][2:], second[key])


class _Indices:
    """A source whose records are their own indices."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return int(index)

    def record(self, index, rng):
        return {'index': np.int64(index), 'draw': rng.random()}


def test_an_epoch_is_every_record_once_reshuffled_and_redrawn():
    iterator = pipeline.make_iterator(_Indices(), batch_size=5, seed=0)
    batches = _take(iterator, 6)
    epochs = [np.concatenate([b['index'] for b in batches[i : i + 2]]) for i in (0, 2, 4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()
    draws = np.concatenate([b['draw'] for b in batches])
    assert len(set(draws)) == 30


def test_shards_of_an_epoch_are_disjoint_and_complete():
    shards = [
        next(pipeline.make_iterator(_Indices(), batch_size=10, seed=0, rows=rows))['index']
        for rows in (range(5), range(5, 10))
    ]
    assert sorted(np.concatenate(shards)) == list(range(10))


def test_held_out_batch_is_fixed_and_from_every_file():
    batch = pipeline.held_out_batch({**CLIPS, 'num_frames': 2}, 4)
    assert batch['jpg'].shape == (4, 2, 16, 16, 3)
    _assert_same([batch], [pipeline.held_out_batch({**CLIPS, 'num_frames': 2, 'flip': True}, 4)])
    first = batch['jpg'].reshape(4, -1)
    assert len({tuple(row) for row in first}) == 4
    with pytest.raises(UserError, match='13 held-out records wanted, there are 12'):
        pipeline.held_out_batch(CLIPS, 13)


def test_describe_says_what_there_is():
    text = pipeline.describe(CLIPS)
    assert 'video_clips (train): 3 files at demo, 15.4 of 19.3 s' in text
    assert '12 windows of 3 frames of 16x16' in text


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(batch_size=0), 'batch_size'),
        (dict(batch_size=2, rows=[2]), 'rows .2. are not among the 2 of a batch'),
    ],
)
def test_wrong_numbers(options, message):
    with pytest.raises(UserError, match=message):
        pipeline.make_iterator(SHAPES, seed=0, **options)


def test_unknown_source():
    with pytest.raises(UserError, match='synthetic_video, video_clips'):
        pipeline.make_source({'name': 'video_clip'})
