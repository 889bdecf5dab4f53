"""Buckets of sizes: planned from the files' headers, the same on every host, nothing lost in silence."""

import logging

import numpy as np
import pytest
import tiny_pictures
from picture_files import encoded, level, write_folder
from PIL import Image

from sgm_jax.data import pipeline
from sgm_jax.data.bucket_plan import BucketPlan, assign
from sgm_jax.errors import UserError
from sgm_jax.parallel import mesh as meshes
from sgm_jax.sampling.buckets import SDXL, around
from sgm_jax.training.loop import train

# (height, width): wide, tall and square ones, and a very wide one.
SHAPES = [(24, 48)] * 11 + [(48, 24)] * 7 + [(32, 32)] * 6 + [(16, 64)]
BUCKETS = ((16, 16), (16, 32), (32, 16), (8, 32))


@pytest.fixture
def folder(tmp_path):
    for number, size in enumerate(SHAPES):
        write_folder(tmp_path, 1, first=10 * number, size=size)
    return tmp_path


def source(folder, split='train', **options):
    node = {'name': 'captioned_pictures', 'path': str(folder), 'height': 16, 'width': 16}
    # Every 100th is held out: the first.
    options = {'buckets': BUCKETS, **options}
    return pipeline.make_source({**node, **options}, split=split)


def sizes(batch):
    return {tuple(int(x) for x in pair) for pair in batch['target_size_as_tuple']}


def test_sdxl_shapes_of_other_areas():
    assert around((1024, 1024)) == SDXL
    small = around((512, 512))
    assert (512, 512) in small
    assert all(side % 64 == 0 for size in small for side in size)
    # Rounding sides to 64 moves the area of the narrowest by a fifth at most.
    assert all(0.8 < h * w / 512**2 < 1.25 for h, w in small)
    assert len(set(small)) == len(small) < len(SDXL)


def test_pictures_are_in_the_bucket_of_their_shape(folder):
    pairs = np.array([(1024, 1024), (768, 1344), (2000, 1000), (3000, 4000), (100, 1000)])
    chosen = [SDXL[b] for b in assign(pairs, SDXL)]
    assert chosen == [(1024, 1024), (768, 1344), (1408, 704), (896, 1152), (512, 2048)]
    found = source(folder)
    assert np.bincount(found.bucket_of).tolist() == [6, 10, 7, 1]
    # On its side in the file, upright when shown.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (40, 20)).save(folder / 'phone.jpg', exif=exif)
    (folder / 'phone.txt').write_text('phone')
    assert np.bincount(source(folder).bucket_of).tolist() == [6, 10, 8, 1]


def test_a_batch_has_one_size_and_hosts_agree(folder):
    found = source(folder, flip=True)
    alone = pipeline.make_iterator(found, batch_size=4, seed=3)
    hosts = [
        pipeline.make_iterator(found, batch_size=4, seed=3, rows=range(s, 4, 2)) for s in range(2)
    ]
    seen = []
    for _ in range(10):
        batch, parts = next(alone), [next(host) for host in hosts]
        assert len(sizes(batch)) == 1
        (height, width) = sizes(batch).pop()
        assert batch['jpg'].shape == (4, height, width, 3)
        for s, part in enumerate(parts):
            for key, value in batch.items():
                np.testing.assert_array_equal(value[s::2], part[key])
        seen.append((height, width))
    assert set(seen) == {(16, 16), (16, 32), (32, 16)}
    # Shuffled: not one bucket after the other.
    assert seen != sorted(seen)


def test_an_epoch_has_every_picture_but_the_leftovers_that_are_told(folder, caplog):
    found = source(folder)
    plan = BucketPlan(found, batch=4, seed=0)
    # The lone very wide one goes to the wide ones: 11 of them, 7, 6.
    assert plan.moved == {3: 1}
    assert plan.leftovers == {0: 2, 1: 3, 2: 3}
    assert plan.per_epoch == 16
    epochs = [[plan[e * 16 + i] % len(found) for i in range(16)] for e in range(40)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert set().union(*epochs) == set(range(24))  # other ones each time
    assert epochs[0] != epochs[1]
    with caplog.at_level(logging.INFO, 'sgm_jax'):
        pipeline.make_iterator(found, batch_size=4, seed=0)
    assert '3 buckets (height x width, pictures): 16x16 6, 16x32 11, 32x16 7' in caplog.text
    assert 'for less than a batch of 4: 1 of 8x32' in caplog.text
    assert '8 left out of each epoch, other ones each time: 2 of 16x16, 3 of 16x32' in caplog.text
    again = BucketPlan(found, batch=4, seed=0)
    assert [again[i] for i in range(64)] == [plan[i] for i in range(64)]
    assert [BucketPlan(found, batch=4, seed=1)[i] for i in range(64)] != [
        plan[i] for i in range(64)
    ]


def test_a_resume_goes_on_and_repeats_fill_batches(folder):
    found = source(folder, repeat=2)
    iterator = pipeline.make_iterator(found, batch_size=5, seed=1, num_threads=2)
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(5)]
    resumed = pipeline.make_iterator(found, batch_size=5, seed=1, num_threads=0)
    resumed.set_state(state)
    for batch in expected:
        for key, value in next(resumed).items():
            np.testing.assert_array_equal(value, batch[key])


def test_held_out_pictures_have_the_size_of_the_config(folder):
    held_out = source(folder, 'held_out')
    assert held_out.buckets == ()
    assert held_out.record(0)['jpg'].shape == (16, 16, 3)
    assert source(folder).record(0)['jpg'].shape == (16, 16, 3)


@pytest.mark.parametrize('options', [{}, {'buckets': ()}, {'min_size': 20}])
def test_a_damaged_header_moves_nothing_between_the_splits(folder, options):
    places = sorted(folder.rglob('*.png'))
    options = {'held_out_fraction': 0.1, 'max_damaged': 0.1, **options}
    names = lambda split: {
        found.store.name(n) for found in [source(folder, split, **options)] for n in found.members
    }
    before = names('held_out')
    assert len(before) > 1
    places[1].write_bytes(b'no picture')
    assert names('held_out') == before
    assert not names('train') & before


def test_a_damaged_picture_is_replaced_in_its_batch(folder):
    path = folder / '010.png'
    noise = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    found = source(folder, max_damaged=0.1)
    iterator = pipeline.make_iterator(found, batch_size=4, seed=3)
    assert all(len(sizes(next(iterator))) == 1 for _ in range(8))
    assert list(found.damage.names) == [str(path)]


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(buckets='sd'), "buckets is 'sd'; give 'sdxl', or sizes"),
        (dict(buckets=((8, 8, 3),)), r'give sizes \(height, width\), whole'),
    ],
)
def test_mistakes_are_named(folder, options, words):
    with pytest.raises(UserError, match=words):
        source(folder, **options)


def test_fewer_pictures_than_a_batch_are_an_error(folder):
    with pytest.raises(UserError, match='buckets need at least a batch of 50 examples'):
        pipeline.make_iterator(source(folder), batch_size=50, seed=0)
    # With repeats there are enough, all in the largest bucket.
    batch = next(pipeline.make_iterator(source(folder, repeat=3), batch_size=50, seed=0))
    assert len(sizes(batch)) == 1


def test_sizes_are_looked_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv('SGM_JAX_CACHE', str(tmp_path / 'cache'))
    folder = write_folder(tmp_path / 'set', 250, size=(8, 16))
    for number in range(10):
        (folder / f'x{number}.png').write_bytes(encoded(number, (16, 8)))
        (folder / f'x{number}.txt').write_text('tall')
    first = source(folder)
    looked = []
    monkeypatch.setattr(
        'sgm_jax.data.picture_sizes.image_size', lambda file: looked.append(1) or (8, 8)
    )
    again = source(folder)
    np.testing.assert_array_equal(first.bucket_of, again.bucket_of)
    assert looked == []
    (folder / 'x3.png').write_bytes(encoded(3, (16, 9)))
    source(folder)
    assert looked == [1]
    assert level(first.record(0)) == 1


@pytest.mark.slow
def test_a_run_has_a_step_for_every_bucket(folder, tmp_path):
    config = tiny_pictures.config('sdxl_base')
    config.data.update(path=str(folder), text='sidecar', held_out_fraction=0.01)
    config.data.buckets = ((8, 8), (8, 16), (16, 8))
    config.train.steps = 8
    seen = []
    put = meshes.put_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            meshes, 'put_batch', lambda batch, mesh: seen.append(batch['jpg']) or put(batch, mesh)
        )
        result = train(config, tmp_path / 'run')
    assert result.step == 8
    assert np.isfinite(result.scalars['loss'])
    assert {x.shape for x in seen} == {(2, 8, 8, 3), (2, 8, 16, 3), (2, 16, 8, 3)}


def test_sizes_come_in_the_order_that_is_told(folder):
    found = source(folder, buckets=BUCKETS)
    for begin in (0, 3):
        told = pipeline.sizes_to_come(found, batch_size=2, seed=1, begin=begin)
        batches = pipeline.make_iterator(found, batch_size=2, seed=1, num_threads=0)
        shapes = [next(batches)['jpg'].shape[1:3] for _ in range(begin + 40)][begin:]
        assert told == list(dict.fromkeys(shapes))
        assert len(told) > 1
    alone = source(folder, buckets=())
    assert pipeline.sizes_to_come(alone, batch_size=2, seed=1) == []
