"""The other player of an adversarial training: a discriminator, and what the two make of each other."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from sgm_jax.config import call, plain
from sgm_jax.engines.objectives import DISC_LOSSES, LPIPSWithDiscriminator
from sgm_jax.engines.structure import PyTree, Structure
from sgm_jax.networks.discriminator import NLayerDiscriminator
from sgm_jax.networks.layers import Keys


@flax.struct.dataclass
class Discriminator:
    """What a discriminator is made of: its parameters, and the statistics that its norms keep."""

    params: PyTree
    statistics: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adversary:
    """The discriminator's structure, and the losses of both players. Holds no arrays."""

    objective: LPIPSWithDiscriminator
    structure: Structure

    @classmethod
    def of(cls, objective: LPIPSWithDiscriminator) -> 'Adversary':
        """The adversary that an objective asks for."""
        node = plain(objective.discriminator)

        def build(keys: Keys) -> nnx.Module:
            return call(NLayerDiscriminator, node, where='model.loss.discriminator', rngs=keys)

        return cls(objective=objective, structure=Structure(build=build))

    def init(self, key: jax.Array) -> Discriminator:
        """A fresh discriminator; traceable."""
        return Discriminator(*self.structure.init(key))

    def logits(self, player: Discriminator, x: jax.Array) -> jax.Array:
        """Of pictures (n, h, w, 3), by the running statistics: (n, h', w', 1)."""
        return self.structure.merge(player.params, player.statistics)(x)

    def fooled(
        self, player: Discriminator, fake: jax.Array
    ) -> tuple[jax.Array, jax.Array, Discriminator]:
        """The generator's loss, its gradient by the pictures, and the discriminator after it looked."""

        def loss(fake):
            logits, after = self._look(player.params, player.statistics, fake)
            return -logits.mean(), after

        (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(fake)
        return value, gradient, after

    def judged(
        self, player: Discriminator, real: jax.Array, fake: jax.Array
    ) -> tuple[PyTree, Discriminator, dict[str, jax.Array]]:
        """The gradient of the discriminator's loss, the discriminator after it looked, and what to log."""

        def loss(params):
            logits_real, seen = self._look(params, player.statistics, real)
            logits_fake, after = self._look(
                _moved(params, seen.params), seen.statistics, jax.lax.stop_gradient(fake)
            )
            value = DISC_LOSSES[self.objective.disc_loss](logits_real, logits_fake)
            logs = {'logits/real': logits_real.mean(), 'logits/fake': logits_fake.mean()}
            return self.objective.disc_factor * value, (after, logs)

        (value, (after, logs)), gradients = jax.value_and_grad(loss, has_aux=True)(player.params)
        return gradients, after, {'loss/disc': value, **logs}

    def _look(self, params: PyTree, statistics: PyTree, x: jax.Array) -> tuple[Any, Discriminator]:
        """Logits in training, and what the norms then keep (an ActNorm's parameters, the first time)."""
        network = self.structure.merge(params, statistics)
        logits = network(x, train=True)
        after = Discriminator(*self.structure.split(network)[1:])
        return logits, jax.tree.map(jax.lax.stop_gradient, after)


def _moved(params: PyTree, to: PyTree) -> PyTree:
    """The values of `to`, with the derivatives of `params`."""
    return jax.tree.map(lambda x, y: x + jax.lax.stop_gradient(y - x), params, to)


def adaptive_weight(nll_gradient: jax.Array, g_gradient: jax.Array) -> jax.Array:
    """How many times the second gradient goes into the first. Source: VQGAN, equation 7."""
    norm = lambda x: jnp.sqrt(jnp.square(x).sum())
    return jnp.clip(norm(nll_gradient) / (norm(g_gradient) + 1e-4), 0.0, 1e4)
