"""A trace of some steps, for TensorBoard's profile tab or xprof."""

import dataclasses
import logging
import pathlib
import re

import jax

from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Span:
    """Steps `first` to `last`, both of them traced; counted from 1."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> 'Span':
        """From FIRST:LAST. Raises UserError where it is something else."""
        match = re.fullmatch(r'(\d+):(\d+)', text)
        first, last = map(int, match.groups()) if match else (0, 0)
        if not 1 <= first <= last:
            raise UserError(
                f'--profile is {text!r}; give FIRST:LAST of the steps to trace, as 10:14'
            )
        return cls(first, last)


class Profiler:
    """Traces the steps of a span into a folder; a context that ends a trace that is still going on."""

    def __init__(self, folder: pathlib.Path, span: Span | None):
        self._folder, self._span = folder, span
        self._running = False

    def __enter__(self) -> 'Profiler':
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Step number `step` (from 1) is next."""
        if self._span and not self._running and step == self._span.first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, result: object) -> None:
        """Step number `step` was begun; what it returns is waited for, if it is the last one traced."""
        if self._running and step >= self._span.last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            LOG.info(
                'traced steps %d to %d; look with pip install xprof: tensorboard --logdir %s, profile',
                self._span.first,
                self._span.last,
                self._folder,
            )
