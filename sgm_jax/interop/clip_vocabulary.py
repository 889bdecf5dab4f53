"""CLIP's vocabulary as the files that transformers' CLIPTokenizer reads.

The package instant-clip-tokenizer, whose tokenizer is this one, holds OpenAI's list of merges as it was
published, as data inside its library; that list says all. The library is read here, not run.
"""

import functools
import importlib.util
import json
import pathlib

PACKAGE = 'instant_clip_tokenizer'
# What the list begins with, how many of its merges CLIP uses, and how many words that makes.
_HEAD = b'bpe_simple_vocab_16e6.txt#version: 0.2\n'
_MERGES, WORDS = 48894, 49408
START, END = '<|startoftext|>', '<|endoftext|>'


@functools.cache
def merges() -> tuple[str, ...] | None:
    """Pairs of symbols, the most frequent first ('i n'); None where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in sorted(pathlib.Path(folder).iterdir()):
            if library.suffix not in ('.so', '.pyd', '.dylib'):
                continue
            _, found, rest = library.read_bytes().partition(_HEAD)
            lines = rest.split(b'\n', _MERGES)[:_MERGES]
            if found and len(lines) == _MERGES and all(line.count(b' ') == 1 for line in lines):
                return tuple(line.decode() for line in lines)
    return None


def _symbols() -> list[str]:
    """A letter for each byte, in CLIP's order: those that can be printed first, as themselves."""
    printed = [
        *range(ord('!'), ord('~') + 1),
        *range(ord('¡'), ord('¬') + 1),
        *range(ord('®'), 256),
    ]
    others = [byte for byte in range(256) if byte not in printed]
    return [chr(byte) for byte in printed] + [chr(256 + index) for index in range(len(others))]


def tokenizer_files(padding: str) -> dict[str, str] | None:
    """The files of a tokenizer's folder by name; None where the vocabulary is not installed.

    Args:
      padding: what short texts are filled up with; END for OpenAI's encoder, '!' (0) for open_clip's.
    """
    pairs = merges()
    if pairs is None:
        return None
    letters = _symbols()
    words = [*letters, *(f'{letter}</w>' for letter in letters)]
    words += [pair.replace(' ', '') for pair in pairs] + [START, END]
    special = {'bos_token': START, 'eos_token': END, 'unk_token': END, 'pad_token': padding}
    config = {
        'tokenizer_class': 'CLIPTokenizer',
        'model_max_length': 77,
        'do_lower_case': True,
        'add_prefix_space': False,
        'errors': 'replace',
        **special,
    }
    return {
        'vocab.json': json.dumps(
            {word: index for index, word in enumerate(words)}, ensure_ascii=False
        ),
        'merges.txt': '\n'.join(('#version: 0.2', *pairs, '')),
        'tokenizer_config.json': json.dumps(config, indent=2) + '\n',
        'special_tokens_map.json': json.dumps(special, indent=2) + '\n',
    }
