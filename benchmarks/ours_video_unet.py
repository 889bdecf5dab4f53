"""Our side: sgm_jax's VideoUNet, compiled ahead of the first call, on the CPU.

python -m benchmarks.ours_video_unet svd_forward
"""

import os
import time

import numpy as np

from benchmarks import process
from benchmarks.cases import CHANNEL_MULT, HEAD_CHANNELS, VideoUNetCase
from benchmarks.random_weights import Draw
from sgm_jax.parallel.host_memory import restart_with_large_pages


def measure(case: VideoUNetCase, threads: int) -> dict:
    """Compiles, then times `case`; the cores left to the process already bound XLA's `threads`."""
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)  # the compile time is part of the report
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from sgm_jax.networks.layers import Keys
    from sgm_jax.networks.video_unet import VideoUNet
    from sgm_jax.parallel.compiler import jit

    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: VideoUNet(**keywords(case), rngs=Keys(0))))
    params = jax.tree_util.tree_map_with_path(Draw(), nnx.to_pure_dict(shapes))
    batch = {key: jnp.asarray(value) for key, value in inputs(case).items()}

    def forward(params, batch):
        network = nnx.merge(graphdef, params)
        arguments = (batch['x'], batch['timesteps'], batch['context'], batch['y'])
        return network(*arguments, num_frames=case.frames)

    optimizer = optax.adamw(1e-5, weight_decay=0.01)

    def train(params, moments, batch):
        loss = lambda params: jnp.mean(jnp.square(forward(params, batch) - batch['target']))
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    start = time.perf_counter()
    if case.train:
        moments = optimizer.init(params)
        compiled = jit(train, donate_argnums=(0, 1)).lower(params, moments, batch).compile()
    else:
        compiled = jit(forward).lower(params, batch).compile()
    compile_seconds = time.perf_counter() - start

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if case.train:
        state = [params, moments]
        del params, moments  # they are donated: the first step eats them

        def step():
            *state[:], result = compiled(*state, batch)
            return result.block_until_ready()

    else:

        def step():
            return compiled(params, batch).block_until_ready()

    times, result = process.timed(step, case)
    if not bool(jnp.isfinite(result).all()):
        raise FloatingPointError('the network returned numbers that are not finite')
    return dict(
        name=f'sgm_jax on jax {jax.__version__}',
        seconds=times,
        compile_seconds=compile_seconds,
        parameters=count,
    )


def keywords(case: VideoUNetCase) -> dict:
    """The network in sgm's words: svd.yaml, with the case's width."""
    return dict(
        in_channels=case.in_channels,
        out_channels=case.out_channels,
        model_channels=case.model_channels,
        attention_resolutions=(4, 2, 1),
        num_res_blocks=2,
        channel_mult=CHANNEL_MULT,
        num_head_channels=HEAD_CHANNELS,
        num_classes='sequential',
        adm_in_channels=case.numbers * case.number_dim,
        context_dim=case.context_dim,
        transformer_depth=1,
        use_linear_in_transformer=True,
        use_spatial_context=True,
        extra_ff_mix_layer=True,
        merge_strategy='learned_with_images',
        video_kernel_size=(3, 1, 1),
    )


def inputs(case: VideoUNetCase) -> dict[str, np.ndarray]:
    """Random inputs, one row per frame."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal((case.frames, *shape), np.float32)
    context = rng.standard_normal((1, 1, case.context_dim), np.float32)
    return dict(
        x=normal(case.size, case.size, case.in_channels),
        timesteps=np.full((case.frames,), 0.5, np.float32),
        context=np.repeat(context, case.frames, 0),
        y=normal(case.numbers * case.number_dim),
        target=normal(case.size, case.size, case.out_channels),
    )


if __name__ == '__main__':
    restart_with_large_pages()  # as train.py and sample.py do
    process.main(measure)
