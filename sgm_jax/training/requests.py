"""What a running training can be asked for by signals."""

import logging
import signal
import threading
from types import FrameType

LOG = logging.getLogger(__name__)
_STOP = (signal.SIGINT, signal.SIGTERM)


class Requests:
    """A context in which signals only set a wish, which the loop grants at the end of the step.

    The first ctrl-C or SIGTERM (which clusters and preempted machines send) sets `stop`; the second acts as
    ever, at once. SIGUSR1 sets `save`, SIGUSR2 `debug`, as in sgm's main.py.
    """

    def __init__(self):
        self.stop = self.save = self.debug = False
        self._before = {}

    def __enter__(self) -> 'Requests':
        if threading.current_thread() is threading.main_thread():
            handlers = dict.fromkeys(_STOP, self._ask_stop)
            handlers |= {signal.SIGUSR1: self._ask, signal.SIGUSR2: self._ask}
            self._before = {number: signal.signal(number, ask) for number, ask in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(tuple(self._before))

    def granted(self, name: str) -> None:
        """A wish that was done is one no more."""
        setattr(self, name, False)

    def _ask_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        self._restore(_STOP)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        setattr(self, 'save' if number == signal.SIGUSR1 else 'debug', True)

    def _restore(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))
