"""Videos of high dynamic range are decoded to the colours that they show."""

import av
import numpy as np
import pytest

from sgm_jax.data import clips

PQ, HLG = 16, 18
BT2020, BT2020_NCL, LIMITED = 9, 9, 1
SIZE = (48, 64)
# ITU-R BT.2087, table 1: linear light of BT.709 in BT.2020.
TO_BT2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]


def write(path, signal, transfer, codec='libx265', matrix=BT2020_NCL):
    """Four frames of one colour: non-linear RGB of BT.2020 in [0, 1], 10 bits, tagged."""
    red, green, blue = signal
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    chroma = (blue - luma) / 1.8814, (red - luma) / 1.4746
    levels = [round(64 + 876 * luma), *(round(512 + 896 * value) for value in chroma)]
    options = {'x265-params': 'log-level=none:lossless=1'} if codec == 'libx265' else {}
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=10, options=options)
        (stream.height, stream.width), stream.pix_fmt = SIZE, 'yuv420p10le'
        tags = dict(color_trc=transfer, color_primaries=BT2020, colorspace=matrix)
        for name, value in {**tags, 'color_range': LIMITED}.items():
            setattr(stream.codec_context, name, value)
        for index in range(4):
            frame = av.VideoFrame(*SIZE[::-1], 'yuv420p10le')
            frame.pts = index
            for plane, level in zip(frame.planes, levels, strict=True):
                plane.update(np.full(plane.buffer_size // 2, level, '<u2'))
            for name, value in {**tags, 'color_range': LIMITED}.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shown(path, size=(24, 32)):
    frames = clips.read_frames(clips.read_info(path), [0.0, 0.2], size=size)
    assert frames.shape == (2, *size, 3)
    assert frames.dtype == np.uint8
    assert (frames == frames[:1, :1, :1]).all()
    return frames[0, 0, 0].astype(int)


def signal_of(colour, transfer):
    """How such a video has a colour of BT.709 (0..255) on a display of BT.1886, whose white is 203 cd/m2."""
    light = 203 * np.array(TO_BT2020) @ (np.array(colour) / 255) ** 2.4
    if transfer == PQ:
        # SMPTE ST 2084, equation 5.2, with the constants as decimals.
        power = (light / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    # ITU-R BT.2100, table 5: the inverse OOTF for a display of 1000 cd/m2, then the OETF.
    luminance = light @ [0.2627, 0.6780, 0.0593] / 1000
    scene = light / 1000 * luminance ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


@pytest.mark.parametrize('transfer', [PQ, HLG])
@pytest.mark.parametrize(
    'colour', [(200, 90, 40), (30, 120, 220), (60, 60, 60), (70, 160, 60), (230, 220, 210)]
)
def test_colours_are_those_that_are_shown(tmp_path, colour, transfer):
    path = write(tmp_path / 'a.mp4', signal_of(colour, transfer), transfer)
    np.testing.assert_allclose(shown(path), colour, atol=4)


def test_a_matrix_that_is_not_told_is_that_of_the_others(tmp_path):
    colour = (200, 90, 40)
    path = write(tmp_path / 'a.mkv', signal_of(colour, PQ), PQ, codec='ffv1', matrix=2)
    np.testing.assert_allclose(shown(path), colour, atol=4)


@pytest.mark.parametrize(
    ('transfer', 'signal', 'levels'),
    [
        # ITU-R BT.2408, table 1: diffuse white is at 58% of PQ, at 75% of HLG; 18% grey at 38% of both. A
        # camera of BT.709 has it at 41%, which is 104.
        (PQ, 0.58, (253, 255)),
        (HLG, 0.75, (253, 255)),
        (PQ, 0.38, (98, 112)),
        (HLG, 0.38, (98, 112)),
        # Lamps are white, and black is black.
        (PQ, 0.9, (255, 255)),
        (HLG, 1.0, (255, 255)),
        (PQ, 0.0, (0, 0)),
        (HLG, 0.0, (0, 0)),
    ],
)
def test_greys_are_where_the_standard_has_them(tmp_path, transfer, signal, levels):
    # Of another codec and container, enlarged.
    found = shown(write(tmp_path / 'a.mkv', (signal,) * 3, transfer, codec='ffv1'), size=(60, 80))
    assert len(set(found)) == 1
    assert levels[0] <= found[0] <= levels[1]


def test_ten_bits_alone_change_nothing(tmp_path):
    # BT.2020's own transfer is BT.709's: 75% is 75%.
    found = shown(write(tmp_path / 'a.mkv', (0.75,) * 3, 14, codec='ffv1'))
    np.testing.assert_allclose(found, 0.75 * 255, atol=3)
