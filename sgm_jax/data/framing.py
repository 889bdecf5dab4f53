"""What part of a frame is shown: crop boxes and sizes. Sizes are (height, width), corners (top, left)."""

import dataclasses

import numpy as np
from PIL import Image

from sgm_jax.sampling.media import box_within


@dataclasses.dataclass(frozen=True, kw_only=True)
class Framing:
    """A crop of the target's aspect ratio, scaled to the target's size.

    Attributes:
      size: the target's (height, width).
      scale: range of the random crop's side, 1 being the largest box of that shape in the frame. A crop is
        never so small that it would be enlarged, unless the whole frame is smaller than the target.
      flip: whether random framings are mirrored half of the time.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False

    def working_size(self, source: tuple[int, int]) -> tuple[int, int]:
        """The smallest size to decode a `source` to, such that no crop loses detail."""
        enlarged = self._fit(source) * self._smallest(source)
        if enlarged <= 1:
            return source
        return tuple(max(t, round(s / enlarged)) for s, t in zip(source, self.size, strict=True))

    def box(
        self, frame: tuple[int, int], rng: np.random.Generator | None
    ) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in a frame's pixels: random, or without `rng` the largest, centred."""
        smallest, largest = self._smallest(frame), self.scale[1]
        scale, across, down = (1.0, 0.5, 0.5)
        if rng is not None:
            scale = rng.uniform(smallest, max(smallest, largest))
            across, down = rng.random(2)
        return box_within(frame, self.size, scale=scale, across=across, down=down)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """uint8 frames (t, h, w, 3) to (t, *size, 3): the same crop and mirroring for all frames."""
        box = self.box(frames.shape[1:3], rng)
        mirrored = rng is not None and self.flip and rng.random() < 0.5
        left, top, right, bottom = box
        if np.allclose((bottom - top, right - left), self.size, atol=1e-6):
            # Nothing is scaled: whole pixels stay what they are.
            top, left = round(top), round(left)
            cropped = frames[:, top : top + self.size[0], left : left + self.size[1]]
        else:
            cropped = np.stack([_resized(frame, self.size, box) for frame in frames])
        return np.ascontiguousarray(cropped[:, :, ::-1] if mirrored else cropped)

    def _fit(self, frame: tuple[int, int]) -> float:
        return min(f / s for f, s in zip(frame, self.size, strict=True))

    def _smallest(self, frame: tuple[int, int]) -> float:
        return min(1.0, max(self.scale[0], 1 / self._fit(frame)))


def _resized(
    frame: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    # Pillow's kernel widens with the reduction: antialiased.
    image = Image.fromarray(frame)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC, box=box))
