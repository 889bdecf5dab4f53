"""sample.py behind its flags."""

import logging
import pathlib
from typing import Any

from tqdm import tqdm

from sgm_jax.errors import UserError
from sgm_jax.sampling import media

LOG = logging.getLogger(__name__)


def run(
    *, config: Any, checkpoint: str | None, image: str | None, output: str | None, **options: Any
) -> int:
    """Loads, samples, writes. `options` are `LoadedModel.sample`'s; None stands for the config's value.

    Raises:
      UserError: a flag is missing, or whatever loading, sampling and writing find wrong.
    """
    for name, value in dict(checkpoint=checkpoint, image=image, output=output).items():
        if not value:
            raise UserError(f'give --{name}; --help lists the flags')
    # Before the work, not after it.
    media.check_video_suffix(output)
    media.read_image(image)
    from sgm_jax.sampling.load import load

    model = load(checkpoint, config)
    with tqdm(desc='sample', unit='call', delay=0.5) as bar:  # no bar above an early error

        def progress(done: int, calls: int) -> None:
            bar.total = calls
            bar.update(done - bar.n)

        frames = model.sample(image=image, progress=progress, **options)[0]
    fps = options.get('fps') or model.engine.sampling.fps
    media.write_video(output, frames, fps)
    count, height, width = frames.shape[:3]
    LOG.info('wrote %s: %d frames of %dx%d', pathlib.Path(output), count, height, width)
    return 0
