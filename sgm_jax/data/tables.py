"""Tables of captions beside pictures: metadata.jsonl, .csv and .parquet, as Hugging Face's folders have."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from sgm_jax.data import places
from sgm_jax.errors import UserError

NAMES = ('metadata.jsonl', 'metadata.csv', 'metadata.parquet')
FILES = ('file_name', 'filename', 'file', 'image')
CAPTIONS = ('text', 'caption', 'txt', 'prompt')


def captions(path: str, caption: str = '') -> dict[str, str]:
    """The captions of a table by the pictures' names, as the table has them.

    Args:
      path: of the table.
      caption: its column; '' for the first of `CAPTIONS` that is there.

    Raises:
      UserError: not such a table.
    """
    rows = _rows(path)
    if not rows:
        return {}
    file = choose(rows[0], FILES, path, "the pictures' names")
    text = choose(rows[0], (caption,) if caption else CAPTIONS, path, 'the captions')
    return {str(row[file]): str(row[text]) for row in rows if row.get(file) and row.get(text)}


def choose(columns: Iterable[str], wanted: Iterable[str], path: str, what: str) -> str:
    """The first of `wanted` among `columns`; a UserError that lists them if there is none."""
    columns = list(columns)
    for name in wanted:
        if name in columns:
            return name
    raise UserError(
        f'{path}: no column of {what}; looked for {", ".join(wanted)}, it has: {", ".join(columns)}'
    )


def _rows(path: str) -> list[Mapping[str, Any]]:
    try:
        data = places.read(path)
        if path.endswith('.parquet'):
            import pyarrow.parquet as pq

            return pq.read_table(io.BytesIO(data)).to_pylist()
        text = data.decode('utf-8-sig')
        if path.endswith('.csv'):
            return list(csv.DictReader(io.StringIO(text, newline='')))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors, json's too
        raise UserError(f'{path}: cannot be read as a table of captions: {error}') from error
