"""What a run writes while it goes, numbers and pictures, in a thread that training does not wait for.

logs/history.jsonl                        every number of every step
logs/events.out.tfevents.*                TensorBoard's, through CLU
pictures/SPLIT/0001000_NAME.png, .mp4     every picture; clips as a strip of frames, and moving
"""

import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sgm_jax.sampling.media import encode_gif, grid, strip, write_image, write_video
from sgm_jax.training.history import History
from sgm_jax.training.trackers import Tracker
from sgm_jax.training.workdir import LOGS, PICTURES

LOG = logging.getLogger(__name__)
# Of clips that are looked at; their own rate is not known here.
FPS = 6


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Pictures of one name: all in one, uint8 (h, w, 3); and of clips the same moving, (t, h, w, 3)."""

    still: np.ndarray
    moving: np.ndarray | None = None

    @classmethod
    def of(cls, pictures: np.ndarray) -> 'Sheet':
        """Images (b, h, w, 3) as a grid; videos (b, t, h, w, 3) as one strip of frames below the other."""
        if pictures.ndim == 5:
            still = np.concatenate([strip(frames) for frames in pictures])
            return cls(still, np.stack([grid(frames) for frames in pictures.swapaxes(0, 1)]))
        return cls(grid(pictures))


class Logs:
    """A writer to a workdir; a context that ends when everything is on the disk.

    Only the first process of several writes. What cannot be written is told once, and tried again with what
    comes next: a full disk does not end a run.

    Args:
      begin: the step after which the run goes on.
      enabled: whether this process writes.
      tracker: where numbers and pictures go as well.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        begin: int = 0,
        enabled: bool = True,
        tracker: Tracker | None = None,
    ):
        self._workdir, self._tracker = workdir, tracker
        self._events, self._told = None, set()
        self._history = History(workdir, begin=begin) if enabled else None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, 'logs') if enabled else None

    def __enter__(self) -> 'Logs':
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker:
            self._do('the logs', self._close)
            self._worker.shutdown()

    def scalars(
        self,
        step: int,
        values: Mapping[str, float],
        *,
        each: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Numbers by name: `values` for TensorBoard; for the history each step's own, this one the last."""
        if not self._worker:
            return
        values = dict(values)
        rows = {step - len(each) + 1 + i: own for i, own in enumerate(each)}
        rows = {**rows, step: {**values, **rows.get(step, {})}}
        self._do('the history', lambda: self._history.add(rows))
        self._do('events', lambda: self._writer().write_scalars(step, values))
        if self._tracker:
            self._do('the tracker', lambda: self._tracker.scalars(step, values))

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """The config's leaves by dotted name, for TensorBoard's table of runs."""
        known = {
            k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in values.items()
        }
        if self._worker:
            self._do('events', lambda: self._writer().write_hparams(known))

    def pictures(self, step: int, values: Mapping[str, np.ndarray], *, split: str) -> None:
        """Images (b, h, w, 3) and videos (b, t, h, w, 3) by name, uint8."""
        if self._worker:
            for name, pictures in values.items():
                self._do('pictures', lambda n=name, x=pictures: self._picture(step, split, n, x))

    def _picture(self, step: int, split: str, name: str, pictures: np.ndarray) -> None:
        sheet = Sheet.of(pictures)
        path = self._workdir / PICTURES / split / f'{step:07d}_{name.replace("/", "_")}.png'
        write_image(path, sheet.still)
        tag = name if split == 'held_out' else f'{split}/{name}'
        writer = self._writer()
        writer.write_images(step, {tag: sheet.still[None]})
        if sheet.moving is not None:
            write_video(path.with_suffix('.mp4'), sheet.moving, FPS)
            preview = encode_gif(sheet.moving, FPS)
            writer.write_summaries(step, *_encoded(f'{tag}/moving', preview, sheet.moving.shape))
        writer.flush()
        if self._tracker:
            self._tracker.picture(step, tag, sheet.still)

    def _writer(self) -> Any:
        if self._events is None:
            self._events = _make_writer(self._workdir / LOGS)
        return self._events

    def _do(self, what: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as error:  # whatever a library raises: training goes on
                if what not in self._told:
                    self._told.add(what)
                    LOG.warning(
                        'of %s: %s could not be written (%s); training goes on',
                        self._workdir,
                        what,
                        (str(error).strip().splitlines() or [type(error).__name__])[0],
                    )
                if what != 'the history':
                    self._events = None  # a new file, once there is room

        self._worker.submit(guarded)

    def _close(self) -> None:
        self._history.close()
        if self._events is not None:
            self._events.close()
        if self._tracker:
            self._tracker.close()


def _encoded(tag: str, gif: bytes, shape: tuple[int, ...]) -> tuple[dict, dict]:
    """An animation as a summary that TensorBoard shows among the images."""
    from tensorboard.plugins.image import metadata

    value = np.array([str(shape[2]).encode(), str(shape[1]).encode(), gif], object)
    about = metadata.create_summary_metadata(display_name=None, description='')
    return {tag: value}, {tag: about}


def _make_writer(folder: pathlib.Path) -> Any:
    # TensorFlow, which writes the event files, greets at length otherwise.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow as tf
    from clu import metric_writers

    tf.config.set_visible_devices([], 'GPU')
    return metric_writers.SummaryWriter(str(folder))
