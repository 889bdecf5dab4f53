"""The launchers, by their dry runs: the exact commands that they would run."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from sgm_jax.parallel import h100, hosts, topologies

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / 'launch'
TRAIN = ['--config', 'configs/svd.py:xt', '--workdir', '/runs/a "b"']


def launch(
    script: str, *words: str, train: list[str] = TRAIN, **variables: str
) -> subprocess.CompletedProcess:
    line = [LAUNCH / script, *words, '--dry-run', '--', *train]
    env = {k: v for k, v in os.environ.items() if 'MEM_FRACTION' not in k} | variables
    return subprocess.run(line, capture_output=True, text=True, timeout=60, env=env)


def commands(script: str, *words: str, **variables: str) -> list[list[str]]:
    """What would be run, as a shell would split it."""
    done = launch(script, *words, **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_a_slice_is_made_and_all_its_machines_train():
    create = ('--create=v5p-64', '--runtime=r', '--setup=mount "a b"')
    made, mounted, trained = commands('tpu_gcloud.sh', '--name=s', '--zone', 'us-east5-a', *create)
    assert made[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'create', 's']
    assert made[6:] == ['--zone=us-east5-a', '--accelerator-type=v5p-64', '--version=r']
    assert trained[:8] == [*made[:4], 'ssh', 's', '--zone=us-east5-a', '--worker=all']
    assert mounted == [*trained[:8], '--command=mount "a b"']
    # What the machines' shells make of it.
    remote = shlex.split(trained[8].removeprefix('--command='))
    assert remote == ['cd', 'sgm_jax', '&&', '.venv/bin/python', 'train.py', *TRAIN]


def test_bare_machines_get_a_checkout_with_its_own_python(tmp_path):
    words = ('--create=v5e-16', '--runtime=r', '--repo=https://a.b/c d', '--branch=main')
    _, cloned, trained = commands('tpu_gcloud.sh', '--name=s', '--zone=z', *words)
    # A machine's own shell, whose programs only say what they are asked.
    for name in ('git', 'python3'):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$PWD {name}" "$@"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / 'sgm_jax').mkdir()
    env = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'HOME': str(tmp_path)}
    remote = cloned[-1].removeprefix('--command=')
    done = subprocess.run(
        ['bash', '-c', remote], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    clone, *steps = done.stdout.splitlines()
    assert clone == f'{tmp_path} git clone --branch=main https://a.b/c d sgm_jax'
    assert steps[-2:] == [
        f'{tmp_path}/sgm_jax python3 -m uv venv --python 3.12 .venv',
        f'{tmp_path}/sgm_jax python3 -m uv pip install --python .venv/bin/python -e .[tpu]',
    ]
    assert trained[-1].startswith('--command=cd sgm_jax && .venv/bin/python train.py')


def test_a_slice_that_is_there_is_not_made():
    assert len(commands('tpu_gcloud.sh', '--name=s', '--zone=z', '--project=p')) == 1


def test_xpk_gets_the_command_and_restarts():
    (line,) = commands(
        'tpu_xpk.sh', '--name=svd', '--cluster=c', '--tpu-type=v5p-64', '--image=i', '--slices=2'
    )
    assert line[:3] == ['xpk', 'workload', 'create']
    flags = dict(word.split('=', 1) for word in line[3:])
    assert flags['--num-slices'] == '2'
    assert flags['--max-restarts'] == '3'
    # Left to itself xpk gives the whole run up when one machine of it is lost.
    assert flags['--restart-on-exit-codes'] == str(hosts.LOST)
    assert flags['--termination-grace-period-seconds'] == '300'
    assert shlex.split(flags['--command']) == ['python', 'train.py', *TRAIN]


def test_slurm_has_a_task_for_each_node_and_goes_on_after_its_time():
    (line,) = commands('slurm.sh', '--nodes=4', '--gpus=8', '--partition=p')
    assert line[0] == 'sbatch'
    assert {'--nodes=4', '--ntasks-per-node=1', '--gpus-per-node=8', '--partition=p'} <= set(line)
    assert '--cpus-per-task=64' in line
    assert '--signal=TERM@120' in line
    job = line[-1].removeprefix('--wrap=')
    srun = shlex.split(job.split(';')[0])
    # srun does not have them from sbatch.
    assert srun[:3] == ['srun', '--cpus-per-task=64', '--kill-on-bad-exit=0']
    assert srun[3:6] == ['env', *fraction('0.92')]
    assert srun[6:] == ['.venv/bin/python', 'train.py', *TRAIN]
    # The job's own shell: of tasks that were stopped, it asks to be run again.
    fakes = 'srun() { return 130; }; scontrol() { echo "$@"; }; SLURM_JOB_ID=7'
    done = subprocess.run(['bash', '-c', f'{fakes}\n{job}'], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, 'requeue 7\n')


def fraction(value: str) -> list[str]:
    """Of a GPU's memory, under JAX's name for it and not under the former one as well."""
    return [f'XLA_CLIENT_MEM_FRACTION={value}', 'XLA_PYTHON_CLIENT_MEM_FRACTION=']


def test_slurm_without_gpus_has_a_task_for_each_node():
    (line,) = commands('slurm.sh', '--nodes=2', '--gpus=0')
    assert {'--ntasks-per-node=1', '--cpus-per-task=8'} <= set(line)
    assert 'MEM_FRACTION' not in line[-1]
    assert not [word for word in line if word.startswith('--gpus')]


def test_processes_of_one_machine_share_its_gpus():
    (alone,) = commands('multi_gpu.sh')
    assert alone[:2] == ['env', 'CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7']
    assert alone[2:] == [*fraction('0.92'), '.venv/bin/python', 'train.py', *TRAIN]
    lines = commands('multi_gpu.sh', '--gpus=4', '--processes=2')
    assert [line[1] for line in lines] == [f'CUDA_VISIBLE_DEVICES={ids}' for ids in ('0,1', '2,3')]
    for index, line in enumerate(lines):
        told = ['--coordinator=127.0.0.1:12321', '--num_processes=2', f'--process_id={index}']
        assert line[-3:] == told


@pytest.mark.parametrize(
    ('words', 'variables', 'value'),
    [
        ([], {'XLA_CLIENT_MEM_FRACTION': '0.8'}, '0.8'),
        ([], {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.7'}, '0.7'),
        (['--memory=0.6'], {'XLA_CLIENT_MEM_FRACTION': '0.8'}, '0.6'),
    ],
)
def test_a_gpus_memory_is_what_the_user_says(words, variables, value):
    (line,) = commands('multi_gpu.sh', *words, **variables)
    assert line[2:4] == fraction(value)
    (line,) = commands('slurm.sh', '--nodes=1', *words, **variables)
    assert ' '.join(fraction(value)) in line[-1]
    pods = ('--name=svd', '--image=i', '--nodes=2', '--claim=disk')
    assert f'value: "{value}"' in launch('kubernetes.sh', *pods, *words, **variables).stdout


def test_plans_count_on_the_memory_that_a_process_gets():
    (line,) = commands('multi_gpu.sh')
    part = float(line[2].removeprefix('XLA_CLIENT_MEM_FRACTION='))
    counted = int(re.search(r'device_memory_size: (\d+)', h100.TARGET)[1])
    assert topologies.CHIPS['H100'].memory == pytest.approx(part * counted)


# In which versions of bash a replacement's quotes and & are taken differently; macOS has 3.2.
@pytest.mark.parametrize('compatible', ['3.2', '4.2', ''])
def test_kubernetes_numbers_its_pods(compatible):
    words = ('--name=svd', '--image=r.io/a&b:1', '--nodes=2', '--gpus=4', '--claim=disk')
    train = [*TRAIN, r'--x=a\b\\"c" & $d/']
    done = launch('kubernetes.sh', *words, train=train, BASH_COMPAT=compatible)
    assert done.returncode == 0, done.stderr
    first, *text, last = done.stdout.splitlines()
    assert first == "kubectl apply --namespace=default -f - <<'END'"
    assert last == 'END'
    service, job = yaml.safe_load_all('\n'.join(text))
    assert service['spec']['clusterIP'] == 'None'
    assert service['metadata']['name'] == job['spec']['template']['spec']['subdomain'] == 'svd'
    spec = job['spec']
    assert (spec['completionMode'], spec['completions'], spec['parallelism']) == ('Indexed', 2, 2)
    (container,) = spec['template']['spec']['containers']
    assert container['image'] == 'r.io/a&b:1'
    assert container['command'] == ['python', 'train.py', *train]
    assert container['resources']['limits'] == {'nvidia.com/gpu': 4}
    told = {entry['name']: entry.get('value') for entry in container['env']}
    assert told['JAX_COORDINATOR_ADDRESS'] == 'svd-0.svd:12321'
    assert told['JAX_NUM_PROCESSES'] == '2'
    assert 'JAX_PROCESS_ID' in told
    assert [f'{name}={told[name]}' for name in told if 'MEM_FRACTION' in name] == fraction('0.92')


@pytest.mark.parametrize(
    ('script', 'words', 'message'),
    [
        ('slurm.sh', ['--node=2'], 'unknown flag --node; known: --nodes'),
        ('slurm.sh', [], 'give --nodes'),
        ('tpu_gcloud.sh', ['--name=s'], 'give --zone'),
        ('tpu_gcloud.sh', ['--name=s', '--zone=z', '--create=v5p-64'], 'give --runtime'),
        (
            'tpu_gcloud.sh',
            ['--name=s', '--zone=z', '--create=v5p-64', '--runtime=r'],
            'the machines that --create makes are bare; give --repo URL',
        ),
        ('multi_gpu.sh', ['--gpus=8', '--processes=3'], '--gpus is 8, which --processes 3 does'),
        ('kubernetes.sh', ['more'], 'unexpected more'),
    ],
)
def test_mistakes_are_one_line(script, words, message):
    done = launch(script, *words)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert done.stderr.startswith(f'error: {message}')


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['--config=configs/svd.py'], "give train.py's flags after --"),
        (['--resume=/shared/svd'], 'give --config FILE.py --workdir FOLDER in place of --resume'),
    ],
)
def test_a_workdir_is_asked_for(words, said):
    done = launch('slurm.sh', '--nodes=2', train=words)
    assert done.returncode == 2
    assert said in done.stderr
