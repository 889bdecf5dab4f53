"""Windows of videos that are not wanted, though nothing is wrong with them: stills, and cuts."""

import collections
import logging
import threading
from collections.abc import Sequence

import numpy as np

from sgm_jax.data.cuts import has_cut
from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)

CUTS = ('keep', 'skip')


class Filters:
    """Which windows are not used, and how many were met. Safe from any number of threads.

    Args:
      min_motion: the least mean optical flow of a window, in frame heights per frame (`sgm_jax.data.motion`).
      cuts: 'skip' for no windows with a hard cut inside (`sgm_jax.data.cuts`), or 'keep'.
      num_frames: of the shortest window.
    """

    def __init__(self, *, min_motion: float, cuts: str, num_frames: int):
        if cuts not in CUTS:
            raise UserError(f'data: cuts is {cuts!r}; choose one of: {", ".join(CUTS)}')
        if min_motion < 0:
            raise UserError(f'data: min_motion is {min_motion}; give 0 or more frame heights')
        self.rules = {}
        if min_motion:
            self.rules['min_motion'] = f'move less than data.min_motion={min_motion:g}'
        if cuts == 'skip':
            self.rules['cuts'] = 'have a cut (data.cuts=skip)'
        if self.rules and num_frames < 2:
            raise UserError(f'data: {" and ".join(self.rules)} need windows of 2 frames or more')
        self.min_motion = min_motion
        self.read, self.counts = 0, collections.Counter()
        self._lock = threading.Lock()

    def refuses(self, frames: np.ndarray, flow: float) -> str | None:
        """The rule that a window of uint8 frames (t, h, w, 3) and their mean `flow` breaks, if any."""
        rule = None
        if 'min_motion' in self.rules and flow < self.min_motion:
            rule = 'min_motion'
        elif 'cuts' in self.rules and has_cut(frames):
            rule = 'cuts'
        if self.rules:
            self._count(rule)
        return rule

    def too_many(self, broken: Sequence[str], last: str) -> UserError:
        """What to say after windows in a row that broke rules, or ('') were damaged."""
        counts = collections.Counter(broken)
        words = {**self.rules, '': 'are damaged'}
        told = ', '.join(f'{counts[rule]} {words[rule]}' for rule in words if counts[rule])
        ways = {'min_motion': 'lower data.min_motion', 'cuts': 'set data.cuts=keep'}
        way = ' and '.join(ways[rule] for rule in self.rules if counts[rule])
        return UserError(
            f'data: {len(broken)} windows in a row cannot be used, the last from {last}: {told}; {way}, '
            'or choose other videos'
        )

    def lines(self) -> list[str]:
        """Nothing, or a line for a report."""
        if not self.rules:
            return []
        told = ', '.join(f'{self.counts[rule]} that {words}' for rule, words in self.rules.items())
        return [f'  of {self.read} windows read, left out: {told}']

    def _count(self, rule: str | None) -> None:
        with self._lock:
            self.read += 1
            if rule:
                self.counts[rule] += 1
            total = self.counts.total()
            # At 10, 100, 1000 ...: often enough to be seen, and never many lines.
            due = rule and total >= 10 and str(total).strip('0') == '1'
        if due:
            LOG.info('%s', self.lines()[0].strip())
