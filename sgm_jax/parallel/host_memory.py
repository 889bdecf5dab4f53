"""Large pages for the arrays of a process that computes on the CPU."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

TUNABLES, LARGE_PAGES = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb'


def environment(variables: dict[str, str]) -> dict[str, str] | None:
    """`variables` with large pages asked of glibc; None where that is done, or would do nothing.

    XLA asks for all temporaries of a step anew, and the kernel clears every page of them, step after step.
    With pages of 2 MiB instead of 4 KiB that costs 0.2 s instead of 0.7 s of the small video network's
    training step of 5.4 s of processor time (benchmarks: small_train). glibc reads the setting once, when a
    process starts. Of other settings that avoid the page faults, a single heap that is never given back is as
    fast only as long as nothing has been compiled.

    Does nothing off Linux, with another C library, where an accelerator computes, or over a choice of the
    user's.
    """
    set_already = LARGE_PAGES in variables.get(TUNABLES, '')
    if sys.platform != 'linux' or set_already or not (_glibc() and _cpu_computes(variables)):
        return None
    tunables = filter(None, (variables.get(TUNABLES), f'{LARGE_PAGES}=1'))
    return {**variables, TUNABLES: ':'.join(tunables)}


def restart_with_large_pages() -> None:
    """Starts the running command again, in this process, where `environment` has something to change."""
    variables = environment(dict(os.environ))
    if variables is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)


def _glibc() -> bool:
    return hasattr(ctypes.CDLL(None), 'gnu_get_libc_version')


def _cpu_computes(variables: dict[str, str]) -> bool:
    platforms = variables.get('JAX_PLATFORMS')
    if platforms:
        return platforms.split(',')[0] == 'cpu'
    plugins = importlib.metadata.entry_points(group='jax_plugins')
    return not plugins and importlib.util.find_spec('libtpu') is None
