"""Small videos for the tests of the data room: written with PyAV, good ones and damaged ones."""

import fractions
import io
import pathlib
import tarfile

import av
import numpy as np
from PIL import Image


def write_numbered(
    path: pathlib.Path,
    times_ms: list[int],
    *,
    fps: int = 10,
    size: tuple[int, int] = (32, 48),
    keyframes: int = 10,
    faststart: bool = False,
    rotation: int = 0,
    codec: str | None = None,
) -> pathlib.Path:
    """A video whose frame i is plain grey of level 10 + 8 i, shown at times_ms[i]; see `numbers`.

    From the 31st frame on levels begin anew at 2.
    """
    options = {'movflags': 'faststart'} if faststart else {}
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream(codec or 'libx264', rate=fps, options={'crf': '10'})
        stream.height, stream.width = size
        stream.pix_fmt = 'yuv420p'
        stream.gop_size = keyframes
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, time in enumerate(times_ms):
            pixels = np.full((*size, 3), (10 + 8 * index) % 256, np.uint8)
            if rotation:
                pixels[: size[0] // 2] = 255  # the upper half, as stored
            frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
            frame.pts, frame.time_base = time, fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """The indices of frames (t, h, w, 3) of `write_numbered`, from their grey levels."""
    return [round((float(frame.mean()) - 10) / 8) for frame in frames]


def gliding(
    seed: int, count: int, speed: int, size: tuple[int, int] = (48, 64)
) -> list[np.ndarray]:
    """Frames of a window that glides over a wall of soft noise, by `speed` pixels each."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 40, 3), np.uint8)
    image = Image.fromarray(noise).resize((5 * size[1], size[0]), Image.Resampling.BICUBIC)
    wall = np.asarray(image)
    return [wall[:, speed * i : speed * i + size[1]] for i in range(count)]


def write_frames(path: pathlib.Path, frames: list[np.ndarray]) -> pathlib.Path:
    """A video of these, at 10 per second."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=10, options={'crf': '5'})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: pathlib.Path) -> pathlib.Path:
    """An mp4 with a second of silence and no picture."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=16000, layout='mono')
        for start in range(0, 16000, 1000):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1000), np.float32), format='fltp', layout='mono'
            )
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_damaged(folder: pathlib.Path, good: pathlib.Path) -> dict[str, str]:
    """Files that cannot be used, made of a good faststart one; a word of each one's reason by name."""
    whole = good.read_bytes()
    (folder / 'empty.mp4').write_bytes(b'')
    (folder / 'text.mp4').write_text('not a video\n' * 50)
    # The header is at the front and promises all frames.
    data = whole.index(b'mdat')
    assert whole.index(b'moov') < data
    (folder / 'cut_tail.mp4').write_bytes(whole[: (data + len(whole)) // 2])
    (folder / 'cut_header.mp4').write_bytes(whole[:20])
    write_sound(folder / 'sound.mp4')
    write_numbered(folder / 'short.mp4', [0, 100, 200])
    return {
        'empty.mp4': 'empty',
        'text.mp4': 'cannot be read',
        'cut_tail.mp4': 'cut short',
        'cut_header.mp4': 'cannot be read',
        'sound.mp4': 'no video stream',
        'short.mp4': 'too short',
    }


def damage_packets(path: pathlib.Path, packets: range) -> None:
    """Overwrites the compressed pictures of some frames with noise; the header still promises them."""
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for index in packets:
        begin, size = places[index]
        data[begin : begin + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
    path.write_bytes(data)


def write_clip_tar(path: pathlib.Path, clips: dict[str, pathlib.Path], **told: str) -> pathlib.Path:
    """A tar with a video for each key, each with members of the suffixes `told` ({} is the key)."""
    with tarfile.open(path, 'w') as tar:
        for key, clip in clips.items():
            parts = {clip.suffix[1:]: clip.read_bytes()}
            parts |= {suffix: text.replace('{}', key).encode() for suffix, text in told.items()}
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f'part/{key}.{suffix}')
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path
