"""What a dataset is prepared from, pictures of any store or files of videos, and what is known of each."""

import dataclasses
import functools
import glob
import hashlib
import io
import json
import os
import pathlib
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from sgm_jax.data import clips, files, places
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.stores import Store, open_store, open_videos, recognise
from sgm_jax.data.video_index import bounds
from sgm_jax.errors import UserError
from sgm_jax.sampling.media import decode_image

# A record is in memory as a whole, a few times over; and its format ends at 2 GiB.
_LARGEST_VIDEO = 2**29


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """What is prepared: `path`, `format` and `caption` as of `open_store`.

    Attributes:
      kind: 'pictures', 'videos', or 'auto', which looks.
    """

    path: str
    kind: str = 'auto'
    format: str = 'auto'
    caption: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """What is known of one example without its bytes.

    Attributes:
      number: among the examples of the input.
      name: its path below the input's.
      damaged: why it cannot be used; '' if it can, and all else is known.
      sha256: of its encoded bytes, hexadecimal.
      size: bytes.
      height, width: pixels as shown, upright.
      text: its caption, if it has one.
      label: the number of its class, if it has one.
      fps, duration: of videos, frames per second and seconds.
    """

    number: int
    name: str
    damaged: str = ''
    sha256: str = ''
    size: int = 0
    height: int = 0
    width: int = 0
    text: str | None = None
    label: int | None = None
    fps: float = 0.0
    duration: float = 0.0


def dump(facts: Iterable[Fact]) -> Iterator[bytes]:
    """A line for each."""
    for fact in facts:
        yield json.dumps(dataclasses.asdict(fact)).encode() + b'\n'


def load(path: pathlib.Path) -> Iterator[Fact]:
    """The facts in a file of such lines, one at a time."""
    with path.open('rb') as file:
        for line in file:
            yield Fact(**json.loads(line))


class Examples(Protocol):
    """Examples by number, from any number of threads.

    Attributes:
      kind: 'picture' or 'video'.
      skipped: what does not suit, and why, by name.
      damaged: what was found broken while listing, and why, by name.
      label_names: of the classes, in the order of their numbers, where they are known.
    """

    kind: str
    skipped: dict[str, str]
    damaged: dict[str, str]
    label_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def look(self, number: int) -> Fact:
        """Reads all of it and decodes it: damage is found here."""

    def read(self, number: int) -> bytes:
        """The encoded bytes, as they are. Raises DamagedError."""


@functools.lru_cache(maxsize=1)
def open_examples(given: Input) -> Examples:
    """The examples of an input, listed once in each process.

    Raises:
      UserError: nothing usable is there.
    """
    kind = _kind(given.path) if given.kind == 'auto' else given.kind
    return Videos(given) if kind == 'videos' else Pictures(given)


class Pictures:
    """Those of a store: its training examples, then those it holds out, if it tells them apart."""

    kind = 'picture'

    def __init__(self, given: Input):
        open_split = functools.partial(
            open_store,
            given.path,
            format=given.format,
            wants_text=True,
            keep_all=True,
            caption=given.caption,
        )
        self._stores = {'': open_split(split='train')}
        if self._stores[''].own_split:
            self._stores = {
                'train/': self._stores[''],
                'held_out/': open_split(split='held_out'),
            }
        self._short = _shortener(given.path)
        listed = lambda kind: {
            key + self._short(name): reason
            for key, store in self._stores.items()
            for name, reason in getattr(store, kind).items()
        }
        self.skipped, self.damaged = listed('skipped'), listed('damaged')
        self._labels = next(iter(self._stores.values())).labels or {}
        self.label_names = tuple(sorted(self._labels, key=self._labels.get))

    def __len__(self) -> int:
        return sum(map(len, self._stores.values()))

    def look(self, number: int) -> Fact:
        key, store, index = self._place(number)
        about = Fact(number=number, name=key + self._short(store.name(index)))
        try:
            data, text, label = store.picture(index), store.text(index), store.label(index)
            if not data:
                raise DamagedError(about.name, 'the file is empty')
            height, width = decode_image(io.BytesIO(data)).shape[:2]
        except DamagedError as error:
            return dataclasses.replace(about, damaged=error.reason)
        except ValueError as error:
            return dataclasses.replace(about, damaged=f'not a readable picture ({error})')
        return dataclasses.replace(
            about,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            height=height,
            width=width,
            text=text or None,
            label=self._labels[label] if isinstance(label, str) else label,
        )

    def read(self, number: int) -> bytes:
        _, store, index = self._place(number)
        return store.picture(index)

    def _place(self, number: int) -> tuple[str, Store, int]:
        for key, store in self._stores.items():
            if number < len(store):
                return key, store, number
            number -= len(store)
        raise IndexError(number)


class Videos:
    """Files of videos, or members of tars, with captions beside them; they have no classes."""

    kind = 'video'
    label_names = ()

    def __init__(self, given: Input):
        self._store = open_videos(given.path, wants_text=True, keep_all=True)
        self._short = _shortener(given.path)
        listed = lambda reasons: {self._short(name): reason for name, reason in reasons.items()}
        self.skipped, self.damaged = listed(self._store.skipped), listed(self._store.damaged)
        self._numbers = []
        for index in range(len(self._store)):
            part = self._store.part(index)
            size = os.path.getsize(part.path) if part.size is None else part.size
            if size > _LARGEST_VIDEO:
                reason = f'larger than {_LARGEST_VIDEO >> 20} MiB, which records are not made for'
                self.skipped[self._short(self._store.name(index))] = reason
            else:
                self._numbers.append(index)

    def __len__(self) -> int:
        return len(self._numbers)

    def look(self, number: int) -> Fact:
        store, index = self._store, self._numbers[number]
        about = Fact(number=number, name=self._short(store.name(index)))
        try:
            info = clips.read_info(store.name(index), bounds(store, index))
            data, text = store.picture(index), store.text(index)
        except DamagedError as error:
            return dataclasses.replace(about, damaged=error.reason)
        return dataclasses.replace(
            about,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            height=info.height,
            width=info.width,
            text=text or None,
            fps=info.fps,
            duration=info.duration,
        )

    def read(self, number: int) -> bytes:
        return self._store.picture(self._numbers[number])


def _kind(path: str) -> str:
    if not path or path == files.DEMO:
        return 'pictures'
    listed = places.entries(path)
    names = [entry.path.lower() for entry in listed]
    if recognise(listed) != 'folder' or not any(map(files.VIDEO.holds, names)):
        return 'pictures'
    if any(map(files.PICTURE.holds, names)):
        raise UserError(
            f'{path}: both pictures and videos are there; give --kind=pictures or --kind=videos'
        )
    return 'videos'


def _shortener(path: str) -> Callable[[str], str]:
    """Names below `path`, which may be a pattern, without it."""
    fixed = path
    if glob.has_magic(path) and not places.is_remote(path) and not pathlib.Path(path).exists():
        fixed = posixpath.dirname(path[: glob.magic_check.search(path).start()] + 'x')

    def short(name: str) -> str:
        rest = name.removeprefix(fixed).lstrip('/#')
        return rest if rest and name.startswith(fixed) else posixpath.basename(name)

    return short
