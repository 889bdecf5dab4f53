"""Muon: of a matrix's momentum the directions alone, all of one length.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon). optax.contrib has it too, with the whole matrix in
each iteration; here it is in the first and the last product only, which takes a quarter of the time.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any

# Of the post's fifth-degree polynomial; five iterations bring singular values to 1 within a third.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class MuonState(NamedTuple):
    """Steps made, () int32, and the momentum."""

    count: jax.Array
    mu: PyTree


def orthogonal(x: jax.Array, *, epsilon: float = 1e-8) -> jax.Array:
    """U V^T of a matrix (m, n) = U S V^T, about: by Newton-Schulz iterations.

    Each is X <- (a + b A + c A^2) X with A = X X^T. Such factors are polynomials of the first A, so they
    commute: the next A is factor A factor, and their product meets X at the end. All but the two products
    with X are of the smaller side squared.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, epsilon=epsilon).T
    # On accelerators the default is fewer bits, whose errors every iteration would raise.
    product = functools.partial(jnp.matmul, precision='highest')
    a, b, c = _COEFFICIENTS
    polynomial = lambda square: a * jnp.eye(len(x)) + b * square + c * product(square, square)

    x = x / (jnp.linalg.norm(x) + epsilon)
    square = product(x, x.T)
    factor = total = polynomial(square)
    for _ in range(_ITERATIONS - 1):
        square = product(product(factor, square), factor)
        factor = polynomial(square)
        total = product(factor, total)
    return product(total, x)


def scale_by_muon(*, beta: float, rms: float | None) -> optax.GradientTransformation:
    """Nesterov's momentum of kernels (..., in, out), read as matrices of what they read by what they give.

    Args:
      beta: of the momentum.
      rms: root mean square of an update's entries, were all its directions there; None for singular values of
        sqrt(max(1, out / in)), which move every layer by about the same part of itself.
    """

    def init(params: PyTree) -> MuonState:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: PyTree, state: MuonState, params: PyTree = None):
        del params
        mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.mu, updates)
        count = optax.safe_increment(state.count)
        # Both parts as if the momentum had been there always.
        now, ahead = 1 - beta**count, 1 - beta ** (count + 1)

        def direction(m, g):
            nesterov = beta * m / ahead + (1 - beta) * g / now
            matrix = nesterov.reshape(-1, nesterov.shape[-1])
            inputs, outputs = matrix.shape
            scale = math.sqrt(max(1.0, outputs / inputs))
            if rms is not None:
                scale = rms * math.sqrt(max(inputs, outputs))
            return scale * orthogonal(matrix).reshape(g.shape)

        return jax.tree.map(direction, mu, updates), MuonState(count, mu)

    return optax.GradientTransformation(init, update)
