"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, or nothing."""

import logging
import os
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

LOG = logging.getLogger(__name__)


class Progress:
    """A context that shows how far the run is, with its loss, its rate and the time that is left.

    On a terminal one bar; elsewhere, as in a cluster's log file, a line each time that numbers are logged.
    """

    def __init__(self, *, steps: int, begin: int, enabled: bool = True):
        self._steps, self._step = steps, begin
        self._enabled = enabled and LOG.isEnabledFor(logging.INFO)
        self._plain = self._enabled and not sys.stderr.isatty()
        # Some terminals say that they have no columns and no rows; tqdm would show nothing there.
        known = (
            self._plain or not self._enabled or os.get_terminal_size(sys.stderr.fileno()).columns
        )
        self._bar = tqdm(
            total=steps,
            initial=begin,
            desc='train',
            unit='step',
            disable=not self._enabled or self._plain,
            **({'dynamic_ncols': True} if known else {'ncols': 80, 'nrows': 24}),
        )

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self) -> None:
        """One more step is on its way."""
        self._step += 1
        self._bar.update()

    def numbers(self, values: Mapping[str, float]) -> None:
        """Numbers were logged."""
        words = [f'loss {values["loss"]:.4f}'] if 'loss' in values else []
        words.append(f'{values["step_seconds"]:.2f} s/step')
        self._bar.set_postfix_str(', '.join(words))
        if self._plain:
            left = duration(values['step_seconds'] * (self._steps - self._step))
            LOG.info('step %d/%d: %s, %s left', self._step, self._steps, ', '.join(words), left)


def duration(seconds: float) -> str:
    """Seconds as H:MM:SS, with days before them where there are any."""
    days, rest = divmod(int(seconds), 86400)
    clock = time.strftime('%H:%M:%S', time.gmtime(rest)).removeprefix('0')
    return f'{days} d {clock}' if days else clock
