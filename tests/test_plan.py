"""Planning for hardware that is not here: names, what is read from compiled programs, and the tool itself."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from sgm_jax.errors import UserError
from sgm_jax.parallel import estimate, flops, hlo, topologies
from sgm_jax.platforms import platform, target

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ('name', 'kind', 'size'),
    [
        ('v5e-16', 'v5e', 16),
        ('v5e-256', 'v5e', 256),
        ('v5p-64', 'v5p', 32),  # sold by TensorCores, two to a device
        ('v5p:4x4x4', 'v5p', 64),
        ('v6e-64', 'v6e', 64),
        ('v5e-32', 'v5e', 32),
        ('v5p-32', 'v5p', 16),
        ('8xH100', 'H100', 8),
        ('4xH100', 'H100', 4),
        ('cpu:8', 'cpu', 8),
    ],
)
def test_topologies_by_name(name, kind, size):
    topology = topologies.parse(name)
    assert (topology.kind, topology.size, topology.name) == (kind, size, name)
    assert topology.one().size == 1


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('v5-16', 'near it: .*v5e-16'),
        ('v5e:4x4x4', 'v5e has no topology 4x4x4: give 2 sizes, multiples of 2x2'),
        ('v5e:3x5', r'near it: v5e-16 \(v5e:4x4\)'),
        ('v6e:32x32', 'of at most 256 devices'),
        ('16xH100', 'near it: 1xH100|near it: 8xH100'),
        ('', 'known: .*v5p:AxBxC'),
    ],
)
def test_topologies_that_do_not_exist_are_told_with_those_that_do(name, words):
    with pytest.raises(UserError, match=words):
        topologies.parse(name)


def test_the_named_ones_are_all_possible():
    for name in topologies.NAMED:
        assert topologies.parse(name).size >= 1


# Two loops, one inside the other; a fusion inside which something is gathered; groups in three spellings.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b), backend_config={"window_config":{"estimated_cycles":"999"}}
}

%fused (p: bf16[4,8]) -> bf16[32,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %gathered = bf16[32,8]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
}

%inner (t: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t = (s32[], f32[100]{0:T(128)}) parameter(0)
  %x = f32[100]{0:T(128)} get-tuple-element(%t), index=1
  %reduced = f32[100]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %out = (s32[], f32[100]) fusion(%reduced), kind=kLoop, calls=%nothing, backend_config=\
{"window_config":{"estimated_cycles":"7"}}
}

%outer (t.1: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t.1 = (s32[], f32[100]{0}) parameter(0)
  ROOT %loop = (s32[], f32[100]{0}) while(%t.1), condition=%never, body=%inner, backend_config=\
{"known_trip_count":{"n":"5"}}
}

ENTRY %main (z: f32[64], w: bf16[4,8]) -> f32[8] {
  %table = s32[1,2,2]{2,1,0} constant({ { /*i0=0*/
{ 0, 1 },
{ 2, 3 }
}
})
  %z = f32[64]{0} parameter(0)
  %w = bf16[4,8]{1,0} parameter(1)
  %loops = (s32[], f32[100]{0}) while(%z), condition=%never, body=%outer, backend_config=\
{"known_trip_count":{"n":"3"}}
  %some = bf16[32,8] fusion(%w), kind=kCustom, calls=%fused, backend_config={"estimated_cycles":"100"}
  %kernel = f32[64]{0} custom-call(%z), custom_call_target="tpu_custom_call"
  %moved = f32[64]{0} collective-permute(%kernel), source_target_pairs={{0,1},{1,0}}
  ROOT %scattered = f32[8]{0} reduce-scatter(%z), replica_groups=mesh['a'=2,'b'=4] {'a','b':(1)2}, \
dimensions={0}, to_apply=%add
}
"""


def test_a_program_is_read_with_its_loops():
    found = hlo.read(PROGRAM)
    # 5 of the inner loop in each of 3 of the outer; a reduction's adding is part of the reduction.
    assert found.cycles == 15 * 7 + 100
    assert found.custom_calls == {'tpu_custom_call': 1}
    assert found.open_loops == 0
    reduced, gathered = found.collectives['all-reduce'], found.collectives['all-gather']
    assert (reduced.count, reduced.size) == (15, 15 * 400)
    assert reduced.sent == 15 * 600  # a ring of four: three quarters of it, twice
    assert (gathered.count, gathered.size, gathered.sent) == (1, 512, 448)
    scattered = found.collectives['reduce-scatter']
    assert (scattered.size, scattered.sent) == (256, 192)  # in groups of 2 x 2
    assert found.collectives['collective-permute'].sent == 256
    assert hlo.partitions(PROGRAM) == 8


def test_open_loops_are_counted_once_and_said():
    found = hlo.read(PROGRAM.replace('"known_trip_count":{"n":"3"}', ''))
    assert (found.open_loops, found.cycles) == (1, 5 * 7 + 100)


def test_a_loop_is_as_long_as_its_condition_says():
    condition = """%never (t.2: (s32[], f32[100])) -> pred[] {
  %t.2 = (s32[], f32[100]) parameter(0)
  %many = s32[]{:T(128)} constant(10)
  %i = s32[]{:T(128)} get-tuple-element(%t.2), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %many), direction=LT
}

ENTRY"""
    text = PROGRAM.replace('"known_trip_count":{"n":"3"}', '').replace('ENTRY', condition)
    found = hlo.read(text)
    assert (found.open_loops, found.cycles) == (0, 10 * 5 * 7 + 100)
    # What counts otherwise is not known.
    found = hlo.read(text.replace('direction=LT', 'direction=GT'))
    assert (found.open_loops, found.cycles) == (1, 5 * 7 + 100)
    # The partitioner's loops count by what their body adds.
    unsigned = text.replace('s32[]{:T(128)}', 'u32[]{:T(128)}')
    assert hlo.read(unsigned).open_loops == 1
    end = '  ROOT %loop = '
    counted = """  %i.1 = u32[] get-tuple-element(%t.1), index=0
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i.1, %two)
  %loop = """
    tuple_out = '{"n":"5"}}\n  ROOT %both = (u32[], f32[100]) tuple(%next, %loop)'
    text = unsigned.replace(end, counted).replace('{"n":"5"}}', tuple_out)
    found = hlo.read(text)
    assert (found.open_loops, found.cycles) == (0, 10 // 2 * 5 * 7 + 100)
    assert hlo.read(text.replace('constant(2)', 'constant(4)')).cycles == 3 * 5 * 7 + 100


@pytest.mark.parametrize(
    ('text', 'size'),
    [
        ('bf16[2,3]{1,0:T(8,128)(2,1)}', 12),
        ('(f32[4]{0}, s32[]{:T(256)}, pred[3])', 23),
        ('s4[8]{0}', 4),
        ('f8e4m3fn[5]', 5),
    ],
)
def test_bytes_of_types(text, size):
    assert hlo.bytes_of(text) == size


def test_flops_of_products_convolutions_and_loops():
    def run(x, w, image, kernel):
        body = lambda carry, _: (carry @ w, None)
        x, _ = jax.lax.scan(body, x, None, length=3)
        y = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        return x.sum() + y.sum()

    arrays = (jnp.ones((4, 8)), jnp.ones((8, 8)), jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 3, 5)))
    products, convolution = 3 * 2 * 4 * 8 * 8, 2 * 6 * 6 * 5 * 27
    assert flops.count(jax.make_jaxpr(run)(*arrays)).total == products + convolution


def test_flops_say_what_remat_does_twice():
    block = lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w)
    count = lambda f: flops.count(
        jax.make_jaxpr(jax.grad(lambda w: f(jnp.ones((4, 8)), w).sum()))(jnp.ones((8, 8)))
    )
    plain, again = count(block), count(jax.checkpoint(block))
    assert plain.again == 0
    assert again.total > plain.total
    assert again.again == pytest.approx(again.total - plain.total, rel=0.5)
    # Products that are kept are not done twice.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    kept = count(jax.checkpoint(block, policy=policy))
    assert (kept.total, kept.again) == (plain.total, 0)


def test_a_compiled_program_is_read():
    found = hlo.read(jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile().as_text())
    assert found.collectives == {}
    assert found.cycles == 0


def test_an_estimate_says_what_it_rests_on():
    chip = topologies.CHIPS['v5e']
    figures = dict(flops=3e12, again=1e12, accessed=1e9, sent=chip.link)
    found = estimate.estimate(chip, cycles=chip.clock * 2, kernel_flops=0, **figures)
    assert (found.compute, found.collectives) == (2, 1)
    assert (found.least, found.most) == (2, 3)
    assert found.mfu == pytest.approx(2e12 / (3 * 197e12))
    assert 'estimated cycles at 1.5 GHz' in found.basis
    without = estimate.estimate(topologies.CHIPS['H100'], cycles=0, kernel_flops=0, **figures)
    assert 'an assumption' in without.basis


def test_what_is_compiled_for_decides_auto():
    from sgm_jax.engines.first_stages import typed
    from sgm_jax.networks import placement
    from sgm_jax.networks.attention import attend

    assert platform() == 'cpu'
    assert typed({'dtype': 'auto'})['dtype'] == jnp.float32
    q = jax.ShapeDtypeStruct((2, 128, 2, 64), jnp.bfloat16)
    with target('tpu'):
        assert typed({'dtype': 'auto'})['dtype'] == jnp.bfloat16
        assert 'pallas_call' in str(jax.make_jaxpr(attend)(q, q, q))
        axes = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.sharding.AbstractMesh((2, 1), ('data', 'context'), axes)
        # Another function: JAX would give what it has traced of the one above.
        again = lambda q, k, v: attend(q, k, v)
        with placement.over(mesh, batch=('data',), context='context'):
            traced = str(jax.make_jaxpr(again)(q, q, q))
        assert 'shard_map' in traced
        assert 'bf16[1,2,128,64]' in traced
    assert platform() == 'cpu'


def run_tool(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
    return subprocess.run(
        [sys.executable, '-m', 'sgm_jax.tools.plan', *flags],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


SVD = 'configs/svd.py:tiny'
CONFIG = """
import sys
sys.path.insert(0, 'tests')
import smallest


def get_config(variant=''):
    config = smallest.config(batch_size=4)
    config.mesh = {'data': 2, 'fsdp': 2}
    return config
"""


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plan')
    (folder / 'small.py').write_text(CONFIG)
    flags = ('--config', str(folder / 'small.py'), '--topology', 'cpu:4')
    # Compiled quickly, for nothing is run.
    done = run_tool(
        *flags,
        '--json',
        str(folder / 'plans.jsonl'),
        XLA_FLAGS='--xla_backend_optimization_level=0',
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / 'plans.jsonl').read_text())


def test_the_tool_plans_a_training_on_devices_that_share_a_cpu(planned):
    text, plan = planned
    assert '4 x cpu, mesh data=2, fsdp=2' in text
    assert 'all-reduce' in text
    assert text.splitlines()[-1].startswith('fits: ')
    assert plan['devices'] == 4
    step, parts = plan['programs']['step'], plan['parts']
    assert step['collectives']['all-reduce']['sent'] > 0
    # What the parts have together is what XLA says the arguments are, but for the step's number and key.
    assert 0 <= step['arguments'] - sum(parts.values()) < 4096
    assert step['peak'] == step['arguments'] + step['outputs'] + step['temporaries']
    assert parts['average'] == parts['parameters'] < parts['optimizer']


def test_the_plans_memory_is_xlas_own(planned, tmp_path):
    # The same step, compiled by hand with arrays' shapes, asked directly.
    code = """
import os, sys
sys.path[:0] = ['tests', '.']
import jax, jax.numpy as jnp, numpy as np, smallest
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training.setup import Setup
config = smallest.config(batch_size=4)
config.mesh = {'data': 2, 'fsdp': 2}
setup = Setup.from_config(config)
place = lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s)
over, whole = meshes.over_batch(setup.mesh), meshes.replicated(setup.mesh)
from sgm_jax.data import pipeline
batch = setup.engine.prepare(next(pipeline.make_iterator(config.data, batch_size=4, seed=0)))
frozen = meshes.abstract(setup.engine.init_frozen(jax.random.key(0)), setup.mesh)
batch = {k: place(v, over) for k, v in batch.items()}
key = place(jax.random.key(0), whole)
turn = setup.engine.turn(0)
program = setup.step.trace(turn, setup.wanted, frozen, batch, key).lower().compile()
memory = program.memory_analysis()
print(memory.argument_size_in_bytes, memory.temp_size_in_bytes)
"""
    flags = '--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    step = planned[1]['programs']['step']
    assert [step['arguments'], step['temporaries']] == list(map(int, done.stdout.split()[-2:]))


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('--topology', 'v5e-16'), 'give --config'),
        (('--config', SVD), 'give --topology'),
        (
            ('--config', 'configs/svd.py:tiny', '--topology', 'cpu:2', '--mesh', 'data=2'),
            '--mesh is for --sample',
        ),
        (
            ('--config', 'configs/svd.py:tiny', '--topology', 'cpu:2', '--dtype', 'bfloat16'),
            '--dtype is for --sample',
        ),
        (
            (
                '--config',
                'configs/svd.py:tiny',
                '--topology',
                'cpu:3',
                '--sample',
                '--mesh',
                'context=3',
            ),
            'mesh.context is 3, which does not divide the 16 rows',
        ),
        (('--config', 'configs/svd.py:tiny', '--topology', 'v5e-17'), "no topology 'v5e-17'"),
        (
            ('--config', 'configs/svd.py:tiny', '--topology', 'cpu:3'),
            'train.batch_size is 4, which 3 devices do not divide',
        ),
    ],
)
def test_mistakes_end_in_one_line(flags, words):
    done = run_tool(*flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs libtpu: pip install "jax[tpu]"'
)
def test_a_tpu_that_is_not_here(tmp_path):
    (tmp_path / 'small.py').write_text(CONFIG)
    done = run_tool('--config', str(tmp_path / 'small.py'), '--topology', 'v5e:2x2')
    assert done.returncode == 0, done.stderr
    assert "rests on: XLA's estimated cycles" in done.stdout


def test_collectives_of_a_program_that_was_just_compiled():
    code = """
import jax, jax.numpy as jnp
from sgm_jax.parallel import hlo
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec('x'))
whole = NamedSharding(mesh, PartitionSpec())
shape = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
for f in (lambda x: x * 2, lambda x: x.sum(0)):
    found = hlo.read(jax.jit(f, out_shardings=whole).lower(shape).compile().as_text())
    print({k: (v.count, v.size, v.sent) for k, v in found.collectives.items()})
"""
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env={
            **os.environ,
            'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
            'JAX_PLATFORMS': 'cpu',
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "{'all-gather': (1, 4096.0, 3072.0)}",
        "{'all-reduce': (1, 64.0, 96.0)}",
    ]
