"""What runs the parts of a preparation: threads of this machine, or Apache Beam wherever it runs.

A part leaves its result in a file, whole or not at all, so that it may be run again, and on any machine
that sees the same folders.
"""

import concurrent.futures
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tqdm import tqdm

from sgm_jax.errors import UserError


class Runner(Protocol):
    """Runs a function on each of `parts`, in any order, and returns when all are done.

    Raises:
      UserError: as the first of them that failed.
    """

    def run(self, function: Callable[[Any], None], parts: Sequence[Any], what: str) -> None: ...


class Threads:
    """Threads: reading, hashing and decoding leave Python's lock to others."""

    def __init__(self, count: int):
        self.count = count

    def run(self, function: Callable[[Any], None], parts: Sequence[Any], what: str) -> None:
        with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
            started = [pool.submit(function, part) for part in parts]
            done = concurrent.futures.as_completed(started)
            try:
                for future in tqdm(done, desc=what, total=len(parts), unit='part'):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class Beam:
    """A pipeline of Apache Beam for each step.

    Args:
      runner: its name, of Beam: 'DirectRunner' is this machine.
      options: of the pipeline, each 'name=value'.

    Raises:
      UserError: Beam is not installed, or has no such runner.
    """

    def __init__(self, runner: str, options: Sequence[str] = ()):
        try:
            import apache_beam as beam
        except ImportError as error:
            raise UserError(
                f"--beam needs Apache Beam, which is not here ({error}); run 'pip install apache-beam', "
                'or leave --beam out'
            ) from error
        try:
            beam.runners.create_runner(runner)
        except (ImportError, ValueError, AttributeError) as error:
            raise UserError(f'--runner={runner}: {error}') from error
        self.runner = runner
        self.options = [f'--{option.lstrip("-")}' for option in options]

    def run(self, function: Callable[[Any], None], parts: Sequence[Any], what: str) -> None:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        # It logs the traceback of every error, which is raised here too.
        logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
        try:
            with beam.Pipeline(self.runner, PipelineOptions(self.options)) as pipeline:
                made = pipeline | beam.Create(list(parts)) | beam.Reshuffle()
                _ = made | what >> beam.Map(function)
        except (UserError, RuntimeError) as error:
            if said := _mistake(error):
                raise UserError(said) from error
            raise


def _mistake(error: Exception) -> str:
    """What a UserError said before Beam added where in the pipeline it was; '' of other errors."""
    said = str(error)
    if not isinstance(error, UserError):
        # From another process only the traceback comes, as text.
        found = re.findall(r'^sgm_jax\.errors\.UserError: (.*)$', said, re.MULTILINE)
        said = found[-1] if found else ''
    return said.split(' [while running')[0]
