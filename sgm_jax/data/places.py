"""Files on this machine or behind an address (gs://, s3://): listed, and read in parts."""

import dataclasses
import glob
import io
import logging
import os
import pathlib
import stat
import time
from collections.abc import Iterator

from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)

# Packages that fsspec wants for the commonest addresses.
_PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}
# What file systems call that which changes with a file.
_STAMPS = ('etag', 'ETag', 'mtime', 'updated', 'LastModified', 'created')
# What a `Part` that is read as a file fetches at once: far away a request costs more than its bytes.
_BLOCK, _REMOTE_BLOCK = 2**17, 2**20
# Seconds before a remote read that failed is tried again.
_PAUSES = (1.0, 4.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file: its path, its bytes, and a stamp that changes when it is written anew."""

    path: str
    size: int
    stamp: str


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file, such as a member of a tar; or, with no `size`, a whole file."""

    path: str
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """All of it, or less where the file ends before. Raises OSError."""
        return read(self.path, self.offset, self.size)

    def open(self) -> io.BufferedReader:
        """A file of these bytes alone: seekable, and only what is read is fetched. It needs a `size`."""
        block = _REMOTE_BLOCK if is_remote(self.path) else _BLOCK
        return io.BufferedReader(_Window(self), block)


class _Window(io.RawIOBase):
    def __init__(self, part: Part):
        self._part, self._at = part, 0

    @property
    def name(self) -> str:
        return self._part.path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._part.size}[whence]
        if begin + offset < 0:
            raise OSError(f'{self.name}: a seek to {begin + offset}')
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        size = min(len(buffer), max(0, self._part.size - self._at))
        data = read(self._part.path, self._part.offset + self._at, size) if size else b''
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


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
    if size == 0:
        return b''  # nothing, which a range of bytes cannot say
    if is_remote(path):
        return _read_remote(path, offset, size)
    with open(path, 'rb', buffering=0) as file:
        if size is None:
            size = max(0, os.fstat(file.fileno()).st_size - offset)
        parts = []
        while size > 0 and (part := os.pread(file.fileno(), size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b''.join(parts)


def _read_remote(path: str, offset: int, size: int | None) -> bytes:
    fs, place = _filesystem(path)
    end = None if size is None else offset + size
    for pause in _PAUSES:
        try:
            return fs.cat_file(place, start=offset, end=end)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each file system has its own
            LOG.warning('%s: %s; trying again in %g s', path, error, pause)
            time.sleep(pause)
    try:
        return fs.cat_file(place, start=offset, end=end)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f'{path}: {error}') from error


def _local(path: str | pathlib.Path) -> Iterator[Entry]:
    place = str(pathlib.Path(path).expanduser())
    if os.path.isdir(place):
        try:
            with os.scandir(place):
                pass
        except OSError as error:
            raise UserError(f'{path}: cannot be listed ({error.strerror})') from error
        yield from _walk(place)
        return
    if glob.has_magic(place) and not os.path.exists(place):
        names = glob.glob(place, recursive=True)
    elif os.path.exists(place):
        names = [place]
    else:
        raise UserError(
            f'{path}: no such file or folder; give a file, a folder, a pattern or an address'
        )
    for name in names:
        try:
            status = os.stat(name)
        except OSError as error:
            _leave_out(name, error)
            continue
        # Pipes and devices are left out: an open would wait on them for ever.
        if stat.S_ISREG(status.st_mode):
            yield entry_of(name, status)


def _walk(folder: str) -> Iterator[Entry]:
    try:
        with os.scandir(folder) as found:
            inside = list(found)
    except OSError as error:
        _leave_out(folder, error)
        return
    for entry in inside:
        try:
            is_folder = entry.is_dir(follow_symlinks=False)
            status = entry.stat() if not is_folder and entry.is_file() else None
        except OSError as error:
            _leave_out(entry.path, error)
            continue
        if is_folder:
            yield from _walk(entry.path)
        elif status:
            yield entry_of(entry.path, status)


def entry_of(path: str, status: os.stat_result) -> Entry:
    """A file on this machine, by what the system says of it."""
    return Entry(path, status.st_size, str(status.st_mtime_ns))


def _leave_out(path: str, error: OSError) -> None:
    # A subfolder of others, a link to nowhere, a file that has just gone.
    LOG.warning('leaving out %s: %s', path, error.strerror or error)


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
            stamp = next((info[key] for key in _STAMPS if info.get(key)), '')
            yield Entry(f'{scheme}://{name.lstrip("/")}', info['size'], str(stamp))


def _filesystem(path: str):
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        scheme = path.split('://', 1)[0]
        way = f"run 'pip install {_PACKAGES[scheme]}'" if scheme in _PACKAGES else 'see fsspec'
        raise UserError(f'{path}: {scheme}:// cannot be read ({error}); {way}') from error
