"""Compiler options per platform, in one place, each with its reason."""

from collections.abc import Callable
from typing import Any

import jax

from sgm_jax.parallel.topologies import kind_of
from sgm_jax.platforms import platform, target_chip

OPTIONS = {
    'cpu': {
        # Leaves out the slower of XLA's two convolution libraries: a 3x3 convolution takes half to two
        # thirds of the time, its gradient half.
        'xla_cpu_experimental_ynn_fusion_type': (
            'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'
        ),
        # Sees that a donated parameter is read for the last time before its successor is written: a
        # small training step copied 1166 arrays of its state, and now copies none.
        'xla_cpu_copy_insertion_use_region_analysis': True,
        # Keeps the barriers of jax.checkpoint until all is scheduled. Without them what is to be computed
        # again is found to be there already, and kept: remat saved nothing.
        'xla_disable_hlo_passes': 'cse_barrier_expander',
    },
    'tpu': {
        # Few and large pictures would have their columns turned into examples before each convolution, and
        # back: a residual block of 2x128x128x320 takes 1.63 ms without (of v5e, by the compiler's own
        # estimate), 2.99 ms with it, and 42 MiB less.
        'xla_tpu_run_space_to_batch': False,
        'xla_tpu_run_space_to_batch_on_new_platforms': False,
        # A weight's gradient would be made slice by slice while slices travel. Slices are narrow (40 of 320
        # channels over eight devices), and a residual block's step takes half as long again: 0.49 ms
        # for 0.32 of a v5p, by the compiler's own estimate.
        'xla_tpu_enable_windowed_einsum_for_reduce_scatter': False,
        # Fused loops would be written out for tiles of up to 16 MiB of fast memory. Smaller tiles are less
        # code: SDXL's U-Net compiles in 46 s instead of 101, and its forward pass takes 93.8 ms instead of
        # 90.5 (v5e, the compiler's own estimate). Attention's kernels are made for it.
        'xla_tpu_scoped_vmem_limit_kib': 8 * 1024,
    },
}
# A training step is compiled once and runs for days.
TRAINING = {
    'tpu': {
        # With 8 MiB a step of SDXL's U-Net is estimated at 326 ms on eight v5p, with 16 at 274.
        'xla_tpu_scoped_vmem_limit_kib': 12 * 1024,
    },
}

# What a kind of chip (topologies.CHIPS) wants otherwise.
CHIPS = {
    'v6e': {
        # Its matrix units are twice as wide. A residual block of 960 to 320 channels is estimated at 1.50 ms
        # with 8 MiB, at 1.30 with 16; with 32 at 1.23, and takes twice as long to compile.
        'xla_tpu_scoped_vmem_limit_kib': 16 * 1024,
    },
}


def jit(function: Callable, *, training: bool = False, **options: Any) -> Callable:
    """jax.jit with the options of the platform and the chip; those of a training step, if it is one."""
    name = platform()
    found = {**OPTIONS.get(name, {}), **(TRAINING.get(name, {}) if training else {})}
    if name == 'tpu':
        found |= CHIPS.get(target_chip() or kind_of(jax.devices()[0]), {})
    return jax.jit(function, compiler_options=found or None, **options)
