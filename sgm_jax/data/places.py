"""Files on this machine or behind an address (gs://, s3://): listed, and read in parts."""

import dataclasses
import glob
import os
import pathlib
import stat
from collections.abc import Iterator

from sgm_jax.errors import UserError

# Packages that fsspec wants for the commonest addresses.
_PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file: its path, its bytes, and a stamp that changes when it is written anew."""

    path: str
    size: int
    stamp: str


def is_remote(path: str | pathlib.Path) -> bool:
    """Whether it is an address rather than a path."""
    return '://' in str(path)


def entries(path: str | pathlib.Path) -> list[Entry]:
    """The regular files at a path (a file, a folder with its subfolders, a pattern), sorted.

    Raises:
      UserError: nothing is there, or the address cannot be reached.
    """
    found = list(_remote(str(path)) if is_remote(path) else _local(path))
    return sorted(found, key=lambda entry: entry.path.split('/'))


def read(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `offset` on, fewer where the file ends; safe from any number of threads.

    Raises:
      OSError: it cannot be read.
    """
    if is_remote(path):
        fs, place = _filesystem(path)
        return fs.cat_file(place, start=offset, end=None if size is None else offset + size)
    with open(path, 'rb', buffering=0) as file:
        if size is None:
            size = max(0, os.fstat(file.fileno()).st_size - offset)
        parts = []
        while size > 0 and (part := os.pread(file.fileno(), size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b''.join(parts)


def _local(path: str | pathlib.Path) -> Iterator[Entry]:
    place = pathlib.Path(path).expanduser()
    if place.is_dir():
        yield from _walk(str(place))
        return
    if glob.has_magic(str(place)) and not place.exists():
        names = glob.glob(str(place), recursive=True)
    elif place.exists():
        names = [str(place)]
    else:
        raise UserError(
            f'{path}: no such file or folder; give a file, a folder, a pattern or an address'
        )
    for name in names:
        status = os.stat(name)
        # Pipes and devices are left out: an open would wait on them for ever.
        if stat.S_ISREG(status.st_mode):
            yield Entry(name, status.st_size, str(status.st_mtime_ns))


def _walk(folder: str) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                status = entry.stat()
                yield Entry(entry.path, status.st_size, str(status.st_mtime_ns))


def _remote(path: str) -> Iterator[Entry]:
    fs, place = _filesystem(path)
    scheme = path.split('://', 1)[0]
    try:
        listed = fs.glob(place, detail=True) if glob.has_magic(place) else None
        listed = fs.find(place, detail=True) if listed is None else listed
    except Exception as error:  # each file system has its own
        raise UserError(f'{path}: cannot be listed: {error}') from error
    if not listed:
        raise UserError(f'{path}: no files there')
    for name, info in listed.items():
        if info['type'] == 'file':
            stamp = info.get('etag') or info.get('mtime') or info.get('updated') or ''
            yield Entry(f'{scheme}://{name.lstrip("/")}', info['size'], str(stamp))


def _filesystem(path: str):
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        scheme = path.split('://', 1)[0]
        way = f"run 'pip install {_PACKAGES[scheme]}'" if scheme in _PACKAGES else 'see fsspec'
        raise UserError(f'{path}: {scheme}:// cannot be read ({error}); {way}') from error
