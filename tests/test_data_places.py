"""Files that come and go, stores that fail, names that are no text: what is there is read all the same."""

import contextlib
import logging
import os

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from picture_files import encoded, level, write_folder, write_tar
from prepared import made, records

from sgm_jax.data import cached, pipeline, places, tars
from sgm_jax.errors import UserError

COUNT = 9


class HttpError(Exception):
    """As gcsfs has it: no OSError."""


class Far:
    """The memory of fsspec as a store far away, whose next reads fail with `errors`."""

    def __init__(self, patch):
        self.errors, self.reads = [], []
        fs, cat_file = fsspec.filesystem('memory'), MemoryFileSystem.cat_file

        def failing(fs, path, start=None, end=None, **options):
            self.reads.append((path, start, end))
            if self.errors:
                raise self.errors.pop(0)
            assert end is None or end > start, 'a store takes no empty range'
            return cat_file(fs, path, start=start, end=end, **options)

        patch.setattr(MemoryFileSystem, 'cat_file', failing)
        patch.setattr(places, '_PAUSES', (0.0, 0.0))
        self.put = fs.pipe


@pytest.fixture
def far(monkeypatch, tmp_path):
    monkeypatch.setenv('SGM_JAX_CACHE', str(tmp_path / 'cache'))
    return Far(monkeypatch)


def source(path, split='train', **options):
    node = {'name': 'captioned_pictures', 'path': str(path), 'height': 8, 'width': 8, **options}
    return pipeline.make_source({**node, 'held_out_fraction': 0.34}, split=split)


def levels(found):
    return [level(found.record(i)) for i in range(len(found))]


def put_tars(far, tmp_path, folder):
    """a.tar large enough for its index to be kept, b.tar not."""
    tar = write_tar(tmp_path / 'a.tar', range(COUNT))
    far.put(f'/{folder}/a.tar', tar.read_bytes() + bytes(2**24))
    far.put(f'/{folder}/b.tar', write_tar(tmp_path / 'b.tar', range(20, 23)).read_bytes())
    return f'memory://{folder}'


def test_a_read_that_fails_is_tried_again(far, caplog):
    far.put('/retried/x', b'0123456789')
    far.errors += [HttpError('503'), ValueError('a bad answer')]
    assert places.read('memory://retried/x', 2, 3) == b'234'
    assert caplog.text.count('trying again') == 2
    far.errors += [HttpError('503')] * 3
    with pytest.raises(OSError, match='memory://retried/x: 503'):
        places.read('memory://retried/x')
    far.reads.clear()
    with pytest.raises(FileNotFoundError):
        places.read('memory://retried/gone')
    assert len(far.reads) == 1
    assert places.read('memory://retried/x', 4, 0) == b''
    assert len(far.reads) == 1


def test_a_tar_that_could_not_be_read_once_is_read_the_next_time(far, tmp_path, caplog):
    path = put_tars(far, tmp_path, 'failing')
    first, second = places.entries(path)
    far.errors += [HttpError('503')] * 3  # as often as the first of its headers is asked for
    (_, reason), _ = [tars.index_tars([entry])[0] for entry in (first, second)]
    assert reason == f'cannot be read ({first.path}: 503)'
    # Kept by a version that kept this too.
    cached.store_json('tar', f'{first.path}|{first.size}|{first.stamp}', [{}, reason])
    assert levels(source(path)) == [1, 2, 4, 5, 7, 8, 21, 22]
    kept = cached.load_json('tar', f'{first.path}|{first.size}|{first.stamp}')
    assert len(kept[0]) == COUNT


def test_the_end_of_a_tar_that_cannot_be_read_is_no_cut(far, tmp_path, monkeypatch, caplog):
    path = put_tars(far, tmp_path, 'ending')
    read = places.read

    def failing(where, offset=0, size=None):
        if where.endswith('a.tar') and offset > 2**24 and size == 1024:
            raise OSError('the connection is lost')
        return read(where, offset, size)

    with monkeypatch.context() as patch:
        patch.setattr(places, 'read', failing)
        found = source(path, max_damaged=0.5)
    assert found.damage.names == {f'{path}/a.tar': 'cannot be read (the connection is lost)'}
    assert f'{path}/a.tar: cannot be read (the connection is lost)' in caplog.text
    assert levels(source(path)) == [1, 2, 4, 5, 7, 8, 21, 22]


def test_headers_far_away_come_many_at_once(far, tmp_path):
    path = put_tars(far, tmp_path, 'headers')
    ((groups, _),) = tars.index_tars(places.entries(f'{path}/b.tar'))
    assert len(groups) == 3
    # Nine members and the end.
    assert len(far.reads) <= 3


def test_what_only_looks_like_a_tar_is_none(tmp_path):
    write_tar(tmp_path / 'x.tar.d.tar', range(COUNT))
    (tmp_path / 'x.tar.d.tar.md5').write_text('0123')
    found = source(tmp_path, max_damaged=0)
    assert found.damage.names == {}
    assert len(found) == 6


def test_what_cannot_be_looked_at_is_left_out_of_a_folder(tmp_path, monkeypatch, caplog):
    folder = write_folder(tmp_path / 'set', COUNT)
    (folder / 'lost+found').mkdir()
    (folder / 'round.png').symlink_to('round.png')
    (folder / 'gone.png').write_bytes(encoded(3))
    (folder / 'nowhere.png').symlink_to('missing.png')
    scandir, asked = os.scandir, []

    def changing(place):
        if place.endswith('lost+found'):
            raise PermissionError(13, 'Permission denied', place)
        found = list(scandir(place))
        asked.append(place)
        if len(asked) == 2:  # whether it may be listed, and what is in it
            (folder / 'gone.png').unlink()
        return contextlib.nullcontext(found)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, 'sgm_jax'):
        patch.setattr(os, 'scandir', changing)
        listed = [entry.path for entry in places.entries(folder)]
    assert len(listed) == 2 * COUNT
    for name in ('lost+found: Permission denied', 'round.png: Too many', 'gone.png: No such file'):
        assert f'leaving out {folder}/{name}' in caplog.text
    caplog.clear()
    assert len(places.entries(f'{folder}/*.png')) == COUNT
    assert f'leaving out {folder}/nowhere.png: No such file' in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(os, 'scandir', changing)
        with pytest.raises(UserError, match=r'lost\+found: cannot be listed \(Permission denied\)'):
            places.entries(folder / 'lost+found')


def test_names_that_are_no_text_are_read_and_prepared(tmp_path, monkeypatch, capsys, caplog):
    # What is told of them is no text, either, and cannot be reported.
    caplog.set_level(logging.CRITICAL, logger='sgm_jax')
    monkeypatch.setenv('SGM_JAX_CACHE', str(tmp_path / 'cache'))
    folder = tmp_path / 'set'
    folder.mkdir()
    latin = os.fsdecode(b'gr\xf6n_1')
    for number in range(3):
        (folder / f'{latin}{number}.png').write_bytes(encoded(number))
    (folder / f'{latin}9.png').write_bytes(b'')
    found = source(folder, text='name', min_size=4, max_damaged=0.3)
    assert sorted(str(found.record(i)['txt']) for i in range(len(found))) == [
        r'gr\udcf6n 11',
        r'gr\udcf6n 12',
    ]
    assert pipeline.identity(found).startswith('2 pictures')
    # A folder of such a name, by which the index of its tars is kept.
    other = tmp_path / latin
    other.mkdir()
    with write_tar(other / 'a.tar', range(COUNT)).open('ab') as file:
        file.truncate(2**24 + 512)
    assert len(source(other)) == len(source(other)) == 6
    made_of, statistics = made(folder, tmp_path / 'out', max_damaged=0.3)
    assert [name.encode('utf-8', 'surrogateescape') for name in statistics['damaged']] == [
        b'gr\xf6n_19.png'
    ]
    names = [record['name'] for part in records(made_of).values() for record in part]
    assert sorted(names) == [[rf'gr\udcf6n_1{n}.png'.encode()] for n in range(3)]
    assert r'gr\udcf6n_19.png: the file is empty' in capsys.readouterr().out


def test_hosts_can_tell_that_their_lists_differ(tmp_path):
    def lists(folder):
        plain = {'name': 'pictures', 'path': str(folder), 'height': 8, 'width': 8}
        captioned = {**plain, 'name': 'captioned_pictures', 'text': 'none'}
        mixture = {'name': 'mixture', 'sources': (captioned, captioned)}
        nodes = (plain, captioned, {**captioned, 'min_size': 4}, mixture)
        return [pipeline.identity(node) for node in nodes]

    folder = write_folder(tmp_path / 'set', COUNT)
    before = lists(folder)
    assert lists(folder) == before
    (folder / '005.png').rename(folder / '0055.png')  # as many as before
    assert all(one != other for one, other in zip(before, lists(folder), strict=True))
    (folder / '0055.png').rename(folder / '005.png')
    assert lists(folder) == before
    # Another size is another shape of a batch.
    (folder / '005.png').write_bytes(encoded(5, size=(32, 24)))
    assert lists(folder)[0] != before[0]
    assert lists(folder)[2] != before[2]


def test_what_has_no_list_has_a_length(monkeypatch, tmp_path):
    node = {'name': 'synthetic_video', 'num_frames': 1, 'height': 8, 'width': 8}
    lengths = [pipeline.identity({**node, 'length': length}) for length in (16, 17)]
    assert lengths == ['16 records', '17 records']
    # The same below two homes is the same.
    found = []
    for home in ('one', 'two'):
        monkeypatch.setenv('HOME', str(tmp_path / home))
        write_folder(tmp_path / home / 'set', 3)
        found.append(pipeline.identity(source('~/set')))
    assert found[0] == found[1]
