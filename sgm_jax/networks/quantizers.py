"""Vector quantisation: a codebook between encoder and decoder. Follows sgm's regularizers/quantize.py.

All three quantizers are called alike: `quantizer(z, key=None, *, train=False) -> (z_q, logs)`. z is
(..., channels), z_q holds an entry of the codebook for each of its vectors and passes gradients on to z,
and logs has

- the loss, a scalar, under `loss_key` (by default 'loss/vq'): for the caller to weight;
- 'min_encoding_indices', int32 (...): the entries' numbers, or their places in `remap`;
- 'perplexity', a scalar: as many codes, used equally often, would be as hard to guess as these are;
- 'cluster_usage', an int32 scalar: how many codes occur at all.

All is computed in float32, whatever z is.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import stop_gradient

from sgm_jax.networks.layers import Buffer, Keys, Statistic, conv

# A TPU multiplies float32 in bfloat16 unless told otherwise: close codes would be mistaken for each other.
_EXACT = jax.lax.Precision.HIGHEST


def nearest(z: jax.Array, codes: jax.Array) -> jax.Array:
    """The row of `codes` (n, d) that is nearest to each vector of z (..., d): int32 (...)."""
    # |z - e|^2 / 2 without |z|^2 / 2, which is the same for all codes and costs digits.
    products = jnp.einsum('...d,nd->...n', z, codes, precision=_EXACT)
    return jnp.argmin(0.5 * jnp.square(codes).sum(-1) - products, -1).astype(jnp.int32)


def usage(indices: jax.Array, n_e: int) -> jax.Array:
    """How often each of n_e codes occurs among indices of any shape: int32 (n_e,).

    Indices that no code has, such as a remapping's unknown ones, count for none.
    """
    # A negative index would count from the end.
    indices = jnp.where(indices < 0, n_e, indices)
    return jnp.zeros((n_e,), jnp.int32).at[indices].add(1, mode='drop')


def dead_codes(counts: jax.Array | np.ndarray) -> int:
    """How many codes of `usage`'s counts, or of an average of them (n_e,), were never chosen.

    For the host: under jit, count `counts == 0`.
    """
    return int(np.sum(np.asarray(counts) == 0))


def measure_perplexity(counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The perplexity of `usage`'s counts (n_e,), between 1 and n_e, and how many codes occur.

    Follows sgm's measure_perplexity, which takes the indices.
    """
    shares = counts / counts.sum()
    return jnp.exp(-(shares * jnp.log(shares + 1e-10)).sum()), (counts > 0).sum()


def straight_through(value: jax.Array, gradient: jax.Array) -> jax.Array:
    """`value` to the last bit, with the derivatives of `gradient` (Bengio et al. 2013)."""
    return stop_gradient(value) + (gradient - stop_gradient(gradient))


class Codebook(nnx.Module):
    """Codes (n, d), each a row: a torch.nn.Embedding."""

    def __init__(self, codes: jax.Array):
        self.weight = nnx.Param(codes)

    def codes(self) -> jax.Array:
        """The codes, (n, d)."""
        return self.weight[...]


class NormedCodebook(nnx.Module):
    """Codes (n, d) as a length and a direction for each column: torch's weight_norm with dim 1."""

    def __init__(self, codes: jax.Array):
        self.weight_g = nnx.Param(jnp.linalg.norm(codes, axis=0, keepdims=True))
        self.weight_v = nnx.Param(codes)

    def codes(self) -> jax.Array:
        """The codes, (n, d)."""
        v = self.weight_v[...]
        return v * (self.weight_g[...] / jnp.linalg.norm(v, axis=0, keepdims=True))


class AveragedCodebook(nnx.Module):
    """Codes (n, d) that are running averages of the vectors nearest to them.

    Follows sgm's EmbeddingEMA; van den Oord et al. 2017, appendix A.1, whose m is `embed_avg` here
    and whose N is `cluster_size`. As in sgm, N starts at zero: a code that none of the first vectors
    is nearest to divides by next to nothing, and is thrown to where nothing will ever reach it.
    """

    def __init__(self, codes: jax.Array, decay: float, eps: float):
        self.weight = Statistic(codes)
        self.cluster_size = Statistic(jnp.zeros(codes.shape[:1], jnp.float32))
        # A copy: two variables of one array could not both be donated to a training step.
        self.embed_avg = Statistic(jnp.array(codes, copy=True))
        self.decay, self.eps = decay, eps

    def codes(self) -> jax.Array:
        """The codes, (n, d)."""
        return self.weight[...]

    def update(self, z: jax.Array, indices: jax.Array) -> None:
        """Moves the averages, in place, by vectors z (..., d) and the codes (...) they were given."""
        z, indices = z.reshape(-1, z.shape[-1]), indices.reshape(-1)
        n = self.cluster_size.shape[0]
        average = lambda old, new: self.decay * old + (1 - self.decay) * new
        sizes = average(self.cluster_size[...], usage(indices, n))
        sums = average(self.embed_avg[...], jax.ops.segment_sum(z, indices, n))
        total = sizes.sum()
        # Laplace smoothing: no code, however rare, is divided by zero.
        smoothed = (sizes + self.eps) / (total + n * self.eps) * total
        self.cluster_size[...] = sizes
        self.embed_avg[...] = sums
        self.weight[...] = sums / smoothed[:, None]


class Quantizer(nnx.Module):
    """What the quantizers share: the numbering of the codes, and what they log.

    With `remap`, indices are places in a list of the codes that are used: the path of a .npy file, or
    the (m,) integers themselves. A code that is not in it becomes `unknown_index`: an integer, 'extra'
    (m), or 'random' (any of the list; this needs a key).

    Raises:
      ValueError: an unknown_index that is none of these, or a list that is not of codes.
    """

    def __init__(
        self,
        size: int,
        width: int,
        remap: str | pathlib.Path | Sequence[int] | np.ndarray | jax.Array | None,
        unknown_index: str | int,
        loss_key: str,
    ):
        self.size, self.width, self.loss_key = size, width, loss_key
        self.used = None if remap is None else Buffer(jnp.asarray(_used(remap, size)))
        self.re_embed = size if self.used is None else self.used.shape[0]
        if isinstance(unknown_index, bool) or not (
            isinstance(unknown_index, int) or unknown_index in ('random', 'extra')
        ):
            raise ValueError(
                f"unknown_index must be 'random', 'extra' or an integer, got {unknown_index!r}"
            )
        self.unknown_index = self.re_embed if unknown_index == 'extra' else unknown_index
        self.re_embed += unknown_index == 'extra'

    def codes(self) -> jax.Array:
        """The codebook, (n, d)."""
        return self.embedding.codes()

    def remap_to_used(self, indices: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Codes (...) to their places in the list of used ones, and unknown ones to `unknown_index`.

        Raises:
          ValueError: there is no such list, or unknown codes are to be random and there is no key.
        """
        used = self._list()
        count = used.shape[0]
        places = jnp.full((self.size,), count, jnp.int32)
        places = places.at[used].min(jnp.arange(count, dtype=jnp.int32))[indices]
        unknown = self.unknown_index
        if unknown == 'random':
            if key is None:
                raise ValueError(
                    "unknown_index 'random' draws a code for each unknown one: give a key, or "
                    "another unknown_index ('extra' or an integer)"
                )
            unknown = jax.random.randint(key, indices.shape, 0, count, jnp.int32)
        return jnp.where(places == count, unknown, places)

    def unmap_to_all(self, indices: jax.Array) -> jax.Array:
        """Places (...) in the list of used codes to the codes; what is no place becomes the first.

        Raises:
          ValueError: there is no such list.
        """
        used = self._list()
        known = (indices >= 0) & (indices < used.shape[0])
        return used[jnp.where(known, indices, 0)]

    def get_codebook_entry(self, indices: jax.Array) -> jax.Array:
        """The codes (..., d) of logged indices (...)."""
        indices = indices if self.used is None else self.unmap_to_all(indices)
        return self.codes()[indices]

    def _list(self) -> jax.Array:
        if self.used is None:
            raise ValueError('there is no list of used codes: give the quantizer one as `remap`')
        return self.used[...]

    def _vectors(self, z: jax.Array, width: int) -> jax.Array:
        if z.shape[-1] != width:
            raise ValueError(
                f'{type(self).__name__} takes vectors of {width} channels, got {z.shape[-1]}'
            )
        return z.astype(jnp.float32)

    def _logs(self, loss: jax.Array, indices: jax.Array, logged: jax.Array) -> dict[str, jax.Array]:
        # `indices` are the codes', `logged` those that leave: places in the list, if there is one.
        perplexity, codes = measure_perplexity(usage(indices, self.size))
        return {
            self.loss_key: loss,
            'perplexity': perplexity,
            'cluster_usage': codes,
            'min_encoding_indices': logged,
        }

    def _remapped(self, indices: jax.Array, key: jax.Array | None) -> jax.Array:
        return indices if self.used is None else self.remap_to_used(indices, key)


def _used(remap, size: int) -> np.ndarray:
    """The list of used codes, int32 (m,), from a file or an array."""
    is_path = isinstance(remap, str | pathlib.Path)
    name = f'remap {str(remap)!r}' if is_path else 'remap'
    try:
        used = np.asarray(np.load(remap, allow_pickle=False) if is_path else remap)
    except (OSError, ValueError) as error:
        raise ValueError(f'{name}: needs a .npy file of integers; {error}') from error
    if used.ndim != 1 or not used.size or not np.issubdtype(used.dtype, np.integer):
        raise ValueError(
            f'{name}: needs integers of shape (m,), got {used.dtype} of shape {used.shape}'
        )
    if used.min() < 0 or used.max() >= size:
        raise ValueError(
            f'{name}: codes are 0 to {size - 1}, and this list has {used.min()} to {used.max()}'
        )
    return used.astype(np.int32)


class VectorQuantizer(Quantizer):
    """The nearest code of a trained codebook. Follows sgm's class of this name, keywords and all.

    The loss is van den Oord et al. 2017, equation 3, without the reconstruction: mean squared
    distances, beta times that which draws z to its code and once that which draws the code to z.

    Args:
      n_e: codes.
      e_dim: channels of a code.
      beta: weight of the commitment of z to its code.
      remap: the codes that are used, and
      unknown_index: what others become: see Quantizer.
      sane_index_shape: nothing here: indices always have the shape of z.
      log_perplexity: nothing here: the perplexity is always logged.
      embedding_weight_norm: whether the columns' lengths are parameters of their own.
      loss_key: what the loss is logged as.

    Calls: z (..., e_dim) -> (z_q (..., e_dim), logs); the key is for unknown_index 'random'.

    Raises:
      ValueError: z has other channels; and as Quantizer does.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        remap: str | pathlib.Path | Sequence[int] | np.ndarray | jax.Array | None = None,
        unknown_index: str | int = 'random',
        sane_index_shape: bool = False,
        log_perplexity: bool = False,
        embedding_weight_norm: bool = False,
        loss_key: str = 'loss/vq',
        *,
        rngs: Keys,
    ):
        key = rngs.params()
        if embedding_weight_norm:
            self.embedding = NormedCodebook(jax.random.normal(key, (n_e, e_dim)))
        else:
            codes = jax.random.uniform(key, (n_e, e_dim), minval=-1 / n_e, maxval=1 / n_e)
            self.embedding = Codebook(codes)
        super().__init__(n_e, e_dim, remap, unknown_index, loss_key)
        self.beta = beta

    def __call__(self, z, key=None, *, train=False):
        z, codes = self._vectors(z, self.width), self.codes()
        indices = nearest(stop_gradient(z), stop_gradient(codes))
        z_q = codes[indices]
        loss = self.beta * jnp.square(stop_gradient(z_q) - z).mean()
        loss += jnp.square(z_q - stop_gradient(z)).mean()
        return straight_through(z_q, z), self._logs(loss, indices, self._remapped(indices, key))


class EMAVectorQuantizer(Quantizer):
    """The nearest code of a codebook that follows the vectors it is given. Follows sgm's class.

    The codes are Statistics, not parameters: with `train` a call quantises with the codes as they are,
    and then moves them in place (AveragedCodebook). The loss is beta times the mean squared distance,
    and draws z to its code.

    Args:
      n_embed: codes.
      embedding_dim: channels of a code.
      beta: weight of the commitment of z to its code.
      decay: how much of the averages a step keeps.
      eps: how much of a vector each code is counted as having, for the division's sake.
      remap: the codes that are used, and
      unknown_index: what others become: see Quantizer.
      loss_key: what the loss is logged as.

    Calls: z (..., embedding_dim) -> (z_q (..., embedding_dim), logs); the key is for unknown_index
      'random'.

    Raises:
      ValueError: z has other channels; and as Quantizer does.
    """

    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        remap: str | pathlib.Path | Sequence[int] | np.ndarray | jax.Array | None = None,
        unknown_index: str | int = 'random',
        loss_key: str = 'loss/vq',
        *,
        rngs: Keys,
    ):
        codes = jax.random.normal(rngs.params(), (n_embed, embedding_dim))
        self.embedding = AveragedCodebook(codes, decay, eps)
        super().__init__(n_embed, embedding_dim, remap, unknown_index, loss_key)
        self.beta = beta

    def __call__(self, z, key=None, *, train=False):
        z, codes = self._vectors(z, self.width), self.codes()
        indices = nearest(stop_gradient(z), codes)
        z_q = stop_gradient(codes[indices])
        loss = self.beta * jnp.square(z_q - z).mean()
        if train:
            self.embedding.update(stop_gradient(z), indices)
        return straight_through(z_q, z), self._logs(loss, indices, self._remapped(indices, key))


class GumbelQuantizer(Quantizer):
    """A code that is drawn by logits of z. Follows sgm's class of this name; Jang et al. 2016.

    With a key the code is a draw, without one it is the likeliest. The loss is `kl_weight` times the
    divergence, in nats and averaged over vectors, of the logits' distribution from the uniform one on
    all n_embed codes. With `remap` only the codes in the list are drawn, so that none is unknown.

    Args:
      num_hiddens: channels of z.
      embedding_dim: channels of a code.
      n_embed: codes.
      straight_through: whether training, too, gives codes of the codebook; else it gives mixtures of
        them, at a temperature.
      kl_weight: weight of the divergence.
      temp_init: the temperature of a call that is given none.
      remap: the codes that are used, and
      unknown_index: what others become in remap_to_used: see Quantizer.
      loss_key: what the loss is logged as.

    Calls: z (..., num_hiddens) -> (z_q (..., embedding_dim), logs); `temperature` may be traced.

    Raises:
      ValueError: z has other channels, or there is no key to train with; and as Quantizer does.
    """

    def __init__(
        self,
        num_hiddens: int,
        embedding_dim: int,
        n_embed: int,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        remap: str | pathlib.Path | Sequence[int] | np.ndarray | jax.Array | None = None,
        unknown_index: str | int = 'random',
        loss_key: str = 'loss/vq',
        *,
        rngs: Keys,
    ):
        self.proj = conv(num_hiddens, n_embed, 1, dtype=jnp.float32, rngs=rngs)
        self.embed = Codebook(jax.random.normal(rngs.params(), (n_embed, embedding_dim)))
        super().__init__(n_embed, embedding_dim, remap, unknown_index, loss_key)
        self.hiddens, self.straight_through = num_hiddens, straight_through
        self.kl_weight, self.temperature = kl_weight, temp_init

    def codes(self) -> jax.Array:
        """The codebook, (n, d)."""
        return self.embed.codes()

    def __call__(self, z, key=None, *, train=False, temperature=None):
        if train and key is None:
            raise ValueError('a GumbelQuantizer trains on random codes: give the call a key')
        z, codes = self._vectors(z, self.hiddens), self.codes()
        # Pixel by pixel the 1x1 convolution is a matrix, which takes z of any shape.
        kernel, bias = self.proj.kernel[...][0, 0], self.proj.bias[...]
        logits = jnp.einsum('...c,cn->...n', z, kernel, precision=_EXACT) + bias
        if self.used is not None:
            logits, codes = logits[..., self.used[...]], codes[self.used[...]]
        temperature = self.temperature if temperature is None else temperature
        noise = 0.0 if key is None else jax.random.gumbel(key, logits.shape)
        weights = jax.nn.softmax((logits + noise) / temperature)
        indices = jnp.argmax(logits + noise, -1).astype(jnp.int32)
        if self.straight_through or not train:
            weights = straight_through(jax.nn.one_hot(indices, codes.shape[0]), weights)
        z_q = jnp.einsum('...n,nd->...d', weights, codes, precision=_EXACT)
        log_q = jax.nn.log_softmax(logits)
        kl = (jnp.exp(log_q) * (log_q + np.log(self.size))).sum(-1)
        # The logits are of the list's codes, if there is one, and so are their indices.
        chosen = indices if self.used is None else self.unmap_to_all(indices)
        return z_q, self._logs(self.kl_weight * kl.mean(), chosen, indices)
