"""sample.py behind its flags."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sgm_jax.errors import UserError
from sgm_jax.parallel import cache, memory
from sgm_jax.parallel import mesh as meshes
from sgm_jax.sampling import media, watermark
from sgm_jax.sampling.inputs import check_seed, numbers, read_prompts
from sgm_jax.sampling.subjects import list_pictures

LOG = logging.getLogger(__name__)
SMALLER = (
    'give fewer or smaller pictures, decode fewer at once (--decode_chunk=1), hold the weights in half '
    '(--dtype=bfloat16), or sample over several devices (--mesh context=4)'
)

# What is done to pictures before they are written.
Finish = Callable[[np.ndarray], np.ndarray]


@memory.or_else(SMALLER)
def run(
    *,
    config: Any,
    checkpoint: str | None,
    output: str | None,
    prompts: str | None = None,
    refiner: str | None = None,
    dtype: str | None = None,
    mesh: str | None = None,
    mark: bool = False,
    keep_compiled: bool = True,
    **options: Any,
) -> int:
    """Loads, samples, writes. `options` are `LoadedModel.sample`'s; None stands for the config's value.

    Raises:
      UserError: a flag is missing, or whatever loading, sampling and writing find wrong.
    """
    for name, value in dict(checkpoint=checkpoint, output=output).items():
        if not value:
            raise UserError(f'give --{name}; --help lists the flags')
    # Before the work, not after it.
    media.check_suffix(output)
    media.check_place(output)
    if options.get('image'):
        options['image'] = list_pictures(options['image'])
        for picture in options['image']:
            media.read_rgba(picture)
    else:
        options.pop('image', None)  # an empty word names no picture
    # A folder's videos have seeds one after the other.
    check_seed(options.get('seed') or 0, len(options.get('image', [output])))
    for name in ('elevations', 'azimuths'):
        options[name] = numbers(name, options.get(name))
    if prompts:
        if options.get('prompt'):
            raise UserError('--prompt goes without --prompts; give one of the two')
        options['prompt'] = read_prompts(prompts)
    if mark:
        watermark.check_installed()
    held = dict(dtype=dtype, mesh=meshes.parse(mesh) if mesh is not None else None)
    cache.keep_compiled(keep_compiled)
    from sgm_jax.sampling.load import load

    model = load(checkpoint, config, **held)
    if mesh is not None:
        _log_devices(model)
    if refiner:
        options['refiner'] = load(refiner, **held)
    given = {name: value for name, value in options.items() if value is not None}
    model.check_options(given)
    if model.makes_videos:
        media.check_video_suffix(output)
    else:
        media.check_image_suffix(output)
    if mark:
        _check_mark(model, given)
    finish = watermark.mark if mark else lambda images: images
    if model.makes_videos:
        _videos(model, pathlib.Path(output), given, finish)
    else:
        if 'image' in given:
            given['image'] = _one(given['image'])
        # The refiner's path, not the loaded model.
        settings = {**given, 'checkpoint': checkpoint, 'refiner': refiner, 'dtype': dtype}
        _pictures(model, pathlib.Path(output), given, settings, finish)
    return 0


def _check_mark(model: Any, given: Mapping[str, Any]) -> None:
    from sgm_jax.sampling.images import size_of

    told = ('height', 'width', 'aspect', 'refiner')
    size = size_of(model, **{name: given[name] for name in told if name in given})
    watermark.check_size(*size, model.channels)


def _log_devices(model: Any) -> None:
    mesh, held = model.devices.mesh, meshes.bytes_per_device((model.params, model.frozen))
    axes = ', '.join(f'{name}={size}' for name, size in mesh.shape.items())
    LOG.info('mesh: %s; %.2f GiB of weights on each of %d devices', axes, held / 2**30, mesh.size)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    with tqdm(desc='sample', unit='call', delay=0.5) as bar:  # no bar above an early error

        def progress(done: int, calls: int) -> None:
            bar.total = calls
            bar.update(done - bar.n)

        yield progress


def _videos(model: Any, output: pathlib.Path, given: Mapping[str, Any], finish: Finish) -> None:
    """One video for each picture, one after the other, named after them if there are several."""
    pictures, fps = given['image'], given.get('fps') or model.engine.sampling.fps
    for index, (picture, path) in enumerate(zip(pictures, _named(output, pictures), strict=True)):
        own = {'image': picture, 'seed': given.get('seed', 0) + index}
        with _bar() as progress:
            (videos,) = model.sample_batches(progress=progress, **{**given, **own})
        _write_video(str(path), finish(videos[0]), fps)


def _named(output: pathlib.Path, pictures: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """A file for each picture, no two of one name."""
    if len(pictures) == 1:
        return [output]
    words = [picture.stem for picture in pictures]
    if len(set(words)) < len(words):
        words = [picture.name for picture in pictures]  # chair.png and chair.jpg
    return [output.with_name(f'{output.stem}-{word}{output.suffix}') for word in words]


def _one(pictures: list[pathlib.Path]) -> str:
    if len(pictures) > 1:
        raise UserError(
            f'{len(pictures)} pictures are too many; videos are made of a folder of them'
        )
    return str(pictures[0])


def _write_video(output: str, frames: np.ndarray, fps: float) -> None:
    media.write_video(output, frames, fps)
    count, height, width = frames.shape[:3]
    LOG.info('wrote %s: %d frames of %dx%d', output, count, height, width)


def _pictures(
    model: Any,
    path: pathlib.Path,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    finish: Finish,
) -> None:
    """One picture under its name; several each numbered as soon as it is made, and at last as a grid."""
    count, kept = _count(given), []
    with _bar() as progress:
        for images in model.sample_batches(progress=progress, **given):
            size = images.shape[1:3]
            cell = media.cell_of(count, size)
            for image in finish(images):
                _write_one(path, image, len(kept), count, settings)
                kept.append(media.smaller(image, cell))
    height, width = size
    if count == 1:
        LOG.info('wrote %s: %dx%d', path, height, width)
        return
    if cell != size:
        LOG.info(
            'pictures of the grid are %dx%d, for it to have %d pixels along a side at most',
            *cell,
            media.LARGEST_GRID,
        )
    media.write_image(
        path, media.grid(kept, media.columns_of(count, size)), settings=_told(settings, 0, count)
    )
    LOG.info('wrote %s and, beside it, %d pictures of %dx%d', path, count, height, width)


def _count(given: Mapping[str, Any]) -> int:
    wished = given.get('prompt', given.get('cls'))
    return given.get('count', 1) * (len(wished) if isinstance(wished, list) else 1)


def _write_one(
    path: pathlib.Path, image: np.ndarray, index: int, count: int, settings: Mapping[str, Any]
) -> None:
    if count > 1:
        path = path.with_name(f'{path.stem}-{index:0{len(str(count - 1))}}{path.suffix}')
    media.write_image(path, image, settings=_told(settings, index, count))


def _told(settings: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    """What one of the pictures was made with, its own prompt and seed among it."""
    told = {
        name: value if isinstance(value, (int, float, list, tuple)) else str(value)
        for name, value in settings.items()
        if value is not None
    }
    prompts = told.get('prompt')
    if isinstance(prompts, list):
        told['prompt'] = prompts[index * len(prompts) // count]
    return {**told, 'seed': told.get('seed', 0) + index}
