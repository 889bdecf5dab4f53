"""Frames of high dynamic range (PQ and HLG, as phones record) as the others are: in BT.709.

White is the reference white of such videos, 203 cd/m2 (ITU-R BT.2408, table 1), and what is brighter is white
too. Sources of the formulas: ITU-R BT.2100, tables 4 (PQ) and 5 (HLG), for the light that a display gives;
BT.2087 for the primaries; BT.1886 for the pixels of BT.709 that give the same light. BT.709's own curve is a
camera's: of a display's light it would make the middle darker than it is in other videos.
"""

from collections.abc import Callable

import numpy as np

_WHITE = 203.0  # cd/m2
# Of the display that a scene in HLG is made for: cd/m2, and its system gamma.
_PEAK, _GAMMA = 1000.0, 1.2
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
# The inverse of BT.2087's matrix from BT.709 to BT.2020.
_TO_BT709 = np.linalg.inv(
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
).astype(np.float32)
# FFmpeg's scaler has white at 255 * 256 in 16 bits; tables have an entry for every sixteenth of them.
_TOP, _SHIFT = 255 * 256, 4
_STEPS = 4095  # of the last table, even in the root of the light: dark pixels need more of them


def _signal() -> np.ndarray:
    """The non-linear signal in [0, 1] of each entry of a table."""
    return (np.arange(2**16 >> _SHIFT) / (_TOP >> _SHIFT)).clip(0, 1)


def _pq() -> np.ndarray:
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = _signal() ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg() -> np.ndarray:
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    signal = _signal()
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _bt1886() -> np.ndarray:
    light = (np.arange(_STEPS + 1) / _STEPS) ** 2
    return (255 * light ** (1 / 2.4)).round().astype(np.uint8)


# Of PQ the light of the display, cd/m2; of HLG that of the scene.
_LIGHT = {'pq': _pq().astype(np.float32), 'hlg': _hlg().astype(np.float32)}
_ENCODED = _bt1886()


def _of_pq(pixels: np.ndarray) -> np.ndarray:
    return _LIGHT['pq'][pixels >> _SHIFT]


def _of_hlg(pixels: np.ndarray) -> np.ndarray:
    scene = _LIGHT['hlg'][pixels >> _SHIFT]
    luminance = (scene @ _LUMINANCE)[..., None]
    return _PEAK * luminance ** (_GAMMA - 1) * scene


# By the transfer characteristics of ITU-T H.273: what gives the light of the display, cd/m2.
TRANSFERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {16: _of_pq, 18: _of_hlg}


def to_bt709(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Pixels in BT.709, uint8 (h, w, 3).

    Args:
      pixels: non-linear RGB of BT.2020, uint16 (h, w, 3), white at 255 * 256.
      transfer: one of `TRANSFERS`.
    """
    light = TRANSFERS[transfer](pixels) / _WHITE @ _TO_BT709.T
    return _ENCODED[(np.sqrt(light.clip(0, 1)) * _STEPS + 0.5).astype(np.uint16)]
