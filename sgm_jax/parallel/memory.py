"""A device's memory: what a program takes of it, and what is said where it is too small."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax

from sgm_jax.errors import UserError


class TooLittleError(UserError):
    """A device has too little memory."""


_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_NEEDED = (
    # Of the whole program, once it is laid out; or, where they are too many before that, of its temporaries.
    r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm',
    r'required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM',
)


def peak_bytes(analysis: Any) -> float:
    """What is there at once at most: arguments, what does not take their place, and temporaries.

    Of a compiled program's memory_analysis().
    """
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + new + analysis.temp_size_in_bytes


def needed_bytes(message: str) -> float | None:
    """Of a compiler's message that a program is too large, how large it is; None of other messages."""
    found = (re.search(pattern, message) for pattern in _NEEDED)
    match = next(filter(None, found), None)
    return float(match[1]) * _UNITS[match[2]] if match else None


@contextlib.contextmanager
def or_else(advice: str) -> Iterator[None]:
    """What runs out of a device's memory inside ends in a TooLittleError with this advice.

    Raises:
      TooLittleError: a program was too large to compile for the device, or an array to be held by it.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # From its second run on, a program's own error comes as a ValueError.
        message = str(error)
        if not message.startswith('RESOURCE_EXHAUSTED'):
            raise
        said = message.removeprefix('RESOURCE_EXHAUSTED:').strip().splitlines()[0][:300]
        raise TooLittleError(f'a device has too little memory: {said}; {advice}') from error
