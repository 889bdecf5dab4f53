"""Pictures with captions, classes and sizes; digits and datasets by name."""

import logging

import numpy as np
import pytest
from PIL import Image

from sgm_jax.config import load_config
from sgm_jax.data import pipeline
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.sampling.buckets import SDXL, nearest


@pytest.fixture
def folder(tmp_path):
    """Five pictures of two classes, of different sizes; one has no caption."""
    for index, (name, size) in enumerate(
        [('cat/a', (40, 20)), ('cat/b', (20, 40)), ('dog/c', (30, 30)), ('dog/d', (64, 48))]
    ):
        path = tmp_path / f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        Image.new('RGB', size, (10 * index, 50, 200)).save(path)
        path.with_suffix('.txt').write_text(f'ein Bild — {index}\n', encoding='utf-8')
    Image.new('RGB', (20, 20)).save(tmp_path / 'dog' / 'silent.png')
    return tmp_path


def source(folder, split='train', **options):
    node = {
        'name': 'captioned_pictures',
        'path': str(folder),
        'height': 16,
        'width': 16,
        'held_out_fraction': 0.25,
        **options,
    }
    return pipeline.make_source(node, split=split)


def test_records_have_captions_and_sizes(folder):
    pictures = source(folder)
    assert len(pictures) == 3
    assert 'it has no caption (silent.txt)' in pictures.describe()
    record = pictures.record(0)
    assert record['txt'] == 'ein Bild — 1'
    assert record['jpg'].shape == (16, 16, 3)
    np.testing.assert_array_equal(record['original_size_as_tuple'], [40, 20])
    np.testing.assert_array_equal(record['target_size_as_tuple'], [16, 16])
    # 40x20 was scaled to 32x16 and cropped in its middle.
    np.testing.assert_array_equal(record['crop_coords_top_left'], [8, 0])
    assert source(folder, 'held_out').record(0)['txt'] == 'ein Bild — 0'


def test_crops_are_drawn_and_told(folder):
    pictures = source(folder)
    tops = {
        int(pictures.record(0, np.random.default_rng(i))['crop_coords_top_left'][0])
        for i in range(60)
    }
    assert min(tops) == 0
    assert max(tops) == 16


def test_classes_are_folders_and_names_may_be_captions(folder):
    pictures = source(folder, classes=True, text='name', aesthetic_score=6.5, min_size=25)
    records = [pictures.record(i) for i in range(len(pictures))]
    assert [(str(r['txt']), int(r['cls'])) for r in records] == [('d', 1)]
    assert records[0]['aesthetic_score'].tolist() == [6.5]
    assert 'shorter side is below 25' in pictures.describe()


def test_batches_hold_words(folder):
    batch = next(pipeline.make_iterator(source(folder), batch_size=3, seed=0))
    assert batch['txt'].dtype.kind == 'U'
    assert set(batch['txt']) == {'ein Bild — 1', 'ein Bild — 2', 'ein Bild — 3'}


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(text='json'), "text is 'json'; choose one of"),
        (dict(held_out_fraction=0), 'held_out_fraction is 0'),
        (dict(repeat=0), 'must be at least 1'),
        (dict(min_size=1000), 'none of the pictures at'),
    ],
)
def test_options_that_make_no_sense_are_named(folder, options, words):
    with pytest.raises(UserError, match=words):
        source(folder, **options)


def test_digits_are_the_handwritten_ones():
    train = pipeline.make_source({'name': 'labelled', 'height': 8, 'width': 8})
    held_out = pipeline.make_source({'name': 'labelled', 'height': 8, 'width': 8}, split='held_out')
    assert len(train) + len(held_out) == 1797
    record = train.record(0)
    assert record['jpg'].shape == (8, 8, 1)
    assert (record['jpg'].min(), record['jpg'].max()) == (-1.0, pytest.approx(0.874, abs=0.01))
    assert record['cls'] == 0
    assert [int(train.record(i)['cls']) for i in range(10)] == list(range(10))
    larger = pipeline.make_source({'name': 'labelled', 'height': 28, 'width': 28})
    assert larger.record(3)['jpg'].shape == (28, 28, 1)


@pytest.mark.filterwarnings('ignore')  # TFDS's own
def test_a_dataset_that_is_not_there_is_named_or_replaced(tmp_path, caplog):
    node = {'name': 'labelled', 'data_dir': str(tmp_path)}
    with pytest.raises(
        UserError, match=r"'cifar10' is not on this machine; .*download_and_prepare"
    ):
        pipeline.make_source({**node, 'dataset': 'cifar10'})
    with pytest.raises(UserError, match=r"'no_such_thing' cannot be opened"):
        pipeline.make_source({**node, 'dataset': 'no_such_thing'})
    with caplog.at_level(logging.WARNING, 'sgm_jax'):
        found = pipeline.make_source({**node, 'dataset': 'mnist'})
    assert 'taking the digits inside scikit-learn instead' in caplog.text
    assert found.name == 'digits'


def test_data_without_what_the_model_reads_is_named():
    engine = build(load_config('configs/sdxl_base.py:tiny'))
    source = pipeline.make_source({'name': 'labelled', 'height': 32, 'width': 32})
    with pytest.raises(UserError, match="the data has no 'crop_coords_top_left', which model"):
        engine.check(source.record(0))
    clips = {'jpg': np.zeros((2, 32, 32, 3), np.float32)}
    with pytest.raises(UserError, match='task needs pictures'):
        engine.check(clips)


def test_buckets_are_a_megapixel_in_steps_of_64():
    areas = [height * width / 2**20 for height, width in SDXL]
    assert min(areas) > 0.87
    assert max(areas) <= 1.05
    assert all(side % 64 == 0 for size in SDXL for side in size)
    # The paper's list has one shape without its mirror image.
    assert set(SDXL) - {size[::-1] for size in SDXL} == {(704, 1344)}
    assert nearest('1:1') == (1024, 1024)
    assert nearest('16:9') == (768, 1344)
    assert nearest('9:16') == (1344, 768)
    assert nearest('4:1') == (512, 2048)
    assert nearest('3:2', (512, 512)) == (448, 640)
    for wrong in ('16', 'a:b', '0:1', '1:0', '-1:2'):
        with pytest.raises(UserError, match='give WIDTH:HEIGHT'):
            nearest(wrong)
