"""SDXL's U-Net compiled for TPUs that are not here, beside a JAX peer's at the same work.

python -m benchmarks.plan_sdxl [inference fsdp data] [--remat=NAME] [--noscan] [--peer=PYTHON]

The peer is an SDXL U-Net in Flax's Linen, compiled with the same libtpu by the same means, on another
machine; --peer compiles one here after ours (benchmarks/linen_unet.py), so that times to compile compare.
Its attention is XLA's, which is in the estimate; the other's better one is a kernel's. The work: the
U-Net alone on 128x128 latents, 77 tokens of 2048, in bfloat16; AdamW without an average of the weights, its
masters and moments in float32. Time is XLA's estimated cycles over the clock; what has no estimate (kernels
at 40% of the chip's peak, collectives at the full speed of its links) stands beside it.
"""

import argparse
import dataclasses
import json
import subprocess
from pathlib import Path

from sgm_jax.parallel import topologies
from sgm_jax.parallel.estimate import EFFICIENCY
from sgm_jax.parallel.topologies import GIB

ROOT = Path(__file__).resolve().parents[1]
LATENTS, TOKENS, WIDTH, VECTOR = 128, 77, 2048, 2816


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A work, and what the peer takes for it: ms as estimated, GiB at most on a device, s to compile."""

    topology: str
    batch: int
    mesh: dict[str, int] | None
    peer_ms: float
    peer_gib: float
    peer_compile: float
    words: str


CASES = {
    'inference': Case(
        topology='v5e-1',
        batch=2,
        mesh=None,
        # With the splash attention kernel, its better one; 10 kernels are not in the estimate.
        peer_ms=154,
        peer_gib=5.1,
        peer_compile=153,
        words='forward, batch 2, one v5e',
    ),
    'fsdp': Case(
        topology='v5p:2x2x2',
        batch=8,
        mesh={'data': 1, 'fsdp': 8},
        peer_ms=223,
        peer_gib=38.3,
        peer_compile=639,
        words='training, 8 v5p, FSDP, 1 image per device',
    ),
    'data': Case(
        topology='v5p:2x2x2',
        batch=16,
        mesh={'data': 8, 'fsdp': 1},
        peer_ms=365,
        peer_gib=73.5,
        peer_compile=652,
        words='training, 8 v5p, data-parallel, 2 images per device',
    ),
}


def plan(case: Case, *, remat: str, scan: bool):
    """Compiles our U-Net at the case's work."""
    topology = topologies.parse(case.topology)
    topologies.prepare_process(topology)
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from sgm_jax.config import load_config
    from sgm_jax.engines import build
    from sgm_jax.networks import placement
    from sgm_jax.parallel import mesh as meshes
    from sgm_jax.parallel.compiler import jit
    from sgm_jax.platforms import target
    from sgm_jax.tools import planning

    with target('tpu', topology.kind):
        config = load_config(f'{ROOT / "configs" / "sdxl_base.py"}:')
        training = case.mesh is not None
        config.model.network.update(scan=scan and training, remat=remat if training else 'none')
        graphdef, shapes = nnx.split(build(config).structure.module().network)
        shapes = nnx.to_pure_dict(shapes)
        mesh = meshes.make_mesh(case.mesh or {'data': 1}, topology.devices())
        over = meshes.over_batch(mesh)
        array = lambda *shape: jax.ShapeDtypeStruct(
            (case.batch, *shape), jnp.float32, sharding=over
        )
        latents = array(LATENTS, LATENTS, 4)
        told = (array(), array(TOKENS, WIDTH), array(VECTOR))

        def network(params, x, timesteps, context, y):
            with placement.over(mesh, **meshes.roles(mesh)):
                return nnx.merge(graphdef, params)(x, timesteps, context=context, y=y)

        if case.mesh is None:
            half = lambda x: jax.ShapeDtypeStruct(
                x.shape, jnp.bfloat16, sharding=meshes.replicated(mesh)
            )
            traced = jit(network).trace(jax.tree.map(half, shapes), latents, *told)
        else:
            traced = _train_step(network, shapes, latents, told)
        return planning.compiled(traced, topology)


def _train_step(network, shapes, latents, told):
    import jax
    import jax.numpy as jnp
    import optax

    from sgm_jax.engines.protocol import Players
    from sgm_jax.parallel import mesh as meshes
    from sgm_jax.parallel.compiler import jit
    from sgm_jax.training.state import Optimizers, abstract

    optimizer, mesh = optax.adamw(1e-5), latents.sharding.mesh
    optimizers = Optimizers(main=optimizer, adversary=optimizer)
    wanted = abstract(Players(params=shapes), optimizers, mesh)

    def step(state, latents, noise, told):
        params, moments = state

        def loss(params):
            return jnp.mean(jnp.square(network(params, latents + noise, *told) - noise))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    state, whole = (wanted.params, wanted.opt_state), meshes.replicated(mesh)
    out = meshes.shardings(state), whole
    jitted = jit(step, training=True, donate_argnums=0, out_shardings=out)
    return jitted.trace(state, latents, latents, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('cases', nargs='*', choices=[[], *CASES], help='by default all')
    parser.add_argument(
        '--remat', default='transformer', help='what the backward pass computes again'
    )
    parser.add_argument(
        '--noscan', action='store_true', help='trace every transformer block by itself'
    )
    parser.add_argument('--peer', help="the Python of an environment that has the peer's libraries")
    flags = parser.parse_args()
    for name in flags.cases or CASES:
        case = CASES[name]
        found = plan(case, remat=flags.remat, scan=not flags.noscan)
        chip = topologies.parse(case.topology).chip
        print(f'{name}: {case.words}')
        if found.needed:
            print(f'  does not fit: {found.needed / GIB:.1f} GiB')
            continue
        ms = 1e3 * found.cycles / chip.clock
        kernels = 1e3 * found.kernel_flops / (EFFICIENCY * chip.flops)
        sent = sum(x['sent'] for x in found.collectives.values())
        for what, ours, peers in (
            ('estimated ms', ms, case.peer_ms),
            ('peak GiB', found.peak / GIB, case.peer_gib),
            ('compile s', found.seconds, case.peer_compile),
        ):
            print(f'  {what:<14} {ours:8.1f}   peer {peers:8.1f}   ratio {ours / peers:.2f}')
        print(
            f'  not in the estimate: kernels {kernels:.1f} ms, collectives {1e3 * sent / chip.link:.1f} ms'
        )
        print(
            f'  arguments {found.arguments / GIB:.1f} GiB, temporaries {found.temporaries / GIB:.1f} GiB, '
            f'{found.accessed / 1e9:.0f} GB accessed, kernels {dict(found.custom_calls)}',
            flush=True,
        )
        if flags.peer:
            here = _peer(flags.peer, name)
            print(
                f'  a peer compiled here: {here["ms"]:.1f} ms ({ms / here["ms"]:.2f}), '
                f'{here["gib"]:.1f} GiB ({found.peak / GIB / here["gib"]:.2f}), '
                f'compiled in {here["seconds"]:.1f} s ({found.seconds / here["seconds"]:.2f})',
                flush=True,
            )


def _peer(python: str, name: str) -> dict[str, float]:
    command = [python, '-m', 'benchmarks.linen_unet', name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == '__main__':
    main()
