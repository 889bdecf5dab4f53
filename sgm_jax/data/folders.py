"""Folders of pictures or videos; captions in picture.txt beside picture.jpg, or in a table."""

import functools
import pathlib
import posixpath
from collections.abc import Sequence

from sgm_jax.data import files, places, tables
from sgm_jax.data.damage import DamagedError
from sgm_jax.errors import UserError


class Folder:
    """A store: pictures are files, classes the first folders below the path; it has no splits."""

    own_split = False

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
        del split
        self.root = path if places.is_remote(path) else str(pathlib.Path(path).expanduser())
        self.skipped: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        found = [entry for entry in listed if kind.holds(entry.path) or len(listed) == 1]
        if not found:
            raise UserError(
                f'{path}: no {kind.name}s there; looked for files ending in '
                f'{", ".join(kind.suffixes)}'
            )
        # Of all of them: a missing caption must not number the classes anew.
        self._found = [entry.path for entry in found]
        self._tables, self._sidecars = self._find(listed, caption) if wants_text else ({}, set())
        if wants_text and not keep_all:
            found = [entry for entry in found if self._has_text(entry.path)]
        self._entries = found

    @functools.cached_property
    def labels(self) -> dict[str, int]:
        """The classes, numbered in their order."""
        names = sorted({self._class(path) for path in self._found} - {None})
        return {name: index for index, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        return self._entries[index].path

    def stamp(self, index: int) -> str:
        entry = self._entries[index]
        return f'{entry.path}|{entry.size}|{entry.stamp}'

    def part(self, index: int) -> places.Part:
        entry = self._entries[index]
        # A whole file on this machine needs no bounds, and opens faster without.
        return places.Part(entry.path, 0, entry.size if places.is_remote(entry.path) else None)

    def picture(self, index: int) -> bytes:
        return _read(self._entries[index].path)

    def text(self, index: int) -> str | None:
        path = self._entries[index].path
        sidecar = _sidecar(path)
        if sidecar in self._sidecars:
            try:
                return _read(sidecar).decode('utf-8-sig').strip()
            except UnicodeDecodeError as error:
                raise DamagedError(path, f'its caption {sidecar} is not UTF-8 text') from error
        return self._tables.get(path)

    def label(self, index: int) -> str | None:
        return self._class(self._entries[index].path)

    def _find(
        self, listed: Sequence[places.Entry], caption: str
    ) -> tuple[dict[str, str], set[str]]:
        paths = {entry.path for entry in listed}
        found = {}
        for path in sorted(path for path in paths if posixpath.basename(path) in tables.NAMES):
            folder = posixpath.dirname(path)
            for name, text in tables.captions(path, caption).items():
                # Most names are plain, and there may be a million of them.
                plain = name if './' not in name else posixpath.normpath(name)
                place = f'{folder}/{plain}'
                if place not in paths:
                    self.skipped[place] = f'named in {path}, and not there'
                found[place] = text
        sidecars = {path for path in paths if path.endswith('.txt')}
        if len(listed) == 1 and not places.is_remote(self.root):
            beside = _sidecar(listed[0].path)
            sidecars |= {beside} if pathlib.Path(beside).is_file() else set()
        elif str(self.root) == files.DEMO:
            sidecars = {s for p in paths if pathlib.Path(s := _sidecar(p)).is_file()}
        return found, sidecars

    def _has_text(self, path: str) -> bool:
        if path in self._tables or _sidecar(path) in self._sidecars:
            return True
        self.skipped[path] = f'it has no caption ({posixpath.basename(_sidecar(path))})'
        return False

    def _class(self, path: str) -> str | None:
        below = path[len(self.root) :].lstrip('/') if path.startswith(self.root) else path
        folder, _, rest = below.partition('/')
        return folder if rest and path.startswith(self.root) else None


def _sidecar(path: str) -> str:
    return posixpath.splitext(path)[0] + '.txt'


def _read(path: str) -> bytes:
    try:
        return places.read(path)
    except OSError as error:
        raise DamagedError(path, f'cannot be read ({error.strerror or error})') from error
