"""What a run will take on hardware that is not here: memory, communication, time, and whether it fits.

python -m sgm_jax.tools.plan --config configs/svd.py --topology v5p:4x4x4
python -m sgm_jax.tools.plan --config configs/sdxl_base.py --topology v5e-16 --sample
python -m sgm_jax.tools.plan --config configs/svd.py --topology v5e-256 --search

Compiles the very train step (or, with --sample, the sampler's step and the decoder) ahead of time. JAX runs
on the CPU meanwhile. TPUs need libtpu (pip install "jax[tpu]"), GPUs the CUDA plugin; neither needs a device.
"""

import os

from absl import flags

from sgm_jax import cli
from sgm_jax.errors import UserError
from sgm_jax.parallel import topologies

CONFIG = cli.define_config('what to plan: FILE.py[:VARIANT]')
TOPOLOGY = flags.DEFINE_string('topology', None, 'v5e-16, v5p:4x4x4, 8xH100, cpu:8')
SAMPLE = flags.DEFINE_bool('sample', False, 'sampling on one device, in place of training on all')
SAMPLES = flags.DEFINE_integer('samples', 1, 'samples at once, with --sample', lower_bound=1)
SEARCH = flags.DEFINE_bool(
    'search', False, 'try remat, meshes and batches; show the best that fits'
)
JSON = flags.DEFINE_string('json', None, 'a file to which each plan is added, as a line of JSON')


def main() -> int:
    if CONFIG.value is None:
        raise UserError('give --config FILE.py, such as --config configs/svd.py')
    if not TOPOLOGY.value:
        raise UserError('give --topology NAME, such as --topology v5e-16 or v5p:4x4x4')
    topology = topologies.parse(TOPOLOGY.value)
    topologies.prepare_process(topology)
    from sgm_jax.tools import plan_report, plan_search, planning

    if SEARCH.value:
        if SAMPLE.value:
            raise UserError('--search is for training; leave --sample out')
        best = plan_search.search(CONFIG.value, topology, found=_keep, show=_show)
        if best is None:
            return 1
        _show(f'\nbest: {plan_search.command(best)}\n')
        _show(plan_report.report(best))
        return 0
    if SAMPLE.value:
        plan = planning.plan_sampling(CONFIG.value, topology, count=SAMPLES.value)
    else:
        plan = planning.plan_training(CONFIG.value, topology)
    _keep(plan)
    _show(plan_report.report(plan))
    return 0 if plan_report.fits(plan) else 1


def _show(text: str) -> None:
    print(text, flush=True)


def _keep(plan) -> None:
    from sgm_jax.tools.plan_file import to_json

    if JSON.value:
        with open(os.path.expanduser(JSON.value), 'a', encoding='utf-8') as file:
            file.write(to_json(plan) + '\n')


if __name__ == '__main__':
    cli.run(main)
