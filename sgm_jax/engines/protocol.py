"""What the training loop needs of an engine."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.struct
import jax
import numpy as np

PyTree = Any


@flax.struct.dataclass
class Players:
    """What learns.

    Attributes:
      params: trainable parameters, float32.
      adversary: of an adversarial training, the discriminator (params and statistics); else None.
    """

    params: PyTree
    adversary: Any = None


@flax.struct.dataclass
class Gradients:
    """What a batch teaches.

    Attributes:
      params: the gradients of the parameters; None if it is not their turn.
      logs: scalars.
      after: of the parameters, those that are set outright (running figures), as a part of their tree.
      adversary: the gradients of the adversary's parameters; None if it is not its turn.
      adversary_after: the adversary as its forward passes left it.
    """

    params: PyTree
    logs: Mapping[str, jax.Array]
    after: PyTree = flax.struct.field(default_factory=dict)
    adversary: PyTree = None
    adversary_after: Any = None


def gradients_of(
    loss: Callable[[PyTree], tuple[jax.Array, Mapping[str, jax.Array]]], params: PyTree
) -> Gradients:
    """Where one loss is all there is."""
    (_, logs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return Gradients(params=gradients, logs=logs)


class Engine(Protocol):
    """The structure of a model and how it learns; holds no arrays.

    Parameters are nested dicts of arrays, in two trees: the trainable ones, and the frozen ones, which are
    never optimised and never in a checkpoint.
    """

    def init(self, key: jax.Array) -> PyTree:
        """Fresh trainable parameters; traceable."""
        ...

    def init_adversary(self, key: jax.Array) -> Any:
        """A fresh adversary, or None; traceable."""
        ...

    def init_frozen(self, key: jax.Array, *, training: bool = True) -> PyTree:
        """The frozen parameters, read from their files; on the host. Raises UserError without a file.

        Without `training`, those alone that encoding, sampling and decoding need.
        """
        ...

    def pretrained(self) -> PyTree | None:
        """Trainable parameters to start from, read from their files on the host; None: from `init`."""
        ...

    def frozen_shapes(self, *, training: bool = True) -> PyTree:
        """Shapes of `init_frozen`, which needs no files."""
        ...

    def check(self, record: Mapping[str, np.ndarray], *, any_length: bool = False) -> None:
        """Raises a UserError if an example (without a batch axis) does not fit the model.

        With `any_length`, also clips of other lengths than the one that is sampled: they can be learned.
        """
        ...

    def prepare(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What of a batch is the host's work, before it goes to the devices: prompts become tokens."""
        ...

    def turn(self, step: int) -> str:
        """Who learns after `step` batches: a name for `gradients`, a compiled step each."""
        ...

    def gradients(
        self,
        turn: str,
        players: Players,
        frozen: PyTree,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> Gradients:
        """What a batch teaches those whose `turn` it is; traceable."""
        ...

    def pictures(
        self,
        params: PyTree,
        frozen: PyTree,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        *,
        players: Players | None = None,
        unguided: bool = False,
    ) -> dict[str, np.ndarray]:
        """What to look at: uint8 images (b, h, w, c) or videos (b, t, h, w, c), by name; on the host.

        `params` are the averaged ones; the `players` of the moment may be shown beside them. `unguided`:
        samples without guidance, too, where there is any.
        """
        ...

    def validate(
        self, params: PyTree, frozen: PyTree, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, float]:
        """Figures of parameters on held-out examples, by name; on the host, the same for the same key."""
        ...

    def encode(self, params: PyTree, frozen: PyTree, images: jax.Array) -> jax.Array:
        """Images (n, h, w, 3) in [-1, 1] to latents."""
        ...

    def decode(
        self, params: PyTree, frozen: PyTree, z: jax.Array, *, chunk: int | None = None
    ) -> jax.Array:
        """Latents to images in about [-1, 1], `chunk` of them at a time."""
        ...

    def latent_rows(self, record: Mapping[str, np.ndarray]) -> int:
        """The height of an example's latents."""
        ...

    @property
    def factor(self) -> int:
        """What height and width in pixels must be divisible by."""
        ...
