"""What pictures and numbers cost a run: the same steps with them and without, in one process.

python -m benchmarks.logging_cost [--steps 40]

configs/svd.py:tiny on pixels and synthetic clips. With: numbers and pictures (samples with and without
guidance, inputs, cards; on the disk and in TensorBoard) every ten steps. Without: neither. The first ten
steps, which compile, are left out on both sides; what is still being written when the last step ends counts.
The share is what the difference comes to at the default frequency: numbers every 50, pictures every 1000
steps.
"""

import pathlib
import tempfile
import time

import ml_collections
from absl import flags

from sgm_jax import cli
from sgm_jax.config import load_config
from sgm_jax.training.loop import train
from sgm_jax.training.options import Options
from sgm_jax.training.window import Window

STEPS = flags.DEFINE_integer(
    'steps', 40, 'steps of either run; the first ten compile', lower_bound=20
)
EVERY = 10
NEVER = 10**6


def config(every: int) -> ml_collections.ConfigDict:
    """The tiny video model, which logs and draws every so many steps."""
    found = load_config('configs/svd.py:tiny')
    found.model.first_stage = {'name': 'none'}
    found.model.network.update(in_channels=6, out_channels=3)
    frames = found.model.task.num_frames
    found.data = {'name': 'synthetic_video', 'num_frames': frames, 'height': 32, 'width': 32}
    found.sample.update(height=32, width=32)
    found.train.update(
        steps=STEPS.value,
        log_every=every,
        image_every=every if every < NEVER else 0,
        checkpoint_every=NEVER,
    )
    return found


def seconds(every: int) -> float:
    """From the end of the first ten steps until everything is written."""
    times, add = [], Window.add

    def noted(self, *rest):
        add(self, *rest)
        times.append(time.perf_counter())

    Window.add = noted
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(config(every), pathlib.Path(folder) / 'run')
            end = time.perf_counter()
    finally:
        Window.add = add
    return end - times[EVERY]


def main() -> None:
    plain, logged = seconds(NEVER), seconds(EVERY)
    steps = STEPS.value - EVERY
    events = steps // EVERY
    step, event = plain / steps, (logged - plain) / events
    default = {field.name: field.default for field in Options.__dataclass_fields__.values()}
    share = event / (default['image_every'] * step)
    print(f'{steps} steps without: {plain:.2f} s, {step:.3f} s a step')
    print(f'{steps} steps with pictures and numbers every {EVERY}: {logged:.2f} s')
    print(
        f'one time of both: {event:.2f} s; at the default frequency {100 * share:.2f}% of the training'
    )


if __name__ == '__main__':
    cli.run(main)
