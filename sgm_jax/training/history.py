"""Every number of a run in one file that any tool can read: logs/history.jsonl, a line per step.

A line is a JSON object: `step`, and each number that was known after it. What a step returns (loss, learning
rates, gradient norm) is there for every step; what is measured over several (seconds per step, figures on
held-out examples) is on the line of the step at which it was. Numbers that are not finite are null.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping

from sgm_jax.errors import UserError
from sgm_jax.interop.whole_files import whole
from sgm_jax.training.workdir import LOGS

NAME = 'history.jsonl'


class History:
    """The history of a workdir's run, to be added to.

    Args:
      workdir: of the run.
      begin: the step after which it goes on; what an interrupted run wrote of later ones is taken out, for
        those steps are made again.

    Raises:
      UserError: the file cannot be read or written.
    """

    def __init__(self, workdir: pathlib.Path, *, begin: int):
        self.path = workdir / LOGS / NAME
        try:
            if self.path.is_file():
                kept = [line for line, row in _lines(self.path) if row['step'] <= begin]
                with whole(self.path) as file:
                    file.write(''.join(f'{line}\n' for line in kept).encode())
            self._file = self.path.open('ab', buffering=0)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        # What could not be written yet.
        self._waiting: list[str] = []

    def add(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Numbers by name of each step, in the order of the steps.

        Raises:
          UserError: the file cannot be written; the rows are kept, and written with the next ones.
        """
        for step, values in rows.items():
            known = {name: _number(value) for name, value in values.items()}
            self._waiting.append(json.dumps({'step': step, **known}) + '\n')
        try:
            # Past Python's buffer, which would keep what failed and write it again.
            for line in self._waiting:
                self._file.write(line.encode())
        except OSError as error:
            # Half a line may be there: the next one begins anew, and a reader leaves out the half.
            self._waiting = [line.lstrip('\n') for line in self._waiting]
            self._waiting[0] = '\n' + self._waiting[0]
            raise _unwritable(self.path, error) from error
        self._waiting = []

    def close(self) -> None:
        """Ends it, with a last try at what was not written."""
        try:
            if self._waiting:
                self.add({})
        finally:
            self._file.close()


def read(workdir: str | pathlib.Path) -> dict[str, dict[int, float]]:
    """Each number of a run by name: its values by step.

    Raises:
      UserError: there is no history.
    """
    path = pathlib.Path(workdir) / LOGS / NAME
    if not path.is_file():
        raise UserError(f'there is no {path}; give the workdir of a run that was begun with it')
    found = {}
    for _, row in _lines(path):
        step = row.pop('step')
        for name, value in row.items():
            found.setdefault(name, {})[step] = math.nan if value is None else value
    return found


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
    """The whole lines of a file and what they say; a process that was killed may have left half a one."""
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get('step'), int):
            yield line, row


def _number(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f'{path} cannot be written ({error.strerror or error}); free some space and run the same '
        'command again'
    )
