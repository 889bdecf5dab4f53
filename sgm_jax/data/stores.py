"""Where captioned pictures are kept: folders, tars, ArrayRecord files, Hugging Face datasets on disk.

A store lists its examples once, and reads any of them by number, from any number of threads.
"""

import posixpath
from typing import Protocol

from sgm_jax.config import lookup
from sgm_jax.data import files, places
from sgm_jax.data.array_records import ArrayRecords
from sgm_jax.data.arrow import ArrowTable
from sgm_jax.data.folders import Folder
from sgm_jax.data.tars import Tars
from sgm_jax.errors import UserError


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

    def text(self, index: int) -> str | None:
        """The caption, if there is one. Raises DamagedError."""

    def label(self, index: int) -> int | str | None:
        """The class's number or name, if there is one. Raises DamagedError."""


def open_store(
    path: str, *, split: str, format: str = 'auto', wants_text: bool = False, caption: str = ''
) -> Store:
    """The store at `path`.

    Args:
      path: a folder, a file, a pattern, an address, or 'demo'.
      split: 'train' or 'held_out', for stores that have splits.
      format: of `FORMATS`, or 'auto', which looks.
      wants_text: examples that are seen to have no caption are left out.
      caption: the column or key of the captions; '' for the first of `CAPTIONS` that is there.

    Raises:
      UserError: nothing usable at `path`.
    """
    if not str(path):
        raise UserError(
            'data.path is empty; give --config.data.path=FOLDER with your pictures, or '
            f'{files.DEMO!r} for the demo pictures'
        )
    if str(path) == files.DEMO:
        listed = [places.Entry(str(p), p.stat().st_size, '') for p in files.demo_pictures()]
        format = 'folder'
    else:
        listed = places.entries(path)
    if format == 'auto':
        format = recognise(listed)
    make = lookup(FORMATS, format, 'data.format')
    return make(path, listed, split=split, wants_text=wants_text, caption=caption)


def recognise(listed: list[places.Entry]) -> str:
    """The format of the files: by their names."""
    names = [posixpath.basename(entry.path) for entry in listed]
    if any('.array_record' in name for name in names):
        return 'array_record'
    if any(name in ('state.json', 'dataset_dict.json') for name in names):
        return 'arrow'
    if any(name.endswith(('.tar', '.tar.gz', '.tgz')) for name in names):
        return 'tars'
    return 'folder'


FORMATS = {
    'folder': Folder,
    'tars': Tars,
    'array_record': ArrayRecords,
    'arrow': ArrowTable,
}
