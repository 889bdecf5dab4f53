"""The whole way on real clips: trains a small first stage, then a small video model, then samples.

python -m sgm_jax.tools.demo [--folder runs/demo]

Run again, it goes on where it was stopped.
"""

import pathlib
import sys
import time

import ml_collections
import numpy as np
from absl import flags

from sgm_jax import cli
from sgm_jax.config import load_config
from sgm_jax.training.run import STOPPED

FOLDER = flags.DEFINE_string('folder', 'runs/demo', 'where everything goes')
CONFIGS = flags.DEFINE_string('configs', 'configs', 'folder of the configs')
# Batches that the latents' deviation is measured on.
_BATCHES = 4


def main() -> None:
    from sgm_jax.data import pipeline
    from sgm_jax.engines.structure import to_uint8
    from sgm_jax.sampling import media
    from sgm_jax.sampling.load import load
    from sgm_jax.training.loop import train

    start = time.perf_counter()
    folder, configs = pathlib.Path(FOLDER.value), pathlib.Path(CONFIGS.value)
    stage_folder, video_folder = folder / 'first_stage', folder / 'svd'

    print('1. a first stage: frames of 64x64 to latents of 16x16 and back', flush=True)
    stage_config = load_config(f'{configs / "demo_first_stage.py"}')
    _finish(train(stage_config, stage_folder))

    print('2. a video model on its latents: clips of 8 frames from their first', flush=True)
    config = load_config(f'{configs / "svd.py"}:tiny')
    config.model.first_stage_checkpoint = str(stage_folder.resolve())
    config.model.scale_factor = _scale_factor(load(stage_folder), stage_config)
    _finish(train(config, video_folder))

    print('3. a video from a picture that was held out', flush=True)
    model = load(video_folder)
    held_out = to_uint8(pipeline.held_out_batch(config.data, 3)['jpg'])
    videos = model.sample(image=list(held_out[:, 0]), seed=1)
    video, sheet = folder / 'video.mp4', folder / 'held_out_and_sampled.png'
    media.write_video(video, np.concatenate(list(videos), axis=2), config.sample.fps)
    rows = [media.strip(x) for pair in zip(held_out, videos, strict=True) for x in pair]
    media.write_image(sheet, np.concatenate(rows))

    print(
        f'done in {(time.perf_counter() - start) / 60:.1f} minutes\n'
        f'  video:       {video} (three held-out first frames, set in motion)\n'
        f'  beside them: {sheet} (each held-out clip, and below it what was sampled)\n'
        f'  checkpoint:  {video_folder / "checkpoints"}\n'
        f'  TensorBoard: tensorboard --logdir {folder}'
    )


def _finish(result) -> None:
    if result.stopped:
        print('stopped; run it again to go on', file=sys.stderr)
        sys.exit(STOPPED)


def _scale_factor(stage, config: ml_collections.ConfigDict) -> float:
    """One over the deviation of the latents of some training frames, as Stable Diffusion's 0.18215."""
    from sgm_jax.data import pipeline
    from sgm_jax.engines.structure import to_uint8

    batches = pipeline.make_iterator(
        config.data, batch_size=config.train.batch_size, seed=1, num_threads=0
    )
    frames = [to_uint8(next(batches)['jpg'][:, 0]) for _ in range(_BATCHES)]
    return round(1.0 / float(np.std([stage.encode(x) for x in frames])), 4)


if __name__ == '__main__':
    cli.run(main)
