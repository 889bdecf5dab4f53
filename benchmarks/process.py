"""The inside of one measuring process: the same clock, memory and report on both sides."""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.cases import CASES, DataCase, PictureCase, VideoUNetCase

Case = VideoUNetCase | PictureCase | DataCase


def main(measure: Callable[[Case, int], dict]) -> None:
    """Runs one side of one case and prints its measurements as a line of JSON, the last of stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument('case', choices=sorted(CASES))
    parser.add_argument('--threads', type=int, default=2)
    flags = parser.parse_args()
    keep_cores(flags.threads)
    measurements = measure(CASES[flags.case], flags.threads)
    print(json.dumps({**measurements, 'peak_bytes': peak_bytes()}))


def keep_cores(count: int) -> None:
    """Leaves this process `count` cores, where the system can (Linux): libraries size their pools by it."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def timed(step: Callable[[], Any], case: Case) -> tuple[list[float], Any]:
    """The wall time of each timed call of `step`, which returns a ready result, and the last result."""
    for _ in range(case.warmups):
        step()
    times = []
    for _ in range(case.repeats):
        start = time.perf_counter()
        result = step()
        times.append(time.perf_counter() - start)
    return times, result


def peak_bytes() -> int:
    """The largest resident memory this process ever had."""
    try:
        with open('/proc/self/status') as status:
            line = next(line for line in status if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == 'darwin' else peak * 1024
