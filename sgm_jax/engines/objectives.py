"""What a first stage is trained for: how far reconstructions are from pictures, and who judges them.

An objective says what of these there is; `autoencoding` and `adversary` carry it out.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp

from sgm_jax.config import lookup
from sgm_jax.errors import UserError

DISTANCES = {'l1': jnp.abs, 'l2': jnp.square}
Logs = dict[str, jax.Array]


class Objective(Protocol):
    """What an engine asks of an objective.

    Attributes:
      regularization_weights: by the names of the regularizer's losses.
      perceptual_weight: of LPIPS; with 0 its network is not even there.
      perceptual_start: the step from which on LPIPS counts; until then it costs nothing.
      learn_logvar: whether the log-variance of pixels is a parameter, which begins at `logvar_init`.
    """

    regularization_weights: Mapping[str, float]
    perceptual_weight: float
    perceptual_start: int
    learn_logvar: bool
    logvar_init: float

    def distance(
        self, x: jax.Array, rec: jax.Array, logvar: jax.Array, perceptual: jax.Array
    ) -> tuple[jax.Array, Logs]:
        """The loss of reconstructions (n, h, w, 3), whose LPIPS distances are (n,), and what to log."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """The mean distance per value, without an adversary.

    A small weight of the divergence (`kl_loss`, in nats per picture) only bounds the latents. Source: Rombach
    et al. 2022 (arXiv:2112.10752), section 3.1.
    """

    kind: str = 'l1'
    perceptual_weight: float = 0.0
    perceptual_start: int = 0
    regularization_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    learn_logvar = False
    logvar_init = 0.0

    def __post_init__(self):
        lookup(DISTANCES, self.kind, 'model.loss.kind')

    def distance(
        self, x: jax.Array, rec: jax.Array, logvar: jax.Array, perceptual: jax.Array
    ) -> tuple[jax.Array, Logs]:
        """The mean distance, with LPIPS's added."""
        loss = DISTANCES[self.kind](rec - x).mean() + self.perceptual_weight * perceptual.mean()
        return loss, {'loss/rec': loss}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LPIPSWithDiscriminator:
    """l1 and LPIPS under a Laplacian of learnable scale, a patch discriminator, and regularization.

    Follows sgm's GeneralLPIPSWithDiscriminator. Sources: Esser et al. 2021 (VQGAN, arXiv:2012.09841), section
    3.1 and equation 7 (the adaptive weight); Rombach et al. 2022 (arXiv:2112.10752), appendix G.

    Attributes:
      disc_start: the step from which on the discriminator learns and its judgement counts.
      perceptual_start: the step from which on LPIPS counts (ours; 0 as in sgm). Colours and outlines come
        sooner without it, and at half the cost.
      disc_weight: of the adversarial part beside the rest, measured by gradients at the last layer.
      disc_factor: times that.
      disc_loss: 'hinge' or 'vanilla'.
      alternate: the two learn by turns, a batch each, as in sgm; otherwise both from every batch.
      discriminator: `ndf`, `n_layers`, `use_actnorm` of an NLayerDiscriminator.
      scale_input_to_tgt_size: pictures are resized to their reconstructions, should these be of another size.
      additional_log_keys: of the regularizer, to be logged besides those that have a weight.
    """

    disc_start: int
    logvar_init: float = 0.0
    disc_factor: float = 1.0
    disc_weight: float = 1.0
    perceptual_weight: float = 1.0
    perceptual_start: int = 0
    disc_loss: str = 'hinge'
    scale_input_to_tgt_size: bool = False
    learn_logvar: bool = False
    regularization_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    additional_log_keys: tuple[str, ...] = ()
    alternate: bool = True
    discriminator: Mapping = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        lookup(DISC_LOSSES, self.disc_loss, 'model.loss.disc_loss')
        if self.disc_start < 0:
            raise UserError(f'model.loss.disc_start is {self.disc_start}; give 0 or more')
        if self.perceptual_start > self.disc_start:
            raise UserError(
                f'model.loss.perceptual_start is {self.perceptual_start}, after disc_start='
                f'{self.disc_start}; LPIPS comes first'
            )

    def distance(
        self, x: jax.Array, rec: jax.Array, logvar: jax.Array, perceptual: jax.Array
    ) -> tuple[jax.Array, Logs]:
        """The negative log-likelihood per picture: summed over its values."""
        rec_loss = jnp.abs(x - rec) + self.perceptual_weight * perceptual[:, None, None, None]
        nll = (rec_loss / jnp.exp(logvar) + logvar).sum() / len(x)
        return nll, {'loss/nll': nll, 'loss/rec': rec_loss.mean(), 'scalars/logvar': logvar}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentLPIPS:
    """How far latents are from others: as they are, and as the pictures that a decoder makes of them.

    Follows sgm's LatentLPIPS, with the decoder and LPIPS given as functions; there the latents' own distance
    goes unweighted, and without a mean, where `perceptual_weight` is 0.

    Attributes:
      perceptual_weight: of LPIPS between the two decoded ones; with 0 the targets are not decoded.
      latent_weight: of the mean squared distance between latents.
      perceptual_weight_on_inputs: of LPIPS between the pictures themselves and the decoded predictions.
      scale_input_to_tgt_size: for that, pictures are resized to what is decoded, should the sizes differ.
      scale_tgt_to_input_size: or the other way round.
    """

    perceptual_weight: float = 1.0
    latent_weight: float = 1.0
    scale_input_to_tgt_size: bool = False
    scale_tgt_to_input_size: bool = False
    perceptual_weight_on_inputs: float = 0.0

    def __call__(
        self,
        latents: jax.Array,
        predictions: jax.Array,
        images: jax.Array,
        *,
        decode: Callable[[jax.Array], jax.Array],
        lpips: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> tuple[jax.Array, Logs]:
        """The loss of predicted latents, and what to log, under sgm's names.

        Args:
          latents, predictions: (n, h, w, c).
          images: what the latents are of, (n, H, W, 3) in [-1, 1].
          decode: latents to images (n, f h, f w, 3).
          lpips: two batches of images to their distances (n,).
        """
        distance = jnp.square(latents - predictions).mean()
        loss, logs = self.latent_weight * distance, {'latent_l2_loss': distance}
        if self.perceptual_weight or self.perceptual_weight_on_inputs:
            decoded = decode(predictions)
        if self.perceptual_weight:
            logs['perceptual_loss'] = lpips(decode(latents), decoded).mean()
            loss = loss + self.perceptual_weight * logs['perceptual_loss']
        if self.perceptual_weight_on_inputs:
            if self.scale_input_to_tgt_size:
                images = resized(images, decoded)
            elif self.scale_tgt_to_input_size:
                decoded = resized(decoded, images)
            logs['perceptual_loss_on_inputs'] = lpips(images, decoded).mean()
            loss = loss + self.perceptual_weight_on_inputs * logs['perceptual_loss_on_inputs']
        return loss, logs


def resized(x: jax.Array, like: jax.Array) -> jax.Array:
    """Pictures (n, h, w, c) at the height and width of others: bicubic, antialiased."""
    if x.shape[1:3] == like.shape[1:3]:
        return x
    return jax.image.resize(x, (len(x), *like.shape[1:3], x.shape[-1]), 'cubic')


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's loss: logits beyond 1 and -1 are sure enough. Follows sgm's hinge_d_loss."""
    return 0.5 * (jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean())


def vanilla(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The discriminator's cross entropy. Follows sgm's vanilla_d_loss."""
    return 0.5 * (jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean())


DISC_LOSSES = {'hinge': hinge, 'vanilla': vanilla}
OBJECTIVES = {
    'reconstruction': ReconstructionLoss,
    'lpips_with_discriminator': LPIPSWithDiscriminator,
}
