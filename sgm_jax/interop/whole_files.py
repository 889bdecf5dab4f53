"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def whole(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes its place only when all of it is on the disk.

    Parent folders are made. A reader sees the old file or the new one, never a part.

    Raises:
      OSError: it cannot be written; nothing of it is left.
    """
    target = pathlib.Path(path)
    part = target.with_name(f'.{target.name}.{uuid.uuid4().hex[:8]}')
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open('wb') as file:
            yield file
            file.flush()
            # A full disk may be noticed no earlier than here.
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
