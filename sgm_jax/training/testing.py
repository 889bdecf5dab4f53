"""The test of a run: its figures on held-out examples, from its newest checkpoint."""

import json
import logging
import pathlib

import jax
import ml_collections

from sgm_jax.errors import UserError
from sgm_jax.interop.whole_files import whole
from sgm_jax.training.checkpoints import Checkpoints
from sgm_jax.training.setup import Setup
from sgm_jax.training.validation import Validation

LOG = logging.getLogger(__name__)
NAME = 'test.json'


def test(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Figures by name (`test/...` of the parameters, `test_ema/...` of their average), in test.json too.

    Raises:
      UserError: there is no checkpoint, or nothing is held out.
    """
    setup = Setup.from_config(config)
    options, mesh = setup.options, setup.mesh
    keys = jax.random.split(jax.random.key(config.seed), 3)
    validation = Validation(
        setup.engine,
        config,
        mesh,
        keys[2],
        examples=options.test_examples,
        batch_size=options.validate_batch or options.batch_size,
    )
    with Checkpoints(workdir, keep=options.keep, reads=True) as checkpoints:
        step = checkpoints.latest
        if step is None:
            raise UserError(f'{workdir} has no complete checkpoint to test')
        state = checkpoints.restore(step, setup.wanted)
    frozen = setup.frozen(keys[0])
    figures = validation(validation.copies(state, frozen), prefix='test')
    LOG.info('test of step %d, on %d held-out examples:', step, validation.examples)
    for name, value in sorted(figures.items()):
        LOG.info('  %-32s %.5g', name, value)
    if jax.process_index() == 0:
        result = {'step': step, 'examples': validation.examples, **figures}
        with whole(workdir / NAME) as file:
            file.write((json.dumps(result, indent=2) + '\n').encode())
    return figures
