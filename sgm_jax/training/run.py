"""train.py behind its flags."""

import logging

import ml_collections

from sgm_jax.errors import UserError
from sgm_jax.parallel import cache, hosts

LOG = logging.getLogger(__name__)
# As shells have it for ctrl-C; a launcher that restarts on failure goes on with the run.
STOPPED = 130


def run(
    config: ml_collections.ConfigDict | None,
    workdir: str | None,
    *,
    launch: hosts.Launch | None = None,
    keep_compiled: bool = True,
) -> int:
    """Trains, and says where everything is. The exit code is 0, or `STOPPED` before the last step.

    Raises:
      UserError: a mistake in flags, config, files or data; or the processes of `launch` do not meet.
      LostError: another process is gone.
    """
    if config is None:
        raise UserError('give --config FILE.py, such as --config configs/svd.py:tiny')
    if not workdir:
        raise UserError('give --workdir FOLDER, where checkpoints and logs go')
    hosts.start(launch)
    cache.keep_compiled(keep_compiled)
    from sgm_jax.training.loop import train

    with hosts.told_apart():
        result = train(config, workdir)
    loss = f', loss {result.scalars["loss"]:.4f}' if 'loss' in result.scalars else ''
    if result.stopped:
        LOG.info('stopped after step %d%s; the same command goes on', result.step, loss)
        return STOPPED
    LOG.info('trained %d steps%s; look: tensorboard --logdir %s', result.step, loss, workdir)
    return 0
