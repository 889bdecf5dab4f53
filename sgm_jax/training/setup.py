"""A run before its first step: everything that its config decides."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from sgm_jax.config import call, check_keys, plain
from sgm_jax.data.sources import Source
from sgm_jax.engines import Engine
from sgm_jax.engines import build as build_engine
from sgm_jax.errors import UserError
from sgm_jax.parallel import agreement
from sgm_jax.parallel import mesh as meshes
from sgm_jax.training.frozen import hold
from sgm_jax.training.optimizers import make_optimizer, rates
from sgm_jax.training.options import Options, PictureOptions
from sgm_jax.training.schedules import make_schedule, peak_rate
from sgm_jax.training.state import Average, Optimizers, TrainState, abstract
from sgm_jax.training.step import first_players, make_init, make_step, start_from

PyTree = Any

NEEDED = ('seed', 'model', 'data', 'optimizer', 'train')
PARTS = (*NEEDED, 'disc_optimizer', 'schedule', 'mesh', 'pictures', 'sample')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """A run before its first step: everything that the config decides, and nothing computed yet."""

    engine: Engine
    options: Options
    pictures: PictureOptions
    mesh: jax.sharding.Mesh
    optimizers: Optimizers
    wanted: TrainState
    step: Callable

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, devices: Sequence | None = None
    ) -> 'Setup':
        """Checks the config on the way. `devices`, by default all of JAX's, may be ones that are not here.

        Raises:
          UserError: whatever in the config does not fit.
        """
        check_keys(config, PARTS, where='config')
        missing = [name for name in NEEDED if name not in config]
        if missing:
            raise UserError(f'config: missing {", ".join(map(repr, missing))}')
        if 'learning_rate' not in config.optimizer:
            raise UserError("optimizer: missing 'learning_rate'")
        options = call(Options, config.train, where='train')
        pictures = call(PictureOptions, config.get('pictures', {}), where='pictures')
        mesh = meshes.make_mesh(plain(config.get('mesh', {'data': -1})), devices)
        meshes.check_batch(options.batch_size, mesh)
        engine = build_engine(config)
        schedule = make_schedule(
            config.get('schedule', {'name': 'constant'}),
            peak=peak_rate(
                config.optimizer,
                batch_size=options.batch_size,
                accumulate=options.accumulate,
            ),
            steps=options.steps // options.accumulate,
        )
        players = jax.eval_shape(functools.partial(first_players, engine), jax.random.key(0))
        if players.adversary and options.accumulate > 1 and engine.objective.alternate:
            raise UserError(
                'train.accumulate goes with model.loss.alternate=False: by turns, each would see every other '
                'batch'
            )
        make = functools.partial(
            make_optimizer,
            schedule=schedule,
            clip_norm=options.clip_norm,
            accumulate=options.accumulate,
        )
        nodes = config.optimizer, _disc_optimizer(config)
        optimizers = Optimizers(
            main=make(nodes[0], params=players.params),
            adversary=make(nodes[1], where='disc_optimizer'),
        )
        by_name = tuple(rates(schedule, node) for node in nodes)
        wanted = abstract(players, optimizers, mesh)
        average = Average(limit=options.ema_decay, accumulate=options.accumulate)
        return cls(
            engine=engine,
            options=options,
            pictures=pictures,
            mesh=mesh,
            optimizers=optimizers,
            wanted=wanted,
            step=make_step(engine, optimizers, average, by_name, wanted),
        )

    def check(self, source: Source) -> None:
        """Raises a UserError if the data, or one of their buckets, do not fit the model and the mesh."""
        record = source.record(0, None)
        self._check_example(record)
        for size in getattr(source, 'buckets', ()):
            # Of a bucket the size is all that differs: nothing needs to be read.
            example = {**record, 'jpg': np.broadcast_to(np.float32(0), (*size, 3))}
            try:
                self._check_example(example, any_length=True)
            except UserError as error:
                name = 'x'.join(map(str, size))
                raise UserError(f'data.buckets: of {name}: {error}') from error

    def _check_example(self, record: Mapping[str, np.ndarray], **options: bool) -> None:
        self.engine.check(record, **options)
        meshes.check_rows(self.engine.latent_rows(record), self.mesh)

    def frozen(self, key: jax.Array) -> PyTree:
        """The frozen parts, over the mesh as parameters are, in the precision that `config.train` says."""
        held = self._hold(self.engine.init_frozen(key))
        return agreement.place(held, meshes.by_shapes(held, self.mesh))

    def frozen_shapes(self) -> PyTree:
        """Shapes of `frozen` with their shardings; reads no files."""
        return meshes.abstract(jax.eval_shape(self._hold, self.engine.frozen_shapes()), self.mesh)

    def _hold(self, frozen: PyTree) -> PyTree:
        options = self.options
        return hold(frozen, dtype=options.frozen_dtype, first_stage_dtype=options.first_stage_dtype)

    def first_state(self, key: jax.Array, params: PyTree | None = None) -> TrainState:
        """From given parameters, or from the engine's checkpoint if it has one, else at random."""
        params = self.engine.pretrained() if params is None else params
        if params is not None:
            return start_from(params, self.engine, self.optimizers, self.wanted, key)
        return make_init(self.engine, self.optimizers, self.wanted)(key)


def _disc_optimizer(config: ml_collections.ConfigDict) -> dict:
    """The discriminator's is the other one, but for the keys that `config.disc_optimizer` has.

    An optimizer of another name does not know Muon's `beta` and `rms`.
    """
    own, main = plain(config.get('disc_optimizer', {})), plain(config.optimizer)
    others = {'groups', 'lr_factor'}
    if own.get('name', main['name']) != main['name']:
        others |= {'beta', 'rms'}
    return {**{k: v for k, v in main.items() if k not in others}, **own}
