"""What was found out about files once, kept in a cache folder. Without it all works, slower."""

import contextlib
import hashlib
import json
import logging
import pathlib
from typing import Any

import numpy as np

from sgm_jax.interop.whole_files import whole
from sgm_jax.parallel import cache

LOG = logging.getLogger(__name__)


def load_json(kind: str, key: str) -> Any:
    """What `store_json` kept under the key; None if there is nothing."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(_place(kind, key, 'json').read_bytes())
    return None


def store_json(kind: str, key: str, value: Any) -> None:
    """Keeps a value."""
    _store(_place(kind, key, 'json'), lambda file: file.write(json.dumps(value).encode()))


def load_arrays(kind: str, key: str) -> dict[str, np.ndarray]:
    """What `store_arrays` kept under the key; empty if there is nothing."""
    with (
        contextlib.suppress(OSError, ValueError, EOFError),
        np.load(_place(kind, key, 'npz'), allow_pickle=False) as found,
    ):
        return dict(found)
    return {}


def store_arrays(kind: str, key: str, **arrays: np.ndarray) -> None:
    """Keeps arrays."""
    _store(_place(kind, key, 'npz'), lambda file: np.savez(file, **arrays))


def _place(kind: str, key: str, suffix: str) -> pathlib.Path:
    # A file's name may be no text.
    data = key.encode('utf-8', 'surrogateescape')
    name = hashlib.blake2b(data, digest_size=16).hexdigest()
    return cache.base() / kind / f'{name}.{suffix}'


def _store(place: pathlib.Path, write) -> None:
    try:
        with whole(place) as file:
            write(file)
    except OSError as error:
        LOG.warning('%s: the index is not kept (%s)', place, error.strerror or error)
