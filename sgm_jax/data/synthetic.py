"""Moving coloured shapes, for tests and benchmarks that want no files."""

import numpy as np

from sgm_jax.data.records import rate_range, video_record

SHAPES = 3


class SyntheticVideo:
    """Discs and squares that glide over a plain ground; each record is drawn from its index alone.

    With `random`, each visit of an index draws its shapes anew. `split='held_out'` draws other shapes.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        height: int,
        width: int,
        frame_rates: int | tuple[int, int] = (6, 30),
        split: str = 'train',
        length: int = 1024,
        random: bool = True,
    ):
        self.num_frames, self.size, self.length = num_frames, (height, width), length
        self.frame_rates = rate_range(frame_rates)
        self.split, self.random = split, random and split == 'train'

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """As of any video source; see `sgm_jax.data.records`."""
        if rng is None or not self.random:
            rng = np.random.default_rng([index, self.split == 'held_out'])
        rate = int(rng.integers(self.frame_rates[0], self.frame_rates[1] + 1))
        return video_record(_draw(rng, self.num_frames, self.size, rate), rate)

    def describe(self) -> str:
        """One line: what and how many."""
        height, width = self.size
        return (
            f'synthetic_video ({self.split}): {self.length} windows of {self.num_frames} frames of '
            f'{height}x{width} per epoch'
        )


def _draw(
    rng: np.random.Generator, num_frames: int, size: tuple[int, int], rate: int
) -> np.ndarray:
    """uint8 (t, h, w, 3): shapes with soft edges; places and speeds are in frame heights (per second)."""
    height, width = size
    down, across = np.meshgrid(
        (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / height, indexing='ij'
    )
    seconds = np.arange(num_frames) / rate
    video = np.broadcast_to(rng.uniform(0, 255, 3), (num_frames, height, width, 3)).copy()
    for _ in range(SHAPES):
        color, radius, square = rng.uniform(0, 255, 3), rng.uniform(0.1, 0.3), rng.random() < 0.5
        place = rng.random(2) * (1, width / height)
        speed = rng.normal(0, 0.3, 2)
        dy, dx = (
            np.abs(grid - (p + v * seconds)[:, None, None])
            for grid, p, v in zip((down, across), place, speed, strict=True)
        )
        distance = np.maximum(dy, dx) if square else np.hypot(dy, dx)
        cover = np.clip((radius - distance) * height + 0.5, 0, 1)[..., None]
        video += cover * (color - video)
    return video.round().astype(np.uint8)
