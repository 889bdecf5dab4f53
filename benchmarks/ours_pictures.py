"""Our side: SDXL's U-Net and decoder, compiled ahead of the first call, on the CPU.

python -m benchmarks.ours_pictures sdxl_forward
"""

import os
import time
from pathlib import Path

import numpy as np

from benchmarks import process
from benchmarks.cases import PictureCase
from benchmarks.random_weights import Draw
from sgm_jax.parallel.host_memory import restart_with_large_pages

ROOT = Path(__file__).resolve().parents[1]


def measure(case: PictureCase, threads: int) -> dict:
    """Compiles, then times `case`; the cores left to the process already bound XLA's `threads`."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)  # the compile time is part of the report
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from sgm_jax.config import load_config
    from sgm_jax.engines import build
    from sgm_jax.parallel.compiler import jit

    engine = build(load_config(f'{ROOT / "configs" / "sdxl_base.py"}:'))
    whole = engine.structure.module()
    module = whole.network if case.part == 'unet' else whole.first_stage
    parts = module if case.part == 'unet' else nnx.List([module.post_quant_conv, module.decoder])
    graphdef, shapes = nnx.split(parts)
    params = jax.tree_util.tree_map_with_path(Draw(), nnx.to_pure_dict(shapes))
    rng = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    z = normal(1, case.size, case.size, 4)

    def unet(params, x, timesteps, context, y):
        return nnx.merge(graphdef, params)(x, timesteps, context=context, y=y)

    def decode(params, z):
        post_quant_conv, decoder = nnx.merge(graphdef, params)
        return decoder(post_quant_conv(z))

    if case.part == 'unet':
        function, inputs = unet, (z, jnp.full((1,), 500.0), normal(1, 77, 2048), normal(1, 2816))
    else:
        function, inputs = decode, (z,)
    start = time.perf_counter()
    compiled = jit(function).lower(params, *inputs).compile()
    compile_seconds = time.perf_counter() - start
    times, result = process.timed(lambda: compiled(params, *inputs).block_until_ready(), case)
    if not bool(jnp.isfinite(result).all()):
        raise FloatingPointError('the network returned numbers that are not finite')
    return dict(
        name=f'sgm_jax on jax {jax.__version__}',
        seconds=times,
        compile_seconds=compile_seconds,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )


if __name__ == '__main__':
    restart_with_large_pages()  # as train.py and sample.py do
    process.main(measure)
