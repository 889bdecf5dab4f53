"""Hugging Face datasets on disk (`Dataset.save_to_disk`): Arrow files, mapped into memory, read by row."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from sgm_jax.data import places
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.tables import CAPTIONS, choose
from sgm_jax.errors import UserError

PICTURES = ('image', 'jpg', 'png', 'webp')
LABELS = ('label', 'cls', 'labels')
HELD_OUT = ('test', 'validation')


class ArrowTable:
    """A store: rows of a table with a column of encoded pictures."""

    labels = None

    def __init__(
        self,
        path: str,
        listed: Sequence[places.Entry],
        *,
        split: str = 'train',
        wants_text: bool = False,
        keep_all: bool = False,
        caption: str = '',
    ):
        if places.is_remote(path):
            raise UserError(f'{path}: Arrow files are read from disk; copy them there first')
        folder, self.own_split = _split_folder(pathlib.Path(path).expanduser(), split)
        self.path, self.folder = path, folder
        self.skipped: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        stamps = {entry.path: f'{entry.size}|{entry.stamp}' for entry in listed}
        try:
            state = json.loads((folder / 'state.json').read_text())
            names = [item['filename'] for item in state['_data_files']]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f'{folder}: no dataset of Hugging Face ({error})') from error
        self._parts, self._stamps, self._ends = [], [], []
        for name in names:
            place = folder / name
            try:
                table = _opened(place)
            except (OSError, ValueError) as error:
                self.damaged[str(place)] = str(error).splitlines()[0]
                continue
            self._parts.append(table)
            self._stamps.append(f'{place}|{stamps.get(str(place), "")}')
            self._ends.append((self._ends[-1] if self._ends else 0) + table.num_rows)
        if not self._parts:
            raise UserError(f'{folder}: none of its files can be read: {self.damaged}')
        columns = self._parts[0].column_names
        self._picture = choose(columns, PICTURES, str(folder), 'pictures')
        wanted = (caption,) if caption else CAPTIONS
        self._text, self._needs_text = None, wants_text and not keep_all
        if wants_text and (caption or self._needs_text or not set(wanted).isdisjoint(columns)):
            self._text = choose(columns, wanted, str(folder), 'captions')
        self._label = next((name for name in LABELS if name in columns), None)

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        return f'{self.folder}#{index}'

    def stamp(self, index: int) -> str:
        part, row = self._place(index)
        return f'{self._stamps[part]}#{row}'

    def picture(self, index: int) -> bytes:
        value = self._value(index, self._picture)
        if isinstance(value, dict):
            data, place = value.get('bytes'), value.get('path')
            if data is None and place:
                try:
                    data = places.read(place)
                except OSError as error:
                    reason = f'its picture {place} cannot be read ({error.strerror or error})'
                    raise DamagedError(self.name(index), reason) from error
            value = data
        if not isinstance(value, bytes):
            raise DamagedError(self.name(index), f'no encoded picture in {self._picture!r}')
        return value

    def text(self, index: int) -> str | None:
        if self._text is None:
            return None
        value = self._value(index, self._text)
        value = value[0] if isinstance(value, list) and value else value
        if value is None and not self._needs_text:
            return None
        if not isinstance(value, str):
            raise DamagedError(self.name(index), f'no caption in {self._text!r}')
        return value.strip()

    def label(self, index: int) -> int | None:
        value = None if self._label is None else self._value(index, self._label)
        return None if value is None else int(value)

    def _value(self, index: int, column: str):
        part, row = self._place(index)
        return self._parts[part].column(column)[row].as_py()

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._ends, index, side='right'))
        return part, index - (self._ends[part - 1] if part else 0)


def _split_folder(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, bool]:
    listing = folder / 'dataset_dict.json'
    if not listing.is_file():
        return folder, False
    names = json.loads(listing.read_text())['splits']
    held_out = next((name for name in HELD_OUT if name in names), None)
    train = 'train' if 'train' in names else names[0]
    if held_out is None or held_out == train:
        return folder / train, False
    return folder / (train if split == 'train' else held_out), True


def _opened(place: pathlib.Path):
    import pyarrow as pa

    mapped = pa.memory_map(str(place))
    try:
        return pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(mapped).read_all()
