"""Published checkpoints made small: all their names, and arrays a 64th as wide, made from the names."""

import golden
import numpy as np

_WIDTH = 64


def shapes(manifest: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes: every width that 64 divides is divided."""
    return {
        name: tuple(n if n % _WIDTH else n // _WIDTH for n in shape)
        for name, shape in golden.manifest(manifest).items()
    }


def checkpoint(manifest: str, dtype=np.float32) -> dict[str, np.ndarray]:
    """A state dict of these shapes."""
    return {name: golden.generate(name, s).astype(dtype) for name, s in shapes(manifest).items()}
