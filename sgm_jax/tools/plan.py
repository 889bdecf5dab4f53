"""What a run will take on hardware that is not here: memory, communication, time, and whether it fits.

python -m sgm_jax.tools.plan --config configs/svd.py --topology v5p:4x4x4
python -m sgm_jax.tools.plan --config configs/sdxl_base.py --topology v5e-16 --sample
python -m sgm_jax.tools.plan --config configs/svd.py --topology v5e:2x2 --sample --mesh context=4
python -m sgm_jax.tools.plan --config configs/svd.py --topology v5e-256 --search

Compiles the very train step (or, with --sample, the sampler's step and the decoder) ahead of time. JAX runs
on the CPU meanwhile. TPUs need libtpu (pip install "jax[tpu]"), GPUs the CUDA plugin; neither needs a device.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import IO

from absl import flags

from sgm_jax import cli
from sgm_jax.errors import UserError
from sgm_jax.parallel import topologies

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Not at import: other tools have flags of these names."""
    cli.define_config('what to plan: FILE.py[:VARIANT]')
    flags.DEFINE_string('topology', None, 'v5e-16, v5p:4x4x4, 8xH100, cpu:8')
    flags.DEFINE_bool('sample', False, 'sampling on one device, in place of training on all')
    flags.DEFINE_string('mesh', None, 'with --sample, all devices: data=2,fsdp=-1,context=2')
    flags.DEFINE_string('dtype', None, 'with --sample, as of sample.py: what weights are held in')
    flags.DEFINE_integer('samples', 1, 'samples at once, with --sample', lower_bound=1)
    flags.DEFINE_bool('search', False, 'try remat, meshes and batches; show the best that fits')
    flags.DEFINE_string('json', None, 'a file to which each plan is added, as a line of JSON')


def main() -> int:
    if FLAGS.config is None:
        raise UserError('give --config FILE.py, such as --config configs/svd.py')
    if not FLAGS.topology:
        raise UserError('give --topology NAME, such as --topology v5e-16 or v5p:4x4x4')
    if FLAGS.mesh is not None and not FLAGS.sample:
        raise UserError(
            '--mesh is for --sample; of a training it is --config.mesh.data=2, and so on'
        )
    if FLAGS.dtype is not None and not FLAGS.sample:
        raise UserError(
            '--dtype is for --sample; a training computes in --config.model.network.dtype'
        )
    topology = topologies.parse(FLAGS.topology)
    topologies.prepare_process(topology)
    from sgm_jax.parallel import mesh as meshes
    from sgm_jax.tools import plan_report, plan_search, planning

    if FLAGS.json:
        _check_writable(FLAGS.json)
    if FLAGS.search:
        if FLAGS.sample:
            raise UserError('--search is for training; leave --sample out')
        best = plan_search.search(FLAGS.config, topology, found=_keep, show=_show)
        if best is None:
            return 1
        _show(f'\nbest: {plan_search.command(best)}\n')
        _show(plan_report.report(best))
        return 0
    if FLAGS.sample:
        mesh = None if FLAGS.mesh is None else meshes.parse(FLAGS.mesh)
        plan = planning.plan_sampling(
            FLAGS.config, topology, count=FLAGS.samples, mesh=mesh, dtype=FLAGS.dtype
        )
    else:
        plan = planning.plan_training(FLAGS.config, topology)
    _show(plan_report.report(plan))
    _keep(plan)
    return 0 if plan_report.fits(plan) else 1


def _show(text: str) -> None:
    print(text, flush=True)


def _check_writable(path: str) -> None:
    # Before hours of compiling.
    with _appending(path):
        pass


@contextlib.contextmanager
def _appending(path: str) -> Iterator[IO[str]]:
    try:
        with open(os.path.expanduser(path), 'a', encoding='utf-8') as file:
            yield file
    except OSError as error:
        raise UserError(f'--json {path} cannot be written: {error.strerror}') from error


def _keep(plan) -> None:
    from sgm_jax.tools.plan_file import to_json

    if FLAGS.json:
        with _appending(FLAGS.json) as file:
            file.write(to_json(plan) + '\n')


if __name__ == '__main__':
    define_flags()
    cli.run(main)
