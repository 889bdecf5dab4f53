"""The peer of plan_sdxl: SDXL's U-Net in Flax's Linen, compiled for TPUs that are not here.

PYTHONPATH=. PYTHON -m benchmarks.linen_unet inference

PYTHON is of an environment with diffusers==0.33.1 (the last but one with Flax), flax, and the jax and libtpu
that ours has: diffusers 0.35, which other benchmarks have for a peer, has no Flax any more. Prints one
line of JSON: ms, gib, seconds. Attention is its einsum; parameters and moments follow our rule of shape,
so that all of them are split, which favours it. Without remat, and with 70 blocks traced one by one: it
has no other way.
"""

import json
import sys
import time

import numpy as np

from benchmarks.plan_sdxl import CASES, LATENTS, TOKENS, VECTOR, WIDTH, Case
from sgm_jax.parallel import hlo, memory, topologies
from sgm_jax.parallel.topologies import GIB

_SPLIT = 2**16


def unet():
    """As stabilityai/stable-diffusion-xl-base-1.0/unet/config.json has it."""
    import jax.numpy as jnp
    from diffusers import FlaxUNet2DConditionModel

    return FlaxUNet2DConditionModel(
        sample_size=LATENTS,
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
        addition_embed_type='text_time',
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=VECTOR,
        dtype=jnp.bfloat16,
    )


def trace(case: Case, devices):
    """The case's work, traced: a forward pass, or a step of AdamW."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    model, training = unet(), case.mesh is not None
    mesh = Mesh(np.array(devices), ('devices',))
    split = training and case.mesh['fsdp'] > 1

    # As parallel.mesh.by_shape has it, which needs packages that the peer's environment has not.
    def lies(x):
        sizes = [n if n % mesh.size == 0 else 0 for n in x.shape]
        spec = [None] * len(sizes)
        if split and x.size >= _SPLIT and max(sizes):
            spec[int(np.argmax(sizes))] = 'devices'
        return NamedSharding(mesh, PartitionSpec(*spec))

    dtype = jnp.float32 if training else jnp.bfloat16
    held = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies(x))
    cast = lambda x: jax.ShapeDtypeStruct(x.shape, dtype)
    over = NamedSharding(mesh, PartitionSpec('devices'))
    array = lambda *shape: jax.ShapeDtypeStruct((case.batch, *shape), dtype, sharding=over)
    params = jax.tree.map(cast, jax.eval_shape(model.init_weights, jax.random.key(0)))
    latents = array(4, LATENTS, LATENTS)  # its pictures have their channels first
    told = array(), array(TOKENS, WIDTH), array(VECTOR - 6 * 256), array(6)

    def network(params, x, timesteps, words, pooled, sizes):
        added = {'text_embeds': pooled, 'time_ids': sizes}
        return model.apply({'params': params}, x, timesteps, words, added).sample

    params = jax.tree.map(held, params)
    if not training:
        return jax.jit(network).trace(params, latents, *told)
    optimizer = optax.adamw(1e-5)
    moments = jax.tree.map(held, jax.eval_shape(optimizer.init, params))

    def step(params, moments, latents, noise, told):
        def loss(params):
            made = network(params, latents + noise, *told)
            return jnp.mean(jnp.square(made.astype(jnp.float32) - noise))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    places = jax.tree.map(lambda x: x.sharding, (params, moments))
    whole = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*places, whole))
    return jitted.trace(params, moments, latents, latents, told)


def main() -> None:
    case = CASES[sys.argv[1]]
    topology = topologies.parse(case.topology)
    topologies.prepare_process(topology)
    lowered = trace(case, topology.devices()).lower(lowering_platforms=('tpu',))
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    peak = memory.peak_bytes(program.memory_analysis())
    ms = 1e3 * hlo.read(program.as_text()).cycles / topology.chip.clock
    print(json.dumps({'ms': ms, 'gib': peak / GIB, 'seconds': seconds}), flush=True)


if __name__ == '__main__':
    main()
