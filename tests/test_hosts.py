"""Several processes: who joins whom, that two train to the numbers of one, and what ends all of them."""

import contextlib
import pathlib
import resource
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import processes
import pytest
import tiny
from checkpointed import state_of
from picture_files import write_folder

from sgm_jax.errors import UserError
from sgm_jax.interop.workdir_files import latest_step
from sgm_jax.parallel import hosts, managers
from sgm_jax.training.loop import train

TRAIN = dict(batch_size=8, steps=4, log_every=1, checkpoint_every=1, keep=9)
MESH = {'data': 2, 'fsdp': 4}
FLAGS = dict(coordinator='10.0.0.1:1234', processes=2, process=1)
SLURM = dict(
    SLURM_JOB_ID='7',
    SLURM_STEP_NODELIST='n[1-2]',
    SLURM_LOCALID='0',
    SLURM_NTASKS='2',
    SLURM_PROCID='1',
)
MPI = dict(OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_RANK='3')
MPI_4 = {**MPI, 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:3'}
# mpirun's helper on a node is a task of SLURM's, and the only one where there is one node.
HELPER = {**SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}
EIGHT = {'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7'}


@pytest.mark.parametrize(
    ('flags', 'variables', 'found'),
    [
        ({}, {}, None),
        (FLAGS, {}, ('10.0.0.1:1234', 2, 1)),
        ({**FLAGS, 'processes': 1, 'process': 0}, {}, None),
        ({}, SLURM, (None, 2, 1)),
        ({}, {**SLURM, 'SLURM_NTASKS': '1'}, None),
        ({}, {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, None),
        ({}, MPI_4, (None, 4, 3)),
        ({}, {**HELPER, **MPI_4}, (None, 4, 3)),
        ({'coordinator': 'head:1'}, {**HELPER, **MPI}, ('head:1', 4, 3)),
        ({'coordinator': 'head:1'}, MPI, ('head:1', 4, 3)),
        (
            {'process': 2},
            {'JAX_COORDINATOR_ADDRESS': 'head:1', 'JAX_NUM_PROCESSES': '3', 'JAX_PROCESS_ID': '0'},
            ('head:1', 3, 2),
        ),
    ],
)
def test_who_joins_whom(flags, variables, found):
    launch = hosts.find(**flags, variables={'JAX_PLATFORMS': 'cpu', **variables})
    got = launch and (launch.coordinator, launch.processes, launch.process)
    assert got == found


@pytest.mark.parametrize(
    ('change', 'variables', 'words'),
    [
        (dict(process=None), {}, 'without --process_id I; several hosts need all three'),
        (dict(coordinator=None), {}, '--num_processes 2, --process_id 1 without --coordinator'),
        (dict(process=2), {}, 'is 2 and --num_processes 2; processes are numbered from 0 to 1'),
        (dict(coordinator='head'), {}, "--coordinator is 'head'; give HOST:PORT"),
        (dict(process=None), {'JAX_PROCESS_ID': 'x'}, "JAX_PROCESS_ID is 'x'; give a whole number"),
        (dict.fromkeys(FLAGS), MPI, 'Open MPI started 4 processes and does not say where'),
        (dict.fromkeys(FLAGS), {**HELPER, **MPI}, 'Open MPI started 4 processes and does not'),
        ({}, {'JAX_LOCAL_DEVICE_IDS': 'all'}, "JAX_LOCAL_DEVICE_IDS is 'all'; give numbers"),
    ],
)
def test_flags_that_do_not_fit_are_named(change, variables, words):
    with pytest.raises(UserError, match=words):
        hosts.find(**{**FLAGS, **change}, variables={'JAX_PLATFORMS': 'cpu', **variables})


def slurm(layout: str, local: int, node: int = 0, **more: str) -> dict[str, str]:
    own = dict(SLURM_STEP_TASKS_PER_NODE=layout, SLURM_LOCALID=str(local), SLURM_NODEID=str(node))
    return {**SLURM, **own, **more}


def mpi(size: int, local: int) -> dict[str, str]:
    own = dict(OMPI_COMM_WORLD_LOCAL_SIZE=str(size), OMPI_COMM_WORLD_LOCAL_RANK=str(local))
    return {**MPI, **own}


@pytest.mark.parametrize(
    ('variables', 'gpus'),
    [
        ({}, ()),
        (EIGHT, ()),
        ({'JAX_LOCAL_DEVICE_IDS': '2,3'}, (2, 3)),
        # One process on a node has all of its GPUs.
        ({**slurm('1(x2)', 0), **EIGHT}, ()),
        ({**slurm('8(x2),1', 0, node=2), **EIGHT}, ()),
        ({**SLURM, 'SLURM_STEP_NUM_NODES': '2'}, ()),
        (mpi(1, 0), ()),
        # Several have one each,
        ({**slurm('8(x2)', 3, node=1), **EIGHT}, (3,)),
        ({**SLURM, 'SLURM_STEP_NUM_NODES': '1'}, (0,)),
        ({**SLURM, 'SLURM_NTASKS_PER_NODE': '2', 'SLURM_STEP_NUM_NODES': '1'}, (0,)),
        (mpi(4, 2), (2,)),
        ({**HELPER, **mpi(4, 2)}, (2,)),
        # unless they see no others, or were told by the user.
        (slurm('8', 3, CUDA_VISIBLE_DEVICES='3'), ()),
        (slurm('2', 1, CUDA_VISIBLE_DEVICES='4,5,6,7', SLURM_GPUS_PER_TASK='gpu:4'), ()),
        (slurm('8', 3, JAX_LOCAL_DEVICE_IDS='5'), (5,)),
        (slurm('8', 3, JAX_CUDA_VISIBLE_DEVICES='all'), ()),
    ],
)
def test_which_gpus_a_process_takes(variables, gpus):
    assert managers.gpus(variables) == gpus
    # Flags say who a process is, not where it runs.
    assert hosts.find(**FLAGS, variables={'JAX_PLATFORMS': 'cpu', **variables}).gpus == gpus


# What JAX would give to CUDA, of processes that have none.
SEEN = """import jax
from jax._src.xla_bridge import CUDA_VISIBLE_DEVICES
from sgm_jax.parallel import hosts

hosts.start(hosts.find())
print(CUDA_VISIBLE_DEVICES.value, jax.process_count(), jax.local_device_count())
hosts.leave(0)
"""


@pytest.mark.parametrize(('layout', 'seen'), [('1(x2)', ['all', 'all']), ('2', ['0', '1'])])
def test_jax_takes_these_gpus_of_slurms_processes(layout, seen):
    told = dict(SLURM_STEP_NODELIST='localhost', JAX_COORDINATOR_PORT=str(processes.free_port()))
    with contextlib.ExitStack() as stack:
        both = []
        for index in range(2):
            own = dict(local=0, node=index) if layout == '1(x2)' else dict(local=index)
            variables = slurm(layout, **own, **told, SLURM_PROCID=str(index))
            options = dict(env={**processes.environment(2), **variables}, cwd=processes.ROOT)
            line = [processes.sys.executable, '-c', SEEN]
            process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, **options)
            both.append(stack.enter_context(process))
            stack.callback(process.kill)
        said = [process.communicate(timeout=120)[0] for process in both]
    assert said == [f'{ids} 2 2\n' for ids in seen]


@pytest.mark.parametrize(
    ('process', 'code', 'words'),
    [
        (1, 2, 'process 1 of 2: nobody answers at --coordinator 127.0.0.1:{port} within 2 s'),
        (0, hosts.LOST, 'process 0 of 2: fewer than 2 processes came to 127.0.0.1:{port} within 2'),
    ],
)
def test_fewer_processes_than_asked(process, code, words, tmp_path):
    port = processes.free_port()
    told = [f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={process}']
    done = subprocess.run(
        [
            processes.sys.executable,
            'train.py',
            '--config=configs/svd.py:tiny',
            f'--workdir={tmp_path}',
            '--start_timeout=2',
            *told,
        ],
        cwd=processes.ROOT,
        env=processes.environment(1),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words.format(port=port) in done.stderr


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """By step, as TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(workdir / 'logs'), size_guidance={'tensors': 0})
    events.Reload()
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors('loss')}


def assert_same_numbers(one: pathlib.Path, other: pathlib.Path, step: int) -> None:
    """Losses up to a step, and there the parameters and the position in the data."""
    first, second = losses(one), losses(other)
    for index in range(1, step + 1):
        np.testing.assert_allclose(second[index], first[index], rtol=1e-5)
    config = tiny.config(**TRAIN)
    (before, position), (after, other_position) = (
        state_of(config, folder, step) for folder in (one, other)
    )
    assert position == other_position
    largest = max(np.abs(x).max() for x in jax.tree.leaves(before.params))
    close = lambda x, y: np.testing.assert_allclose(y, x, rtol=0, atol=1e-5 * largest)
    jax.tree.map(close, before.params, after.params)


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> pathlib.Path:
    """The workdir of a run on one device."""
    workdir = tmp_path_factory.mktemp('alone')
    train(tiny.config(**TRAIN), workdir)
    return workdir


@pytest.fixture(scope='module')
def pair(tmp_path_factory) -> pathlib.Path:
    """The workdir of three steps in two processes of four devices each."""
    folder = tmp_path_factory.mktemp('pair')
    config = processes.write_config(folder / 'c.py', mesh=MESH, **{**TRAIN, 'steps': 3})
    words = [f'--config={config}', f'--workdir={folder / "run"}']
    with processes.started(words, folder) as both:
        assert both.wait() == [0, 0], both.said(0) + both.said(1)
        assert 'mesh: data=2, fsdp=4, context=1; 8 devices (cpu) in 2 processes' in both.said(0)
        assert 'mesh:' not in both.said(1)
    return folder / 'run'


@pytest.mark.slow
def test_two_processes_train_as_one_device(alone, pair):
    assert_same_numbers(alone, pair, 3)


@pytest.mark.slow
def test_one_process_goes_on_where_two_were(alone, pair, tmp_path):
    shutil.copytree(pair, tmp_path / 'run')
    assert train(tiny.config(**TRAIN), tmp_path / 'run').step == 4
    assert_same_numbers(alone, tmp_path / 'run', 4)


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_and_draw(alone, tmp_path):
    train(tiny.config(**{**TRAIN, 'steps': 2}), tmp_path / 'run')
    config = processes.write_config(tmp_path / 'c.py', mesh=MESH, image_every=4, **TRAIN)
    words = [f'--config={config}', f'--workdir={tmp_path / "run"}']
    with processes.started(words, tmp_path) as both:
        assert both.wait() == [0, 0], both.said(0) + both.said(1)
    assert_same_numbers(alone, tmp_path / 'run', 4)


def endless(folder: pathlib.Path) -> pathlib.Path:
    """The config of a run that is to be ended; of the smallest model, for it is not about numbers."""
    options = dict(mesh=MESH, model='smallest', **{**TRAIN, 'steps': 4000})
    return processes.write_config(folder / 'c.py', **options)


# A disk that does not give one of the files to the second process.
UNREAD = """config.data = {{'name': 'pictures', 'path': {path!r}, 'height': 8, 'width': 8}}
    if '--process_id=1' in sys.argv:
        from sgm_jax.data import pictures

        decode = pictures.decode_image

        def failing(file):
            if str(file).endswith('003.png'):
                raise ValueError('it cannot be read')
            return decode(file)

        pictures.decode_image = failing
"""


@pytest.mark.slow
def test_hosts_with_different_data_do_not_begin(tmp_path):
    more = UNREAD.format(path=str(write_folder(tmp_path / 'set', 9)))
    options = dict(mesh=MESH, model='smallest', more=more, **TRAIN)
    config = processes.write_config(tmp_path / 'c.py', **options)
    words = [f'--config={config}', f'--workdir={tmp_path / "run"}']
    with processes.started(words, tmp_path) as both:
        assert both.wait() == [2, 2], both.said(0) + both.said(1)
        told = [processes.mistakes(both.said(index)) for index in (0, 1)]
    for (line,), count in zip(told, (9, 8), strict=True):
        assert 'the list of the data differs between the 2 processes' in line
        assert f'with {count} pictures' in line
        assert 'a file could not be read on one host' in line
    assert latest_step(tmp_path / 'run') is None


# train.py whose --workdir ends in the number of its process.
APART = """
import runpy, sys
sys.argv = ['train.py', *(word.replace('NUMBER', sys.argv[-1][-1]) for word in sys.argv[1:])]
runpy.run_path('train.py', run_name='__main__')
"""


@pytest.mark.slow
def test_hosts_with_folders_of_their_own_do_not_begin(tmp_path):
    config = processes.write_config(tmp_path / 'c.py', mesh=MESH, model='smallest', **TRAIN)
    words = [f'--config={config}', f'--workdir={tmp_path / "run"}NUMBER']
    with processes.started(words, tmp_path, program=('-c', APART)) as both:
        assert both.wait() == [2, 2], both.said(0) + both.said(1)
        told = [processes.mistakes(both.said(index)) for index in (0, 1)]
    for (line,), words in zip(told, ('as the first', 'without what the first'), strict=True):
        assert 'the workdir differs between the 2 processes' in line
        assert f'with {words}' in line
        assert '--workdir must be one folder that all hosts share' in line
    assert not list(tmp_path.glob('run*/.opened*'))


@pytest.mark.slow
def test_a_host_that_cannot_write_costs_checkpoints_and_not_the_run(tmp_path):
    config = processes.write_config(
        tmp_path / 'c.py', mesh=MESH, model='smallest', **{**TRAIN, 'steps': 40}
    )
    words = [f'--config={config}', f'--workdir={tmp_path / "run"}']
    with processes.started(words, tmp_path) as both:
        second, sizes = both.processes[1].pid, resource.RLIMIT_FSIZE
        # Its words are files too: room for these.
        resource.prlimit(second, sizes, (2**19, resource.RLIM_INFINITY))
        both.wait_until(lambda: processes.mistakes(both.said(1)))
        resource.prlimit(second, sizes, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert both.wait() == [0, 0], both.said(0) + both.said(1)
        first, second = (processes.mistakes(both.said(index))[0] for index in (0, 1))
    assert 'could not be written (process 1 cannot write there); free some space' in first
    assert 'could not be written ([Errno 27] File too large); free some space' in second
    assert latest_step(tmp_path / 'run') == 40
    assert 'saved step 1:' not in both.said(0)
    assert 'saved step 40:' in both.said(0)
    assert not list((tmp_path / 'run').glob('.tried*'))


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_other(victim, tmp_path):
    config = endless(tmp_path)
    words = [f'--config={config}', f'--workdir={tmp_path / "run"}']
    with processes.started(words, tmp_path) as both:
        both.wait_until(lambda: (latest_step(tmp_path / 'run') or 0) >= 2)
        both.processes[victim].send_signal(signal.SIGKILL)
        start = time.monotonic()
        code = both.processes[1 - victim].wait(100)
        assert time.monotonic() - start < 60
        said = both.said(1 - victim)
    assert code == hosts.LOST, said
    assert 'has lost another one' in processes.mistakes(said)[-1]
    reached = latest_step(tmp_path / 'run')
    with processes.started([*words, f'--config.train.steps={reached + 1}'], tmp_path) as both:
        assert both.wait() == [0, 0], both.said(0) + both.said(1)
        assert f'going on after step {reached}' in both.said(0)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path):
    config = endless(tmp_path)
    words = [f'--config={config}', f'--workdir={tmp_path / "run"}']
    words.append('--config.train.checkpoint_every=1000')
    with processes.started(words, tmp_path) as both:
        both.wait_until(lambda: '3/4000' in both.said(0))
        both.processes[1].send_signal(signal.SIGTERM)
        assert both.wait() == [130, 130], both.said(0) + both.said(1)
        assert f'stopped after step {latest_step(tmp_path / "run")}' in both.said(0)
