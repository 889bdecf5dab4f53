"""Frames of videos: from memory for the files that fit, else from the file. The same either way."""

import math
import threading
from collections.abc import Sequence

import numpy as np

from sgm_jax.data import clips
from sgm_jax.data.framing import Framing
from sgm_jax.data.windows import Windows


class DecodedFiles:
    """Frames by file and time; files are decoded when they are first asked for, and kept.

    Args:
      infos: the files.
      framings: of each file, the framing for which it is kept; others read the file.
      windows: where in the files windows may be.
      budget: the most bytes that are kept, in the order of the files.
    """

    def __init__(
        self,
        infos: Sequence[clips.VideoInfo],
        framings: Sequence[Framing],
        windows: Windows,
        budget: int,
    ):
        self._infos, self._framings, self._windows, self.nbytes = infos, framings, windows, 0
        self.sizes = {}  # bytes by the number of the file; decided here, not by the order of reading
        for file, info in enumerate(infos if budget else ()):
            height, width = framings[file].working_size((info.height, info.width))
            frames = math.ceil(windows.seconds(info) * info.fps) + 1
            if self.nbytes + frames * height * width * 3 <= budget:
                self.sizes[file] = frames * height * width * 3
                self.nbytes += self.sizes[file]
        self._locks = {file: threading.Lock() for file in self.sizes}
        self._decoded = {}

    def frames(self, file: int, times: np.ndarray, framing: Framing) -> np.ndarray:
        """uint8 (t, h, w, 3) at `times`, at the framing's working size. Raises UnreadableVideoError."""
        info = self._infos[file]
        size = framing.working_size((info.height, info.width))
        span = self._windows.span(info)
        if file in self.sizes and framing == self._framings[file]:
            with self._locks[file]:
                if file not in self._decoded:
                    self._decoded[file] = _read(info, span, size)
            if self._decoded[file] is not None:
                pixels, available = self._decoded[file]
                return pixels[clips.nearest(info, available, times)]
        return clips.read_frames(info, times, size=size, span=span)

    def describe(self) -> list[str]:
        """Nothing, or a line for a report."""
        if not self.sizes:
            return []
        return [f'  {len(self.sizes)} files kept decoded, {self.nbytes / 2**20:.0f} MiB']


def _read(info: clips.VideoInfo, span: tuple[float, float], size: tuple[int, int]):
    try:
        return clips.read_span(info, span, size=size)
    except clips.UnreadableVideoError:
        # Windows before the damage are still good: they are read one by one, as without a cache.
        return None
