"""ArrayRecord files of tf.train.Examples, as TensorFlow Datasets prepares them, without TensorFlow."""

import contextlib
import os
import pathlib
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from sgm_jax.data import places, tf_example
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.tables import CAPTIONS
from sgm_jax.errors import UserError

PICTURES = ('image', 'jpg', 'jpeg', 'png', 'webp')
LABELS = ('label', 'cls', 'class')
HELD_OUT = ('test', 'validation', 'held_out')
# TFDS: NAME-SPLIT.array_record-00000-of-00008; others: SPLIT-00000-of-00008.array_record.
_SPLIT = re.compile(r'(?:^|[-_.])(train|test|validation|held_out)(?=[-_.]|$)')


class ArrayRecords:
    """A store. Files whose names have splits in them are taken by split."""

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
            raise UserError(f'{path}: ArrayRecord files are read from disk; copy them there first')
        found = [entry for entry in listed if '.array_record' in entry.path]
        if not found:
            raise UserError(
                f'{path}: no ArrayRecord files; prepare the dataset with file_format="array_record"'
            )
        self.path, self.caption = path, caption
        self.needs_text = wants_text and not keep_all
        self.skipped: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        chosen, self.own_split = _of_split(found, split)
        usable = []
        for entry in chosen:
            if reason := _broken(entry.path):
                self.damaged[entry.path] = reason
            else:
                usable.append(entry)
        if not usable:
            raise UserError(f'{path}: none of its ArrayRecord files can be read: {self.damaged}')
        import grain

        self._source = grain.sources.ArrayRecordDataSource([entry.path for entry in usable])
        self._stamps = '|'.join(f'{entry.path}:{entry.size}:{entry.stamp}' for entry in usable)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return f'{self.path}#{index}'

    def stamp(self, index: int) -> str:
        return f'{self._stamps}#{index}'

    def picture(self, index: int) -> bytes:
        return self._first(index, PICTURES, 'picture')

    def text(self, index: int) -> str | None:
        wanted = (self.caption,) if self.caption else CAPTIONS
        found = self._first(index, wanted, 'caption' if self.needs_text else None)
        try:
            return None if found is None else found.decode('utf-8').strip()
        except UnicodeDecodeError as error:
            raise DamagedError(self.name(index), 'its caption is not UTF-8 text') from error

    def label(self, index: int) -> int | None:
        found = self._first(index, LABELS)
        return None if found is None else int(found)

    def _first(self, index: int, names: Sequence[str], needed: str | None = None):
        try:
            features = tf_example.parse(self._source[index])
        except Exception as error:  # the reader in C++ has its own kinds
            raise DamagedError(self.name(index), f'cannot be read ({error})') from error
        for name in names:
            if len(features.get(name, ())):
                return features[name][0]
        if needed:
            raise DamagedError(
                self.name(index), f'no {needed} in it; it has: {", ".join(sorted(features))}'
            )
        return None


@contextlib.contextmanager
def whole_array_record(path: pathlib.Path) -> Iterator[Any]:
    """A writer of a file that takes its place only when all of it is on the disk.

    Each record is a group of its own, as TensorFlow Datasets has it: it is read without others.

    Raises:
      RuntimeError: of the writer in C++, such as for want of room; nothing of the file is left.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    part = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}')
    try:
        writer = ArrayRecordWriter(str(part), 'group_size:1')
        try:
            yield writer
        finally:
            writer.close()
        with part.open('rb') as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _of_split(found: Sequence[places.Entry], split: str) -> tuple[list[places.Entry], bool]:
    by_split: dict[str, list[places.Entry]] = {}
    for entry in found:
        # The last: TFDS puts the dataset's name before, which may have such a word in it too.
        words = _SPLIT.findall(pathlib.PurePath(entry.path).name)
        by_split.setdefault(words[-1] if words else '', []).append(entry)
    held_out = next((by_split[name] for name in HELD_OUT if name in by_split), None)
    train = by_split.get('train')
    if train is None or held_out is None:
        return train or list(found), False
    return (train if split == 'train' else held_out), True


def _broken(path: str) -> str:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(path)
        try:
            return '' if reader.ok() else 'not a whole ArrayRecord file'
        finally:
            reader.close()
    except Exception as error:  # of the reader in C++
        return str(error).splitlines()[0]
