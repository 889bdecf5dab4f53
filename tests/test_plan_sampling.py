"""Plans of samples: over a mesh, and of a first stage, which encodes and decodes."""

import json

from test_plan import CONFIG, run_tool

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
