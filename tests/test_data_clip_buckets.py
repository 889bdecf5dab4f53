"""Buckets of sizes and lengths: planned from what the containers say, the same on every host."""

import logging

import jax
import numpy as np
import pytest
import tiny
from video_files import damage_packets, gliding, write_frames, write_numbered

from sgm_jax.data import pipeline
from sgm_jax.data.bucket_plan import BucketPlan, assign
from sgm_jax.errors import UserError
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training.loop import train
from sgm_jax.training.setup import Setup

# (frames, height, width): wide ones of two lengths, and square ones.
BUCKETS = ((2, 16, 32), (6, 16, 32), (4, 16, 16))
# Frames (at 10 per second) and shapes of the files.
CLIPS = [(30, (24, 48))] * 3 + [(12, (24, 48))] * 2 + [(20, (32, 32))] * 3


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('buckets')
    for number, (frames, size) in enumerate(CLIPS):
        write_frames(root / f'{number}.mp4', gliding(number, frames, 1, size))
    return root


def source(folder, split='train', **options):
    node = dict(name='video_clips', num_frames=3, height=16, width=16, path=str(folder))
    node |= dict(frame_rates=(2, 5), windows_per_video=4, buckets=BUCKETS)
    return pipeline.make_source({**node, **options}, split=split)


def test_files_are_in_the_bucket_of_their_shape_that_they_are_long_enough_for(folder):
    found = source(folder)
    # 80% of 3 s at 5 frames per second and less; 80% of 1.2 s; 80% of 2 s.
    assert found.longest.tolist() == [12] * 3 + [5] * 2 + [8] * 3
    assert found.bucket_of.tolist() == [1] * 3 + [0] * 2 + [2] * 3
    sizes = ((4, 16, 16), (8, 9, 16), (8, 16, 9))
    shapes = np.array([(90, 160), (160, 90), (100, 100), (90, 160), (90, 160)])
    chosen = assign(shapes, sizes, longest=np.array([8, 20, 9, 7, 3]))
    assert chosen.tolist() == [1, 2, 0, 0, -1]


def test_a_batch_has_one_size_and_hosts_agree(folder):
    found = source(folder, flip=True)
    alone = pipeline.make_iterator(found, batch_size=4, seed=3, num_threads=0)
    hosts = [
        pipeline.make_iterator(found, batch_size=4, seed=3, rows=range(s, 4, 2)) for s in range(2)
    ]
    seen = []
    for _ in range(8):
        batch, parts = next(alone), [next(host) for host in hosts]
        for s, part in enumerate(parts):
            for key, value in batch.items():
                np.testing.assert_array_equal(value[s::2], part[key])
        seen.append(batch['jpg'].shape)
    assert set(seen) == {(4, *size, 3) for size in BUCKETS}
    assert seen != sorted(seen)


def test_an_epoch_has_every_window_but_the_leftovers_that_are_told(folder, caplog):
    found = source(folder)
    plan = BucketPlan(found, batch=5, seed=0)
    assert (plan.moved, plan.lost) == ({}, 0)
    assert plan.leftovers == {0: 3, 1: 2, 2: 2}
    assert plan.per_epoch == 25
    epoch = [divmod(plan[i], len(found)) for i in range(25)]
    assert len(set(epoch)) == 25
    for bucket, index in epoch:
        assert found.bucket_of[index % len(CLIPS)] == bucket - 1
    with caplog.at_level(logging.INFO, 'sgm_jax'):
        pipeline.make_iterator(found, batch_size=5, seed=0)
    words = 'buckets (frames x height x width, windows): 2x16x32 8, 6x16x32 12, 4x16x16 12'
    assert words in caplog.text
    assert '7 left out of each epoch, other ones each time: 3 of 2x16x32' in caplog.text
    assert '32 windows of 3 buckets per epoch' in found.describe()


def test_small_buckets_go_where_they_fit(folder):
    # The short wide ones are too few for a batch; they are too short for six frames, not for four.
    plan = BucketPlan(source(folder), batch=10, seed=0)
    assert plan.moved == {0: 8}
    assert {b: len(m) for b, m in plan.members.items()} == {1: 12, 2: 20}
    # Where nothing is short enough for them, they are never read, and that is said.
    two = source(folder, buckets=((2, 16, 32), (6, 16, 32), (6, 16, 16)))
    plan = BucketPlan(two, batch=10, seed=0)
    assert (plan.moved, plan.lost) == ({0: 8}, 2)
    assert '2 files are never read: too short' in plan.describe()
    # Rather than lose them, the longer ones go to theirs.
    both = source(folder, buckets=((2, 16, 32), (6, 16, 32)), windows_per_video=2)
    plan = BucketPlan(both, batch=14, seed=0)
    assert (plan.moved, plan.lost, list(plan.members)) == ({1: 12}, 0, [0])
    with pytest.raises(
        UserError, match='at least a batch of 40 examples of one size, there are 32'
    ):
        pipeline.make_iterator(source(folder), batch_size=40, seed=0)


def test_stand_ins_are_long_enough(tmp_path):
    for number, frames in enumerate((30, 8, 30, 8)):
        write_numbered(tmp_path / f'{number}.mp4', [100 * i for i in range(frames)])
    damage_packets(tmp_path / '0.mp4', range(10, 20))
    found = source(tmp_path, buckets=((2, 8, 12), (10, 8, 12)), num_frames=2, max_damaged=1)
    assert found.bucket_of.tolist() == [1, 0, 1, 0]
    # The window behind the damaged one is too short; that behind it stands in.
    bad, good = (found.record(2 * len(found) + i, np.random.default_rng(0)) for i in (0, 2))
    assert bad['jpg'].shape == good['jpg'].shape == (10, 8, 12, 3)
    assert list(found.damage.names) == [str(tmp_path / '0.mp4')]


def test_the_cache_changes_no_number(folder):
    plain, cached = source(folder), source(folder, cache=True)
    assert '8 files kept decoded' in cached.describe()
    for index in (0, 3, 2 * 32 + 1, 1 * 32 + 3, 3 * 32 + 6, 3 * 32 + 3):
        ours, theirs = (s.record(index, np.random.default_rng(1)) for s in (plain, cached))
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_held_out_windows_have_the_size_of_the_config(folder):
    held_out = source(folder, 'held_out', num_frames=2)
    assert held_out.buckets == ()
    assert {held_out.record(i)['jpg'].shape for i in range(8)} == {(2, 16, 16, 3)}
    assert source(folder).record(0)['jpg'].shape == (3, 16, 16, 3)
    with pytest.raises(UserError, match=r'num_frames is 30, and the longest .* has 12'):
        source(folder, num_frames=30)


@pytest.mark.parametrize('buckets', [((4, 16),), ((4, 0, 16),), 'sdxl', (4, 16, 16)])
def test_mistakes_are_named(folder, buckets):
    with pytest.raises(UserError, match=r'give sizes \(frames, height, width\), whole'):
        source(folder, buckets=buckets)


def config_of(folder, buckets, **options):
    config = tiny.config(steps=6)
    node = dict(name='video_clips', path=str(folder), num_frames=2, height=16, width=16)
    config.data = {**node, 'frame_rates': (2, 5), 'windows_per_video': 4, 'buckets': buckets}
    config.train.update(options)
    return config


@pytest.mark.parametrize(
    ('bucket', 'words'),
    [
        ((4, 16, 17), r'data\.buckets: of 4x16x17: the size 16x17 is not divisible by 2'),
        ((2, 15, 16), r'data\.buckets: of 2x15x16: the size 15x16 is not divisible by 2'),
    ],
)
def test_a_bucket_that_does_not_fit_the_model_is_named_at_the_start(
    folder, tmp_path, bucket, words
):
    with pytest.raises(UserError, match=words):
        train(config_of(folder, ((2, 16, 32), bucket)), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_lengths_that_differ_without_buckets_are_still_an_error(folder):
    config = config_of(folder, ())
    config.data.num_frames = 3
    with pytest.raises(UserError, match=r'data\.num_frames is 3 and model\.task\.num_frames is 2'):
        Setup.from_config(config).check(pipeline.make_source(config.data))


def test_the_loss_is_traced_for_clips_of_every_length(folder):
    setup = Setup.from_config(tiny.config())
    engine, found = setup.engine, source(folder)
    params = jax.eval_shape(engine.init, jax.random.key(0))
    for bucket, (frames, _, _) in enumerate(BUCKETS):
        record = found.record((bucket + 1) * len(found) + (0, 0, 5)[bucket])
        batch = {key: np.stack([value] * 2) for key, value in record.items()}
        losses, sigmas = jax.eval_shape(
            engine._losses, params, engine.frozen_shapes(), batch, jax.random.key(0)
        )
        assert losses.shape == sigmas.shape == (2 * frames,)


@pytest.mark.slow
def test_a_run_learns_from_clips_of_every_length(folder, tmp_path):
    config = config_of(folder, ((2, 16, 16), (4, 8, 16)), validate_every=6, validate_examples=2)
    seen, put = [], meshes.put_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            meshes, 'put_batch', lambda batch, mesh: seen.append(batch['jpg']) or put(batch, mesh)
        )
        result = train(config, tmp_path / 'run')
    assert result.step == 6
    assert np.isfinite(result.scalars['loss'])
    assert {x.shape for x in seen} == {(2, 2, 16, 16, 3), (2, 4, 8, 16, 3)}
