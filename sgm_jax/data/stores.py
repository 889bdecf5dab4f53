"""Where captioned pictures and videos are kept: folders, tars, ArrayRecord files, Hugging Face datasets.

A store lists its examples once, and reads any of them by number, from any number of threads.
"""

import logging
import pathlib
import posixpath
from typing import Protocol

from sgm_jax.config import lookup
from sgm_jax.data import files, places
from sgm_jax.data.array_records import ArrayRecords
from sgm_jax.data.arrow import ArrowTable
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.folders import Folder
from sgm_jax.data.tars import SUFFIXES, Tars
from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)

# Where captions are: with the example, in its file's name, or nowhere.
TEXTS = ('sidecar', 'name', 'none')


class Store(Protocol):
    """Examples by number.

    Attributes:
      skipped: what cannot be an example, and why, by name.
      damaged: what was found broken while listing, and why, by name.
      own_split: whether the store itself told training examples from held-out ones.
      labels: the numbers of the classes by name, where it knows the names.
    """

    skipped: dict[str, str]
    damaged: dict[str, str]
    own_split: bool
    labels: dict[str, int] | None

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """For messages, and for `text='name'`: its stem."""

    def stamp(self, index: int) -> str:
        """Changes when the example does."""

    def picture(self, index: int) -> bytes:
        """The encoded picture. Raises DamagedError."""

    def part(self, index: int) -> places.Part:
        """Where the encoded picture or video is; folders and tars know."""

    def text(self, index: int) -> str | None:
        """The caption, if there is one. Raises DamagedError."""

    def label(self, index: int) -> int | str | None:
        """The class's number or name, if there is one. Raises DamagedError."""


def open_store(
    path: str,
    *,
    split: str,
    format: str = 'auto',
    wants_text: bool = False,
    keep_all: bool = False,
    caption: str = '',
) -> Store:
    """The store at `path`.

    Args:
      path: a folder, a file, a pattern, an address, or 'demo'.
      split: 'train' or 'held_out', for stores that have splits.
      format: of `FORMATS`, or 'auto', which looks.
      wants_text: examples that are seen to have no caption are left out,
      keep_all: or stay, and their text is None.
      caption: the column or key of the captions; '' for the first of `CAPTIONS` that is there.

    Raises:
      UserError: nothing usable at `path`.
    """
    listed, demo = _listed(path, files.PICTURE)
    if format == 'auto':
        format = 'folder' if demo else recognise(listed)
    make = lookup(FORMATS, format, 'data.format')
    return make(
        path, listed, split=split, wants_text=wants_text, keep_all=keep_all, caption=caption
    )


def open_videos(path: str, *, wants_text: bool = False, keep_all: bool = False) -> Folder | Tars:
    """The store of the videos at `path`: those in a folder, or where there are none, in tars.

    Args:
      path: a video or a tar, a folder, a pattern, an address, or 'demo'.
      wants_text: those that are seen to have no caption are left out,
      keep_all: or stay, and their text is None.

    Raises:
      UserError: nothing usable at `path`.
    """
    listed, demo = _listed(path, files.VIDEO)
    tars = not demo and recognise(listed) == 'tars'
    if tars and any(files.VIDEO.holds(entry.path) for entry in listed):
        LOG.warning('%s: there are videos and tars; the tars are left out (PATTERN*.tar)', path)
        tars = False
    make = Tars if tars else Folder
    return make(path, listed, wants_text=wants_text, keep_all=keep_all, kind=files.VIDEO)


def caption_of(store: Store, index: int, text: str) -> str:
    """The caption that `text` means, one of `TEXTS` but 'none'. Raises DamagedError."""
    name = store.name(index)
    if text == 'name':
        stem = pathlib.PurePosixPath(name).stem
        # Not all names are text, and tokenizers take nothing else.
        stem = stem.encode('utf-8', 'backslashreplace').decode()
        return ' '.join(stem.replace('-', ' ').replace('_', ' ').split())
    found = store.text(index)
    if found is None:
        raise DamagedError(name, 'it has no caption')
    return found


def check_text(text: str) -> None:
    """Raises a UserError unless it is one of `TEXTS`."""
    if text not in TEXTS:
        raise UserError(f'data: text is {text!r}; choose one of: {", ".join(TEXTS)}')


def _listed(path: str, kind: files.Kind) -> tuple[list[places.Entry], bool]:
    """The files, and whether they are those of the demo."""
    if not str(path):
        raise UserError(files.empty_path(kind))
    if str(path) == files.DEMO:
        return [places.Entry(str(p), p.stat().st_size, '') for p in kind.demo()], True
    return places.entries(path), False


def recognise(listed: list[places.Entry]) -> str:
    """The format of the files: by their names."""
    names = [posixpath.basename(entry.path) for entry in listed]
    if any('.array_record' in name for name in names):
        return 'array_record'
    if any(name in ('state.json', 'dataset_dict.json') for name in names):
        return 'arrow'
    if any(name.endswith(SUFFIXES) for name in names):
        return 'tars'
    return 'folder'


FORMATS = {
    'folder': Folder,
    'tars': Tars,
    'array_record': ArrayRecords,
    'arrow': ArrowTable,
}
