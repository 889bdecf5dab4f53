"""`config.train` and `config.pictures`: how long, how often, and what is kept."""

import dataclasses
from typing import Any

from sgm_jax.errors import UserError
from sgm_jax.training.frozen import check_dtype

SPLITS = ('train', 'held_out')


def defaults() -> dict[str, dict[str, Any]]:
    """By a config's nodes `train` and `pictures`: what stands for a key that is not there."""
    nodes = {'train': Options, 'pictures': PictureOptions}
    return {
        node: {
            f.name: f.default
            for f in dataclasses.fields(kind)
            if f.default is not dataclasses.MISSING
        }
        for node, kind in nodes.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """`config.train`. Steps are batches; `accumulate` of them make one step of the optimizer.

    Attributes:
      batch_size: examples of a batch, over all devices.
      steps: batches in all.
      accumulate: batches per optimizer step.
      clip_norm: the largest global gradient norm; 0 for any.
      ema_decay: of the averaged parameters, at most.
      log_every, image_every, validate_every, checkpoint_every: in steps; 0 for never, but for scalars and
        checkpoints.
      validate_examples: held-out examples that a validation looks at, at most.
      validate_batch: so many at once, on each host alone; 0 for batch_size.
      test_examples: the same of the test at the end.
      checkpoint_minutes: a checkpoint also after so many minutes without one; 0 for none.
      keep: the newest checkpoints that are kept.
      keep_every: checkpoints of steps that this divides are kept for ever; 0 for none.
      keep_best: how many are kept for their `best` figure besides; 0 for none.
      best: the logged number that tells which are best: the least, or the greatest with a '+' before it.
      frozen_dtype, first_stage_dtype: in which frozen parts are held, a name in frozen.DTYPES.
      data_threads: that make batches, each a whole one; 0 for half of the cores, of 2 to 8.
      data_ahead: batches that are kept ready, at least one for each thread.
      heartbeat_minutes: after so many minutes in one step there is a word of it; 0 for never.
      wandb: project of Weights & Biases that scalars and pictures go to as well; '' for none.
    """

    batch_size: int
    steps: int
    accumulate: int = 1
    clip_norm: float = 0.0
    ema_decay: float = 0.9999
    log_every: int = 50
    image_every: int = 1000
    validate_every: int = 0
    validate_examples: int = 16
    validate_batch: int = 0
    test_examples: int = 64
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 0.0
    keep: int = 3
    keep_every: int = 0
    keep_best: int = 0
    best: str = 'val_ema/loss'
    frozen_dtype: str = 'float32'
    first_stage_dtype: str = 'float32'
    data_threads: int = 0
    data_ahead: int = 4
    heartbeat_minutes: float = 10.0
    wandb: str = ''

    def __post_init__(self):
        for name in ('frozen_dtype', 'first_stage_dtype'):
            check_dtype(name, getattr(self, name))
        least = {
            1: (
                'steps',
                'accumulate',
                'log_every',
                'checkpoint_every',
                'keep',
                'validate_examples',
                'test_examples',
            ),
            0: (
                'image_every',
                'validate_every',
                'validate_batch',
                'checkpoint_minutes',
                'keep_every',
                'keep_best',
                'data_threads',
                'data_ahead',
                'heartbeat_minutes',
            ),
        }
        for bound, names in least.items():
            for name in names:
                if getattr(self, name) < bound:
                    raise UserError(f'train.{name} is {getattr(self, name)}; give {bound} or more')
        if self.steps % self.accumulate:
            raise UserError(
                f'train.steps is {self.steps}, which train.accumulate={self.accumulate} does not divide; '
                f'use {self.steps - self.steps % self.accumulate + self.accumulate}'
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f'train.ema_decay is {self.ema_decay}; give 0 or more, below 1')
        if self.keep_best and not self.validate_every and '/' in self.best:
            raise UserError(
                f'train.keep_best is {self.keep_best} by train.best={self.best!r}, which a validation gives; '
                'set train.validate_every'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """`config.pictures`: what is drawn every `train.image_every` steps, and when else (sgm's ImageLogger).

    Attributes:
      max_images: examples, at most.
      splits: of the data: 'held_out', 'train'.
      early: also after 1, 2, 4, 8, ... steps, up to image_every.
      first_step: also after the first step of a start.
      before: also before it.
      unguided: samples without guidance, too, where there is any.
    """

    max_images: int = 4
    splits: tuple[str, ...] = ('held_out',)
    early: bool = False
    first_step: bool = False
    before: bool = False
    unguided: bool = True

    def __post_init__(self):
        if self.max_images < 1:
            raise UserError(f'pictures.max_images is {self.max_images}; give 1 or more')
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown:
            raise UserError(
                f'pictures.splits: unknown split {unknown[0]!r}; choose from: {", ".join(SPLITS)}'
            )

    def due(self, step: int, *, every: int, begin: int) -> bool:
        """Whether there are pictures after `step` steps, of a start that went on after `begin`."""
        if not every:
            return False
        if step == begin:
            return self.before
        early = self.early and step < every and not step & (step - 1)
        return step % every == 0 or early or (self.first_step and step == begin + 1)
