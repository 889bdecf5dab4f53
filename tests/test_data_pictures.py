"""Pictures as data: crops of real files, single frames, mixtures, and files that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from sgm_jax.data import files, pipeline
from sgm_jax.errors import UserError

SIZE = dict(height=32, width=48)


def source(split='train', **node):
    return pipeline.make_source({'name': 'pictures', **SIZE, **node}, split=split)


@pytest.fixture
def folder(tmp_path):
    """A picture whose right fifth is white, a grey one, a transparent one, a damaged one, a tiny one."""
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, 80:] = 255
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    Image.fromarray(np.full((200, 300), 128, np.uint8)).save(tmp_path / 'b.jpg')
    Image.new('RGBA', (300, 200), (255, 0, 0, 0)).save(tmp_path / 'c.webp', lossless=True)
    (tmp_path / 'd.png').write_bytes((tmp_path / 'a.png').read_bytes()[:50])
    Image.new('RGB', (20, 20)).save(tmp_path / 'e.png')
    (tmp_path / 'notes.txt').write_text('no picture')
    return tmp_path


def test_real_pictures():
    pictures = source(path='demo', crops_per_picture=2)
    assert len(files.demo_pictures()) == 11
    assert len(pictures) == 22
    assert 'pictures (train): 11 at demo, 22 crops of 32x48' in pictures.describe()
    record = pictures.record(3, np.random.default_rng(0))
    assert record['jpg'].shape == (32, 48, 3)
    assert record['jpg'].dtype == np.float32
    assert -1 <= record['jpg'].min() < record['jpg'].max() <= 1
    again = pictures.record(3, np.random.default_rng(0))
    np.testing.assert_array_equal(record['jpg'], again['jpg'])
    other = pictures.record(3, np.random.default_rng(1))
    assert not np.array_equal(record['jpg'], other['jpg'])


def test_what_is_held_out_is_never_seen(folder):
    train = source(path=folder / 'a.png', crop_scale=(0.1, 1.0))
    rng = np.random.default_rng(0)
    assert all(train.record(i, rng)['jpg'].max() == -1 for i in range(16))
    held_out = source('held_out', path=folder / 'a.png', width=16, height=16)
    assert all(held_out.record(i)['jpg'].min() == 1 for i in range(16))


def test_held_out_crops_are_spread_and_fixed():
    held_out = source('held_out', path='demo')
    crops = np.stack([held_out.record(11 * part)['jpg'] for part in range(16)])
    assert len(np.unique(crops.reshape(16, -1), axis=0)) > 12
    np.testing.assert_array_equal(held_out.record(0, np.random.default_rng(3))['jpg'], crops[0])


def test_damaged_and_small_pictures_are_named(folder, caplog):
    pictures = source(path=folder)
    assert [path.name for path in pictures.paths] == ['a.png', 'b.jpg', 'c.webp']
    assert sorted(name.rsplit('/', 1)[-1] for name in pictures.skipped) == ['d.png', 'e.png']
    assert '2 pictures skipped' in pictures.describe()
    assert 'd.png' in caplog.text
    assert 'smaller than 32x48' in caplog.text
    grey, clear = (pictures.record(i, np.random.default_rng(0))['jpg'] for i in (1, 2))
    np.testing.assert_allclose(grey, 128 / 127.5 - 1, atol=0.02)
    np.testing.assert_array_equal(clear, 1)  # transparency is white


def test_pictures_beyond_the_cache_are_read_again(folder):
    cached, read = (source(path=folder, cache_bytes=bytes_) for bytes_ in (2**30, 0))
    for index in range(6):
        np.testing.assert_array_equal(
            cached.record(index, np.random.default_rng(index))['jpg'],
            read.record(index, np.random.default_rng(index))['jpg'],
        )


def test_mixtures_have_all_records_in_proportion(folder):
    size = dict(height=16, width=16)
    node = {
        'name': 'mixture',
        'sources': (
            {'name': 'pictures', 'path': str(folder / 'a.png'), 'crops_per_picture': 4, **size},
            {'name': 'video_frames', 'path': 'demo', 'windows_per_video': 2, **size},
        ),
    }
    mixture = pipeline.make_source(node)
    assert len(mixture) == 4 + 6
    first = [mixture.record(i, np.random.default_rng(0))['jpg'] for i in range(10)]
    assert {x.shape for x in first} == {(16, 16, 3)}
    assert [bool((x == -1).all()) for x in first] == [True] * 4 + [False] * 6
    batch = next(pipeline.make_iterator(node, batch_size=10, seed=0, num_threads=0))
    assert batch['jpg'].shape == (10, 16, 16, 3)
    assert sum((x == -1).all() for x in batch['jpg']) == 4
    held_out = pipeline.make_source(node, split='held_out')
    assert {s.split for s in (held_out.sources[0], held_out.sources[1].clips)} == {'held_out'}


@pytest.mark.parametrize(
    ('node', 'words'),
    [
        ({'path': ''}, "data.path is empty; give .*pictures, or 'demo' for the demo pictures"),
        ({'path': '/nowhere'}, '/nowhere: no such file or folder; give a picture'),
        ({'path': 'demo', 'held_out_fraction': 1.0}, 'held_out_fraction is 1.0'),
        ({'path': 'demo', 'height': 5000}, 'none of the 11 pictures at demo can be used'),
        ({'path': 'demo', 'crops': 3}, "unknown key 'crops'"),
    ],
)
def test_mistakes_are_named(node, words):
    with pytest.raises(UserError, match=words):
        source(**node)


def test_held_out_sources_of_a_mixture_take_turns(folder):
    size = dict(height=8, width=8)
    node = {
        'name': 'mixture',
        'sources': (
            {'name': 'pictures', 'path': str(folder / 'a.png'), 'crops_per_picture': 4, **size},
            {'name': 'pictures', 'path': str(folder / 'b.jpg'), 'crops_per_picture': 12, **size},
        ),
    }
    held_out = pipeline.make_source(node, split='held_out')
    white = lambda n: [bool((held_out.record(i)['jpg'] == 1).all()) for i in range(n)]
    # Any few first ones have a quarter of the white picture, and each comes once.
    assert (sum(white(4)), sum(white(8)), sum(white(16)), len(held_out)) == (1, 2, 4, 16)


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (
            {'height': 16},
            r'sources\[1\]: its records are jpg 16x8x3, those of sources\[0\] are jpg 8x8x3',
        ),
        ({'name': 'captioned_pictures', 'text': 'none', 'buckets': ((8, 8),)}, 'leave buckets out'),
    ],
)
def test_sources_of_a_mixture_are_alike(folder, more, words):
    first = {'name': 'pictures', 'path': str(folder / 'b.jpg'), 'height': 8, 'width': 8}
    with pytest.raises(UserError, match=words):
        pipeline.make_source(
            {'name': 'mixture', 'sources': (first, {**first, **{'path': str(folder)}, **more})}
        )


def test_a_mixture_of_nothing_is_an_error():
    with pytest.raises(UserError, match='a mixture needs sources'):
        pipeline.make_source({'name': 'mixture', 'sources': ()})
