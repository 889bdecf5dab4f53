"""Examples that cannot be used: each is named once and counted, and too many of them end the run."""

import logging
import threading
from collections.abc import Mapping

from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)


class DamagedError(ValueError):
    """An example that cannot be used: its name and the reason. A source takes another in its place."""

    def __init__(self, name: str, reason: str):
        super().__init__(f'{name}: {reason}')
        self.name, self.reason = str(name), reason


class Damage:
    """What a source had to leave out, by name. Safe from any number of threads.

    Args:
      total: files or examples in all.
      limit: the share of them that may be damaged, at least one of them unless it is 0.
      what: one of them, in words.
    """

    def __init__(self, total: int, *, limit: float, what: str):
        if not 0 <= limit <= 1:
            raise UserError(f'data: max_damaged is {limit}; give a share from 0 to 1')
        self.total, self.limit, self.what = total, limit, what
        self.allowed = max(int(limit * total), 1 if limit else 0)
        self.names: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, name: str, reason: str) -> None:
        """Logs and counts one, the first time.

        Raises:
          UserError: with it they are more than may be.
        """
        self.update({name: reason})

    def update(self, reasons: Mapping[str, str]) -> None:
        """As `add`, of several at once."""
        with self._lock:
            for name, reason in reasons.items():
                if name not in self.names:
                    self.names[name] = reason
                    LOG.warning('skipping a damaged %s: %s: %s', self.what, name, reason)
            count, (first, why) = len(self.names), next(iter(self.names.items()), ('', ''))
        if count > self.allowed:
            raise UserError(
                f'data: {count} of {self.total} {self.what}s cannot be used, more than '
                f'data.max_damaged={self.limit:g} allows; the first: {first}: {why}; mend or remove '
                'them (the log names each), or allow more'
            )

    def lines(self) -> list[str]:
        """Nothing, or a line for a report."""
        if not self.names:
            return []
        name, reason = next(iter(self.names.items()))
        return [f'  {len(self.names)} damaged {self.what}s skipped; the first: {name}: {reason}']
