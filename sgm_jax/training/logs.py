"""What a run writes while it goes: scalars and pictures for TensorBoard, through CLU, and its history."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sgm_jax.sampling.media import grid, strip
from sgm_jax.training.history import History
from sgm_jax.training.workdir import LOGS

MAX_EXAMPLES = 4


class Logs:
    """A writer to a workdir's logs; a context that ends when everything is on the disk.

    Only the first process of several writes.
    """

    def __init__(self, workdir: pathlib.Path, *, begin: int = 0, enabled: bool = True):
        self._writer = _make_writer(workdir / LOGS) if enabled else None
        self._history = History(workdir, begin=begin) if enabled else None

    def __enter__(self) -> 'Logs':
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()
            self._history.close()

    def scalars(
        self,
        step: int,
        values: Mapping[str, float],
        *,
        each: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Numbers by name: `values` for TensorBoard; for the history each step's own, this one the last."""
        if self._writer:
            self._writer.write_scalars(step, dict(values))
            rows = {step - len(each) + 1 + i: own for i, own in enumerate(each)}
            self._history.add({**rows, step: {**values, **rows.get(step, {})}})

    def text(self, step: int, values: Mapping[str, str]) -> None:
        """Words by name."""
        if self._writer:
            self._writer.write_texts(step, dict(values))

    def pictures(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Images (b, h, w, 3) as a grid; videos (b, t, h, w, 3) as one strip of frames below the other."""
        if self._writer:
            self._writer.write_images(step, {k: _sheet(x)[None] for k, x in values.items()})
            self._writer.flush()


def _sheet(pictures: np.ndarray) -> np.ndarray:
    pictures = pictures[:MAX_EXAMPLES]
    if pictures.ndim == 5:
        return np.concatenate([strip(frames) for frames in pictures])
    return grid(pictures)


def _make_writer(folder: pathlib.Path):
    # TensorFlow, which writes the event files, greets at length otherwise.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow as tf
    from clu import metric_writers

    tf.config.set_visible_devices([], 'GPU')
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))
