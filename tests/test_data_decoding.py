"""What a picture becomes: modes, depths, orientation, and the numbers that SDXL is told of it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage import data as photographs

from sgm_jax.data import pipeline
from sgm_jax.sampling.media import decode_image, image_size

# (height, width) of the ramp below.
SIZE = (24, 40)


def encoded(image: Image.Image, format: str = 'PNG', **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    buffer.seek(0)
    return buffer


def ramp() -> np.ndarray:
    """Red is the row, green the column, in steps that leave no doubt."""
    rows, columns = np.meshgrid(np.arange(24) * 10, np.arange(40) * 6, indexing='ij')
    return np.stack([rows, columns, rows * 0 + 50], -1).astype(np.uint8)


# EXIF's orientations: what a viewer does to the stored picture.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize('orientation', TURNS)
@pytest.mark.parametrize('format', ['PNG', 'WEBP', 'TIFF'])
def test_pictures_are_upright(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'lossless': True} if format == 'WEBP' else {}
    file = encoded(Image.fromarray(ramp()), format, exif=exif, **options)
    expected = TURNS[orientation](ramp())
    np.testing.assert_array_equal(decode_image(file), expected)
    file.seek(0)
    assert image_size(file) == expected.shape[:2]


def test_transparency_is_on_white():
    rgba = np.dstack([ramp(), np.full(SIZE, 255, np.uint8)])
    rgba[:, :20, 3] = 0
    rgba[:, 20:30, 3] = 51  # a fifth
    found = decode_image(encoded(Image.fromarray(rgba))).astype(int)
    assert (found[:, :20] == 255).all()
    np.testing.assert_allclose(found[:, 20:30], 255 - (255 - ramp()[:, 20:30]) / 5, atol=1)
    np.testing.assert_array_equal(found[:, 30:], ramp()[:, 30:])
    grey = Image.fromarray(rgba).convert('LA')
    assert (decode_image(encoded(grey))[:, :20] == 255).all()
    palette = Image.fromarray(ramp()).quantize(8)
    first = palette.getpixel((0, 0))
    found = decode_image(encoded(palette, transparency=first))
    assert (found[0, 0] == 255).all()


@pytest.mark.parametrize('mode', ['I;16', 'I;16B', 'I'])
def test_sixteen_bits_keep_their_brightness(mode):
    levels = (ramp()[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    if mode == 'I':
        image = Image.fromarray(levels.astype(np.int32))
    elif mode == 'I;16B':
        image = Image.frombytes('I;16B', SIZE[::-1], levels.astype('>u2').tobytes())
    else:
        image = Image.fromarray(levels)
    found = decode_image(encoded(image, 'PNG' if mode == 'I;16' else 'TIFF'))
    assert found.shape == (*SIZE, 3)
    np.testing.assert_allclose(found, np.repeat(ramp()[..., :1], 3, -1), atol=1)


def test_sixteen_bit_colours_keep_theirs():
    import cv2

    levels = ramp().astype(np.uint16) * 257
    # Pillow writes none.
    data = cv2.imencode('.png', levels[..., ::-1])[1].tobytes()
    np.testing.assert_allclose(decode_image(io.BytesIO(data)), ramp(), atol=1)


def test_inks_palettes_and_bits_become_colours():
    image = Image.fromarray(ramp())
    cmyk = decode_image(encoded(image.convert('CMYK'), 'TIFF'))
    np.testing.assert_allclose(cmyk, ramp(), atol=2)
    smooth = image.resize((160, 96), Image.Resampling.BICUBIC)
    jpeg = decode_image(encoded(smooth.convert('CMYK'), 'JPEG', quality=100))
    np.testing.assert_allclose(jpeg, np.asarray(smooth), atol=6)
    grey = decode_image(encoded(image.convert('L')))
    assert (grey[..., 0] == grey[..., 1]).all()
    palette = image.quantize(64)
    found = decode_image(encoded(palette))
    np.testing.assert_array_equal(found, np.asarray(palette.convert('RGB')))
    black_and_white = decode_image(encoded(image.convert('1')))
    assert set(np.unique(black_and_white)) == {0, 255}


def test_names_do_not_tell_the_format(tmp_path):
    path = tmp_path / 'really.png'
    Image.fromarray(photographs.coffee()).save(path, 'JPEG', quality=95)
    assert np.abs(decode_image(path).astype(int) - photographs.coffee()).mean() < 5


def source(folder, **options):
    node = {'name': 'captioned_pictures', 'path': str(folder), 'text': 'none', **options}
    return pipeline.make_source({**node, 'held_out_fraction': 0.5})


@pytest.fixture
def folder(tmp_path):
    """Two copies of a photograph with a smooth slope over it, so that places can be told by brightness."""
    rows, columns = np.meshgrid(np.arange(200), np.arange(300), indexing='ij')
    pixels = np.stack([rows * 255 / 199, columns * 255 / 299, rows * 0], -1).astype(np.uint8)
    for name in ('a.png', 'b.png'):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def test_the_corner_is_that_of_the_crop_in_the_picture_as_it_is_shown(folder):
    found = source(folder, height=50, width=50, flip=True)
    mirrored = 0
    for seed in range(40):
        record = found.record(0, np.random.default_rng(seed))
        top, left = record['crop_coords_top_left']
        assert record['original_size_as_tuple'].tolist() == [200, 300]
        # 200x300 is scaled to 50x75: four to one.
        whole = np.asarray(Image.open(folder / 'b.png').resize((75, 50), Image.Resampling.BOX))
        is_mirrored = record['jpg'][0, 0, 1] > record['jpg'][0, -1, 1]
        mirrored += is_mirrored
        whole = whole[:, ::-1] if is_mirrored else whole
        expected = whole[int(top) : int(top) + 50, int(left) : int(left) + 50]
        np.testing.assert_allclose((record['jpg'] + 1) * 127.5, expected, atol=1)  # rounding
    assert 10 < mirrored < 30


def test_orientation_comes_before_the_sizes(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(folder / 'b.png')
    image.save(folder / 'b.png', exif=exif)
    record = source(folder, height=40, width=30).record(0)
    assert record['original_size_as_tuple'].tolist() == [300, 200]
    upright = ImageOps.exif_transpose(Image.open(folder / 'b.png'))
    expected = np.asarray(upright.resize((30, 45), Image.Resampling.BOX))[2:42]
    np.testing.assert_allclose((record['jpg'] + 1) * 127.5, expected, atol=1)  # rounding


def test_resizing_does_not_alias(tmp_path):
    # Stripes of one pixel become grey, whatever the phase.
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in 'ab':
        Image.fromarray(stripes).save(tmp_path / f'{name}.png')
    record = source(tmp_path, height=32, width=32).record(0)
    inner = record['jpg'][2:-2, 2:-2]
    assert np.abs(inner).max() < 0.05
