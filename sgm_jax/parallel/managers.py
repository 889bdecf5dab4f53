"""What SLURM and Open MPI tell a process: which of how many it is, in all and on its own node."""

import dataclasses
import re
from collections.abc import Mapping

from sgm_jax.errors import UserError

# By which a user tells JAX which devices to take; JAX reads the first one itself where nobody says more.
LOCAL_DEVICES = 'JAX_LOCAL_DEVICE_IDS'
_CHOSEN = ('JAX_CUDA_VISIBLE_DEVICES', 'JAX_ROCM_VISIBLE_DEVICES')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Managed:
    """A process of SLURM's or Open MPI's.

    Attributes:
      where: which of the two.
      processes: how many there are in all; process: which of them this is.
      neighbours: how many of them are on this node, this one too; local: which of those this is.
      told: whether JAX finds the coordinator in the variables.
    """

    where: str
    processes: int
    process: int
    neighbours: int
    local: int
    told: bool


def managed(variables: Mapping[str, str]) -> Managed | None:
    """Who this process is; None if neither has started it.

    Open MPI is asked first, as JAX does: its mpirun may start processes by SLURM, whose variables are then
    those of mpirun's own helpers.
    """
    return _open_mpi(variables) or _slurm(variables)


def gpus(variables: Mapping[str, str]) -> tuple[int, ...]:
    """Which of the GPUs that this process sees are its own, by number; empty for all of them.

    All, unless several processes on this node see the same ones: then each has that of its own local number.
    JAX left to itself gives a process of SLURM's or Open MPI's one GPU, even if it is alone on its node.

    Raises:
      UserError: JAX_LOCAL_DEVICE_IDS is not a list of numbers.
    """
    own = variables.get(LOCAL_DEVICES)
    if own:
        try:
            return tuple(map(int, own.split(',')))
        except ValueError as error:
            raise UserError(f'{LOCAL_DEVICES} is {own!r}; give numbers, such as 0,1') from error
    found = managed(variables)
    if found is None or found.neighbours == 1 or any(name in variables for name in _CHOSEN):
        return ()
    seen = variables.get('CUDA_VISIBLE_DEVICES')
    if seen is not None:
        # '4', 'gpu:4' or 'gpu:h100:4', with which SLURM shows each task no others than its own.
        task = variables.get('SLURM_GPUS_PER_TASK', '').rpartition(':')[2]
        count = len(seen.split(','))
        if count < found.neighbours or str(count) == task:
            return ()
    return (found.local,)


def _open_mpi(variables: Mapping[str, str]) -> Managed | None:
    size = 'OMPI_COMM_WORLD_SIZE'
    processes, process = _whole(variables, size), _whole(variables, 'OMPI_COMM_WORLD_RANK')
    if processes is None or process is None:
        return None
    return Managed(
        where='Open MPI',
        processes=processes,
        process=process,
        neighbours=_whole(variables, 'OMPI_COMM_WORLD_LOCAL_SIZE') or 1,
        local=_whole(variables, 'OMPI_COMM_WORLD_LOCAL_RANK') or 0,
        # Open MPI 5 no longer has this variable.
        told='OMPI_MCA_orte_hnp_uri' in variables,
    )


def _slurm(variables: Mapping[str, str]) -> Managed | None:
    # As JAX sees it: a shell of salloc has no SLURM_STEP_NODELIST, and is one process.
    if 'SLURM_JOB_ID' not in variables or 'SLURM_STEP_NODELIST' not in variables:
        return None
    names = ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
    processes, process, local = (_whole(variables, name) for name in names)
    if processes is None or process is None or local is None:
        return None
    return Managed(
        where='SLURM',
        processes=processes,
        process=process,
        neighbours=max(_tasks_of_node(variables, processes), local + 1),
        local=local,
        told=True,
    )


def _tasks_of_node(variables: Mapping[str, str], tasks: int) -> int:
    """The step's layout, '2(x3),1': three nodes with two tasks, and one with one."""
    counts = []
    for part in variables.get('SLURM_STEP_TASKS_PER_NODE', '').split(','):
        match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
        if match:
            counts += [int(match[1])] * int(match[2] or 1)
    node = _whole(variables, 'SLURM_NODEID') or 0
    if node < len(counts):
        return counts[node]
    # What was asked for, if anything was; else as many on each node.
    nodes = _whole(variables, 'SLURM_STEP_NUM_NODES') or 1
    return _whole(variables, 'SLURM_NTASKS_PER_NODE') or -(-tasks // nodes)


def _whole(variables: Mapping[str, str], name: str) -> int | None:
    text = variables.get(name, '')
    return int(text) if text.isdigit() else None
