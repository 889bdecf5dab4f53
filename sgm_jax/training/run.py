"""train.py behind its flags."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator

import jax
import ml_collections

from sgm_jax.errors import UserError
from sgm_jax.interop.workdir_files import read_config
from sgm_jax.parallel import cache, hosts, memory
from sgm_jax.training.profiling import Span

LOG = logging.getLogger(__name__)
# As shells have it for ctrl-C; a launcher that restarts on failure goes on with the run.
STOPPED = 130
SMALLER_TEST = 'less takes a smaller --config.train.validate_batch; --notrain tests again'
SMALLER = (
    'python -m sgm_jax.tools.plan --search says what fits; less takes a smaller --config.train.batch_size, '
    '--config.model.network.remat=layer, or to split the model (--config.mesh.data=1 --config.mesh.fsdp=-1)'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What the flags say besides the config.

    Attributes:
      workdir: the run's folder; without one it is logs/<time>_<name><postfix>.
      resume: a workdir to go on with, or one of its checkpoints.
      name, postfix: of a run without a workdir: the config's name, and words behind it.
      train, test: which of both is done, in this order.
      profile: the steps that are traced, FIRST:LAST; '' for none.
      debug: a run that was named by its time is moved aside when it is over.
      keep_compiled: whether compiled programs are kept for the next start.
    """

    workdir: str = ''
    resume: str = ''
    name: str = ''
    postfix: str = ''
    train: bool = True
    test: bool = True
    profile: str = ''
    debug: bool = False
    keep_compiled: bool = True


def run(
    config: ml_collections.ConfigDict | None,
    choices: Choices,
    *,
    launch: hosts.Launch | None = None,
) -> int:
    """Trains and tests, and says where everything is. The exit code is 0, or `STOPPED` before the last step.

    Raises:
      UserError: a mistake in flags, config, files or data; too little memory on a device; or the processes
        of `launch` do not meet.
      LostError: another process is gone.
    """
    span = Span.parse(choices.profile) if choices.profile else None
    if config is None and not choices.resume:
        raise UserError(
            'give --config FILE.py, such as --config configs/svd.py:tiny; or --resume RUN'
        )
    if choices.workdir and choices.resume:
        raise UserError('--workdir and --resume both name the run; give one of them')
    if not (choices.train or choices.test):
        raise UserError('--notrain and --notest leave nothing to do; give one of them')
    hosts.start(launch)
    from sgm_jax.training import runs

    workdir = pathlib.Path(choices.workdir).expanduser() if choices.workdir else None
    step = None
    if choices.resume:
        workdir, step = runs.resumed(choices.resume)
    # Before anything is compiled; for runs that are named by their time, where all of these are.
    cache.keep_compiled(choices.keep_compiled, shared=workdir or pathlib.Path(runs.ROOT))
    workdir = workdir or runs.new_workdir(choices.name, choices.postfix)
    config = read_config(workdir) if config is None else config
    if step is not None:
        runs.back_to(workdir, step)
    aside = choices.debug and not (choices.workdir or choices.resume)
    kept = _moved_aside(workdir) if aside else contextlib.nullcontext()
    with hosts.told_apart(), kept:
        with memory.or_else(SMALLER):
            code = _train(config, workdir, span) if choices.train else 0
        if code:
            return code
        if choices.test:
            _test(config, workdir, needed=not choices.train)
    return 0


def _train(config: ml_collections.ConfigDict, workdir: pathlib.Path, span: Span | None) -> int:
    from sgm_jax.training.loop import train

    result = train(config, workdir, profile=span)
    loss = f', loss {result.scalars["loss"]:.4f}' if 'loss' in result.scalars else ''
    if result.stopped:
        LOG.info('stopped after step %d%s; the same command goes on', result.step, loss)
        return STOPPED
    LOG.info('trained %d steps%s; look: tensorboard --logdir %s', result.step, loss, workdir)
    return 0


def _test(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, needed: bool) -> None:
    from sgm_jax.training.testing import test

    try:
        with memory.or_else(SMALLER_TEST):
            test(config, workdir)
    except UserError as error:
        # Trained is trained.
        if needed:
            raise
        LOG.warning('not tested: %s', error)


@contextlib.contextmanager
def _moved_aside(workdir: pathlib.Path) -> Iterator[None]:
    from sgm_jax.training import runs

    try:
        yield
    finally:
        if workdir.is_dir() and jax.process_index() == 0:
            LOG.info('the debug run is now in %s', runs.move_aside(workdir))
