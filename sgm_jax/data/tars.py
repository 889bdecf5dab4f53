"""WebDataset's tars: members of one name (000.jpg, 000.txt, 000.cls) are one example, read by offset.

Each tar is walked through once; where its members are is kept in the cache folder, under the tar's path, size
and time. Source of the layout: github.com/webdataset/webdataset, "The WebDataset Format".
"""

import json
import posixpath
import tarfile
from collections.abc import Sequence
from concurrent import futures
from typing import BinaryIO

from sgm_jax.data import cached, files, places
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.tables import CAPTIONS
from sgm_jax.errors import UserError

# Compressed ones are taken for tars too, and refused: nothing in them can be read by its offset.
SUFFIXES = ('.tar', '.tar.gz', '.tgz')
# Far away, most of a walk through a tar is waiting.
_THREADS, _REMOTE_THREADS = 4, 32
_UNREAD = 'cannot be read'


class Tars:
    """A store: examples are the groups of members with a picture (or video); classes are in .cls or .json."""

    own_split = False
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
        kind: files.Kind = files.PICTURE,
    ):
        tars = [entry for entry in listed if entry.path.endswith(SUFFIXES)]
        if not tars:
            raise UserError(f'{path}: no tars there; looked for files ending in .tar')
        self.path, self.caption = path, caption
        self._suffixes = [suffix.removeprefix('.') for suffix in kind.suffixes]
        needs_text = wants_text and not keep_all
        self.skipped: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        self._names, self._stamps, self._parts = [], [], []
        for entry, (groups, reason) in zip(tars, index_tars(tars), strict=True):
            if reason:
                self.damaged[entry.path] = reason
            for key, parts in groups.items():
                name = f'{entry.path}/{key}'
                if not any(suffix in parts for suffix in self._suffixes):
                    self.skipped[name] = f'no {kind.name} in it, only .{", .".join(parts)}'
                elif needs_text and 'txt' not in parts and 'json' not in parts:
                    self.skipped[name] = 'it has no caption (.txt or .json)'
                else:
                    self._names.append(name)
                    self._stamps.append(f'{name}|{entry.size}|{entry.stamp}')
                    self._parts.append(
                        {s: places.Part(entry.path, *place) for s, place in parts.items()}
                    )

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def stamp(self, index: int) -> str:
        return self._stamps[index]

    def part(self, index: int) -> places.Part:
        parts = self._parts[index]
        return parts[next(suffix for suffix in self._suffixes if suffix in parts)]

    def picture(self, index: int) -> bytes:
        return _read(self.part(index))

    def text(self, index: int) -> str | None:
        parts = self._parts[index]
        if 'txt' in parts:
            return self._decoded(index, 'txt').strip()
        found = self._json(index)
        for key in (self.caption,) if self.caption else CAPTIONS:
            if isinstance(found.get(key), str):
                return found[key].strip()
        return None

    def label(self, index: int) -> int | None:
        if 'cls' in self._parts[index]:
            found = self._decoded(index, 'cls').strip()
        else:
            found = self._json(index).get('cls', self._json(index).get('label'))
        try:
            return None if found is None else int(found)
        except ValueError as error:
            raise DamagedError(self.name(index), f'its class is {found!r}, no number') from error

    def _json(self, index: int) -> dict:
        if 'json' not in self._parts[index]:
            return {}
        try:
            found = json.loads(self._decoded(index, 'json'))
        except json.JSONDecodeError as error:
            raise DamagedError(self.name(index), f'its .json cannot be read ({error})') from error
        return found if isinstance(found, dict) else {}

    def _decoded(self, index: int, kind: str) -> str:
        try:
            return _read(self._parts[index][kind]).decode('utf-8-sig')
        except UnicodeDecodeError as error:
            raise DamagedError(self.name(index), f'its .{kind} is not UTF-8 text') from error


def _read(part: places.Part) -> bytes:
    try:
        data = part.read()
    except OSError as error:
        raise DamagedError(part.path, f'cannot be read ({error.strerror or error})') from error
    if len(data) < part.size:
        raise DamagedError(part.path, f'ends at {part.offset + len(data)}, inside a member')
    return data


Groups = dict[str, dict[str, tuple[int, int]]]


def index_tars(tars: Sequence[places.Entry]) -> list[tuple[Groups, str]]:
    """Of each tar, its groups of members (offset, size) by key and suffix, and what is wrong with it."""
    remote = any(places.is_remote(entry.path) for entry in tars)
    with futures.ThreadPoolExecutor(_REMOTE_THREADS if remote else _THREADS) as pool:
        return list(pool.map(_index_or_cached, tars))


def _index_or_cached(entry: places.Entry) -> tuple[Groups, str]:
    key = f'{entry.path}|{entry.size}|{entry.stamp}'
    found = cached.load_json('tar', key)
    # What could not be read once may be there the next time; earlier versions kept that too.
    if found is None or found[1].startswith(_UNREAD):
        try:
            found = _index(entry)
        except OSError as error:
            return {}, f'{_UNREAD} ({error.strerror or error})'
        # Walking through a small tar costs no more than reading what was kept of it.
        if entry.size > 2**24:
            cached.store_json('tar', key, found)
    groups, reason = found
    return groups, reason


def _index(entry: places.Entry) -> tuple[Groups, str]:
    """What is in a tar and what is wrong with its contents. Raises OSError: it cannot be read now."""
    groups: Groups = {}
    if entry.size == 0:
        return groups, 'the file is empty'
    try:
        # 'r:' takes no compressed tars: nothing in them could be read by its offset.
        with _opened(entry) as file, tarfile.open(fileobj=file, mode='r:') as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > entry.size:
                    return groups, f'cut short: {member.name} and what came after it are missing'
                folder, base = posixpath.split(member.name)
                stem, _, suffix = base.partition('.')
                if stem and suffix:
                    group = groups.setdefault(posixpath.join(folder, stem), {})
                    group[suffix.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        if groups:
            return groups, f'cut short or damaged after {len(groups)} examples ({error})'
        return groups, f'not an uncompressed tar ({error}); unpack .gz first'
    begin = max(0, entry.size - 1024)
    if places.read(entry.path, begin, entry.size - begin).strip(b'\0'):
        # tarfile takes a cut between members for the end; whole tars end in two blocks of zeros.
        return groups, f'cut short: no end after {len(groups)} examples'
    return groups, ''


def _opened(entry: places.Entry) -> BinaryIO:
    # On this machine headers alone are read. Far away one request has many of them, or one at least.
    if places.is_remote(entry.path):
        return places.Part(entry.path, 0, entry.size).open()
    return open(entry.path, 'rb')
