"""sample.py behind its flags."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from sgm_jax.errors import UserError
from sgm_jax.parallel import cache, memory
from sgm_jax.parallel import mesh as meshes
from sgm_jax.sampling import media, watermark
from sgm_jax.sampling.inputs import numbers, read_prompts
from sgm_jax.sampling.subjects import list_pictures

LOG = logging.getLogger(__name__)
SMALLER = (
    'give fewer or smaller pictures, decode fewer at once (--decode_chunk=1), hold the weights in half '
    '(--dtype=bfloat16), or sample over several devices (--mesh context=4)'
)


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
    if options.get('image'):
        options['image'] = list_pictures(options['image'])
        for picture in options['image']:
            media.read_rgba(picture)
    else:
        options.pop('image', None)  # an empty word names no picture
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
    if model.makes_videos:
        _videos(model, pathlib.Path(output), given)
    else:
        if 'image' in given:
            given['image'] = _one(given['image'])
        found = _sample(model, given)
        found = watermark.mark(found) if mark else found
        # The refiner's path, not the loaded model.
        settings = {**given, 'checkpoint': checkpoint, 'refiner': refiner, 'dtype': dtype}
        _write_images(pathlib.Path(output), found, settings)
    return 0


def _log_devices(model: Any) -> None:
    mesh, held = model.devices.mesh, meshes.bytes_per_device((model.params, model.frozen))
    axes = ', '.join(f'{name}={size}' for name, size in mesh.shape.items())
    LOG.info('mesh: %s; %.2f GiB of weights on each of %d devices', axes, held / 2**30, mesh.size)


def _sample(model: Any, given: Mapping[str, Any]) -> np.ndarray:
    with tqdm(desc='sample', unit='call', delay=0.5) as bar:  # no bar above an early error

        def progress(done: int, calls: int) -> None:
            bar.total = calls
            bar.update(done - bar.n)

        return model.sample(progress=progress, **given)


def _videos(model: Any, output: pathlib.Path, given: Mapping[str, Any]) -> None:
    """One video for each picture, one after the other, named after them if there are several."""
    pictures, fps = given['image'], given.get('fps') or model.engine.sampling.fps
    for index, picture in enumerate(pictures):
        own = {'image': picture, 'seed': given.get('seed', 0) + index}
        path = output
        if len(pictures) > 1:
            path = output.with_name(f'{output.stem}-{picture.stem}{output.suffix}')
        _write_video(str(path), _sample(model, {**given, **own})[0], fps)


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


def _write_images(path: pathlib.Path, images: np.ndarray, settings: Mapping[str, Any]) -> None:
    """One picture under its name; several as a grid, and each of them numbered beside it."""
    settings = {name: value for name, value in settings.items() if value is not None}
    prompts = settings.get('prompt')
    seed, each = settings.get('seed', 0), len(images)
    if isinstance(prompts, list):
        each = len(images) // len(prompts)
    told = lambda index: {
        **{
            k: v if isinstance(v, (int, float, list, tuple)) else str(v)
            for k, v in settings.items()
        },
        **({'prompt': prompts[index // each]} if isinstance(prompts, list) else {}),
        'seed': seed + index,
    }
    height, width = images.shape[1:3]
    if len(images) == 1:
        media.write_image(path, images[0], settings=told(0))
        LOG.info('wrote %s: %dx%d', path, height, width)
        return
    digits = len(str(len(images) - 1))
    for index, image in enumerate(images):
        numbered = path.with_name(f'{path.stem}-{index:0{digits}}{path.suffix}')
        media.write_image(numbered, image, settings=told(index))
    media.write_image(path, media.grid(images), settings={**told(0), 'seed': seed})
    LOG.info('wrote %s and, beside it, %d pictures of %dx%d', path, len(images), height, width)
