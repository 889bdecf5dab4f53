"""Plans of samples: over a mesh, and of a first stage, which encodes and decodes."""

import json

from test_plan import CONFIG, run_tool

from sgm_jax.tools import plan_report
from sgm_jax.tools.planning import Compiled, Plan

QUICKLY = '--xla_backend_optimization_level=0'


def test_samples_over_a_mesh(tmp_path):
    (tmp_path / 'small.py').write_text(CONFIG.replace('smallest', 'tiny'))
    done = run_tool(
        *('--config', str(tmp_path / 'small.py'), '--topology', 'cpu:4'),
        *('--sample', '--mesh', 'fsdp=2,context=-1', '--json', str(tmp_path / 'plans.jsonl')),
        XLA_FLAGS=QUICKLY,
    )
    assert done.returncode == 0, done.stderr
    assert 'sample on cpu:4: 4 x cpu, mesh data=1, fsdp=2, context=2, batch 1' in done.stdout
    plan = json.loads((tmp_path / 'plans.jsonl').read_text())
    assert (plan['work'], plan['devices']) == ('sample', 4)
    # Convolutions exchange the rows at their edges.
    assert plan['programs']['step']['collectives']['collective-permute']['sent'] > 0


def test_a_first_stage_encodes_and_decodes(tmp_path):
    (tmp_path / 'small.py').write_text(CONFIG)
    done = run_tool(
        *('--config', str(tmp_path / 'small.py'), '--topology', 'cpu:1', '--sample'),
        *('--json', str(tmp_path / 'plans.jsonl')),
        XLA_FLAGS=QUICKLY,
    )
    assert done.returncode == 0, done.stderr
    programs = json.loads((tmp_path / 'plans.jsonl').read_text())['programs']
    assert set(programs) == {'encode', 'decode'}
    assert all(program['flops'] > 0 < program['peak'] for program in programs.values())


def test_weights_are_held_in_the_dtype_that_samples_are_made_with(tmp_path):
    (tmp_path / 'small.py').write_text(CONFIG.replace('smallest', 'tiny'))
    command = ('--config', str(tmp_path / 'small.py'), '--topology', 'cpu:1', '--sample')
    held = {}
    for dtype in ('float32', 'bfloat16'):
        file = tmp_path / f'{dtype}.jsonl'
        done = run_tool(*command, '--dtype', dtype, '--json', str(file), XLA_FLAGS=QUICKLY)
        assert done.returncode == 0, done.stderr
        assert f'dtype = {dtype}' in done.stdout
        held[dtype] = json.loads(file.read_text())['parts']
    assert held['bfloat16']['parameters'] == held['float32']['parameters'] / 2


def test_what_would_make_a_sample_fit():
    program = Compiled(needed=23.96 * 2**30)
    plan = Plan(
        work='sample',
        topology='v5e-1',
        devices=1,
        batch_size=1,
        mesh={},
        settings={'sample.decode_chunk': 14, 'dtype': 'float32'},
        parts={},
        programs={'decode': program},
        runs={'decode': 1},
    )
    assert plan_report.verdict(plan) == (
        'does not fit: 23.96 of 15.75 GiB; --dtype=bfloat16; a smaller --config.sample.decode_chunk; --mesh '
        'context=2 (a sample over 2 devices); smaller pictures, or a chip with more memory'
    )
