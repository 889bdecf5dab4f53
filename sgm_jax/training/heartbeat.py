"""A word when nothing moves: which step was finished last, and what is being waited for."""

import logging
import threading
import time

LOG = logging.getLogger(__name__)


class Heartbeat:
    """A context with a thread that warns once for each `minutes` without a step.

    Every process has its own, so that of several hosts the one that hangs can be told: the others say that
    they wait for the step, and it says what it waits for.
    """

    def __init__(self, minutes: float, name: str = ''):
        self._seconds = 60 * minutes
        self._name = f'{name}: ' if name else ''
        self._step, self._doing, self._since = 0, 'starting', time.monotonic()
        self._told = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name='heartbeat', daemon=True)

    def at(self, step: int, doing: str) -> None:
        """`step` steps are finished, and `doing` is next."""
        if step != self._step or doing != self._doing:
            self._step, self._doing, self._since, self._told = step, doing, time.monotonic(), 0

    def __enter__(self) -> 'Heartbeat':
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            still = time.monotonic() - self._since
            if still > self._seconds * (self._told + 1):
                self._told = int(still / self._seconds)
                LOG.warning(
                    '%snothing has moved for %s: step %d is finished, now %s',
                    self._name,
                    f'{still / 60:.0f} minutes' if still >= 120 else f'{still:.0f} s',
                    self._step,
                    self._doing,
                )
