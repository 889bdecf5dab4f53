"""What it costs to spread a training step over devices: the same global batch on one and on eight.

.venv/bin/python -m benchmarks.scaling [--rounds 6 --batch 8]

The devices are virtual ones of a CPU: they share its cores, so that eight can be no faster than one, and
what they take longer is the overhead of spreading (communication, waiting, smaller pieces of work).
configs/svd.py:tiny on pixels and synthetic clips, its whole training step, on one device, on eight with a
copy of the model each (`data`) and on eight that hold it together (`fsdp`). All are called by turns in one
process. A ratio is the least time over that of one device.
"""

import argparse
import os
import statistics
import time

from sgm_jax.parallel.host_memory import restart_with_large_pages

DEVICES = 8
SIDES = {'one device': {'data': 1}, 'data=8': {'data': 8}, 'fsdp=8': {'fsdp': 8}}


def main() -> None:
    """Prints the times of each side, and their ratios to one device's."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=6, help='timed steps of each side')
    parser.add_argument('--batch', type=int, default=DEVICES)
    flags = parser.parse_args()
    count = f'--xla_force_host_platform_device_count={DEVICES}'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {count}'.strip()
    steps = {name: _step(sizes, flags.batch) for name, sizes in SIDES.items()}
    times = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(flags.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    print(f'a training step of the tiny video model, batch {flags.batch}, float32')
    one = times['one device']
    for name, own in times.items():
        least, median = min(own), statistics.median(own)
        print(
            f'{name:10}  least {least:.3f} s ({least / min(one):.2f}), '
            f'median {median:.3f} s ({median / statistics.median(one):.2f})',
            flush=True,
        )


def _step(sizes: dict, batch_size: int):
    """A function that makes one more step on a mesh, and waits for it."""
    import jax
    import numpy as np

    from sgm_jax.config import load_config
    from sgm_jax.data import pipeline
    from sgm_jax.parallel import mesh as meshes
    from sgm_jax.training.setup import Setup

    config = load_config('configs/svd.py:tiny')
    config.model.first_stage = {'name': 'none'}
    config.model.network.update(in_channels=6, out_channels=3)
    frames = config.model.task.num_frames
    config.data = {'name': 'synthetic_video', 'num_frames': frames, 'height': 32, 'width': 32}
    config.train.batch_size = batch_size
    config.mesh = sizes
    size = int(np.prod(list(sizes.values())))
    setup = Setup.from_config(config, jax.devices()[:size])
    whole = meshes.replicated(setup.mesh)
    key = jax.device_put(jax.random.key(0), whole)
    state = setup.first_state(key)
    frozen = setup.frozen(key)
    data = pipeline.make_iterator(config.data, batch_size=batch_size, seed=0)
    batch = meshes.put_batch(setup.engine.prepare(next(data)), setup.mesh)

    def step() -> None:
        nonlocal state
        state, _ = setup.step(setup.engine.turn(0), state, frozen, batch, key)
        jax.block_until_ready(state)

    return step


if __name__ == '__main__':
    restart_with_large_pages()  # as train.py does
    main()
