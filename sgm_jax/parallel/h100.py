"""H100 devices to compile for, where there are none: what XLA must be told of one, and of its libraries."""

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

from sgm_jax.errors import UserError

# XLA's GpuTargetConfigProto of an H100 SXM: NVIDIA's data sheet and its deviceQuery.
TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_INSTALL = 'pip install "jax[cuda13]" (or this package with the extra cuda)'


def xla_flags() -> str:
    """What XLA needs to compile without a GPU: nothing is timed, and the compiler's files by their place."""
    flags = ['--xla_gpu_autotune_level=0']
    spec = importlib.util.find_spec('nvidia')
    for folder in spec.submodule_search_locations if spec else ():
        toolkit = next(pathlib.Path(folder).glob('cu1*/nvvm'), None)
        if toolkit:
            flags.append(f'--xla_gpu_cuda_data_dir={toolkit.parent}')
    return ' '.join(flags)


def devices(count: int) -> Sequence[Any]:
    """So many H100 of one node.

    Raises:
      UserError: the CUDA plugin is not installed, or refuses.
    """
    import jax
    from jax.experimental import topologies

    if importlib.util.find_spec('jax_plugins.xla_cuda13') is None:
        raise UserError(
            f'compiling for GPUs needs the CUDA plugin, which runs without one; {_INSTALL}'
        )
    # The plugin registers itself when JAX starts its own backend, here the CPU's.
    jax.devices()
    try:
        return topologies.get_topology_desc(
            platform='cuda', target_config=TARGET, topology=f'1x1x{count}'
        ).devices
    except Exception as error:
        raise UserError(f'the CUDA plugin refuses to plan for {count} H100: {error}') from error
