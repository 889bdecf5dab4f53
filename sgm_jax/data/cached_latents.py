"""What frozen encoders make of pictures and clips, read from the files that `tools.cache_latents` writes."""

import json
import pathlib

import numpy as np

from sgm_jax.data import packed
from sgm_jax.data.records import check_split
from sgm_jax.errors import UserError

SETTINGS, EMPTY = 'cache.json', 'empty.npz'


class CachedLatents:
    """Moments of the first stage, embeddings of frozen encoders, and the numbers that go with a picture."""

    def __init__(self, *, path: str, split: str = 'train'):
        """Opens a cache.

        Args:
          path: its folder.
          split: 'train', or 'held_out', whose records are pictures as they were.

        Raises:
          UserError: there is no cache, or it is not complete.
        """
        check_split(split)
        self.path, self.split = pathlib.Path(path).expanduser(), split
        self.settings = read_settings(self.path)
        shards = self.settings['shards'][split]
        names = [shard_path(self.path, split, number, shards) for number in range(shards)]
        missing = [name.name for name in names if not name.is_file()]
        if missing or not (self.path / EMPTY).is_file():
            raise UserError(
                f'{path}: the cache is not complete: {len(missing)} of {shards} files are missing '
                f'({", ".join(missing[:1]) or EMPTY}); run the command that made it again'
            )
        if not names:
            raise UserError(f'{path}: the cache has nothing for {split}')
        import grain

        self._records = grain.sources.ArrayRecordDataSource([str(name) for name in names])
        with np.load(self.path / EMPTY, allow_pickle=False) as found:
            self._empty = {name: found[name] for name in found.files}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`moments` float32 (h, w, 2 z) or (t, h, w, 2 z), `embedded/...`, and the rest of the record.

        With them is the `fingerprint` of the encoders, which a model compares with its own.
        """
        found = packed.unpack(self._records[index % len(self)])
        if self.split == 'train':
            found |= {**self._empty, 'fingerprint': np.str_(self.settings['fingerprint'])}
        return found

    def describe(self) -> str:
        """Two lines: how many, and of what."""
        return (
            f'cached_latents ({self.split}): {len(self)} records at {self.path}\n'
            f'  of {self.settings["described"]}'
        )


def read_settings(folder: pathlib.Path) -> dict:
    """What a cache is made of. Raises a UserError if there is none."""
    try:
        return json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f'{folder}: no cache of latents there; make one with python -m sgm_jax.tools.cache_latents'
        ) from error


def shard_path(folder: pathlib.Path, split: str, number: int, count: int) -> pathlib.Path:
    """The file of a shard."""
    return folder / f'{split}-{number:05}-of-{count:05}.array_record'
