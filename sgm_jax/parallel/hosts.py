"""Several hosts: one process on each, joined before JAX touches a device.

Every process runs the same program. Who they are is told by the environment (a TPU slice, SLURM, Open MPI),
by flags, or by JAX's own variables. A run on one host never gets past `find`.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import logging
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping

from sgm_jax.errors import UserError
from sgm_jax.parallel import managers

# A process ended because another one did; launchers that restart on failure go on with the run.
LOST = 3
# Exit codes with which all processes end together: done, and stopped on request.
FRIENDLY = (0, 130)
COORDINATOR, PROCESSES, PROCESS = (
    'JAX_COORDINATOR_ADDRESS',
    'JAX_NUM_PROCESSES',
    'JAX_PROCESS_ID',
)
# Seconds: JAX's own 100 would let a run hang for longer than a minute after a host was lost.
HEARTBEAT, SHUTDOWN = 45, 60
AGAIN = 'the same command on all hosts goes on from the newest complete checkpoint'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process joins the others.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens; None where JAX finds out everything itself.
      processes: how many there are in all.
      process: which of them this is, from 0.
      gpus: which of the GPUs that it sees it takes, by number; empty for all.
      timeout: seconds to wait for the others.
      where: who says that there are several, for messages.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    gpus: tuple[int, ...] = ()
    timeout: int = 300
    where: str = ''

    def __post_init__(self):
        if self.timeout < 1:
            raise UserError(f'--start_timeout is {self.timeout}; give 1 second or more')
        if self.coordinator is None:
            return
        host, colon, port = self.coordinator.rpartition(':')
        if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(
                f'--coordinator is {self.coordinator!r}; give HOST:PORT of process 0, such as 10.0.0.1:1234'
            )
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise UserError(
                f'--process_id is {self.process} and --num_processes {self.processes}; processes are '
                f'numbered from 0 to {self.processes - 1}'
            )

    @property
    def name(self) -> str:
        """'process 1 of 2', where that is known."""
        return (
            'this process'
            if self.process is None
            else f'process {self.process} of {self.processes}'
        )


def find(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
    variables: Mapping[str, str] = os.environ,
) -> Launch | None:
    """How to join the other processes; None if there are none.

    Flags come before JAX's variables, and those before what the environment tells. Open MPI and SLURM number
    their processes, so that there --coordinator is enough.

    Raises:
      UserError: some of the flags are missing, or do not fit each other.
    """
    given = dict(
        coordinator=coordinator or variables.get(COORDINATOR) or None,
        processes=_number(processes, variables, PROCESSES),
        process=_number(process, variables, PROCESS),
    )
    managed, gpus = managers.managed(variables), managers.gpus(variables)
    if any(value is not None for value in given.values()):
        if managed and given['coordinator']:
            numbers = dict(processes=managed.processes, process=managed.process)
            given |= {k: v for k, v in numbers.items() if given[k] is None}
        flags = {'coordinator': 'HOST:PORT', 'processes': 'N', 'process': 'I'}
        names = dict(zip(given, ('--coordinator', '--num_processes', '--process_id'), strict=True))
        missing = [f'{names[k]} {flags[k]}' for k, value in given.items() if value is None]
        if missing:
            said = ', '.join(f'{names[k]} {v}' for k, v in given.items() if v is not None)
            raise UserError(
                f'{said} without {" and ".join(missing)}; several hosts need all three, on each host'
            )
        launch = Launch(**given, gpus=gpus, timeout=timeout, where='the flags')
        return launch if launch.processes > 1 else None
    if managed and managed.processes > 1:
        if not managed.told:
            raise UserError(
                f'{managed.where} started {managed.processes} processes and does not say where '
                'process 0 is; give --coordinator HOST:PORT, or start one process'
            )
        return Launch(
            processes=managed.processes,
            process=managed.process,
            gpus=gpus,
            timeout=timeout,
            where=managed.where,
        )
    if _on_tpu_slice(variables):
        return Launch(gpus=gpus, timeout=timeout, where='the TPU slice')
    return None


def start(launch: Launch | None) -> None:
    """Joins the other processes; before anything else touches JAX's devices. Nothing, for None.

    From here on, a process whose peers are lost ends with one line and exit code `LOST`.

    Raises:
      UserError: process 0 does not answer, or does not see all the others in time.
    """
    if launch is None:
        return
    import jax

    if launch.coordinator and launch.process:
        _wait_for(launch)
    # Between hosts without accelerators; of no effect elsewhere.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    # It would take SIGTERM for itself; the training loop agrees on stopping in its own way.
    jax.config.update('jax_enable_preemption_service', False)
    numbers = {}
    if launch.coordinator:
        numbers = dict(
            coordinator_address=launch.coordinator,
            num_processes=launch.processes,
            process_id=launch.process,
            cluster_detection_method='deactivate',
        )
    with _quiet() as stderr:
        _say_when_aborted(f'error: {_absent(launch)}', stderr)
        try:
            jax.distributed.initialize(
                **numbers,
                # Of GPUs only. Empty is all; of None JAX would make one for each process of a manager's.
                local_device_ids=list(launch.gpus),
                initialization_timeout=launch.timeout,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=SHUTDOWN,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f'{_absent(launch)} ({_reason(error)})') from error
    _say_when_aborted(f'error: {_lost()}', 2)
    if jax.process_index():
        # What all of them would say, the first one says.
        logging.getLogger('sgm_jax').setLevel(logging.WARNING)


class LostError(RuntimeError):
    """Another process of the run is gone."""


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Raises a LostError for an error that is not this process's own but that of one it has lost."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not is_lost(error):
            raise
        raise LostError(f'{_lost()} ({_reason(error)})') from error


def is_lost(error: BaseException) -> bool:
    """Whether an error of JAX's says that another process does not answer any more."""
    import jax

    words = ('Gloo', 'NCCL', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED', 'heartbeat', ' peer')
    # A program that is being started raises the compiler's errors as ValueErrors.
    kinds = (jax.errors.JaxRuntimeError, ValueError)
    several = isinstance(error, kinds) and jax.process_count() > 1
    return several and any(word in str(error) for word in words)


def leave(code: int) -> None:
    """Ends this process, where it is one of several; after a failure at once, not waiting for the others."""
    jax = sys.modules.get('jax')
    if jax is None or not jax.distributed.is_initialized():
        return
    if code in FRIENDLY:
        jax.distributed.shutdown()
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _lost() -> str:
    import jax

    name = f'process {jax.process_index()} of {jax.process_count()}'
    return f'{name} has lost another one, whose own output says why; {AGAIN}'


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _number(value: int | None, variables: Mapping[str, str], name: str) -> int | None:
    if value is not None or not variables.get(name):
        return value
    try:
        return int(variables[name])
    except ValueError as error:
        raise UserError(f'{name} is {variables[name]!r}; give a whole number') from error


def _on_tpu_slice(variables: Mapping[str, str]) -> bool:
    """Whether this machine is a TPU's, of a slice whose other machines JAX can ask for."""
    platforms = variables.get('JAX_PLATFORMS', '')
    if platforms and 'tpu' not in platforms.split(','):
        return False
    if importlib.util.find_spec('libtpu') is None:
        return False
    several = ',' in variables.get('TPU_WORKER_HOSTNAMES', '')
    if several or int(variables.get('MEGASCALE_NUM_SLICES') or 1) > 1:
        return True
    if 'TPU_WORKER_HOSTNAMES' in variables or 'TPU_SKIP_MDS_QUERY' in variables:
        return (
            False  # GKE says that there is one; or the machine's description is not to be asked for
        )
    devices = ('/dev/accel0', '/dev/vfio/0')
    return any(pathlib.Path(device).exists() for device in devices)


def _absent(launch: Launch) -> str:
    if launch.coordinator is None:
        count = '' if launch.processes is None else f'{launch.processes} '
        return (
            f'{launch.name}: the {count}processes that {launch.where} speaks of did not come together within '
            f'{launch.timeout} s; look whether each was started, or raise --start_timeout'
        )
    return (
        f'{launch.name}: fewer than {launch.processes} processes came to {launch.coordinator} within '
        f'{launch.timeout} s; start --process_id 0 to {launch.processes - 1} with the same --coordinator and '
        '--num_processes, or raise --start_timeout'
    )


def _wait_for(launch: Launch) -> None:
    """Until process 0 listens: JAX would abort where this can say whom it looked for."""
    host, _, port = launch.coordinator.rpartition(':')
    deadline = time.monotonic() + launch.timeout
    reason = ''
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))
    raise UserError(
        f'{launch.name}: nobody answers at --coordinator {launch.coordinator} within {launch.timeout} s '
        f'({reason}); start --process_id 0 there, or raise --start_timeout'
    )


@contextlib.contextmanager
def _quiet() -> Iterator[int]:
    """Holds back what is written to stderr, until the end; gives the real one's file descriptor.

    An abort in between is one line of ours, without the stack of JAX's that it comes with.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield real
        except BaseException:
            held.truncate(0)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            os.write(2, held.read())


# The handler lives as long as the process, or the C library would call into nothing.
_HANDLERS = []


def _say_when_aborted(line: str, stderr: int) -> None:
    """Turns an abort into `line` and the exit code `LOST`.

    When a peer is lost, or never comes, JAX's agent writes why and aborts the process, from a thread of its
    own and whatever Python is doing. (The callback that its client takes instead crashes in jaxlib 0.10.)
    """
    message = f'{line}\n'.encode()

    def on_abort(number: int) -> None:
        os.write(stderr, message)
        os._exit(LOST)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
    _HANDLERS.append(handler)
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, type(handler)]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, handler)
