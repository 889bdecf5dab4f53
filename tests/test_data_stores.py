"""Captioned pictures from every format: the same examples, whatever holds them."""

import csv
import json

import fsspec
import numpy as np
import pytest
from picture_files import (
    encoded,
    level,
    write_array_record,
    write_arrow,
    write_folder,
    write_tar,
)

from sgm_jax.data import pipeline, tf_example
from sgm_jax.data.tars import Tars
from sgm_jax.errors import UserError

COUNT = 9


def source(path, split='train', **options):
    node = {'name': 'captioned_pictures', 'path': str(path), 'height': 8, 'width': 8, **options}
    return pipeline.make_source({**node, 'held_out_fraction': 0.34}, split=split)


def _jsonl(folder):
    rows = [{'file_name': f'{n:03}.png', 'text': f'grey {n}'} for n in range(COUNT)]
    (folder / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def _csv(folder):
    with (folder / 'metadata.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerows(
            [('file_name', 'caption'), *((f'{n:03}.png', f'grey {n}') for n in range(COUNT))]
        )


def _parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f'{n:03}.png' for n in range(COUNT)]
    table = pa.table({'file_name': names, 'text': [f'grey {n}' for n in range(COUNT)]})
    pq.write_table(table, folder / 'metadata.parquet')


def _in_a_table(write):
    def make(folder):
        write_folder(folder, COUNT)
        for text in folder.glob('*.txt'):
            text.unlink()
        write(folder)

    return make


def _tars(folder):
    folder.mkdir()
    write_tar(folder / 'a-000.tar', range(5))
    write_tar(folder / 'a-001.tar', range(5, COUNT))


def _array_records(folder):
    # As TFDS names them.
    write_array_record(folder / 'grey-train.array_record-00000-of-00002', range(5))
    write_array_record(folder / 'grey-train.array_record-00001-of-00002', range(5, COUNT))


MAKERS = {
    'sidecars': lambda folder: write_folder(folder, COUNT),
    'jsonl': _in_a_table(_jsonl),
    'csv': _in_a_table(_csv),
    'parquet': _in_a_table(_parquet),
    'tars': _tars,
    'array_record': _array_records,
    'arrow': lambda folder: write_arrow(folder, range(COUNT)),
}


@pytest.mark.parametrize('kind', MAKERS)
def test_every_format_gives_the_same_examples(tmp_path, kind):
    MAKERS[kind](tmp_path / 'set')
    train, held_out = source(tmp_path / 'set'), source(tmp_path / 'set', 'held_out')
    assert (len(train), len(held_out)) == (6, 3)
    for part, expected in ((train, [1, 2, 4, 5, 7, 8]), (held_out, [0, 3, 6])):
        records = [part.record(i) for i in range(len(part))]
        assert [str(r['txt']) for r in records] == [f'grey {n}' for n in expected]
        assert [level(r) for r in records] == expected
        assert records[0]['original_size_as_tuple'].tolist() == [24, 32]
    assert 'captioned pictures (train): 6 at' in train.describe()
    batches = [
        next(pipeline.make_iterator(train, batch_size=6, seed=0, num_threads=threads))
        for threads in (0, 4)
    ]
    np.testing.assert_array_equal(batches[0]['txt'], batches[1]['txt'])
    assert sorted(batches[0]['txt']) == [f'grey {n}' for n in (1, 2, 4, 5, 7, 8)]


@pytest.mark.parametrize('kind', ['tars', 'array_record', 'arrow'])
def test_classes_are_in_tars_and_tables(tmp_path, kind):
    MAKERS[kind](tmp_path / 'set')
    train = source(tmp_path / 'set', classes=True)
    assert [int(train.record(i)['cls']) for i in range(6)] == [1, 2, 1, 2, 1, 2]


def test_splits_of_the_files_are_taken(tmp_path):
    write_array_record(tmp_path / 'x' / 'x-train.array_record-00000-of-00001', range(4))
    write_array_record(tmp_path / 'x' / 'x-test.array_record-00000-of-00001', range(4, 6))
    for split, part in (('train', range(3)), ('validation', range(3, 5))):
        write_arrow(tmp_path / 'y' / split, part)
    (tmp_path / 'y' / 'dataset_dict.json').write_text('{"splits": ["train", "validation"]}')
    lengths = [
        len(source(tmp_path / name, split)) for name in 'xy' for split in ('train', 'held_out')
    ]
    assert lengths == [4, 2, 3, 2]
    assert str(source(tmp_path / 'y', 'held_out').record(0)['txt']) == 'grey 3'


def test_records_of_tensorflow_datasets_are_read(tmp_path):
    # Written by TensorFlow's own library, in its own encoding.
    tf = pytest.importorskip('tensorflow')
    feature = lambda **kind: tf.train.Feature(**kind)
    features = {
        'image': feature(bytes_list=tf.train.BytesList(value=[encoded(7), b''])),
        'label': feature(int64_list=tf.train.Int64List(value=[-3, 2**40])),
        'score': feature(float_list=tf.train.FloatList(value=[0.5, -2.0])),
        'none': feature(),
    }
    theirs = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    found = tf_example.parse(theirs)
    assert found['image'] == [encoded(7), b'']
    assert found['label'].tolist() == [-3, 2**40]
    assert found['score'].tolist() == [0.5, -2.0]
    assert found['none'] == []
    ours = tf_example.serialize({'a': b'x', 'b': 'é', 'c': -5, 'd': np.array([1.5, 2.5]), 'e': 300})
    read = tf.train.Example.FromString(ours).features.feature
    assert read['a'].bytes_list.value[0] == b'x'
    assert read['b'].bytes_list.value[0].decode() == 'é'
    assert list(read['c'].int64_list.value) == [-5]
    assert list(read['d'].float_list.value) == [1.5, 2.5]
    assert list(read['e'].int64_list.value) == [300]
    with pytest.raises(ValueError, match=r'not a tf\.train\.Example'):
        tf_example.parse(theirs[:-3])


def test_addresses_are_read_like_paths(tmp_path):
    fs = fsspec.filesystem('memory')
    folder = write_folder(tmp_path / 'set', COUNT)
    tar = write_tar(tmp_path / 'a.tar', range(COUNT))
    for file in folder.iterdir():
        fs.pipe(f'/pictures/{file.name}', file.read_bytes())
    fs.pipe('/tars/a.tar', tar.read_bytes())
    for path in ('memory://pictures', 'memory://tars', 'memory://pictures/*'):
        train = source(path)
        assert [level(train.record(i)) for i in range(6)] == [1, 2, 4, 5, 7, 8]
        assert str(train.record(0)['txt']) == 'grey 1'
    with pytest.raises(UserError, match='memory://nowhere: no files there'):
        source('memory://nowhere')
    with pytest.raises(UserError, match='nofs://x: nofs:// cannot be read'):
        source('nofs://x')


def test_an_index_of_a_tar_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv('SGM_JAX_CACHE', str(tmp_path / 'cache'))
    folder = tmp_path / 'set'
    folder.mkdir()
    tar = write_tar(folder / 'a.tar', range(COUNT))
    # Large enough to be worth it: zeros after the end are part of a tar.
    with tar.open('ab') as file:
        file.truncate(2**24 + 512)
    assert len(source(folder)) == 6
    assert len(list((tmp_path / 'cache' / 'tar').iterdir())) == 1
    with monkeypatch.context() as patched:
        patched.setattr('sgm_jax.data.tars.tarfile.open', None)
        again = source(folder)
        assert [level(again.record(i)) for i in range(6)] == [1, 2, 4, 5, 7, 8]
    # A tar that was written anew is walked through again.
    write_tar(tar, range(3))
    assert len(source(folder)) == 2


def test_members_without_pictures_are_named(tmp_path):
    import io
    import tarfile

    write_tar(tmp_path / 'a.tar', range(3))
    with tarfile.open(tmp_path / 'a.tar', 'a') as tar:
        for name in ('words.txt', 'picture.jpg'):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b'abc'))
    found = source(tmp_path / 'a.tar')
    assert isinstance(found.store, Tars)
    reasons = sorted(found.skipped.values())
    assert reasons == ['it has no caption (.txt or .json)', 'no picture in it, only .txt']


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(format='zip'), "data.format: unknown name 'zip'; choose one of: array_record, arrow"),
        (dict(format='tars'), 'no tars there'),
        (dict(format='array_record'), 'no ArrayRecord files; prepare the dataset'),
        (dict(format='arrow'), 'no dataset of Hugging Face'),
        (dict(max_damaged=2), 'max_damaged is 2'),
    ],
)
def test_mistakes_are_named(tmp_path, options, words):
    write_folder(tmp_path, 3)
    with pytest.raises(UserError, match=words):
        source(tmp_path, **options)


def test_a_table_without_captions_is_named(tmp_path):
    write_folder(tmp_path, 2)
    (tmp_path / 'metadata.jsonl').write_text('{"file_name": "000.png", "words": "a"}')
    with pytest.raises(UserError, match=r'no column of the captions; looked for text, .* words'):
        source(tmp_path)
    assert str(source(tmp_path, caption='words').record(0)['txt']) == 'grey 1'
    (tmp_path / 'metadata.jsonl').write_text('{"file_name": "gone.png", "text": "a"}')
    assert 'and not there' in source(tmp_path).describe()


def test_mixtures_take_weights_and_repeats(tmp_path):
    write_folder(tmp_path / 'a', 20)
    write_folder(tmp_path / 'b', 5, first=100)
    common = dict(name='captioned_pictures', height=8, width=8, held_out_fraction=0.2)
    sources = tuple({**common, 'path': str(tmp_path / name)} for name in 'ab')
    mixture = lambda **o: pipeline.make_source({'name': 'mixture', 'sources': sources, **o})
    levels = lambda found: [level(found.record(i)) for i in range(len(found))]
    # 16 of a and 4 of b; with equal weights, all 16 and each of the 4 four times.
    even = levels(mixture(weights=(1, 1)))
    assert sum(x < 100 for x in even) == sum(x >= 100 for x in even) == 16
    assert all(even.count(x) == 4 for x in even if x >= 100)
    often = levels(mixture(repeats=(1, 3)))
    assert len(often) == 16 + 12
    assert all(often.count(x) == 3 for x in often if x >= 100)
    assert '57.1% of a mixture: captioned' in mixture(repeats=(1, 3)).describe()
    for wrong in (dict(weights=(1,)), dict(repeats=(1, 0)), dict(weights=(1, 1), repeats=(1, 1))):
        with pytest.raises(UserError, match=r'for each of the 2 sources|not both'):
            mixture(**wrong)
