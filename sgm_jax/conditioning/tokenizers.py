"""Tokenizers: from texts to the ids that a text encoder reads. On the host, never under jit."""

import functools
import html
import logging
import pathlib
import re
from collections.abc import Sequence
from typing import Protocol

import ftfy
import instant_clip_tokenizer
import numpy as np
import tokenizers

from sgm_jax.errors import UserError

LOG = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """Calls: texts, max_length -> int32 (n, max_length). What does not fit is cut off with a warning."""

    def __call__(self, texts: Sequence[str], max_length: int) -> np.ndarray: ...


@functools.cache
def make_tokenizer(name: str | tuple[str, ...]) -> Tokenizer:
    """The tokenizer of a name: 'clip', 'byt5', or the path of a tokenizer.json.

    A tuple of names gives the ids of all, side by side; its max_length is a tuple too.

    Raises:
      UserError: no name, or no such file, or the file is no tokenizer.
    """
    if isinstance(name, tuple):
        return SideBySide(name)
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    if not name:
        raise UserError(
            'T5 has no tokenizer built in; give the path of its tokenizer.json as `tokenizer` '
            f'(other choices: {", ".join(sorted(TOKENIZERS))})'
        )
    return FileTokenizer(name)


class ClipTokenizer:
    """CLIP's byte-pair encoding: the beginning's id, the text's, the end's, then zeros.

    Texts are cleaned as in open_clip's SimpleTokenizer: broken Unicode mended, HTML's entities resolved
    twice, white space made single blanks, letters small.
    """

    def __init__(self):
        self._pairs = instant_clip_tokenizer.Tokenizer()
        self.start, self.end = self._pairs.start_of_text(), self._pairs.end_of_text()

    def __call__(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        return _rows(texts, max_length, self._ids)

    def _ids(self, text: str, max_length: int) -> list[int]:
        ids, room = self._pairs.encode(clean(text)), max_length - 2
        if len(ids) > room:
            _warn(text, self._pairs.decode(ids[room:]).strip(), max_length)
        return [self.start, *ids[:room], self.end]


class ByteTokenizer:
    """ByT5's: UTF-8 bytes plus 3, the end's 1, then zeros (arXiv:2105.13626).

    As transformers' ByT5Tokenizer, but a text's '</s>' is four bytes and not an end.
    """

    def __call__(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        return _rows(texts, max_length, self._ids)

    def _ids(self, text: str, max_length: int) -> list[int]:
        data, room = text.encode(), max_length - 1
        if len(data) > room:
            _warn(text, data[room:].decode(errors='ignore'), max_length)
        return [byte + 3 for byte in data[:room]] + [1]


class FileTokenizer:
    """What a tokenizer.json says, as published with T5 and other models; padded with its <pad> or zeros."""

    def __init__(self, path: str):
        file = pathlib.Path(path).expanduser()
        if not file.is_file():
            raise UserError(
                f'there is no tokenizer {path}; give the path of a tokenizer.json, or one of: '
                f'{", ".join(sorted(TOKENIZERS))}'
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise UserError(f'{path} is no tokenizer.json ({error})') from error
        self._tokenizer.no_padding()
        self._pad = self._tokenizer.token_to_id('<pad>') or 0

    def __call__(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        return _rows(texts, max_length, self._ids, self._pad)

    def _ids(self, text: str, max_length: int) -> list[int]:
        self._tokenizer.enable_truncation(max_length)
        encoding = self._tokenizer.encode(text)
        if encoding.overflowing:
            _warn(text, text[max(end for _, end in encoding.offsets) :].strip(), max_length)
        return encoding.ids


class SideBySide:
    """Several tokenizers' ids of the same texts, one after the other on the last axis."""

    def __init__(self, names: tuple[str, ...]):
        self._parts = tuple(make_tokenizer(name) for name in names)

    def __call__(self, texts: Sequence[str], max_length: Sequence[int]) -> np.ndarray:
        pairs = zip(self._parts, max_length, strict=True)
        return np.concatenate([part(texts, length) for part, length in pairs], 1)


TOKENIZERS = {'clip': ClipTokenizer, 'byt5': ByteTokenizer}


def clean(text: str) -> str:
    """A text as CLIP's encoding takes it."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r'\s+', ' ', text).strip().lower()


def _rows(texts: Sequence[str], max_length: int, encode, pad: int = 0) -> np.ndarray:
    if isinstance(texts, str):
        raise TypeError(f'texts must be a sequence of texts, not the one text {texts!r}')
    rows = np.full((len(texts), max_length), pad, np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = encode(text, max_length)
        row[: len(ids)] = ids
    return rows


@functools.lru_cache(maxsize=4096)
def _warn(text: str, cut: str, max_length: int) -> None:
    """Says what was cut off, once for each text."""
    LOG.warning(
        'a text is longer than %d tokens; cut off was %r, the end of %r', max_length, cut, text
    )
