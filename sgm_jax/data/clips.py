"""Windows of videos: what a file holds, and the frames nearest to given times, with PyAV.

Times are seconds from the first frame of the file. Frames are found by their timestamps, so that a variable
frame rate needs no special case. Decoding uses one thread per call: the pipeline runs several calls at once.
"""

import contextlib
import dataclasses
import fractions
import pathlib
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from sgm_jax.data import hdr
from sgm_jax.data.damage import DamagedError
from sgm_jax.data.places import Part

# A read that takes longer (a dead network mount) is an error, not a hang.
TIMEOUT_SECONDS = 30.0
# A file whose last packet is this much earlier than its header says was cut short.
MISSING_SECONDS = 0.5

# Where a header has no count of frames: at these shares of its duration so many packets are counted, of
# at most so many that are read from the keyframe before; and a rate that is this much lower is believed.
_PLACES, _COUNTED, _READ = (0.25, 0.5, 0.75), 48, 512
_REORDERED = 16  # the most by which H.264 and H.265 have packets out of the order of display
_SLOWER = 0.97

_BT709, _UNSPECIFIED, _BT2020 = 1, 2, 9  # colour matrices of ITU-T H.273
_DECODING_ERRORS = (av.FFmpegError, OSError, ValueError, EOFError, IndexError)


class UnreadableVideoError(DamagedError):
    """A video that cannot be used: names the file and the reason; a source skips and counts it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What the container says of a video, after a check that its end is there.

    Attributes:
      path: its name: the file, or the tar and the name in it.
      part: where its bytes are, unless `path` is the whole of a file on this machine.
      width, height: pixels as displayed, after rotation and for square pixels.
      fps: average frames per second.
      duration: seconds, from the first frame to the end of the last.
      start: the first frame's timestamp in the units of the stream; not always 0.
    """

    path: str
    width: int
    height: int
    fps: float
    duration: float
    start: int
    part: Part | None = None


def read_info(path: str | pathlib.Path, part: Part | None = None) -> VideoInfo:
    """Reads a video's metadata, decodes its first frame, and looks whether its last packets are there.

    Args:
      path: its name, and where it is if there is no `part`.
      part: bytes of a file, anywhere.

    Raises:
      UnreadableVideoError: missing, empty, cut short, not a video, or without a video stream.
    """
    with _opened(path, part) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None or first.is_corrupt:
            raise UnreadableVideoError(path, 'its first frame cannot be decoded')
        if first.pts is None:
            raise UnreadableVideoError(path, 'its frames have no timestamps')
        rate = stream.average_rate or stream.guessed_rate or fractions.Fraction(0)
        if not rate:
            raise UnreadableVideoError(path, 'its frame rate is unknown')
        claimed = stream.duration and float(stream.duration * stream.time_base)
        found = _end_of_last_packet(container, stream, first.pts)
        if claimed and found < claimed - max(MISSING_SECONDS, 2 / float(rate)):
            raise UnreadableVideoError(
                path, f'cut short: {found:.1f} s of {claimed:.1f} s are there'
            )
        if found <= 0:
            raise UnreadableVideoError(path, 'its duration is unknown')
        rate = float(rate)
        if not stream.frames:
            # Such a header's rate is a guess from its first packets, or a thousand of browsers' recordings.
            measured = _packets_per_second(container, stream, first.pts, found)
            rate = measured if measured < _SLOWER * rate else rate
        width = round(first.width * (stream.sample_aspect_ratio or 1))
        height = first.height
        if first.rotation % 180:
            width, height = height, width
        return VideoInfo(
            path=str(path),
            width=width,
            height=height,
            fps=rate,
            duration=found,
            start=first.pts,
            part=part,
        )


def _end_of_last_packet(
    container: av.container.InputContainer, stream: av.VideoStream, start: int
) -> float:
    """Seconds at which the last readable packet ends; reads only what follows the last keyframe."""
    length = stream.duration
    if not length and container.duration:
        length = int(fractions.Fraction(container.duration, av.time_base) / stream.time_base)
    # Without a length in the header, or with its end missing, all packets are read (not decoded).
    for target in (start + (length or 0), start):
        end = 0
        with contextlib.suppress(av.FFmpegError):
            container.seek(target, stream=stream)
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    break
                if packet.pts is not None:
                    end = max(end, packet.pts + (packet.duration or 0) - start)
        if end > 0:
            break
    return float(end * stream.time_base)


def _packets_per_second(
    container: av.container.InputContainer, stream: av.VideoStream, start: int, duration: float
) -> float:
    """Over the packets at a few places of the file, infinite if there are none; decodes nothing."""
    count = ticks = 0
    for share in _PLACES:
        begin, told = start + int(share * duration / stream.time_base), []
        with contextlib.suppress(av.FFmpegError):
            container.seek(begin, stream=stream)
            for number, packet in enumerate(container.demux(stream)):
                if packet.pts is not None and packet.pts >= begin:
                    told.append(packet.pts)
                if len(told) == _COUNTED + _REORDERED or number == _READ:
                    break
        told = sorted(told)[:_COUNTED]
        if len(told) > 1:
            count += len(told) - 1
            ticks += told[-1] - told[0]
    return count / float(ticks * stream.time_base) if ticks else np.inf


def read_frames(
    info: VideoInfo,
    times: Sequence[float],
    *,
    size: tuple[int, int],
    span: tuple[float, float] | None = None,
) -> np.ndarray:
    """The frames nearest to `times` (ascending), decoded from the keyframe before the first of them.

    Args:
      info: the file.
      times: seconds; of two frames equally near the earlier is taken.
      size: (height, width) to which each frame is scaled, antialiased.
      span: only frames at begin <= time < end are candidates; by default all.

    Returns:
      uint8 (t, height, width, 3).

    Raises:
      UnreadableVideoError: damaged, or the video ends before the last of `times`.
    """
    span = span or (0.0, np.inf)
    scale = _Scaler(size)
    found = _read_needed(info, times, span, scale)
    return _read_all(info, times, span, scale) if found is None else found


def _read_needed(
    info: VideoInfo, times: Sequence[float], span: tuple[float, float], scale: '_Scaler'
) -> np.ndarray | None:
    """As `read_frames`, but frames that no other needs are decoded only if they are wanted: most of the work
    is on the way from the keyframe. None where the packets do not say enough beforehand.
    """
    begin, end = span
    with _opened(info.path, info.part) as (container, stream):
        seconds = lambda pts: float((pts - info.start) * stream.time_base)
        first = max(begin, times[0])
        container.seek(info.start + int(first / stream.time_base), stream=stream)
        packets, after = [], None
        for packet in container.demux(stream):
            packets.append(packet)
            if not packet.size:
                continue
            if packet.pts is None or packet.dts is None:
                return None
            if seconds(packet.pts) >= min(end, times[-1]):
                after = packet.pts if after is None else min(after, packet.pts)
            # Packets come in the order of dts, and none is shown before it is decoded.
            if after is not None and packet.dts >= after:
                break
        told = sorted(packet.pts for packet in packets if packet.size)
        inside = [pts for pts in told if begin <= seconds(pts) < end]
        if not inside or len(set(told)) < len(told) or seconds(told[0]) > first:
            return None
        available = np.array([seconds(pts) for pts in inside])
        wanted = [inside[index] for index in nearest(info, available, times)]
        missing, pictures = set(wanted), {}

        def decoded() -> Iterator[av.VideoFrame]:
            for packet in packets:
                needed = packet.pts in missing
                stream.codec_context.skip_frame = 'DEFAULT' if needed else 'NONREF'
                yield from packet.decode()
            if packets[-1].size:
                yield from stream.codec_context.decode(None)

        for frame in decoded():
            if frame.is_corrupt:
                return None
            if frame.pts in missing:
                missing.remove(frame.pts)
                pictures[frame.pts] = scale(frame)
            if not missing:
                return np.stack([pictures[pts] for pts in wanted])
    return None


def _read_all(
    info: VideoInfo, times: Sequence[float], span: tuple[float, float], scale: '_Scaler'
) -> np.ndarray:
    begin, end = span
    wanted, picked = list(times), []
    before, picture = None, None  # the candidate at or before the wanted time, and its pixels

    def pixels(frame):
        nonlocal picture
        if picture is None or picture[0] is not frame:
            picture = (frame, scale(frame))
        return picture[1]

    for time, frame in _frames_from(info, max(begin, wanted[0])):
        if time < begin:
            continue
        if time >= end:
            break
        while len(picked) < len(wanted) and time >= wanted[len(picked)]:
            at = wanted[len(picked)]
            earlier = before is not None and at - before[0] <= time - at
            picked.append(pixels(before[1] if earlier else frame))
        before = (time, frame)
        if len(picked) == len(wanted):
            break
    if len(picked) < len(wanted):
        _check_reaches(info, before and before[0], wanted[-1])
        picked += [pixels(before[1])] * (len(wanted) - len(picked))
    return np.stack(picked)


def read_span(
    info: VideoInfo, span: tuple[float, float], *, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """All frames at begin <= time < end: uint8 (n, height, width, 3), and their times (n,)."""
    begin, end = span
    frames, times = [], []
    scale = _Scaler(size)
    for time, frame in _frames_from(info, begin):
        if time >= end:
            break
        if time >= begin:
            frames.append(scale(frame))
            times.append(time)
    if not frames:
        raise UnreadableVideoError(info.path, f'no frames between {begin:.2f} s and {end:.2f} s')
    return np.stack(frames), np.array(times)


def nearest(info: VideoInfo, available: np.ndarray, times: Sequence[float]) -> np.ndarray:
    """Indices (t,) into the ascending `available` times, by the same rule as `read_frames`."""
    _check_reaches(info, available[-1], times[-1])
    after = np.searchsorted(available, times).clip(1, max(1, len(available) - 1))
    if len(available) == 1:
        return np.zeros(len(times), int)
    earlier = np.asarray(times) - available[after - 1] <= available[after] - np.asarray(times)
    return np.where(earlier, after - 1, after)


def _check_reaches(info: VideoInfo, last: float | None, wanted: float) -> None:
    # The last frame is on the screen for a while: as long as others, or until the end that was found.
    if last is None or wanted > max(last + 1.5 / info.fps, info.duration):
        at = 'nowhere' if last is None else f'at {last:.2f} s'
        raise UnreadableVideoError(info.path, f'ends {at}, before the wanted {wanted:.2f} s')


def _frames_from(info: VideoInfo, begin: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Times and frames from at most `begin` on (earlier ones come too), in the order of display."""
    with _opened(info.path, info.part) as (container, stream):
        for target in (info.start + int(begin / stream.time_base), info.start):
            # Some containers seek past the target; then everything is decoded from the start.
            container.seek(target, stream=stream)
            first = True
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise UnreadableVideoError(info.path, 'a frame has no timestamp')
                if frame.is_corrupt:
                    raise UnreadableVideoError(info.path, 'a frame is damaged')
                time = float((frame.pts - info.start) * stream.time_base)
                if first and time > begin and target > info.start:
                    break
                first = False
                yield time, frame
            else:
                return


@contextlib.contextmanager
def _opened(
    path: str | pathlib.Path, part: Part | None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its video stream; whatever PyAV raises inside becomes UnreadableVideoError."""
    try:
        size = pathlib.Path(path).stat().st_size if part is None else part.size
        if size == 0:
            raise UnreadableVideoError(path, 'the file is empty')
        # FFmpeg reads whole files on this machine by itself: nothing of Python is in between.
        with (
            contextlib.nullcontext(str(path)) if part is None else part.open() as file,
            av.open(file, timeout=TIMEOUT_SECONDS) as container,
        ):
            streams = [s for s in container.streams.video if not _is_cover(s)]
            if not streams:
                raise UnreadableVideoError(path, 'no video stream in it')
            streams[0].thread_type = 'NONE'
            streams[0].thread_count = 1
            yield container, streams[0]
    except UnreadableVideoError:
        raise
    except _DECODING_ERRORS as error:
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise UnreadableVideoError(path, f'cannot be read ({reason})') from error


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


class _Scaler:
    """Frames to uint8 (height, width, 3), upright; smaller by areas, which antialiases, as pictures are."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        # One for all frames of a window: its tables cost more than the scaling of a small frame.
        self.reformatter = VideoReformatter()
        # By itself each begins threads of its own: the pipeline's are enough. Old ones of PyAV cannot.
        threads = 'threads' in (VideoReformatter.reformat.__doc__ or '')
        self.options = {'threads': 1} if threads else {}

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        height, width = self.size[::-1] if frame.rotation % 180 else self.size
        # Old versions of PyAV do not tell.
        transfer = getattr(frame, 'color_trc', None)
        is_hdr = transfer in hdr.TRANSFERS
        # Untagged files mean BT.709 when they are high definition, as players take it; FFmpeg takes BT.601.
        untagged = frame.colorspace == _UNSPECIFIED and (is_hdr or frame.height >= 720)
        meant = _BT2020 if is_hdr else _BT709
        pixels = self.reformatter.reformat(
            frame,
            width=width,
            height=height,
            format='rgb48le' if is_hdr else 'rgb24',
            src_colorspace=meant if untagged else None,
            interpolation='AREA' if height < frame.height else 'BICUBIC',
            **self.options,
        ).to_ndarray()
        pixels = hdr.to_bt709(pixels, transfer) if is_hdr else pixels
        return np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels
