"""Windows of the videos in a folder, as records by index. What is in a record: `sgm_jax.data.records`."""

import collections
import logging
import math
import threading

import numpy as np

from sgm_jax.data import clips
from sgm_jax.data.damage import Damage, DamagedError
from sgm_jax.data.filters import Filters
from sgm_jax.data.framing import Framing
from sgm_jax.data.motion import mean_flow
from sgm_jax.data.records import rate_range, video_record
from sgm_jax.data.stores import caption_of, check_text, open_videos
from sgm_jax.data.video_index import video_infos
from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)

SPLITS = ('train', 'held_out')
# Windows tried for one record before the data are called broken.
ATTEMPTS = 20


class VideoClips:
    """Windows of the videos in a folder, at drawn times, frame rates and crops."""

    def __init__(
        self,
        *,
        path: str,
        num_frames: int,
        height: int,
        width: int,
        frame_rates: int | tuple[int, int] = (6, 30),
        split: str = 'train',
        held_out_fraction: float = 0.2,
        windows_per_video: int = 16,
        random: bool = True,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: bool = False,
        cache: bool = False,
        cache_bytes: int = 2**30,
        text: str = 'none',
        min_motion: float = 0.0,
        cuts: str = 'keep',
        max_damaged: float = 0.01,
    ):
        """Lists and checks the videos; those that cannot be used are logged and counted in `skipped`.

        Args:
          path: a video or a WebDataset tar, a folder or a pattern of them, an address (gs://, s3://), or
            'demo'.
          num_frames: of a window.
          height: of a record, pixels.
          width: of a record, pixels.
          frame_rates: (lowest, highest) whole frames per second of a window, or one. For each file the range
            is narrowed to what the file has: no faster than its frames, no slower than its length allows.
          split: 'train', or 'held_out' for the last part of each file. No window crosses the boundary.
          held_out_fraction: of each file's duration.
          windows_per_video: an epoch takes this many windows from each file, from equal parts of its time.
          random: False for one fixed window per file: its start, the lowest rate, the whole frame cropped at
            the centre. Held-out windows are always fixed: evenly spaced, lowest rate, centred.
          crop_scale: range of the random crop's side, 1 being the largest that fits.
          flip: mirror half of the windows.
          cache: keep the decoded files in memory, at the size the crops need, in the order of the list
            while they fit into `cache_bytes`. Records are the same with and without.
          cache_bytes: the most that is kept.
          text: where a clip's caption is: 'sidecar' (clip.txt beside clip.mp4, or a table, as of pictures; a
            tar's .txt or .json), 'name' (the file's name), or 'none' (no `txt`).
          min_motion: windows are not used whose mean optical flow is less, in frame heights per frame.
          cuts: 'skip' for no windows over a hard cut, or 'keep'.
          max_damaged: the share of damaged videos that ends the run; see `sgm_jax.data.damage`.

        Raises:
          UserError: nothing usable at `path`, or options that make no sense.
        """
        _check('num_frames, height and width', min(num_frames, height, width) >= 1, 'at least 1')
        _check('split', split in SPLITS, f'one of {", ".join(SPLITS)}')
        _check('held_out_fraction', 0 <= held_out_fraction < 1, 'at least 0 and below 1')
        _check('windows_per_video', windows_per_video >= 1, 'at least 1')
        _check('crop_scale', 0 < crop_scale[0] <= crop_scale[1] <= 1, '0 < lowest <= highest <= 1')
        if split == 'held_out' and held_out_fraction == 0:
            raise UserError(
                'data: held_out_fraction is 0, so nothing is held out; set it to e.g. 0.2'
            )
        self.num_frames, self.split, self.path = num_frames, split, path
        self.frame_rates = rate_range(frame_rates)
        self.drawn = random and split == 'train'
        self.windows_per_video = windows_per_video if random else 1
        self.spread = random  # over the span; otherwise at its start
        self.held_out_fraction = held_out_fraction
        self.framing = Framing(
            size=(height, width), scale=crop_scale if self.drawn else (1.0, 1.0), flip=flip
        )
        check_text(text)
        self.text = text
        self.filters = Filters(min_motion=min_motion, cuts=cuts, num_frames=num_frames)
        self.store = open_videos(path, wants_text=text == 'sidecar')
        found, wrong = video_infos(self.store, path)
        self.damage = Damage(
            len(self.store) + len(self.store.damaged), limit=max_damaged, what='video'
        )
        self.damage.update(self.store.damaged | {e.name: e.reason for e in wrong.values()})
        self.skipped = {**self.store.skipped, **self.damage.names}
        for name, reason in self.store.skipped.items():
            LOG.warning('skipping a video: %s: %s', name, reason)
        self._keep_long(found)
        self.failures = collections.Counter()
        self._lock = threading.Lock()
        if not self.infos:
            name, reason = next(iter(self.skipped.items()))
            raise UserError(
                f'data: none of the {len(self.skipped)} videos at {path} can be used for {split}; the '
                f'first: {name}: {reason}'
            )
        self._cache = _DecodedFiles(self, cache_bytes if cache else 0)

    def __len__(self) -> int:
        return len(self.infos) * self.windows_per_video

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The window of this index; or, should it be damaged or filtered, that of the next usable index.

        Raises:
          UserError: `ATTEMPTS` windows in a row could not be used.
        """
        rng = rng if self.drawn else None
        broken = []
        for attempt in range(ATTEMPTS):
            part, file = divmod((index + attempt) % len(self), len(self.infos))
            info = self.infos[file]
            times, rate = self._draw_times(info, part, rng)
            try:
                told = self._told(file)
                frames = self._cache.frames(file, times)
            except DamagedError as error:
                self._count(error)
                broken.append('')
                continue
            frames = self.framing(frames, rng)
            flow = mean_flow(frames)
            if rule := self.filters.refuses(frames, flow):
                broken.append(rule)
                continue
            return {**video_record(frames, rate, flow), **told}
        if any(broken):
            raise self.filters.too_many(broken, info.path)
        raise UserError(
            f'data: {ATTEMPTS} windows in a row could not be read, the last from {info.path}; '
            'remove the damaged files (the log names them)'
        )

    def span(self, info: clips.VideoInfo) -> tuple[float, float]:
        """(begin, end) in seconds of this split's part of a file."""
        cut = info.duration * (1 - self.held_out_fraction)
        if self.split == 'held_out':
            return cut, math.inf
        return 0.0, cut if self.held_out_fraction else math.inf

    def seconds(self, info: clips.VideoInfo) -> float:
        """Length of this split's part of a file."""
        begin, end = self.span(info)
        return min(end, info.duration) - begin

    def describe(self) -> str:
        """A few lines: how many files, windows and seconds, and what was skipped."""
        whole = sum(info.duration for info in self.infos)
        part = sum(map(self.seconds, self.infos))
        height, width = self.framing.size
        lines = [
            f'video_clips ({self.split}): {len(self.infos)} files at {self.path}, '
            f'{part:.1f} of {whole:.1f} s',
            f'  {len(self)} windows of {self.num_frames} frames of {height}x{width} per epoch',
        ]
        if self._cache.sizes:
            lines.append(
                f'  {len(self._cache.sizes)} files kept decoded, {self._cache.nbytes / 2**20:.0f} MiB'
            )
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            lines.append(f'  {len(self.skipped)} files skipped; the first: {name}: {reason}')
        return '\n'.join([*lines, *self.filters.lines()])

    def _room(self, info: clips.VideoInfo) -> float:
        """Seconds between the first and the last frame of the span."""
        return self.seconds(info) - 1 / info.fps

    def _rates(self, info: clips.VideoInfo) -> tuple[int, int]:
        """The (lowest, highest) frame rates of windows of a file; none if the first is larger."""
        lowest, highest = self.frame_rates
        room = self._room(info)
        if self.num_frames > 1:
            needed = math.ceil((self.num_frames - 1) / room - 1e-6) if room > 0 else highest + 1
            lowest = max(lowest, needed)
        return lowest, min(highest, round(info.fps))

    def _keep_long(self, found: dict[int, clips.VideoInfo]) -> None:
        """Sets `infos` to those that can hold a window, and `numbers` to theirs in the store."""
        self.infos, self.numbers = [], []
        for number, info in found.items():
            lowest, highest = self._rates(info)
            if lowest <= highest:
                self.infos.append(info)
                self.numbers.append(number)
                continue
            reason = (
                f'too short or too slow: {self.seconds(info):.2f} s for {self.split} at {info.fps:.3g} '
                f'frames per second cannot hold {self.num_frames} frames at {self.frame_rates[0]} to '
                f'{self.frame_rates[1]} per second'
            )
            self.skipped[info.path] = reason
            LOG.warning('skipping a video: %s: %s', info.path, reason)

    def _draw_times(
        self, info: clips.VideoInfo, part: int, rng: np.random.Generator | None
    ) -> tuple[np.ndarray, int]:
        lowest, highest = self._rates(info)
        rate = lowest if rng is None else int(rng.integers(lowest, highest + 1))
        begin, _ = self.span(info)
        free = max(0.0, self._room(info) - (self.num_frames - 1) / rate)
        within = 0.5 if rng is None else rng.random()
        offset = free * (part + within) / self.windows_per_video if self.spread else 0.0
        return begin + offset + np.arange(self.num_frames) / rate, rate

    def _told(self, file: int) -> dict[str, np.ndarray]:
        if self.text == 'none':
            return {}
        return {'txt': np.str_(caption_of(self.store, self.numbers[file], self.text))}

    def _count(self, error: DamagedError) -> None:
        with self._lock:
            self.failures[error.name] += 1
        self.damage.add(error.name, error.reason)


class _DecodedFiles:
    """Frames of a source's files: from memory for those that fit, else from the file."""

    def __init__(self, source: VideoClips, budget: int):
        self.source, self.nbytes = source, 0
        self.sizes = {}  # bytes by the number of the file; decided here, not by the order of reading
        for file, info in enumerate(source.infos):
            height, width = source.framing.working_size((info.height, info.width))
            frames = math.ceil(source.seconds(info) * info.fps) + 1
            if self.nbytes + frames * height * width * 3 <= budget:
                self.sizes[file] = frames * height * width * 3
                self.nbytes += self.sizes[file]
        self.locks = {file: threading.Lock() for file in self.sizes}
        self.decoded = {}

    def frames(self, file: int, times: np.ndarray) -> np.ndarray:
        info = self.source.infos[file]
        size = self.source.framing.working_size((info.height, info.width))
        span = self.source.span(info)
        if file in self.sizes:
            with self.locks[file]:
                if file not in self.decoded:
                    self.decoded[file] = self._read(info, span, size)
            if self.decoded[file] is not None:
                pixels, available = self.decoded[file]
                return pixels[clips.nearest(info, available, times)]
        return clips.read_frames(info, times, size=size, span=span)

    def _read(self, info, span, size):
        try:
            return clips.read_span(info, span, size=size)
        except clips.UnreadableVideoError:
            # Windows before the damage are still good: they are read one by one, as without a cache.
            return None


def _check(name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f'data: {name} must be {rule}')
