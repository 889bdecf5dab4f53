"""When a window of a video is: which part of the file, at which frame rate, from which second on."""

import dataclasses
import math

import numpy as np

from sgm_jax.data.clips import VideoInfo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of files, in time.

    Attributes:
      split: 'train', or 'held_out' for the last part of each file. No window crosses the boundary.
      held_out_fraction: of each file's duration.
      frame_rates: (lowest, highest) of a window, whole frames per second; in each file no faster than its
        frames, no slower than its length allows.
      per_video: windows of a file, from equal parts of its time.
      spread: whether they are spread over that time; otherwise they start where it starts.
    """

    split: str
    held_out_fraction: float
    frame_rates: tuple[int, int]
    per_video: int
    spread: bool

    def span(self, info: VideoInfo) -> tuple[float, float]:
        """(begin, end) in seconds of the split's part of a file."""
        cut = info.duration * (1 - self.held_out_fraction)
        if self.split == 'held_out':
            return cut, math.inf
        return 0.0, cut if self.held_out_fraction else math.inf

    def seconds(self, info: VideoInfo) -> float:
        """Length of the split's part of a file."""
        begin, end = self.span(info)
        return min(end, info.duration) - begin

    def longest(self, info: VideoInfo) -> int:
        """Frames of the longest window that a file can hold; 0 for none."""
        lowest, highest = self.frame_rates
        highest = min(highest, round(info.fps))
        if lowest > highest:
            return 0
        return 1 + math.floor(max(0.0, self._room(info)) * (highest + 1e-6))

    def too_short(self, info: VideoInfo, num_frames: int) -> str:
        """Why a file cannot hold a window, in words."""
        return (
            f'too short or too slow: {self.seconds(info):.2f} s for {self.split} at {info.fps:.3g} '
            f'frames per second cannot hold {num_frames} frames at {self.frame_rates[0]} to '
            f'{self.frame_rates[1]} per second'
        )

    def times(
        self, info: VideoInfo, num_frames: int, part: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, int]:
        """Seconds (num_frames,) of a window's frames, and its rate; of a file that can hold it.

        Without `rng` the rate is the lowest, and the window in the middle of its part of the time.
        """
        lowest, highest = self._rates(info, num_frames)
        rate = lowest if rng is None else int(rng.integers(lowest, highest + 1))
        begin, _ = self.span(info)
        free = max(0.0, self._room(info) - (num_frames - 1) / rate)
        within = 0.5 if rng is None else rng.random()
        offset = free * (part + within) / self.per_video if self.spread else 0.0
        return begin + offset + np.arange(num_frames) / rate, rate

    def _room(self, info: VideoInfo) -> float:
        """Seconds between the first and the last frame of the span."""
        return self.seconds(info) - 1 / info.fps

    def _rates(self, info: VideoInfo, num_frames: int) -> tuple[int, int]:
        lowest, highest = self.frame_rates[0], min(self.frame_rates[1], round(info.fps))
        if num_frames > 1:
            lowest = max(lowest, math.ceil((num_frames - 1) / self._room(info) - 1e-6))
        return min(lowest, highest), highest
