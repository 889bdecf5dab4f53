"""Videos in folders, tars and behind addresses: the same windows, wherever they are."""

import fsspec
import numpy as np
import pytest
from video_files import write_clip_tar, write_damaged, write_numbered

from sgm_jax.data import clips, files, pipeline, places
from sgm_jax.errors import UserError

NODE = dict(name='video_clips', num_frames=4, height=16, width=24, windows_per_video=3)


def source(path, **options):
    return pipeline.make_source({**NODE, 'path': str(path), **options})


def records(found):
    return [found.record(i, np.random.default_rng(i)) for i in range(len(found))]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Clips in three containers, of which one has its index at the end."""
    root = tmp_path_factory.mktemp('footage') / 'set'
    root.mkdir()
    for number, name in enumerate(('a.mp4', 'b.webm', 'c.mkv')):
        times = [100 * i for i in range(24 + number)]
        write_numbered(root / name, times, faststart=number == 1, codec=CODECS.get(name[2:]))
        (root / name).with_suffix('.txt').write_text(f'clip {name[0]}\n')
    return root


CODECS = {'webm': 'libvpx-vp9'}


def by_key(folder):
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix != '.txt'}


@pytest.mark.parametrize('suffix', ['txt', 'json'])
def test_tars_give_what_their_files_give(folder, tmp_path, suffix):
    caption = 'clip {}' if suffix == 'txt' else '{"caption": "clip {}"}'
    write_clip_tar(tmp_path / 'a.tar', by_key(folder), **{suffix: caption})
    plain, tarred = (source(path, text='sidecar') for path in (folder, tmp_path))
    assert [info.path for info in tarred.infos] == [f'{tmp_path}/a.tar/part/{k}' for k in 'abc']
    assert all(info.part is None for info in plain.infos)
    assert_same(records(plain), records(tarred))
    assert [str(plain.record(i)['txt']) for i in range(3)] == ['clip a', 'clip b', 'clip c']
    assert 'txt' not in source(folder).record(0)
    assert str(source(tmp_path, text='name').record(1)['txt']) == 'b'


def test_addresses_give_what_paths_give(folder, tmp_path):
    fs = fsspec.filesystem('memory')
    for file in folder.iterdir():
        fs.pipe(f'/footage/{file.name}', file.read_bytes())
    tar = write_clip_tar(tmp_path / 'a.tar', by_key(folder), txt='clip {}')
    fs.pipe('/footage_tars/a.tar', tar.read_bytes())
    expected = records(source(folder, text='sidecar'))
    for path in ('memory://footage', 'memory://footage_tars', 'memory://footage_tars/*.tar'):
        assert_same(expected, records(source(path, text='sidecar')))
    with pytest.raises(UserError, match='memory://gone: no files there'):
        source('memory://gone')


def test_frames_of_a_video_anywhere_are_pictures_with_its_words(folder, tmp_path):
    write_clip_tar(tmp_path / 'a.tar', by_key(folder), txt='clip {}')
    node = {'name': 'video_frames', 'path': str(tmp_path), 'height': 8, 'width': 8}
    record = pipeline.make_source({**node, 'text': 'sidecar'}).record(2)
    assert record['jpg'].shape == (8, 8, 3)
    assert str(record['txt']) == 'clip c'
    assert pipeline.make_source(node).record(0).keys() == {'jpg'}


def test_a_window_reads_its_part_of_a_real_clip(monkeypatch):
    street = files.demo_clips()[1]
    whole = street.read_bytes()
    fs = fsspec.filesystem('memory')
    fs.pipe('/street/bikes.mp4', whole)
    monkeypatch.setattr(places, '_REMOTE_BLOCK', 2**14)
    fetched = []
    read = places.read

    def counted(path, offset=0, size=None):
        data = read(path, offset, size)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(places, 'read', counted)
    part = places.Part('memory://street/bikes.mp4', 0, len(whole))
    info = clips.read_info('memory://street/bikes.mp4', part)
    assert sum(fetched) < len(whole) / 4
    fetched.clear()
    local = clips.read_info(street)
    for begin in (0.0, 6.0):
        times = begin + np.arange(4) / 12
        ours = clips.read_frames(info, times, size=(34, 80))
        np.testing.assert_array_equal(ours, clips.read_frames(local, times, size=(34, 80)))
        assert 0 < sum(fetched) < len(whole) / 3
        fetched.clear()


def test_a_part_is_a_file_of_its_own(tmp_path):
    (tmp_path / 'x').write_bytes(bytes(range(200)))
    with places.Part(str(tmp_path / 'x'), 50, 100).open() as file:
        assert file.read(3) == bytes([50, 51, 52])
        assert file.seek(-2, 2) == 98
        assert file.read() == bytes([148, 149])
        assert file.seek(500) == 500
        assert file.read(4) == b''
        file.seek(0)
        assert file.read() == bytes(range(50, 150))
        with pytest.raises(OSError, match='seek'):
            file.seek(-101, 2)


def test_damaged_members_and_cut_tars_are_counted_and_named(folder, tmp_path, caplog):
    bad = tmp_path / 'bad'
    bad.mkdir()
    good = write_numbered(bad / 'good.mp4', [100 * i for i in range(30)], faststart=True)
    reasons = write_damaged(bad, good)
    tars = tmp_path / 'tars'
    tars.mkdir()
    tar = write_clip_tar(tars / 'a.tar', by_key(bad))
    found = source(tars, max_damaged=1, num_frames=8)
    assert [info.path for info in found.infos] == [f'{tar}/part/good']
    for name, reason in reasons.items():
        place = f'{tar}/part/{name.removesuffix(".mp4")}'
        assert reason in found.skipped[place]
        assert place in caplog.text
    with pytest.raises(UserError, match='5 of 7 videos cannot be used'):
        source(tars, num_frames=8)
    # Cut inside the second video: what is before is used.
    write_clip_tar(tar, by_key(folder))
    whole = tar.read_bytes()
    places_of = sorted(found.offset for found in _parts(tars))
    tar.write_bytes(whole[: places_of[1] + 600])
    found = source(tars)
    assert [info.path for info in found.infos] == [f'{tar}/part/a']
    assert 'cut short' in found.damage.names[str(tar)]
    assert '1 files skipped' in found.describe()


def _parts(folder):
    return [info.part for info in source(folder).infos]


def test_a_tar_that_shrinks_under_the_run_is_damaged(folder, tmp_path):
    tar = write_clip_tar(tmp_path / 'a.tar', by_key(folder))
    found = source(tmp_path, max_damaged=1)
    with tar.open('r+b') as file:
        file.truncate(found.infos[1].part.offset)
    seen = records(found)
    assert len(seen) == 9
    assert set(found.damage.names) == {f'{tar}/part/b', f'{tar}/part/c'}


def test_words_that_are_missing_or_broken_are_named(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / 'a.txt').unlink()
    (tmp_path / 'b.txt').write_bytes('größer'.encode('latin-1'))
    found = source(tmp_path, text='sidecar')
    assert found.skipped == {f'{tmp_path}/a.mp4': 'it has no caption (a.txt)'}
    assert {str(record['txt']) for record in records(found)} == {'clip c'}
    assert 'not UTF-8' in found.damage.names[f'{tmp_path}/b.webm']
    with pytest.raises(UserError, match=r"text is 'txt'; choose one of: sidecar"):
        source(tmp_path, text='txt')


def test_videos_beside_tars_are_preferred_and_it_is_said(folder, tmp_path, caplog):
    write_clip_tar(tmp_path / 'old.tar', by_key(folder))
    write_numbered(tmp_path / 'a.mp4', [100 * i for i in range(20)])
    assert [info.path for info in source(tmp_path).infos] == [f'{tmp_path}/a.mp4']
    assert 'the tars are left out' in caplog.text
    assert len(source(f'{tmp_path}/*.tar').infos) == 3


def test_a_large_folder_is_looked_at_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('SGM_JAX_CACHE', str(tmp_path / 'cache'))
    clip = (folder / 'a.mp4').read_bytes()
    many = tmp_path / 'many'
    many.mkdir()
    for number in range(40):
        (many / f'{number:02}.mp4').write_bytes(clip)
    (many / '07.mp4').write_bytes(b'')
    looked = []
    read = clips.read_info
    monkeypatch.setattr(clips, 'read_info', lambda *where: looked.append(where[0]) or read(*where))
    first = source(many)
    assert len(looked) == 40
    looked.clear()
    again = source(many, split='held_out')
    # What could not be used may have been mended.
    assert looked == [str(many / '07.mp4')]
    assert again.infos == first.infos
    assert len(first.infos) == 39
    looked.clear()
    write_numbered(many / '03.mp4', [100 * i for i in range(25)])
    write_numbered(many / '07.mp4', [100 * i for i in range(26)])
    (many / '40.mp4').write_bytes(clip)
    (many / '05.mp4').unlink()
    changed = source(many)
    assert looked == [str(many / name) for name in ('03.mp4', '07.mp4', '40.mp4')]
    durations = [round(info.duration, 1) for info in changed.infos]
    assert durations == [2.4] * 3 + [2.5] + [2.4] * 2 + [2.6] + [2.4] * 33
