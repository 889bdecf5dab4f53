"""Prepared datasets: what goes in comes out, by TensorFlow Datasets and by our own source; nothing half."""

import shutil

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
from prepared import flat, made, records
from video_files import write_damaged, write_numbered

from sgm_jax.data import files, pipeline
from sgm_jax.errors import UserError
from sgm_jax.tools import prepare_files, prepare_runners
from sgm_jax.tools.prepare_examples import Fact
from sgm_jax.tools.prepare_statistics import Summary

COUNT = 9
# Of TensorFlow Datasets itself, beside the protobuf that Beam wants.
OF_OTHERS = pytest.mark.filterwarnings('ignore:label:DeprecationWarning')


def captioned(path, split, **options):
    node = {'name': 'captioned_pictures', 'path': str(path), 'height': 16, 'width': 16, **options}
    return pipeline.make_source(node, split=split)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Two classes: photographs and greys, some with captions; two copies, and two that are damaged."""
    folder = tmp_path_factory.mktemp('pictures') / 'in'
    write_folder(folder / 'grey', COUNT)
    (folder / 'photo').mkdir()
    for path in files.demo_pictures()[1:3]:
        shutil.copy(path, folder / 'photo')
    shutil.copy(folder / 'grey/003.png', folder / 'grey/copy.png')
    shutil.copy(folder / 'grey/003.png', folder / 'photo/z.png')
    whole = (folder / 'photo/chelsea.png').read_bytes()
    (folder / 'photo/cut.png').write_bytes(whole[: len(whole) // 2])
    (folder / 'grey/empty.png').write_bytes(b'')
    return folder


DAMAGED = {'grey/empty.png': 'the file is empty', 'photo/cut.png': 'not a readable picture'}


@pytest.fixture(scope='module')
def dataset(pictures, tmp_path_factory):
    return made(pictures, tmp_path_factory.mktemp('tfds'), 'grey_test', max_damaged=0.2)


def test_statistics_say_what_is_there(dataset):
    _, found = dataset
    assert found['found'] == COUNT + 6
    assert found['examples'] == COUNT + 4
    assert sum(split['examples'] for split in found['splits'].values()) == COUNT + 4
    assert {name: len(why) > 0 for name, why in found['damaged'].items()} == dict.fromkeys(
        DAMAGED, True
    )
    assert all(found['damaged'][name].startswith(why) for name, why in DAMAGED.items())
    copies = [['grey/003.png', 'grey/copy.png', 'photo/z.png']]
    assert found['duplicates'] == {'dropped': False, 'copies': 2, 'groups': copies}
    assert found['captions']['examples'] == COUNT
    assert found['captions']['words'] == {'min': 2, 'median': 2, 'max': 2}
    assert found['labels'] == {'grey': COUNT + 1, 'photo': 3}
    # chelsea is 300x451, coffee 400x600, and greys are 24x32.
    assert found['height'] == {'min': 24, 'median': 24, 'max': 400}
    assert found['width'] == {'min': 32, 'median': 32, 'max': 600}
    assert found['shorter_side'] == {'16-31': COUNT + 2, '256-511': 2}


def test_the_report_is_for_people(pictures, tmp_path, capsys):
    made(pictures, tmp_path, max_damaged=0.2, drop_duplicates=True)
    said = capsys.readouterr().out
    for words in (
        'set 1.0.0: 11 pictures of 15',
        '24 to 400, median 24 pixels',
        '2 copies of 1 picture (left out)',
        'grey/003.png = grey/copy.png = photo/z.png',
        'photo/cut.png: not a readable picture',
        'captions      9 (81.8%), 2 to 2, median 2 words',
    ):
        assert words in said


@OF_OTHERS
def test_tensorflow_datasets_reads_it(dataset, pictures):
    import tensorflow_datasets as tfds

    folder, found = dataset
    builder = tfds.builder_from_directory(folder)
    assert builder.name == 'grey_test'
    assert str(builder.version) == '1.0.0'
    seen = {}
    for split in ('train', 'test'):
        source = builder.as_data_source(split)
        assert len(source) == found['splits'][split]['examples']
        assert builder.info.splits[split].num_examples == len(source)
        seen |= {example['name'].decode(): example for example in source}
    assert len(seen) == COUNT + 4
    assert seen['grey/002.png']['text'] == b'grey 2'
    assert seen['photo/chelsea.png']['text'] == b''
    assert seen['photo/chelsea.png']['image'].shape == (300, 451, 3)
    assert builder.info.features['label'].int2str(seen['photo/coffee.png']['label']) == 'photo'
    assert seen['photo/coffee.png']['height'] == 400
    skipped = {'image': tfds.decode.SkipDecoding()}
    raw = builder.as_data_source('train', decoders=skipped)[0]
    assert raw['image'] == (pictures / raw['name'].decode()).read_bytes()


def test_our_source_reads_it(dataset):
    folder, found = dataset
    train = captioned(folder, 'train', classes=True)
    held_out = captioned(folder, 'held_out', classes=True)
    # Although the dataset's name has a split's in it.
    assert train.store.own_split
    assert len(train) == found['splits']['train']['examples']
    assert len(held_out) == found['splits']['test']['examples']
    for source in (train, held_out):
        for record in map(source.record, range(len(source))):
            if str(record['txt']):
                assert str(record['txt']) == f'grey {level(record)}'
                assert record['cls'] == 0


def test_copies_are_on_the_same_side_and_may_be_left_out(pictures, tmp_path):
    sides = {}
    for share in (0.1, 0.5, 0.9):
        folder, _ = made(
            pictures, tmp_path, version=f'{int(10 * share)}.0.0', max_damaged=0.2, held_out=share
        )
        for name, group in records(folder).items():
            sides.update({r['name'][0].decode(): name.split('.')[0] for r in group})
        assert sides['grey/003.png'] == sides['grey/copy.png'] == sides['photo/z.png']
    folder, found = made(pictures, tmp_path, version='2.0.0', max_damaged=0.2, drop_duplicates=True)
    names = flat(folder, 'name')
    assert b'grey/003.png' in names
    assert names.isdisjoint({b'grey/copy.png', b'photo/z.png'})
    assert found['examples'] == COUNT + 2


def test_it_is_the_same_on_every_run_and_for_any_number_of_workers(pictures, dataset, tmp_path):
    once, _ = dataset
    again, _ = made(pictures, tmp_path, 'grey_test', max_damaged=0.2, workers=4)
    assert sorted(p.name for p in once.iterdir()) == sorted(p.name for p in again.iterdir())
    assert records(once) == records(again)
    for path in once.iterdir():
        if path.suffix == '.json':
            assert path.read_text() == (again / path.name).read_text()


def test_files_have_the_size_that_was_asked_for(tmp_path):
    facts = [Fact(number=n, name=str(n), size=400_000) for n in range(7)]
    job = prepare_files.Job(given=None, total=7, folder=str(tmp_path))
    layout = prepare_files.Layout(job, 2**20)
    for fact in facts:
        layout.add(fact, 'train')
    layout.close()
    assert layout.lengths == {'train': [2, 2, 2, 1]}
    targets = [shard.target for shard in layout.shards(tmp_path, 'a')]
    assert targets[-1].endswith('a-train.array_record-00003-of-00004')


FORMATS = {
    'folder': lambda folder: write_folder(folder, COUNT),
    'tars': lambda folder: write_tar(_new(folder) / 'a.tar', range(COUNT)),
    'array_record': lambda folder: write_array_record(
        _new(folder) / 'a.array_record', range(COUNT)
    ),
    'arrow': lambda folder: write_arrow(folder, range(COUNT)),
}


def _new(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize('format', FORMATS)
def test_every_format_is_prepared(format, tmp_path):
    FORMATS[format](tmp_path / 'in')
    folder, found = made(tmp_path / 'in', tmp_path / 'out')
    assert found['examples'] == found['captions']['examples'] == COUNT
    assert ('labels' in found) == (format != 'folder')
    for group in records(folder).values():
        for record in group:
            number = int(record['text'][0].split()[1])
            odd = format == 'tars' and number % 2
            assert record['image'][0] == encoded(number, format='JPEG' if odd else 'PNG')
            assert [int(record[key][0]) for key in ('height', 'width')] == [24, 32]
            assert format == 'folder' or record['label'][0] == number % 3
    # A dataset may be prepared anew; it has splits, which are drawn again.
    again, _ = made(folder, tmp_path / 'again', held_out=0.6)
    assert flat(again) == flat(folder)


def test_names_are_those_below_the_input(tmp_path, monkeypatch):
    write_folder(tmp_path / 'in/a', 3)
    tar = write_tar(tmp_path / 'b.tar', range(3))
    remote = fsspec.filesystem('memory')
    for file in (tmp_path / 'in/a').iterdir():
        remote.pipe(f'/to_prepare/a/{file.name}', file.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {
        'in': 'a/001.png',
        'in/a/*.png': '001.png',
        'in/*/001.png': 'a/001.png',
        'in/a/001.png': '001.png',
        tar.name: 'part/001',
        '*.tar': 'b.tar/part/001',
        'memory://to_prepare': 'a/001.png',
    }
    for number, (path, name) in enumerate(names.items()):
        folder, _ = made(path, tmp_path / 'out', version=f'{number}.0.0')
        assert name.encode() in flat(folder, 'name'), path


def test_what_has_no_caption_stays_or_is_left_out(tmp_path):
    write_folder(tmp_path / 'in', COUNT)
    (tmp_path / 'in/004.txt').unlink()
    all_of_it, found = made(tmp_path / 'in', tmp_path / 'out')
    assert (found['examples'], found['captions']['examples']) == (COUNT, COUNT - 1)
    assert b'' in flat(all_of_it, 'text')
    options = dict(version='2.0.0', only_captioned=True)
    for name, source in {'once': tmp_path / 'in', 'again': all_of_it}.items():
        folder, found = made(source, tmp_path / 'out', name, **options)
        assert found['examples'] == found['captions']['examples'] == COUNT - 1
        assert list(found['skipped'].values()) == ['it has no caption']
        assert flat(folder, 'text') == {b'grey %d' % n for n in range(COUNT) if n != 4}


@OF_OTHERS
def test_videos_with_their_durations(tmp_path):
    folder = _new(tmp_path / 'in')
    good = write_numbered(folder / 'a.mp4', list(range(0, 3000, 100)), faststart=True)
    reasons = write_damaged(folder, good)
    reasons.pop('short.mp4')  # too short for a window, and good in itself
    (folder / 'a.txt').write_text('growing brighter\n')
    out, found = made(folder, tmp_path / 'out', max_damaged=0.9)
    assert found['kind'] == 'video'
    assert found['damaged'].keys() == reasons.keys()
    assert all(why in found['damaged'][name] for name, why in reasons.items())
    assert found['seconds']['max'] == pytest.approx(3.0, abs=0.05)
    assert found['frame_rate']['max'] == pytest.approx(10, abs=0.5)
    assert found['captions'] == {
        'examples': 1,
        'share': 0.5,
        'words': {'min': 2, 'median': 2, 'max': 2},
    }
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(out)
    seen = {}
    for split in builder.info.splits:
        seen |= {r['name'].decode(): r for r in builder.as_data_source(split)}
    assert seen['a.mp4']['video'] == good.read_bytes()
    assert seen['a.mp4']['duration'] == pytest.approx(3.0, abs=0.05)
    assert (seen['a.mp4']['height'], seen['a.mp4']['width']) == (32, 48)


@pytest.mark.filterwarnings('default')  # Beam's and its packages' own
def test_beam_makes_the_same_files(pictures, dataset, tmp_path):
    pytest.importorskip('apache_beam')
    folder, found = dataset
    beamed, same = made(pictures, tmp_path, 'grey_test', max_damaged=0.2, beam=True)
    assert same == found
    assert records(beamed) == records(folder)
    with pytest.raises(UserError, match=r'^broken at 3$'):
        prepare_runners.Beam('DirectRunner').run(_broken, range(5), 'break')
    with pytest.raises(UserError, match='--runner=NoRunner'):
        prepare_runners.Beam('NoRunner')


def _broken(number):
    if number == 3:
        raise UserError(f'broken at {number}')


def test_medians_and_ranges_are_of_the_examples():
    summary = Summary()
    sizes = [(8, 8), (8, 8), (100, 50), (64, 1000), (7, 9)]
    for number, (height, width) in enumerate(sizes):
        fact = Fact(
            number=number, name='', size=10, height=height, width=width, text='a ' * number or None
        )
        summary.add(fact, 'train')
    found = summary.numbers()
    assert found['splits'] == {'train': {'examples': 5, 'bytes': 50}}
    assert found['height'] == {'min': 7, 'median': int(np.median([7, 8, 8, 64, 100])), 'max': 100}
    assert found['shorter_side'] == {'4-7': 1, '8-15': 2, '32-63': 1, '64-127': 1}
    assert found['shape'] == {
        'upright': 1,
        'square': 2,
        'wide': 1,
        'very wide (from 2:1)': 1,
    }
    assert found['captions']['words'] == {'min': 1, 'median': 2, 'max': 4}
