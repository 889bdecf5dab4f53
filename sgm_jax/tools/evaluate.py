"""How good a first stage is: PSNR, SSIM and LPIPS on held-out pictures, beside bicubic resizing.

python -m sgm_jax.tools.evaluate --checkpoint runs/kl_f8 [--count 64] [--output sheet.png]
    [--inception pt_inception-2015-12-05-6726825d.pth]
python -m sgm_jax.tools.evaluate --checkpoint runs/sv3d_p --orbits FOLDER [--count 16] [--output strip.png]

The baseline is what a picture keeps when it is made smaller by the first stage's factor and larger again.
With --orbits the novel views of an orbit model are compared with the true ones in a folder that the data
source `orbits` reads; the baseline is the given view, copied, and the control has its azimuths shuffled.
"""

import numpy as np
from absl import flags

from sgm_jax import cli

FLAGS = flags.FLAGS

_BATCH, _SHOWN = 16, 8


def define_flags() -> None:
    """Not at import: other tools have flags of these names."""
    flags.DEFINE_string('checkpoint', None, 'workdir in which a first stage was trained')
    cli.define_config("with --orbits: the model, where it is not the checkpoint's own")
    flags.DEFINE_string('orbits', None, 'a folder of objects with their true views')
    flags.DEFINE_integer('steps', None, 'with --orbits: of the sampler')
    flags.DEFINE_integer('count', 64, 'held-out pictures, or objects', lower_bound=1)
    flags.DEFINE_string('output', None, 'where to write a sheet: input, bicubic, first stage')
    flags.DEFINE_string(
        'inception',
        None,
        "pytorch-fid's weights of Inception-v3, to give the reconstructions' FID too",
    )


def main() -> int:
    from sgm_jax.errors import UserError

    if not FLAGS.checkpoint:
        raise UserError('give --checkpoint WORKDIR, in which a first stage was trained')
    if FLAGS.orbits:
        from sgm_jax.tools import orbit_scores

        for line in orbit_scores.report(
            FLAGS.checkpoint,
            FLAGS.orbits,
            config=FLAGS.config,
            count=FLAGS.count,
            steps=FLAGS.steps,
            output=FLAGS.output,
            compare=_metrics(),
        ):
            print(line)
        return 0
    from sgm_jax.data import pipeline
    from sgm_jax.engines import AutoencodingEngine
    from sgm_jax.engines.structure import to_uint8
    from sgm_jax.interop import workdir_files
    from sgm_jax.sampling.load import load

    model = load(FLAGS.checkpoint)
    if not isinstance(model.engine, AutoencodingEngine):
        raise UserError(f'{FLAGS.checkpoint} is not the workdir of a first stage')
    config = workdir_files.read_config(FLAGS.checkpoint)
    pictures = to_uint8(_held_out(pipeline.make_source(config.data, split='held_out')))
    batches = range(0, len(pictures), _BATCH)
    ours = np.concatenate([model.decode(model.encode(pictures[i : i + _BATCH])) for i in batches])
    plain = np.stack([_bicubic(picture, model.engine.factor) for picture in pictures])
    compare = _metrics()
    rows = {'bicubic': compare(pictures, plain), 'first stage': compare(pictures, ours)}
    print(f'{len(pictures)} held-out pictures of {pictures.shape[1]}x{pictures.shape[2]}')
    for name, values in rows.items():
        print(f'{name:12}' + '  '.join(f'{key} {value:7.3f}' for key, value in values.items()))
    if FLAGS.output:
        _write_sheet(FLAGS.output, pictures, plain, ours)
        print(f'input, bicubic, first stage: {FLAGS.output}')
    return 0


def _held_out(source) -> np.ndarray:
    # Evenly over the source, which lists one file's pictures after the other's.
    count = min(FLAGS.count, len(source))
    places = [i * len(source) // count for i in range(count)]
    found = np.stack([source.record(i, None)['jpg'] for i in places])
    return found.reshape(-1, *found.shape[-3:])


def _bicubic(picture: np.ndarray, factor: int) -> np.ndarray:
    from PIL import Image

    height, width = picture.shape[:2]
    image, kind = Image.fromarray(picture), Image.Resampling.BICUBIC
    small = image.resize((width // factor, height // factor), kind)
    return np.asarray(small.resize((width, height), kind))


def _metrics():
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from sgm_jax.engines.image_metrics import frechet_distance, image_metrics
    from sgm_jax.interop.inception_files import load_inception
    from sgm_jax.interop.lpips_files import load_lpips

    graphdef, params = nnx.split(load_lpips())
    distance = jax.jit(lambda params, a, b: nnx.merge(graphdef, params)(a, b))
    unit = lambda x: jnp.asarray(x, jnp.float32) / 127.5 - 1.0
    features = None
    if FLAGS.inception:
        structure, weights = nnx.split(load_inception(FLAGS.inception))
        run = jax.jit(lambda weights, x: nnx.merge(structure, weights)(x))
        features = lambda x: np.concatenate(
            [run(weights, unit(x[i : i + _BATCH])) for i in range(0, len(x), _BATCH)]
        )

    # Products are rounded on TPUs, and by TF32: figures would be other than published ones.
    @jax.default_matmul_precision('highest')
    def compare(x: np.ndarray, rec: np.ndarray) -> dict[str, float]:
        lpips = [
            np.asarray(distance(params, unit(x[i : i + _BATCH]), unit(rec[i : i + _BATCH])))
            for i in range(0, len(x), _BATCH)
        ]
        found = {**image_metrics(x, rec), 'lpips': float(np.concatenate(lpips).mean())}
        if features and len(x) > 1:
            found['rfid'] = frechet_distance(features(x), features(rec))
        return found

    return compare


def _write_sheet(path: str, *rows: np.ndarray) -> None:
    from sgm_jax.sampling.media import write_image

    step = max(1, len(rows[0]) // _SHOWN)
    write_image(
        path, np.concatenate([np.concatenate(list(row[::step][:_SHOWN]), 1) for row in rows])
    )


if __name__ == '__main__':
    define_flags()
    cli.run(main)
