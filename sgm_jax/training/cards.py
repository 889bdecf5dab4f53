"""What examples come with, as pictures that one can read: captions, classes, sizes, cameras."""

import textwrap
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# What an example is, rather than what is told of it.
_PICTURES = ('jpg', 'moments')
# Radians are for networks.
_ANGLES = {'polars_rad': 'polar', 'azimuths_rad': 'azimuth'}
_MANY = 32
_COLUMNS, _SIZE = 28, 20


def cards(batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """White cards (b, h, w, 3) uint8 with the entries of each example; None where there are none."""
    names = [name for name, values in batch.items() if name not in _PICTURES and _is_short(values)]
    if not names:
        return None
    count = len(batch[names[0]])
    texts = [
        [line for name in sorted(names) for line in _lines(name, batch[name][index])]
        for index in range(count)
    ]
    height = max(map(len, texts)) + 1
    font = ImageFont.load_default(_SIZE)
    drawn = []
    for lines in texts:
        card = Image.new(
            'RGB', (int(0.55 * _SIZE * (_COLUMNS + 2)), int(1.4 * _SIZE * height)), 'white'
        )
        draw = ImageDraw.Draw(card)
        for row, line in enumerate(lines):
            draw.text((_SIZE // 2, int(1.4 * _SIZE * row) + _SIZE // 2), line, 'black', font)
        drawn.append(np.asarray(card))
    return np.stack(drawn)


def _is_short(values: np.ndarray) -> bool:
    values = np.asarray(values)
    return values.ndim >= 1 and values[0].size <= _MANY


def _lines(name: str, value: np.ndarray) -> list[str]:
    label = _ANGLES.get(name, name.removesuffix('_as_tuple').replace('_', ' '))
    return textwrap.wrap(f'{label}: {_words(name, value)}', _COLUMNS, subsequent_indent='  ')


def _words(name: str, value: np.ndarray) -> str:
    value = np.asarray(value)
    if value.dtype.kind in 'OSU':
        text = value.item() if value.ndim == 0 else ', '.join(map(str, value))
        return text.decode('utf-8', 'replace') if isinstance(text, bytes) else str(text)
    if name in _ANGLES:
        return ' '.join(f'{angle:.0f}' for angle in np.rad2deg(value).reshape(-1)) + ' degrees'
    if value.ndim == 0:
        return f'{value:g}'
    return ('x' if value.size == 2 else ' ').join(f'{x:g}' for x in value.reshape(-1))
