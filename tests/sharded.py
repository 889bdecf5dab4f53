"""A program: trains a tiny model for three steps on several meshes, and prints how they differ.

    PYTHONPATH=.:tests python tests/sharded.py CASE '[{"data": 1}, {"data": 2, "fsdp": 2, "context": 2}]'

with XLA_FLAGS=--xla_force_host_platform_device_count=8. A mesh takes as many devices as its sizes say. With
--kept FILE the first one's parameters are those in the file, which is written where it is not there. With
--coordinator, --num_processes and --process_id it is one process of several, as train.py is.
"""

import argparse
import functools
import json
import math
import pathlib
import re

import gan_model
import jax
import numpy as np
import smallest
import tiny
import tiny_pictures
from gan_case import pictures

from sgm_jax.data import pipeline
from sgm_jax.diffusion.binned import Binned
from sgm_jax.parallel import agreement, compiler, hosts
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training import report
from sgm_jax.training.setup import Setup

# Compiled quickly, for little is run.
compiler.OPTIONS['cpu'] = dict(
    compiler.OPTIONS['cpu'],
    xla_backend_optimization_level=0,
    xla_llvm_disable_expensive_passes=True,
)
BATCH, STEPS = 8, 3
EPS = 10.0
# Bytes per number of the arrays that collectives give.
SIZES = {'f32': 4, 'bf16': 2, 's32': 4, 'u32': 4, 'pred': 1, 's8': 1, 'u8': 1}


def config(case: str):
    """The config of a case; an optimizer whose steps are smooth in the gradients."""
    if case == 'svd':
        found = tiny.config(batch_size=BATCH, steps=STEPS)
    elif case == 'sdxl':
        found = tiny_pictures.config('sdxl_base', accumulate=1)
        found.train.update(batch_size=BATCH, steps=STEPS)
    elif case == 'smallest':
        found = smallest.config(batch_size=BATCH, steps=STEPS)
    else:
        found = gan_model.config(batch_size=BATCH, steps=STEPS)
        found.model.loss.disc_start = 1
    # Adam's first steps have the sign of each gradient: those that are rounded to either side of zero would
    # drift apart. An autoencoder's gradients have norms of thousands, its discriminator's of one.
    found.optimizer = {'name': 'adamw', 'learning_rate': 0.01, 'eps': 0.1}
    if case == 'autoencoder':
        found.optimizer.eps = EPS
        found.disc_optimizer = {'eps': 0.1}
    found.schedule = {'name': 'constant'}
    return found


def batches(case: str, found, setup: Setup) -> list[dict]:
    """The rows that this process holds, of the batch of every step."""
    rows = meshes.rows(BATCH, setup.mesh)
    if case == 'autoencoder':
        part = lambda step, i: pictures(4 * step + i)
        return [
            {'jpg': np.concatenate([part(step, i) for i in range(BATCH // 2)])[rows]}
            for step in range(STEPS)
        ]
    data = pipeline.make_iterator(
        pipeline.make_source(found.data), batch_size=BATCH, seed=0, rows=rows
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
    meshes.by_shape = functools.partial(BY_SHAPE, min_size=min_size)
    found = config(case)
    found.mesh = sizes
    setup = Setup.from_config(found, jax.devices()[:count])
    whole = meshes.replicated(setup.mesh)
    # The same numbers on every device, for all processes to see.
    spread = jax.jit(lambda tree: tree, out_shardings=whole)
    seen = lambda tree: jax.tree.map(np.asarray, spread(tree))
    key = agreement.place(jax.random.key(0), whole)
    if case == 'autoencoder':
        state, frozen = gan_model.start(setup)
        state = agreement.place(state, meshes.shardings(setup.wanted))
    else:
        state, frozen = setup.first_state(key), setup.engine.init_frozen(None)
    before = seen(state.params)
    frozen = agreement.place(frozen, meshes.by_shapes(frozen, setup.mesh))
    logs, compiled, given = [], {}, []
    for step, batch in enumerate(batches(case, found, setup)):
        batch = meshes.put_batch(batch, setup.mesh)
        turn = setup.engine.turn(step)
        arguments = state, frozen, batch, key
        if turn not in compiled:
            compiled[turn] = setup.step.trace(turn, *arguments).lower().compile()
            agreement.wait_for_all('compiled')
        state, scalars = compiled[turn](*arguments)
        numbers = {k: v for k, v in scalars.items() if not Binned.is_one(v)}
        logs.append({name: float(value) for name, value in numbers.items()})
        given += [x.is_deleted() for x in jax.tree.leaves(arguments[0])]
    after = seen((state.params, state.adversary))
    moved = jax.tree.map(lambda x, y: x - y, after[0], before)
    ends = jax.tree.leaves(after), jax.tree.leaves(seen(state.ema_params))
    first.setdefault('logs', logs)
    for name, leaves in zip(('params', 'ema'), ends, strict=True):
        first.setdefault(name, leaves)
    largest = lambda tree: max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))
    apart = lambda a, b: largest([x - y for x, y in zip(a, b, strict=True)])
    leaves = jax.tree.leaves((setup.wanted.params, setup.wanted.ema_params, setup.wanted.opt_state))
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    main = next(iter(compiled.values()))
    return dict(
        devices=setup.mesh.size,
        logs=logs,
        first_logs=first['logs'],
        moved=largest(moved),
        largest=largest(before),
        params=apart(ends[0], first['params']),
        ema=apart(ends[1], first['ema']),
        share=held / sum(math.prod(x.shape) for x in leaves),
        held=report.bytes_per_device(setup.wanted),
        aliased=main.memory_analysis().alias_size_in_bytes,
        given=all(given),
        collectives=collectives(main.as_text()),
        # Of the frozen parts, too, which are split alike.
        largest_parameter=max(4 * x.size for x in jax.tree.leaves((setup.wanted.params, frozen))),
        bytes=sum(4 * x.size for x in jax.tree.leaves(setup.wanted.params)),
    )


def load(path: pathlib.Path) -> dict:
    """What `save` wrote; nothing, where it is not there."""
    if not path.exists():
        return {}
    with np.load(path) as file:
        part = lambda name: [file[f'{name}{i}'] for i in range(int(file[name]))]
        return {'logs': json.loads(str(file['logs'])), 'params': part('params'), 'ema': part('ema')}


def save(path: pathlib.Path, first: dict) -> None:
    arrays = {'logs': json.dumps(first['logs'])}
    for name in ('params', 'ema'):
        arrays |= {name: len(first[name]), **{f'{name}{i}': x for i, x in enumerate(first[name])}}
    np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('case')
    parser.add_argument('meshes', type=json.loads)
    parser.add_argument('--kept', type=pathlib.Path)
    parser.add_argument('--coordinator')
    parser.add_argument('--num_processes', type=int)
    parser.add_argument('--process_id', type=int)
    flags = parser.parse_args()
    hosts.start(hosts.find(flags.coordinator, flags.num_processes, flags.process_id))
    kept = load(flags.kept) if flags.kept else {}
    print(json.dumps([run(flags.case, sizes, 64, kept) for sizes in flags.meshes]))
    if flags.kept and not flags.kept.exists():
        save(flags.kept, kept)
    hosts.leave(0)


BY_SHAPE = meshes.by_shape
if __name__ == '__main__':
    main()
