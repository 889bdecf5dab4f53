"""Pictures and videos in and out of files."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sgm_jax.data import clips, files
from sgm_jax.errors import UserError
from sgm_jax.sampling import media

RED, GREEN, BLUE, BROWN = (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40)


def _quarters(height=64, width=96):
    """Red, blue above green, brown."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, BLUE
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = GREEN, BROWN
    return image


def _moving(count=6, height=64, width=96):
    """The quarters, with a white square that walks to the right."""
    frames = np.repeat(_quarters(height, width)[None], count, axis=0)
    for index in range(count):
        frames[index, 8:24, 4 + 12 * index : 20 + 12 * index] = 255
    return frames


# Reading pictures


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned 90 degrees clockwise
    Image.fromarray(_quarters()).save(tmp_path / 'a.png', exif=exif)
    image = media.read_image(tmp_path / 'a.png')
    assert image.shape == (96, 64, 3)
    corners = [image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]]
    np.testing.assert_array_equal(corners, [GREEN, RED, BROWN, BLUE])


def test_transparency_is_white(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 1] = (255, 0, 0, 255)
    pixels[1, 0] = (0, 0, 0, 51)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    image = media.read_image(tmp_path / 'a.png')
    np.testing.assert_array_equal(image[0], [(255, 255, 255), RED])
    np.testing.assert_allclose(image[1, 0], 204, atol=1)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), 'L').convert('P')
    palette.info['transparency'] = 0
    palette.save(tmp_path / 'p.gif', transparency=0)
    assert media.read_image(tmp_path / 'p.gif')[0, 0].tolist() == [255, 255, 255]


def test_grey_cmyk_and_sixteen_bits(tmp_path):
    Image.fromarray(np.array([[0, 100]], np.uint8)).save(tmp_path / 'l.png')
    np.testing.assert_array_equal(media.read_image(tmp_path / 'l.png'), [[[0] * 3, [100] * 3]])
    deep = np.array([[0, 100 * 257, 65535]], np.uint16)
    for name in ('d.png', 'd.tif'):
        Image.fromarray(deep).save(tmp_path / name)
        image = media.read_image(tmp_path / name)
        np.testing.assert_array_equal(image, [[[0] * 3, [100] * 3, [255] * 3]])
    Image.new('CMYK', (8, 8), (0, 255, 255, 0)).save(tmp_path / 'c.jpg', quality=100)
    np.testing.assert_allclose(media.read_image(tmp_path / 'c.jpg')[0, 0], RED, atol=4)


def test_resize_crop_is_centred_and_antialiased(tmp_path):
    image = media.resize_crop(_quarters(64, 96), (32, 32))
    assert image.shape == (32, 32, 3)
    corners = [image[2, 2], image[2, -2], image[-2, 2], image[-2, -2]]
    np.testing.assert_allclose(corners, [RED, BLUE, GREEN, BROWN], atol=2)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = media.resize_crop(stripes, (16, 16))[2:-2, 2:-2]
    np.testing.assert_allclose(inner, 127, atol=12)
    Image.fromarray(_quarters(40, 40)).save(tmp_path / 'a.png')
    assert media.read_image(tmp_path / 'a.png', (64, 128)).shape == (64, 128, 3)


@pytest.mark.parametrize('shape', [(1600, 900), (3456, 5184), (1080, 1920)])
@pytest.mark.parametrize('size', [(832, 1216), (768, 1344), (448, 832)])
def test_pictures_of_any_shape_are_cropped(shape, size):
    image = np.full((*shape, 3), BROWN, np.uint8)
    cropped = media.resize_crop(image, size)
    assert cropped.shape == (*size, 3)
    np.testing.assert_array_equal(cropped[[0, -1]], np.broadcast_to(BROWN, (2, size[1], 3)))


@pytest.mark.parametrize('damage', ['missing', 'empty', 'text', 'cut'])
def test_unreadable_pictures_are_one_line(tmp_path, damage):
    path = tmp_path / f'{damage}.jpg'
    if damage == 'cut':
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:1500])
    elif damage != 'missing':
        path.write_bytes(b'' if damage == 'empty' else b'hello')
    with pytest.raises(UserError, match=rf'{damage}\.jpg') as error:
        media.read_image(path)
    assert '\n' not in str(error.value)


# Videos


@pytest.mark.parametrize(('suffix', 'slack'), [('.mp4', 6), ('.gif', 2), ('.webp', 8)])
@pytest.mark.parametrize('fps', [7, 24])
def test_videos_come_back(tmp_path, suffix, slack, fps):
    frames = _moving()
    media.write_video(tmp_path / f'new/folder/a{suffix}', frames, fps)
    found, rate = media.read_video(tmp_path / f'new/folder/a{suffix}')
    assert found.shape == frames.shape
    assert rate == pytest.approx(fps, rel=0.02)
    # Away from edges, where 4:2:0 mixes the colours.
    for y, x in ((56, 4), (4, 92), (56, 92), (28, 4)):
        np.testing.assert_allclose(found[:, y, x].astype(int), frames[:, y, x], atol=slack)
    for index in range(6):
        assert found[index, 16, 12 + 12 * index].min() > 240
    assert os.listdir(tmp_path / 'new/folder') == [f'a{suffix}']


def test_odd_sizes_are_padded_by_the_edge(tmp_path):
    frames = _moving(3, 65, 97)
    media.write_video(tmp_path / 'a.mp4', frames, 7)
    found, _ = media.read_video(tmp_path / 'a.mp4')
    assert found.shape == (3, 66, 98, 3)
    np.testing.assert_allclose(found[0, -1, -1], BROWN, atol=6)


def test_mp4_says_its_colours_and_players_can_play_it(tmp_path):
    import av

    media.write_video(tmp_path / 'a.mp4', _moving(), 7)
    with av.open(str(tmp_path / 'a.mp4')) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert (stream.codec_context.name, frame.format.name) == ('h264', 'yuv420p')
        # BT.709, limited range: ITU-T H.273.
        tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
        assert tags == (1, 1, 1, 1)


def test_real_clip_survives_each_format(tmp_path):
    info = clips.read_info(files.demo_clips()[0])
    frames = clips.read_frames(info, [1.0, 1.2, 1.4, 1.6], size=(144, 256))
    for suffix, error in (('.mp4', 3), ('.gif', 9), ('.webp', 4)):
        media.write_video(tmp_path / f'a{suffix}', frames, 5)
        found, _ = media.read_video(tmp_path / f'a{suffix}')
        assert np.abs(found.astype(int) - frames).mean() < error


def test_png_is_a_strip(tmp_path):
    frames = _moving(3)
    media.write_video(tmp_path / 'a.png', frames, 7)
    image = media.read_image(tmp_path / 'a.png')
    assert image.shape == (64, 3 * 96, 3)
    for index in range(3):
        np.testing.assert_array_equal(image[:, 96 * index : 96 * (index + 1)], frames[index])


@pytest.mark.parametrize('name', ['a.avi', 'a'])
def test_unknown_suffix_lists_the_known(tmp_path, name):
    with pytest.raises(UserError, match=r'\.mp4, \.gif, \.webp, \.png'):
        media.write_video(tmp_path / name, _moving(), 7)
    with pytest.raises(UserError, match=r'\.png, \.jpg'):
        media.write_image(tmp_path / name, _quarters())


def test_unreadable_video_is_one_line(tmp_path):
    (tmp_path / 'a.mp4').write_text('hello')
    (tmp_path / 'a.gif').write_text('hello')
    for name in ('a.mp4', 'a.gif', 'gone.mp4'):
        with pytest.raises(UserError, match=name) as error:
            media.read_video(tmp_path / name)
        assert '\n' not in str(error.value)


def test_frames_without_time_are_ten_a_second(tmp_path):
    images = [Image.fromarray(frame) for frame in _moving(3)]
    for name in ('a.gif', 'a.webp'):
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=0)
        frames, fps = media.read_video(tmp_path / name)
        assert (len(frames), fps) == (3, 10)


def test_what_a_format_cannot_hold_is_one_line(tmp_path):
    for name, width in (('a.webp', 16384), ('a.jpg', 65501)):
        with pytest.raises(
            UserError, match=rf'{name}: cannot be written as \{name[1:]} \('
        ) as error:
            media.write_image(tmp_path / name, np.zeros((1, width, 3), np.uint8))
        assert '\n' not in str(error.value)
    for name in ('a.gif', 'a.webp'):
        with pytest.raises(UserError, match=f'{name}: cannot be written as'):
            media.write_video(tmp_path / name, np.zeros((2, 1, 65536, 3), np.uint8), 7)
    assert not os.listdir(tmp_path)


def test_a_grid_is_as_small_as_any_format_holds(tmp_path):
    assert media.cell_of(15, (1024, 1024)) == (1024, 1024)
    height, width = media.cell_of(1000, (1024, 768))
    tile = media.smaller(_quarters(1024, 768), (height, width))
    assert tile[2, 2].tolist() == list(RED)
    assert media.smaller(tile[..., :1], (8, 6)).shape == (8, 6, 1)


@pytest.mark.parametrize(
    ('count', 'size'), [(1000, (1024, 768)), (512, (1024, 512)), (343, (768, 1344))]
)
def test_a_grid_of_many_is_no_larger_than_any_format_holds(count, size):
    height, width = media.cell_of(count, size)
    # A pixel for each picture, in as many columns.
    rows, columns, _ = media.grid(
        np.zeros((count, 1, 1, 1), np.uint8), media.columns_of(count, size)
    ).shape
    assert 16000 < max(rows * height, columns * width) <= 16383


@pytest.mark.parametrize('name', ['file/a.png', 'file/deep/a.png', 'folder'])
def test_places_where_nothing_can_be_written(tmp_path, name):
    (tmp_path / 'file').write_text('in the way')
    (tmp_path / 'folder').mkdir()
    media.check_place(tmp_path / 'new' / 'folder' / 'a.png')
    with pytest.raises(
        UserError, match=r'choose another path|is a folder; give the name of a file'
    ):
        media.check_place(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder']


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match=r'a\.png: cannot be written'):
        media.write_image(tmp_path / 'file' / 'a.png', _quarters())


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    # A process that may write no more than 4 kB to a file, as on a disk that is nearly full.
    program = f"""
import resource, sys
import numpy as np
from sgm_jax.errors import UserError
from sgm_jax.sampling import media
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
noise = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
for suffix in ('.mp4', '.gif', '.png'):
    try:
        media.write_video({str(tmp_path)!r} + '/a' + suffix, noise, 7)
    except UserError as error:
        print(error)
"""
    (tmp_path / 'a.mp4').write_bytes(b'the old file')
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, cwd=os.getcwd(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all('cannot be written' in line for line in lines)
    assert os.listdir(tmp_path) == ['a.mp4']
    assert (tmp_path / 'a.mp4').read_bytes() == b'the old file'


def test_write_image(tmp_path):
    for name, slack in (('a.png', 0), ('b/a.jpg', 4), ('a.webp', 8)):
        media.write_image(tmp_path / name, _quarters())
        image = media.read_image(tmp_path / name)
        np.testing.assert_allclose(image[8, 8].astype(int), RED, atol=slack)
        np.testing.assert_allclose(image[-8, -8].astype(int), BROWN, atol=slack)


# Arrangements


def test_strip_and_grid():
    tiles = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert media.strip(tiles)[0, :, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    table = media.grid(tiles)
    assert table.shape == (4, 6, 3)
    assert table[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 255]]
    assert media.grid(tiles, columns=5).shape == (2, 10, 3)


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'quality': 95, 'subsampling': 0},
        {'progressive': True},
        {'quality': 50, 'subsampling': 1},
    ],
)
def test_jpegs_are_the_pixels_that_pillow_decodes(options):
    picture = Image.open(files.demo_pictures()[0]).convert('RGB')
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', **options)
    data = buffer.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(media._plain_jpeg(data), expected)
    np.testing.assert_array_equal(media.decode_image(io.BytesIO(data)), expected)
    # What is cut short is Pillow's, which says so.
    assert media._plain_jpeg(data[:-40]) is None
    with pytest.raises(ValueError, match='truncated'):
        media.decode_image(io.BytesIO(data[:-40]))
