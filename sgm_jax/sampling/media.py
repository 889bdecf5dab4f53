"""Pictures and videos in and out of files. Arrays are uint8, RGB, channels last: (h, w, 3), (t, h, w, 3).

Files are encoded in memory and appear under their name whole or not at all.
"""

import fractions
import io
import json
import math
import os
import pathlib
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import av
import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from sgm_jax.errors import UserError
from sgm_jax.interop.whole_files import whole

VIDEO_SUFFIXES = ('.mp4', '.gif', '.webp', '.png')
IMAGE_SUFFIXES = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP'}
# Visually lossless for H.264, and still a tenth of the size of lossless.
CRF = 17
_BT709 = 1  # of ITU-T H.273: primaries, transfer and matrix alike
_LIMITED = 1
# Pixels along a side of a grid: as many as a .webp holds.
LARGEST_GRID = 16383
# What encoders raise, such as for pictures that are larger than their format holds.
_NOT_ENCODED = (av.FFmpegError, OSError, OverflowError, RuntimeError, ValueError, struct.error)
_PIL_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

PathLike = str | pathlib.Path


def read_image(path: PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture as uint8 (h, w, 3): upright (EXIF), RGB of any mode and depth, transparency on white.

    Args:
      path: any format that Pillow reads.
      size: (height, width) to which it is resized and cropped at the centre; None keeps its own.

    Raises:
      UserError: missing, truncated, or not a picture.
    """
    image = _opened(path, _to_rgb)
    return np.asarray(image) if size is None else resize_crop(np.asarray(image), size)


def read_rgba(path: PathLike) -> np.ndarray:
    """A picture as uint8 (h, w, 4), upright; opaque where it says nothing else. Errors as `read_image`'s."""
    to_rgba = lambda x: (x if x.has_transparency_data else _to_rgb(x)).convert('RGBA')
    return np.asarray(_opened(path, to_rgba))


def _opened(path: PathLike, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'{path}: no such picture')
    try:
        return _decoded(path, convert)
    except ValueError as error:
        raise UserError(
            f'{path}: not a readable picture (suffix {path.suffix or "none"}): {error}; '
            'open and save it anew, e.g. as .png'
        ) from error


def decode_image(file: PathLike | BinaryIO) -> np.ndarray:
    """As `read_image`, of a file or what was read of one; its content tells the format, not its name.

    Raises:
      ValueError: truncated, or not a picture; the message is the reason alone.
    """
    data = None
    if not isinstance(file, (str, os.PathLike)):
        data = file.read()
        file = io.BytesIO(data)
    found = None if data is None else _plain_jpeg(data)
    return np.asarray(_decoded(file, _to_rgb)) if found is None else found


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """The picture of a whole, upright JPEG in colour, which OpenCV decodes in a third of the time: the same
    pixels. None of others, with which it is less strict than Pillow.
    """
    if not data.startswith(b'\xff\xd8') or not data.endswith(b'\xff\xd9'):
        return None
    try:
        with Image.open(io.BytesIO(data)) as opened:
            upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if not upright or opened.mode != 'RGB':
                return None
    except _PIL_ERRORS:
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _decoded(
    file: PathLike | BinaryIO, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return convert(ImageOps.exif_transpose(opened))
    except _PIL_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(reason) from error


def image_size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) of a picture as `decode_image` gives it, from its header.

    Raises:
      ValueError: not a picture.
    """
    try:
        with Image.open(file) as opened:
            width, height = opened.size
            # Pillow gives the size of a TIFF as it is shown already.
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            on_its_side = turned and opened.format != 'TIFF'
    except _PIL_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(reason) from error
    return (width, height) if on_its_side else (height, width)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I') or image.mode == 'F':
        # Pillow clips 16-bit grey at 255 when it converts; the high byte is meant.
        levels = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith('I') or levels.max() > 255 else 255.0
        return Image.fromarray((levels / top * 255).clip(0, 255).round().astype(np.uint8)).convert(
            'RGB'
        )
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image).convert('RGB')
    return image.convert('RGB')


def resize_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) to `size` (height, width), antialiased: the largest centred box of that shape, scaled."""
    if tuple(size) == image.shape[:2]:
        return image
    box = box_within(image.shape[:2], size)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized)


def box_within(
    frame: tuple[int, int],
    size: tuple[int, int],
    *,
    scale: float = 1.0,
    across: float = 0.5,
    down: float = 0.5,
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a box of the shape of `size` in a frame, in pixels, never beyond it.

    Args:
      scale: of its side, 1 being the largest box of that shape.
      across, down: where it lies, from 0 (at the left, at the top) to 1.
    """
    fit = min(f / s for f, s in zip(frame, size, strict=True))
    # Rounding may leave a side larger than the frame by its last digit, which Pillow refuses.
    height, width = (min(fit * scale * s, f) for f, s in zip(frame, size, strict=True))
    top, left = (frame[0] - height) * down, (frame[1] - width) * across
    return left, top, min(left + width, frame[1]), min(top + height, frame[0])


def write_image(
    path: PathLike, image: np.ndarray, *, settings: Mapping[str, Any] | None = None
) -> None:
    """Writes uint8 (h, w, 3) or (h, w, 1) as .png, .jpg or .webp, as whole as `write_video` does.

    `settings` are kept in a PNG's metadata as JSON, under the key 'parameters'.
    """
    path = pathlib.Path(path).expanduser()
    check_image_suffix(path)
    image = image[..., 0] if image.shape[-1] == 1 else image
    encoding = IMAGE_SUFFIXES[path.suffix.lower()]
    _write_whole(path, lambda: _encode_image(image, encoding, settings))


def read_settings(path: PathLike) -> dict[str, Any]:
    """What `write_image` kept in a PNG; nothing, if it kept nothing."""
    with Image.open(path) as image:
        return json.loads(image.info.get('parameters', '{}'))


def check_image_suffix(path: PathLike) -> None:
    """Raises a UserError that lists the suffixes, unless `path` has one of them."""
    if pathlib.Path(path).suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(
            f'{path}: pictures are written as {", ".join(IMAGE_SUFFIXES)}; change the suffix'
        )


def check_suffix(path: PathLike) -> None:
    """Raises a UserError that lists the suffixes, unless pictures or videos have that of `path`."""
    known = dict.fromkeys((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
    if pathlib.Path(path).suffix.lower() not in known:
        raise UserError(
            f'{path}: videos are written as {", ".join(VIDEO_SUFFIXES)}, and pictures as '
            f'{", ".join(IMAGE_SUFFIXES)}; change the suffix'
        )


def write_video(path: PathLike, frames: np.ndarray, fps: float, *, crf: int = CRF) -> None:
    """Writes uint8 frames (t, h, w, 3) in the format that the suffix names.

    .mp4 is H.264 in 4:2:0, which has even sizes only: an odd height or width is padded by repeating the
    last row or column. .gif and .webp are animations that loop; .png is a strip of the frames side by side.

    Args:
      path: parent folders are created; an existing file is replaced once the new one is complete.
      frames: at least one.
      fps: frames per second.
      crf: H.264's quality, 0 (lossless) to 51.

    Raises:
      UserError: an unknown suffix, or the file cannot be written, or its format has no such frames.
    """
    path = pathlib.Path(path).expanduser()
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f'frames must be uint8 (t, h, w, 3), got {frames.dtype} {frames.shape}')
    check_video_suffix(path)
    encoders = {
        '.mp4': lambda: _encode_h264(frames, fps, crf),
        '.gif': lambda: encode_gif(frames, fps),
        '.webp': lambda: _encode_webp(frames, fps),
        '.png': lambda: _encode_image(strip(frames), 'PNG'),
    }
    _write_whole(path, encoders[path.suffix.lower()])


def check_video_suffix(path: PathLike) -> None:
    """Raises a UserError that lists the suffixes, unless `path` has one of them."""
    if pathlib.Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(
            f'{path}: videos are written as {", ".join(VIDEO_SUFFIXES)}; change the suffix'
        )


def _encode_h264(frames: np.ndarray, fps: float, crf: int) -> bytes:
    odd = [(0, size % 2) for size in frames.shape[1:3]]
    frames = np.pad(frames, ((0, 0), *odd, (0, 0)), mode='edge')
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as container:
        rate = fractions.Fraction(fps).limit_denominator(1001)
        stream = container.add_stream('libx264', rate=rate, options={'crf': str(crf)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        # Said in the file, for players guess by the size otherwise and shift the colours.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format='rgb24')
            frame = frame.reformat(
                format='yuv420p',
                dst_colorspace='ITU709',
                dst_color_range='MPEG',
                interpolation='BICUBIC',
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """uint8 frames (t, h, w, 3) as a GIF that loops."""
    # One palette for all frames, made from all of them: no flicker, half the size.
    step = max(1, math.isqrt(frames[..., 0].size // 2**18))
    palette = Image.fromarray(strip(frames[:, ::step, ::step])).quantize(256)
    images = [Image.fromarray(frame).quantize(palette=palette) for frame in frames]
    # GIF counts hundredths of a second; rounding the running total keeps the whole length right.
    ends = np.round(np.arange(len(frames) + 1) * 100 / fps).astype(int)
    hundredths = np.maximum(np.diff(ends), 2)
    return _encode_animation(images, 'GIF', [int(10 * h) for h in hundredths])


def _encode_webp(frames: np.ndarray, fps: float) -> bytes:
    ends = np.round(np.arange(len(frames) + 1) * 1000 / fps).astype(int)
    images = [Image.fromarray(frame) for frame in frames]
    return _encode_animation(images, 'WEBP', np.diff(ends).tolist(), quality=90)


def _encode_animation(
    images: list[Image.Image], encoding: str, milliseconds: list[int], **options
) -> bytes:
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        encoding,
        save_all=True,
        append_images=images[1:],
        loop=0,
        duration=milliseconds,
        **options,
    )
    return buffer.getvalue()


def _encode_image(
    image: np.ndarray, encoding: str, settings: Mapping[str, Any] | None = None
) -> bytes:
    buffer = io.BytesIO()
    options = {} if encoding == 'PNG' else {'quality': 95}
    if encoding == 'PNG' and settings:
        options['pnginfo'] = PngInfo()
        options['pnginfo'].add_itxt('parameters', json.dumps(settings, ensure_ascii=False))
    Image.fromarray(image).save(buffer, encoding, **options)
    return buffer.getvalue()


def check_place(path: PathLike) -> None:
    """Raises a UserError if no file can be written there: before the work that makes it, not after it."""
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        raise UserError(f'{path} is a folder; give the name of a file')
    # Folders that are missing are made when it is written.
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f'{path}: cannot be written ({folder}: {error.strerror or error}); choose another path'
        ) from error


def _write_whole(path: pathlib.Path, encode: Callable[[], bytes]) -> None:
    try:
        data = encode()
    except _NOT_ENCODED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f'{path}: cannot be written as {path.suffix} ({reason}); choose another suffix, or a smaller size'
        ) from error
    try:
        with whole(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(
            f'{path}: cannot be written ({error.strerror or error}); free some space or choose another path'
        ) from error


def read_video(path: PathLike) -> tuple[np.ndarray, float]:
    """All frames uint8 (t, h, w, 3) and the frames per second of a short video, .gif or animated .webp.

    Raises:
      UserError: missing, damaged, or not a video.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'{path}: no such video')
    try:
        if path.suffix.lower() in ('.gif', '.webp'):
            return _read_animation(path)
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError('no video stream in it')
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(stream)]
            return np.stack(frames), float(stream.average_rate)
    except (av.FFmpegError, *_PIL_ERRORS) as error:
        raise UserError(f'{path}: not a readable video: {error}') from error


def _read_animation(path: pathlib.Path) -> tuple[np.ndarray, float]:
    frames, milliseconds = [], 0
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert('RGB')))
            # Frames that are given no time are shown as browsers do, ten a second.
            milliseconds += image.info.get('duration') or 100
    return np.stack(frames), 1000 * len(frames) / milliseconds


def strip(frames: np.ndarray) -> np.ndarray:
    """Frames (t, h, w, 3) side by side: (h, t*w, 3)."""
    return np.concatenate(list(frames), axis=1)


def grid(images: np.ndarray | Sequence[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Images (b, h, w, 3) in rows, left to right, as square as they go; the places left over are white."""
    images = np.stack(list(images))
    count, height, width, channels = images.shape
    columns = columns or columns_of(count, (height, width))
    rows = math.ceil(count / columns)
    cells = np.full((rows * columns, height, width, channels), 255, images.dtype)
    cells[:count] = images
    cells = cells.reshape(rows, columns, height, width, channels)
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def columns_of(count: int, size: tuple[int, int]) -> int:
    """Of a grid of `count` pictures of `size` (height, width) that is as square as they go."""
    return math.ceil(math.sqrt(count * size[0] / size[1]))


def cell_of(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of each of `count` pictures of `size` in a grid of at most LARGEST_GRID."""
    columns = columns_of(count, size)
    longest = max(math.ceil(count / columns) * size[0], columns * size[1])
    return tuple(max(1, side * LARGEST_GRID // max(longest, LARGEST_GRID)) for side in size)


def smaller(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w, c) made as small as `size`, each pixel the mean of those it stands for."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, -1)
