"""Compiling a config's very programs for hardware that may not be here, and what that tells."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from sgm_jax.config import plain
from sgm_jax.engines import DiffusionEngine
from sgm_jax.engines import build as build_engine
from sgm_jax.engines.ahead import trace_reconstruction, trace_sampling
from sgm_jax.engines.devices import over_mesh
from sgm_jax.parallel import flops, hlo
from sgm_jax.parallel import mesh as meshes
from sgm_jax.parallel.memory import needed_bytes, peak_bytes
from sgm_jax.parallel.mesh import bytes_per_device
from sgm_jax.parallel.topologies import Topology
from sgm_jax.platforms import target
from sgm_jax.sampling import precision
from sgm_jax.tools.plan_batch import sampling_batch, training_batch
from sgm_jax.training.setup import Setup

PyTree = Any
Shape = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """One program, as one device sees it. Bytes, FLOPs and seconds are of one run.

    Attributes:
      arguments, outputs, temporaries, code, peak: bytes, XLA's memory_analysis. Outputs are those that take
        no argument's place.
      flops: of its share of the matrix products and convolutions; again: of these, done twice (remat).
      accessed: bytes read and written, XLA's cost_analysis; 0 where it has none.
      cycles, kernel_flops: what the estimate of seconds rests on: the compiler's, and what it has none for.
      collectives: by kind: count, size, sent.
      custom_calls: by target, how often.
      seconds: to compile.
      needed: where it did not fit, the bytes that the compiler says it needs.
    """

    arguments: float = 0.0
    outputs: float = 0.0
    temporaries: float = 0.0
    code: float = 0.0
    peak: float = 0.0
    flops: float = 0.0
    again: float = 0.0
    accessed: float = 0.0
    cycles: float = 0.0
    kernel_flops: float = 0.0
    collectives: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    custom_calls: Mapping[str, int] = dataclasses.field(default_factory=dict)
    open_loops: int = 0
    seconds: float = 0.0
    needed: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a config's training, or sampling, takes on each device of a topology.

    Attributes:
      work: 'train' or 'sample'; topology: as it was asked for; settings: what was chosen, by config key.
      parts: bytes on a device by what they are: parameters, average, optimizer, frozen, batch.
      programs: by name; runs: how often each runs for one step, or one sample.
      unsplit: bytes of large parameters that every device has whole, though `fsdp` is more than one.
    """

    work: str
    topology: str
    devices: int
    batch_size: int
    mesh: Mapping[str, int]
    settings: Mapping[str, Any]
    parts: Mapping[str, float]
    programs: Mapping[str, Compiled]
    runs: Mapping[str, int]
    unsplit: float = 0.0


def plan_training(config: ml_collections.ConfigDict, topology: Topology) -> Plan:
    """Compiles the train step of a config for a topology, with its mesh and its batch.

    Raises:
      UserError: whatever does not fit together, or the topology's compiler is not there.
    """
    devices = topology.devices()
    with target(topology.platform, topology.kind):
        setup = Setup.from_config(config, devices)
        engine, mesh = setup.engine, setup.mesh
        whole = meshes.replicated(mesh)
        frozen = setup.frozen_shapes()
        batch = _placed(training_batch(engine, config, mesh), meshes.over_batch(mesh))
        key = _placed(jax.eval_shape(lambda: jax.random.key(0)), whole)
        # The last turn: of an adversarial training, one with all players.
        turn = engine.turn(config.train.steps - config.train.steps % 2)
        program = compiled(setup.step.trace(turn, setup.wanted, frozen, batch, key), topology)
    state = setup.wanted
    players = state.adversary.params if state.adversary else None
    parts = {
        'parameters': bytes_per_device((state.params, players)),
        'average': bytes_per_device(state.ema_params),
        'optimizer': bytes_per_device((state.opt_state, state.adversary_opt_state)),
        'frozen': bytes_per_device(frozen),
        'batch': bytes_per_device(batch),
    }
    return Plan(
        work='train',
        topology=topology.name,
        devices=topology.size,
        batch_size=setup.options.batch_size,
        mesh=dict(mesh.shape),
        settings=settings(config),
        parts=parts,
        programs={'step': program},
        runs={'step': 1},
        unsplit=bytes_per_device(meshes.unsplit(state.params, mesh)),
    )


def latent_rows(config: ml_collections.ConfigDict) -> int:
    """Of what a config samples, or of the pictures that it trains on: what `mesh.context` divides."""
    engine = build_engine(config)
    return engine.latent_rows(sampling_batch(engine, config, 1))


def plan_sampling(
    config: ml_collections.ConfigDict,
    topology: Topology,
    *,
    count: int = 1,
    mesh: Mapping[str, int] | None = None,
    dtype: str | None = None,
) -> Plan:
    """Compiles what sample.py runs for `count` samples, on one device of the topology, or over a mesh of all.

    The denoiser's step with its guidance, and the decoder; the weights of all parts stay on the devices, in
    `dtype`, or those of the network in float32.

    Raises:
      UserError: an unknown dtype, or one for a first stage, which keeps its own; a mesh of other sizes than
        the topology has, or that does not divide the latents.
    """
    sharding = jax.sharding.SingleDeviceSharding(topology.one().devices()[0])
    place = hold = lambda tree: _placed(tree, sharding)
    if dtype is not None:
        config = ml_collections.ConfigDict(config.to_dict())
        precision.compute_in(config, dtype)
    with target(topology.platform, topology.kind):
        engine = build_engine(config, sampling=True)
        if mesh is not None:
            engine = over_mesh(engine, mesh, topology.devices())
            place, hold = engine.devices.abstract_inputs, engine.devices.abstract
            size = engine.latent_size((engine.sampling.height, engine.sampling.width))
            meshes.check_rows(size[0], engine.devices.mesh)
        if not isinstance(engine, DiffusionEngine):
            return _plan_reconstruction(engine, config, topology, count, place)
        batch = sampling_batch(engine, config, count)
        shapes = jax.eval_shape(engine.init, jax.random.key(0))
        as_held = functools.partial(precision.hold, dtype=dtype)
        rounded = lambda tree: jax.eval_shape(as_held, tree)
        weights = hold(rounded(shapes)), hold(rounded(engine.frozen_shapes(training=False)))
        traced = trace_sampling(engine, *weights, batch, count=count, place=place)
        length = engine.task.num_frames or count
        chunk = engine.sampling.decode_chunk or length
        shares = _shares(engine, count, chunk)
        programs = {name: compiled(x, topology, shares[name]) for name, x in traced.items()}
    steps = len(engine.sampling.sampler.plan(_sigmas(engine))['sigma'])
    runs = {'step': steps, 'decode': -(-length // chunk)}
    chosen = _sampling_settings(config, chunk, dtype)
    plan = _on_one_device(topology, count, *weights, chosen, programs=programs, runs=runs)
    sizes = {} if mesh is None else dict(engine.devices.mesh.shape)
    return dataclasses.replace(plan, mesh=sizes, devices=math.prod(sizes.values()))


def _shares(engine: DiffusionEngine, count: int, chunk: int) -> dict[str, int]:
    """By program: over how many devices its work is split, as the engine splits it."""
    frames = engine.task.num_frames
    at_once = engine.decoded_at_once(chunk, engine.sampling.decode_overlap, frames or count)
    decoded = count if engine.decodes_clips else at_once * (count if frames else 1)
    step = 2 * count if engine.sampling.guided else count
    return {'step': engine.devices.share(step), 'decode': engine.devices.share(decoded)}


def _sigmas(engine) -> np.ndarray:
    return engine.sampling.discretization.sigmas(engine.sampling.steps)


def _plan_reconstruction(engine, config, topology, count, place) -> Plan:
    params = place(jax.eval_shape(engine.init, jax.random.key(0)))
    frozen = place(engine.frozen_shapes(training=False))
    pictures = place(sampling_batch(engine, config, count)['jpg'])
    pictures = Shape((count, *pictures.shape[-3:]), np.float32, sharding=pictures.sharding)
    traced = trace_reconstruction(engine, params, frozen, pictures, place=place)
    programs = {name: compiled(x, topology) for name, x in traced.items()}
    runs = dict.fromkeys(programs, 1)
    return _on_one_device(topology, count, params, frozen, {}, programs=programs, runs=runs)


def _on_one_device(topology, count, params, frozen, chosen, *, programs, runs) -> Plan:
    return Plan(
        work='sample',
        topology=topology.name,
        devices=1,
        batch_size=count,
        mesh={},
        settings=chosen,
        parts={'parameters': bytes_per_device(params), 'frozen': bytes_per_device(frozen)},
        programs=programs,
        runs=runs,
    )


def compiled(traced: Any, topology: Topology, share: int | None = None) -> Compiled:
    """Compiles a traced program, and reads it. Too large a one is no error: `needed` says by how much.

    Its work is split over `share` devices, or all.
    """
    work = flops.count(traced.jaxpr)
    lowered = traced.lower(lowering_platforms=(_lowering(topology.platform),))
    start = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        return Compiled(needed=needed, seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    text = program.as_text()
    found = hlo.read(text)
    devices = share or hlo.partitions(text)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=peak_bytes(memory),
        flops=work.total / devices,
        again=work.again / devices,
        accessed=cost.get('bytes accessed', 0.0),
        cycles=found.cycles,
        kernel_flops=work.in_kernels,
        collectives={k: dataclasses.asdict(v) for k, v in found.collectives.items()},
        custom_calls=found.custom_calls,
        open_loops=found.open_loops,
        seconds=seconds,
    )


def _lowering(platform: str) -> str:
    return {'gpu': 'cuda'}.get(platform, platform)


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What decides over memory and time, by config key."""
    network = plain(config.model.get('network', {}))
    kept = ('use_checkpoint', 'remat', 'scan', 'dtype', 'attention')
    return {
        **{f'model.network.{key}': network[key] for key in kept if key in network},
        'optimizer.name': config.optimizer.name,
        'train.accumulate': config.train.get('accumulate', 1),
    }


def _sampling_settings(config, chunk: int, dtype: str | None) -> dict[str, Any]:
    kept = ('model.network.dtype', 'model.network.attention')
    of_network = {key: value for key, value in settings(config).items() if key in kept}
    return {**of_network, 'sample.decode_chunk': chunk, 'dtype': dtype or 'float32'}


def _placed(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    return jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=sharding), tree)
