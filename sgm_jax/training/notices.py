"""Notices of maintenance: Google's machines say a minute or so ahead that they will go away.

Source: cloud.google.com/compute/docs/metadata/getting-live-migration-notice, and .../instances/preemptible.
"""

import logging
import pathlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

LOG = logging.getLogger(__name__)
METADATA = 'http://metadata.google.internal/computeMetadata/v1/instance/'
# What is asked for, and the answers that mean that all is well.
QUESTIONS = {'maintenance-event': ('NONE', 'MIGRATE_ON_HOST_MAINTENANCE'), 'preempted': ('FALSE',)}
SECONDS = 10.0


class Notices:
    """A context with a thread that asks, on Google's machines alone, and calls `ask_stop` once.

    Args:
      ask_stop: called with no arguments, from the thread.
      metadata: where to ask; None where there is nobody.
      seconds: between questions.
    """

    def __init__(
        self, ask_stop: Callable[[], None], metadata: str | None, *, seconds: float = SECONDS
    ):
        self._ask_stop, self._metadata, self._seconds = ask_stop, metadata, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name='notices', daemon=True)

    def __enter__(self) -> 'Notices':
        if self._metadata:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._seconds):
            for question, fine in QUESTIONS.items():
                answer = self._answer(question)
                if answer is not None and answer.upper() not in fine:
                    LOG.warning('this machine says %s=%s: saving and stopping', question, answer)
                    self._ask_stop()
                    return

    def _answer(self, question: str) -> str | None:
        request = urllib.request.Request(
            self._metadata + question, headers={'Metadata-Flavor': 'Google'}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._seconds) as reply:
                return reply.read().decode().strip()
        except (OSError, urllib.error.URLError, ValueError):
            return None  # it will be asked again


def metadata_server() -> str | None:
    """Where this machine's metadata are; None for a machine that is not Google's."""
    product = pathlib.Path('/sys/class/dmi/id/product_name')
    try:
        return METADATA if product.read_text().startswith('Google') else None
    except OSError:
        return None
