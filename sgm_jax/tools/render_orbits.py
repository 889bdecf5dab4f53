"""Renders drawn objects from all around: a folder that the data source `orbits` reads.

python -m sgm_jax.tools.render_orbits --output data/orbits --objects 2000 --views 16 --size 32 \
    --orbit dynamic --elevation 30 --azimuth_noise 30
python -m sgm_jax.tools.render_orbits --output data/held_out --objects 32 --views 8 --size 32 \
    --elevation 30 --seed 1

The same flags make the same files; another seed makes other objects. Existing objects are kept.
"""

import json
import pathlib
import tempfile

import numpy as np
from absl import flags

from sgm_jax import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not at import: other tools have flags of these names."""
    flags.DEFINE_string('output', None, 'the folder, with a folder for each object')
    flags.DEFINE_integer('objects', 100, 'how many', lower_bound=1)
    flags.DEFINE_integer('views', 21, 'of each object', lower_bound=1)
    flags.DEFINE_integer('size', 64, 'of a view, pixels', lower_bound=8)
    flags.DEFINE_integer('samples', 2, 'rays per pixel, along one side', lower_bound=1)
    flags.DEFINE_enum('orbit', 'static', ['static', 'dynamic'], 'even steps at one height, or not')
    flags.DEFINE_float('elevation', 10.0, 'degrees')
    flags.DEFINE_float('swing', 15.0, 'of the elevation on dynamic orbits, degrees')
    flags.DEFINE_float('azimuth_noise', 4.0, 'deviation on dynamic orbits, degrees')
    flags.DEFINE_bool('textured', False, 'patterns on the parts, and square bases too')
    flags.DEFINE_integer('seed', 0, 'which objects', lower_bound=0)


def main() -> int:
    from tqdm import tqdm

    from sgm_jax.errors import UserError

    if not FLAGS.output:
        raise UserError('give --output FOLDER')
    folder = pathlib.Path(FLAGS.output).expanduser()
    for index in tqdm(range(FLAGS.objects), desc='render', unit='object'):
        _object(folder / f'{index:06d}', index)
    print(f'{FLAGS.objects} objects with {FLAGS.views} views each: {folder}')
    return 0


def _object(folder: pathlib.Path, index: int) -> None:
    from sgm_jax.conditioning import cameras
    from sgm_jax.data.objects import draw_object, render
    from sgm_jax.data.orbits import CAMERAS
    from sgm_jax.errors import UserError

    if (folder / CAMERAS).exists():
        return
    rng = np.random.default_rng((FLAGS.seed, index, 1))
    if FLAGS.orbit == 'static':
        path = cameras.orbit(FLAGS.views, FLAGS.elevation)
    else:
        path = cameras.dynamic_orbit(
            FLAGS.views,
            rng,
            elevation=FLAGS.elevation,
            swing=FLAGS.swing,
            azimuth_noise=FLAGS.azimuth_noise,
            limits=(-90.0, 90.0),
        )
    parts = draw_object((FLAGS.seed, index), textured=FLAGS.textured)
    size = (FLAGS.size, FLAGS.size)
    views = render(parts, path.elevations, path.azimuths, size, samples=FLAGS.samples)
    cameras_of = lambda number: {
        'file': f'{number:03d}.png',
        'elevation': round(float(path.elevations[number]), 4),
        'azimuth': round(float(path.azimuths[number]), 4),
    }
    listed = [cameras_of(number) for number in range(len(views))]
    try:
        _write(folder, views, listed)
    except OSError as error:
        raise UserError(
            f'{folder}: cannot be written ({error.strerror or error}); free some space or choose another '
            '--output'
        ) from error


def _write(folder: pathlib.Path, views: np.ndarray, listed: list[dict]) -> None:
    """An object's views and their cameras; it appears whole or not at all."""
    from PIL import Image

    from sgm_jax.data.orbits import CAMERAS

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix='.part') as name:
        part = pathlib.Path(name) / folder.name
        part.mkdir()
        for view, camera in zip(views, listed, strict=True):
            Image.fromarray(view).save(part / camera['file'])
        (part / CAMERAS).write_text(json.dumps({'views': listed}, indent=1))
        part.replace(folder)


if __name__ == '__main__':
    define_flags()
    cli.run(main)
