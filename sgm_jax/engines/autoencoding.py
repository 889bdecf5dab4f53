"""The autoencoding engine: trains a first stage to reconstruct, with its latents kept near a Gaussian."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sgm_jax.config import call, lookup
from sgm_jax.engines.model import build_first_stage, check_pixels
from sgm_jax.engines.structure import PyTree, Structure, to_uint8
from sgm_jax.errors import UserError
from sgm_jax.networks.autoencoder import Autoencoder
from sgm_jax.networks.regularizers import DiagonalGaussian
from sgm_jax.networks.video_decoder import VideoDecoder
from sgm_jax.parallel.compiler import jit

DISTANCES = {'l1': jnp.abs, 'l2': jnp.square}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """Mean distance per value, and kl_weight times the mean divergence per latent value.

    With the small weight that latent diffusion takes (1e-6), the divergence only bounds the latents.
    Source: Rombach et al. 2022 (arXiv:2112.10752), section 3.1, without its adversary.
    """

    kind: str = 'l1'
    kl_weight: float = 1e-6

    def __call__(
        self, x: jax.Array, reconstruction: jax.Array, posterior: DiagonalGaussian
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        distance = lookup(DISTANCES, self.kind, 'loss kind')
        rec = distance(reconstruction - x).mean()
        kl = posterior.kl().sum() / posterior.mean.size
        return rec + self.kl_weight * kl, {'rec_loss': rec, 'kl_loss': kl}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AutoencodingEngine:
    """Trains an Autoencoder on pictures, or on the frames of clips. Follows sgm's AutoencodingEngine."""

    structure: Structure
    objective: ReconstructionLoss

    @classmethod
    def from_config(
        cls, *, first_stage: Mapping, loss: Mapping, sample: Mapping
    ) -> 'AutoencodingEngine':
        """From `config.model`, whose keys are these."""
        if first_stage.get('name') == 'none':
            raise UserError("model.first_stage: 'none' has nothing to train; name an autoencoder")
        return cls(
            structure=Structure(build=lambda keys: build_first_stage(first_stage, keys)),
            objective=call(ReconstructionLoss, loss, where='model.loss'),
        )

    def init(self, key: jax.Array) -> PyTree:
        return self.structure.init(key)[0]

    def init_frozen(self, key: jax.Array) -> PyTree:
        return jax.jit(lambda: self.structure.init(key)[1])()

    def pretrained(self) -> PyTree | None:
        return None

    def check(self, record: Mapping[str, np.ndarray]) -> None:
        check_pixels(self.factor, *record['jpg'].shape[-3:-1])

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = self.structure.merge(params, frozen)
        x = batch['jpg']
        reconstruction, posterior = _reconstruct(model, x, key)
        loss, logs = self.objective(_frames(x), _frames(reconstruction), posterior)
        return loss, {'loss': loss, **logs}

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, np.ndarray]:
        """Inputs, reconstructions (from the likeliest latents), and three times their difference."""
        x = jnp.asarray(batch['jpg'])
        rec = jnp.clip(self._reconstruct(params, frozen, x), -1.0, 1.0)
        difference = jnp.clip(3.0 * jnp.abs(rec - x), 0.0, 2.0) - 1.0
        found = {'inputs': x, 'reconstructions': rec, 'diff_boost': difference}
        # A window of one frame is a picture.
        still = x.ndim == 5 and x.shape[1] == 1
        return {k: to_uint8(v[:, 0] if still else v) for k, v in found.items()}

    @functools.cached_property
    def _reconstruct(self) -> Callable:
        def reconstruct(params, frozen, x):
            return _reconstruct(self.structure.merge(params, frozen), x, None)[0]

        return jit(reconstruct)

    def encode(self, params: PyTree, frozen: PyTree, images: jax.Array) -> jax.Array:
        """Images (n, h, w, 3) in [-1, 1] to their likeliest latents."""
        return self._encode(params, frozen, images)

    @functools.cached_property
    def _encode(self) -> Callable:
        return jit(
            lambda params, frozen, x: DiagonalGaussian.of(
                self.structure.merge(params, frozen).encode(x)
            ).mode()
        )

    def decode(
        self, params: PyTree, frozen: PyTree, z: jax.Array, *, chunk: int | None = None
    ) -> jax.Array:
        """Latents (n, h, w, c) to images, `chunk` at a time (all by default)."""
        chunk = chunk or len(z)
        parts = [
            self._decode(params, frozen, z[start : start + chunk])
            for start in range(0, len(z), chunk)
        ]
        return jnp.concatenate(parts)

    @functools.cached_property
    def _decode(self) -> Callable:
        def decode(params, frozen, z):
            model = self.structure.merge(params, frozen)
            video = isinstance(model.decoder, VideoDecoder)
            return model.decode(z, num_frames=len(z) if video else None)

        return jit(decode)

    @property
    def factor(self) -> int:
        """What height and width in pixels must be divisible by."""
        return self.structure.shape.factor


def _frames(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[-3:])


def _reconstruct(
    model: Autoencoder, x: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, DiagonalGaussian]:
    """Images (n, h, w, 3) or clips (b, t, h, w, 3) there and back."""
    posterior = DiagonalGaussian.of(model.encode(_frames(x)))
    z = posterior.mode() if key is None else posterior.sample(key)
    video = isinstance(model.decoder, VideoDecoder)
    num_frames = (x.shape[1] if x.ndim == 5 else 1) if video else None
    return model.decode(z, num_frames=num_frames).reshape(x.shape), posterior
