"""A program: trains a tiny model for three steps on several meshes, and prints how they differ.

    PYTHONPATH=.:tests python tests/sharded.py CASE '[{"data": 1}, {"data": 2, "fsdp": 2, "context": 2}]'

with XLA_FLAGS=--xla_force_host_platform_device_count=8. A mesh takes as many devices as its sizes say.
"""

import functools
import json
import math
import re
import sys

import gan_model
import jax
import numpy as np
import tiny
import tiny_pictures
from gan_case import pictures

from sgm_jax.data import pipeline
from sgm_jax.parallel import compiler
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training.setup import Setup

# Compiled quickly, for little is run.
compiler.OPTIONS['cpu'] = dict(
    compiler.OPTIONS['cpu'],
    xla_backend_optimization_level=0,
    xla_llvm_disable_expensive_passes=True,
)
BATCH, STEPS = 8, 3
# Bytes per number of the arrays that collectives give.
SIZES = {'f32': 4, 'bf16': 2, 's32': 4, 'u32': 4, 'pred': 1, 's8': 1, 'u8': 1}


def config(case: str):
    """The config of a case; an optimizer whose steps are smooth in the gradients."""
    if case == 'svd':
        found = tiny.config(batch_size=BATCH, steps=STEPS)
    elif case == 'sdxl':
        found = tiny_pictures.config('sdxl_base', accumulate=1)
        found.train.update(batch_size=BATCH, steps=STEPS)
    else:
        found = gan_model.config(batch_size=BATCH, steps=STEPS)
        found.model.loss.disc_start = 1
    # Adam's first steps have the sign of each gradient: those that are rounded to either side of zero would
    # drift apart.
    found.optimizer = {'name': 'adamw', 'learning_rate': 0.01, 'eps': 0.1}
    found.schedule = {'name': 'constant'}
    return found


def batches(case: str, found, setup: Setup) -> list[dict]:
    if case == 'autoencoder':
        part = lambda step, i: pictures(4 * step + i)
        return [
            {'jpg': np.concatenate([part(step, i) for i in range(BATCH // 2)])}
            for step in range(STEPS)
        ]
    data = pipeline.make_iterator(
        pipeline.make_source(found.data), batch_size=BATCH, seed=0, shard_index=0, shard_count=1
    )
    return [setup.engine.prepare(next(data)) for _ in range(STEPS)]


def collectives(text: str) -> dict[str, list[int]]:
    """Bytes of what each collective of a compiled program gives, by kind: one number per array."""
    found = {}
    pattern = (
        r'= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\('
    )
    for shapes, kind in re.findall(pattern, text):
        for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', shapes):
            count = math.prod(map(int, filter(None, dims.split(','))))
            found.setdefault(kind, []).append(count * SIZES[dtype])
    return found


def run(case: str, sizes: dict, min_size: int, first: dict) -> dict:
    """What three steps come to; `first` keeps the parameters of the first mesh."""
    count = math.prod(sizes.values())
    meshes.make_mesh = functools.partial(MAKE_MESH, devices=jax.devices()[:count])
    meshes.by_shape = functools.partial(BY_SHAPE, min_size=min_size)
    found = config(case)
    found.mesh = sizes
    setup = Setup.from_config(found)
    whole = meshes.replicated(setup.mesh)
    if case == 'autoencoder':
        state, frozen = gan_model.start(setup)
        state = jax.device_put(state, meshes.shardings(setup.wanted))
    else:
        state, frozen = setup.first_state(jax.random.key(0)), setup.engine.init_frozen(None)
    before = jax.device_get(state.params)
    frozen, key = jax.device_put((frozen, jax.random.key(0)), whole)
    logs, compiled = [], {}
    for step, batch in enumerate(batches(case, found, setup)):
        batch = meshes.put_batch(batch, setup.mesh)
        turn = setup.engine.turn(step)
        arguments = state, frozen, batch, key
        if turn not in compiled:
            compiled[turn] = setup.step.trace(turn, *arguments).lower().compile()
        state, scalars = compiled[turn](*arguments)
        logs.append({name: float(value) for name, value in scalars.items()})
    after = jax.device_get(state.params)
    moved = jax.tree.map(lambda x, y: x - y, after, before)
    first.setdefault('params', after)
    first.setdefault('ema', jax.device_get(state.ema_params))
    largest = lambda tree: max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))
    apart = lambda a, b: largest(jax.tree.map(lambda x, y: x - y, a, b))
    leaves = jax.tree.leaves((setup.wanted.params, setup.wanted.ema_params, setup.wanted.opt_state))
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    return dict(
        devices=setup.mesh.size,
        logs=logs,
        moved=largest(moved),
        params=apart(after, first['params']),
        ema=apart(jax.device_get(state.ema_params), first['ema']),
        share=held / sum(math.prod(x.shape) for x in leaves),
        collectives=collectives(next(iter(compiled.values())).as_text()),
        largest_parameter=max(4 * x.size for x in jax.tree.leaves(setup.wanted.params)),
        bytes=sum(4 * x.size for x in jax.tree.leaves(setup.wanted.params)),
    )


MAKE_MESH, BY_SHAPE = meshes.make_mesh, meshes.by_shape
if __name__ == '__main__':
    kept = {}
    case, wanted = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps([run(case, sizes, 64, kept) for sizes in wanted]))
