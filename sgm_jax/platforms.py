"""What is compiled for: the platform of this process, or another one, ahead of time.

'auto' in a config (a dtype, an attention) means the platform's own, and so do compiler options. Whoever
compiles for hardware that is not here says so with `target`.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_TARGET = contextvars.ContextVar('target', default=('', ''))


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what the program that is being built will run on."""
    name, _ = _TARGET.get()
    if name:
        return name
    import jax

    return jax.default_backend()


def target_chip() -> str:
    """The kind of chip (parallel.topologies.CHIPS) that is compiled for ahead of time; '' if it is here."""
    return _TARGET.get()[1]


def has_flash_attention() -> bool:
    """Whether cuDNN has flash attention for the GPU: of compute capability 8.0 (Ampere) or more."""
    name, chip = _TARGET.get()
    if name or chip:
        return True  # those that are compiled for ahead of time have it
    import jax

    if jax.default_backend() != 'gpu':
        return False
    try:
        return float(jax.local_devices()[0].compute_capability) >= 8
    except (AttributeError, ValueError):
        return False  # AMD's have names


def auto_dtype() -> str:
    """What 'auto' means for a dtype: bfloat16, but float32 on CPUs, which have no use for it."""
    return 'float32' if platform() == 'cpu' else 'bfloat16'


@contextlib.contextmanager
def target(name: str, chip: str = '') -> Iterator[None]:
    """Within it, programs are built for the platform `name`; building and tracing belong inside."""
    token = _TARGET.set((name, chip))
    try:
        yield
    finally:
        _TARGET.reset(token)
