"""Damaged input: skipped with a count and a name, or the end of the run; the same stand-ins every time."""

import logging

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
from PIL import Image
from video_files import write_numbered, write_sound

from sgm_jax.data import pipeline
from sgm_jax.errors import UserError

SIZE = dict(height=8, width=8)


def source(path, split='train', **options):
    node = {'name': 'captioned_pictures', 'path': str(path), **SIZE, 'held_out_fraction': 0.1}
    return pipeline.make_source({**node, **options}, split=split)


def levels(found):
    return [level(found.record(i)) for i in range(len(found))]


@pytest.fixture
def folder(tmp_path):
    """Forty pictures, four of them damaged, and one whose suffix is wrong."""
    folder = write_folder(tmp_path / 'set', 40)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / '001.jpg')
    whole = (folder / '001.jpg').read_bytes()
    (folder / '001.png').unlink()
    (folder / '001.jpg').write_bytes(whole[: len(whole) // 2])  # the header is there
    (folder / '002.png').write_bytes(b'')
    (folder / '003.txt').write_bytes('grau, größer'.encode('latin-1'))
    (folder / '004.png').write_text('not a picture')
    (folder / '005.png').write_bytes(encoded(5, format='JPEG'))  # no damage: the content counts
    return folder


DAMAGED = {
    '001.jpg': 'not a readable picture',
    '002.png': 'the file is empty',
    '003.png': 'not UTF-8 text',
    '004.png': 'not a readable picture',
}


def test_damaged_pictures_are_skipped_counted_and_named(folder, caplog):
    found = source(folder, max_damaged=0.2)
    with caplog.at_level(logging.WARNING, 'sgm_jax'):
        seen = levels(found) + levels(found)
    names = {name.rsplit('/', 1)[1]: reason for name, reason in found.damage.names.items()}
    assert names.keys() == DAMAGED.keys()
    for name, reason in DAMAGED.items():
        assert reason in names[name]
        assert caplog.text.count(f'damaged picture: {folder / name}:') == 1
    assert '4 damaged pictures skipped; the first:' in found.describe()
    # The next good one stands in, and the one with a wrong suffix is good.
    assert seen[:6] == [5, 5, 5, 5, 5, 6]
    assert seen[:36] == seen[36:]


def test_more_than_the_share_ends_the_run(folder):
    found = source(folder, max_damaged=0.08)  # 3 of 40
    iterator = pipeline.make_iterator(found, batch_size=36, seed=0, num_threads=2)
    words = r'data: 4 of 40 pictures cannot be used, more than data\.max_damaged=0\.08 allows'
    with pytest.raises(UserError, match=words) as error:
        next(iterator)
    assert str(folder) in str(error.value)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='1 of 40 pictures cannot be used'):
        levels(source(folder, max_damaged=0))


def test_stand_ins_are_the_same_for_any_number_of_threads(folder):
    options = dict(batch_size=9, seed=5)
    runs = [
        [
            next(iterator)
            for iterator in [
                pipeline.make_iterator(
                    source(folder, max_damaged=0.2, flip=True), num_threads=threads, **options
                )
            ]
            for _ in range(8)
        ]
        for threads in (0, 2, 8)
    ]
    for batches in zip(*runs, strict=True):
        for other in batches[1:]:
            for key, value in batches[0].items():
                np.testing.assert_array_equal(value, other[key])


def test_sizes_in_headers_name_what_has_none(folder):
    found = source(folder, max_damaged=0.2, min_size=20)
    assert {name.rsplit('/', 1)[1] for name in found.damage.names} == {'002.png', '004.png'}
    assert len(found) == 34


def test_twenty_damaged_ones_in_a_row_end_the_run(tmp_path):
    write_folder(tmp_path, 30)
    for number in range(2, 28):
        (tmp_path / f'{number:03}.png').write_bytes(b'no')
    with pytest.raises(
        UserError, match=r'20 pictures in a row could not be read, the last .*\.png'
    ):
        source(tmp_path, max_damaged=1).record(1)


def test_a_tar_cut_in_the_middle_gives_what_is_before(tmp_path, caplog):
    tar = write_tar(tmp_path / 'a.tar', range(10))
    whole = tar.read_bytes()
    # An example takes eight blocks: names and contents in turn. Cut within a member, and between two.
    for cut, at_least in ((len(whole) // 2 + 100, 3), (512 * 30, 4)):
        tar.write_bytes(whole[:cut])
        found = source(tar)
        assert at_least <= len(found) < 8
        assert 'cut short' in found.damage.names[str(tar)]
        assert '1 damaged pictures skipped' in found.describe()
        assert levels(found)[:2] == [1, 2]
    assert str(tar) in caplog.text
    (tmp_path / 'b.tar').write_bytes(b'')
    (tmp_path / 'c.tar').write_text('no tar')
    reasons = source(tmp_path, max_damaged=0.9).damage.names
    assert reasons[str(tmp_path / 'b.tar')] == 'the file is empty'
    assert 'not an uncompressed tar' in reasons[str(tmp_path / 'c.tar')]


def test_a_tar_that_shrinks_under_the_run_is_damaged(tmp_path):
    tar = write_tar(tmp_path / 'a.tar', range(10))
    found = source(tar, max_damaged=0.5)
    with tar.open('r+b') as file:
        file.truncate(tar.stat().st_size // 2)
    seen = levels(found)
    assert set(seen) <= set(range(10))
    assert 'inside a member' in found.damage.names[str(tar)]


def test_broken_record_files_are_named(tmp_path):
    folder = tmp_path / 'records'
    good = write_array_record(folder / 'a.array_record', range(6))
    (folder / 'b.array_record').write_bytes(good.read_bytes()[:5000])
    (folder / 'c.array_record').write_bytes(b'')
    found = source(folder, max_damaged=0.5)
    assert {name.rsplit('/', 1)[1] for name in found.damage.names} == {
        'b.array_record',
        'c.array_record',
    }
    assert levels(found) == [1, 2, 3, 4, 5]
    arrow = write_arrow(tmp_path / 'arrow', range(6))
    second = arrow / 'data-00001-of-00002.arrow'
    second.write_bytes(second.read_bytes()[:100])
    found = source(arrow, max_damaged=0.5)
    assert [name.rsplit('/', 1)[1] for name in found.damage.names] == [second.name]
    assert levels(found) == [1, 2]


@pytest.fixture
def videos(tmp_path):
    """Two good clips, one without pictures, one that is empty, one that is short."""
    for name in ('a.mp4', 'b.mp4'):
        write_numbered(tmp_path / name, [100 * i for i in range(20)])
    write_sound(tmp_path / 'sound.mp4')
    (tmp_path / 'empty.mp4').write_bytes(b'')
    write_numbered(tmp_path / 'short.mp4', [0, 100, 200])
    return tmp_path


def test_damaged_videos_count_and_short_ones_are_named(videos, caplog):
    node = {'name': 'video_clips', 'path': str(videos), 'num_frames': 4, **SIZE}
    found = pipeline.make_source({**node, 'max_damaged': 0.5})
    assert {name.rsplit('/', 1)[1] for name in found.damage.names} == {'sound.mp4', 'empty.mp4'}
    assert {name.rsplit('/', 1)[1] for name in found.skipped} == {
        'sound.mp4',
        'empty.mp4',
        'short.mp4',
    }
    assert 'too short' in found.skipped[str(videos / 'short.mp4')]
    assert '3 files skipped' in found.describe()
    for name in ('sound.mp4', 'empty.mp4', 'short.mp4'):
        assert str(videos / name) in caplog.text
    with pytest.raises(UserError, match='2 of 5 videos cannot be used, more than'):
        pipeline.make_source(node)


def test_damaged_pictures_of_an_autoencoder_end_the_run(tmp_path):
    write_folder(tmp_path, 6)
    for number in (2, 3):
        (tmp_path / f'{number:03}.png').write_bytes(b'')
    node = {'name': 'pictures', 'path': str(tmp_path), **SIZE}
    with pytest.raises(UserError, match='2 of 6 pictures cannot be used'):
        pipeline.make_source(node)
    found = pipeline.make_source({**node, 'max_damaged': 0.4})
    assert len(found.paths) == 4
    assert '2 pictures skipped' in found.describe()
