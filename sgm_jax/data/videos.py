"""Windows of the videos in a folder, as records by index. What is in a record: `sgm_jax.data.records`."""

import collections
import logging
import threading
from collections.abc import Mapping

import numpy as np

from sgm_jax.data.bucket_plan import assign, clip_sizes
from sgm_jax.data.clips import VideoInfo
from sgm_jax.data.damage import Damage, DamagedError
from sgm_jax.data.decoded import DecodedFiles
from sgm_jax.data.filters import Filters
from sgm_jax.data.framing import Framing
from sgm_jax.data.identity import digest
from sgm_jax.data.motion import mean_flow
from sgm_jax.data.records import rate_range, video_record
from sgm_jax.data.stores import caption_of, check_text, open_videos
from sgm_jax.data.video_index import video_infos
from sgm_jax.data.windows import Windows
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
        buckets: tuple[tuple[int, int, int], ...] = (),
        max_damaged: float = 0.01,
    ):
        """Lists and checks the videos; those that cannot be used are logged and counted in `skipped`.

        Args:
          path: a video or a WebDataset tar, a folder or a pattern of them, an address (gs://, s3://), or
            'demo'.
          num_frames: of a window; of held-out ones also with buckets.
          height, width: of a record, pixels; of held-out ones also with buckets.
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
          buckets: sizes (frames, height, width): batches of training then have one of these sizes each. A
            file's windows are of the size nearest to its shape among those that it is long enough for; of
            the same shape, of the longest.
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
        check_text(text)
        self.split, self.path, self.text = split, path, text
        self.drawn = random and split == 'train'
        self.buckets = clip_sizes(buckets) if split == 'train' else ()
        # Of records: the config's own, then the buckets'.
        self.sizes = ((num_frames, height, width), *self.buckets)
        scale = crop_scale if self.drawn else (1.0, 1.0)
        self._framings = [Framing(size=size[1:], scale=scale, flip=flip) for size in self.sizes]
        self.windows = Windows(
            split=split,
            held_out_fraction=held_out_fraction,
            frame_rates=rate_range(frame_rates),
            per_video=windows_per_video if random else 1,
            spread=random,
        )
        shortest = min(size[0] for size in self.sizes)
        self.filters = Filters(min_motion=min_motion, cuts=cuts, num_frames=shortest)
        self.store = open_videos(path, wants_text=text == 'sidecar')
        found, wrong = video_infos(self.store, path)
        total = len(self.store) + len(self.store.damaged)
        self.damage = Damage(total, limit=max_damaged, what='video')
        self.damage.update(self.store.damaged | {e.name: e.reason for e in wrong.values()})
        self.skipped = dict(self.store.skipped)
        self._keep_long(found, min(size[0] for size in self.buckets or self.sizes))
        for name, reason in self.skipped.items():
            LOG.warning('skipping a video: %s: %s', name, reason)
        self.skipped |= self.damage.names
        if not self.infos:
            name, reason = next(iter(self.skipped.items()))
            raise UserError(
                f'data: none of the {len(self.skipped)} videos at {path} can be used for {split}; the '
                f'first: {name}: {reason}'
            )
        if self.longest.max() < num_frames:
            raise UserError(
                f'data: num_frames is {num_frames}, and the longest window that a video at {path} can '
                f'hold has {self.longest.max()}; lower it (held-out windows have it, whatever the buckets)'
            )
        self.shapes = np.array([(info.height, info.width) for info in self.infos])
        self.bucket_of = assign(self.shapes, self.buckets, longest=self.longest)
        kept_for = [self._framings[b + 1 if self.buckets else 0] for b in self.bucket_of]
        self._files = DecodedFiles(self.infos, kept_for, self.windows, cache_bytes if cache else 0)
        self.failures = collections.Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.infos) * self.windows.per_video

    def __getitem__(self, index: int) -> int:
        return int(index)

    def record(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """The window of this index; or, should it be damaged or filtered, that of the next usable index.

        Indices beyond the length ask for buckets: those of the n-th bucket (from 1) follow n lengths.

        Raises:
          UserError: `ATTEMPTS` windows in a row could not be used.
        """
        bucket, index = divmod(index, len(self))
        num_frames, framing = self.sizes[bucket][0], self._framings[bucket]
        rng = rng if self.drawn else None
        broken = []
        for place in range(index, index + ATTEMPTS * len(self)):
            part, file = divmod(place % len(self), len(self.infos))
            if self.longest[file] < num_frames:
                continue
            if len(broken) == ATTEMPTS:
                break
            info = self.infos[file]
            times, rate = self.windows.times(info, num_frames, part, rng)
            try:
                told = self._told(file)
                frames = self._files.frames(file, times, framing)
            except DamagedError as error:
                self._count(error)
                broken.append('')
                continue
            frames = framing(frames, rng)
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

    def describe(self) -> str:
        """A few lines: how many files, windows and seconds, and what was skipped."""
        whole = sum(info.duration for info in self.infos)
        part = sum(map(self.windows.seconds, self.infos))
        frames, height, width = self.sizes[0]
        of = (
            f'{len(self.buckets)} buckets'
            if self.buckets
            else f'{frames} frames of {height}x{width}'
        )
        lines = [
            f'video_clips ({self.split}): {len(self.infos)} files at {self.path}, '
            f'{part:.1f} of {whole:.1f} s',
            f'  {len(self)} windows of {of} per epoch',
            *self._files.describe(),
        ]
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            lines.append(f'  {len(self.skipped)} files skipped; the first: {name}: {reason}')
        return '\n'.join([*lines, *self.filters.lines()])

    def identity(self) -> str:
        """Of the files that are used, and what is known of each (`sgm_jax.data.identity`)."""
        known = [(i.width, i.height, i.fps, i.duration, i.start) for i in self.infos]
        return digest('videos', (info.path for info in self.infos), np.array(known, np.float64))

    def _keep_long(self, found: Mapping[int, VideoInfo], num_frames: int) -> None:
        """Sets `infos` to those that can hold such a window, `longest` to the most frames of one."""
        longest = {number: self.windows.longest(info) for number, info in found.items()}
        self._numbers = [number for number in found if longest[number] >= num_frames]
        self.infos = [found[number] for number in self._numbers]
        self.longest = np.array([longest[number] for number in self._numbers], np.int64)
        for number, info in found.items():
            if longest[number] < num_frames:
                self.skipped[info.path] = self.windows.too_short(info, num_frames)

    def _told(self, file: int) -> dict[str, np.ndarray]:
        if self.text == 'none':
            return {}
        return {'txt': np.str_(caption_of(self.store, self._numbers[file], self.text))}

    def _count(self, error: DamagedError) -> None:
        with self._lock:
            self.failures[error.name] += 1
        self.damage.add(error.name, error.reason)


def _check(name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise UserError(f'data: {name} must be {rule}')
