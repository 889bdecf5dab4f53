"""What the training loop needs of an engine."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

PyTree = Any


class Engine(Protocol):
    """The structure of a model and how it learns; holds no arrays.

    Parameters are nested dicts of arrays, in two trees: the trainable ones, and the frozen ones, which are
    never optimised and never in a checkpoint.
    """

    def init(self, key: jax.Array) -> PyTree:
        """Fresh trainable parameters; traceable."""
        ...

    def init_frozen(self, key: jax.Array) -> PyTree:
        """The frozen parameters, read from their files; on the host. Raises UserError without a file."""
        ...

    def pretrained(self) -> PyTree | None:
        """Trainable parameters to start from, read from their files on the host; None: from `init`."""
        ...

    def check(self, record: Mapping[str, np.ndarray]) -> None:
        """Raises a UserError if an example (without a batch axis) does not fit the model."""
        ...

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A scalar to minimise and scalars to log; traceable."""
        ...

    def pictures(
        self, params: PyTree, frozen: PyTree, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> dict[str, np.ndarray]:
        """What to look at: uint8 images (b, h, w, c) or videos (b, t, h, w, c), by name; on the host."""
        ...

    def encode(self, params: PyTree, frozen: PyTree, images: jax.Array) -> jax.Array:
        """Images (n, h, w, 3) in [-1, 1] to latents."""
        ...

    def decode(
        self, params: PyTree, frozen: PyTree, z: jax.Array, *, chunk: int | None = None
    ) -> jax.Array:
        """Latents to images in about [-1, 1], `chunk` of them at a time."""
        ...

    @property
    def factor(self) -> int:
        """What height and width in pixels must be divisible by."""
        ...
