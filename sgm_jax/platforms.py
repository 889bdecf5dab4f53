"""What is compiled for: the platform of this process, or another one, ahead of time.

'auto' in a config (a dtype, an attention) means the platform's own, and so do compiler options. Whoever
compiles for hardware that is not here says so with `target`.
"""

import contextlib
import contextvars
from collections.abc import Iterator

_TARGET = contextvars.ContextVar('target', default=None)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what the program that is being built will run on."""
    if _TARGET.get():
        return _TARGET.get()
    import jax

    return jax.default_backend()


def auto_dtype() -> str:
    """What 'auto' means for a dtype: bfloat16, but float32 on CPUs, which have no use for it."""
    return 'float32' if platform() == 'cpu' else 'bfloat16'


@contextlib.contextmanager
def target(name: str) -> Iterator[None]:
    """Within it, programs are built for the platform `name`; building and tracing belong inside."""
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
