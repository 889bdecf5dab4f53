"""The numbers since the last time they were logged."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sgm_jax.diffusion.binned import Binned

Scalars = Mapping[str, Any]


class Window:
    """What steps return, which stays on the devices until it is logged, and where the time went."""

    def __init__(self):
        self.last: dict[str, float] = {}
        # Of the last window that was closed: what each of its steps returned.
        self.each: list[dict[str, float]] = []
        self._scalars, self._seconds = [], collections.Counter()
        # Of the newest step, whether it is in this window or in one that was closed.
        self._newest: Scalars = {}
        self._flops = 0.0
        self._start = time.perf_counter()

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of `work`, whose time counts under `name`."""
        start = time.perf_counter()
        result = work()
        self._seconds[name] += time.perf_counter() - start
        return result

    def add(self, scalars: Scalars, flops: float = 0.0) -> None:
        """Of one more step: what it returned, and the FLOPs that it takes."""
        self._scalars.append(scalars)
        self._newest = scalars
        self._flops += flops

    def fine(self) -> bool:
        """Whether the newest step gave finite numbers only; waits for it.

        Asked when the next one is on its way: so a run is one step ahead at most, the bar tells the truth,
        ctrl-C never waits for a queue of steps, and numbers that break are seen one step later.
        """
        return bool(self._newest.get('finite', True))

    def newest(self) -> dict[str, float]:
        """The scalars of the last step."""
        return _numbers(jax.device_get(self._newest))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is not training, and its time does not count."""
        # Steps that are still on their way are training.
        jax.block_until_ready(self._newest)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - begin

    def close(self, batch_size: int) -> dict[str, float]:
        """Their means, and the times; empties the window. Nothing, if it is empty."""
        if not self._scalars:
            return {}
        steps = len(self._scalars)
        found = jax.device_get(self._scalars)
        self.each = [_numbers(scalars) for scalars in found]
        # What one turn logs another need not.
        names = dict.fromkeys(name for scalars in self.each for name in scalars)
        mean = lambda name: np.mean([own[name] for own in self.each if name in own])
        values = {name: float(mean(name)) for name in names}
        values |= _by_bin(found)
        seconds = (time.perf_counter() - self._start) / steps
        values |= {
            'step_seconds': seconds,
            'steps_per_second': 1 / seconds,
            'examples_per_second': batch_size / seconds,
            **{name: total / steps for name, total in self._seconds.items()},
        }
        if self._flops:
            values['flops_per_second'] = self._flops / steps / seconds
        self._scalars, self._seconds, self._flops = [], collections.Counter(), 0.0
        self._start = time.perf_counter()
        self.last = values
        return values


def broken(values: Mapping[str, float]) -> list[str]:
    """The names of what is not finite."""
    return [name for name, value in values.items() if not math.isfinite(value)]


def _numbers(scalars: Scalars) -> dict[str, float]:
    return {k: v for k, v in scalars.items() if k != 'finite' and not Binned.is_one(v)}


def _by_bin(found: list[Scalars]) -> dict[str, float]:
    totals: dict[str, Binned] = {}
    for scalars in found:
        for name, value in scalars.items():
            if Binned.is_one(value):
                totals[name] = totals[name] + value if name in totals else value
    return {
        f'{name}/{which}': mean
        for name, total in totals.items()
        for which, mean in total.means().items()
    }
