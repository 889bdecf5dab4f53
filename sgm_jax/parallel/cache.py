"""Compiled programs, kept from one process to the next."""

import logging
import os
import pathlib
import platform
import zlib
from collections.abc import Mapping

LOG = logging.getLogger(__name__)
# JAX reads this one itself; ours is the folder of all that the package keeps.
OWN, OURS = 'JAX_COMPILATION_CACHE_DIR', 'SGM_JAX_CACHE'
# Below a folder that all hosts see.
SHARED = 'compiled'


def folder(
    variables: Mapping[str, str] = os.environ, shared: pathlib.Path | None = None
) -> pathlib.Path:
    """Where: $SGM_JAX_CACHE/xla, or ~/.cache/sgm_jax/xla; below it one for each kind of processor.

    With several processes it is `shared` / compiled, unless the variable names another: JAX writes from the
    first process alone, and homes of machines are apart.
    """
    import jax

    if shared is not None and jax.process_count() > 1 and not variables.get(OURS):
        return shared / SHARED / _processor()
    return base(variables) / 'xla' / _processor()


def base(variables: Mapping[str, str] = os.environ) -> pathlib.Path:
    """The folder of all that is kept: $SGM_JAX_CACHE, or sgm_jax below $XDG_CACHE_HOME or ~/.cache."""
    if variables.get(OURS):
        return pathlib.Path(variables[OURS]).expanduser()
    home = variables.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(home).expanduser() / 'sgm_jax'


def keep_compiled(
    wanted: bool = True, *, shared: pathlib.Path | None = None
) -> pathlib.Path | None:
    """Turns the cache on, before anything is compiled; the folder, or None where there is no cache.

    Compiling the training step of a large model takes minutes, reading it takes seconds. A folder that
    $JAX_COMPILATION_CACHE_DIR names is JAX's own affair. One that cannot be written is said, and no more.
    `shared` is a folder that all processes see, if there are several.
    """
    import jax

    if not wanted:
        jax.config.update('jax_enable_compilation_cache', False)
        return None
    if jax.config.jax_compilation_cache_dir:
        return pathlib.Path(jax.config.jax_compilation_cache_dir)
    try:
        path = folder(shared=shared)
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, 'not writable', str(path))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        LOG.info('compiled programs are not kept (%s); set %s to a folder', error, OURS)
        return None
    jax.config.update('jax_compilation_cache_dir', str(path))
    return path


def _processor() -> str:
    """JAX's key does not have the CPU's instructions, and homes are shared between machines."""
    told = platform.machine()
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), lines[0])
    return f'{told}-{zlib.crc32(flags.encode()):08x}'
