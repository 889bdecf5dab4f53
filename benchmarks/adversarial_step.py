"""What the adversary adds to a generator's step of a first stage: against a plain step of the same network.

.venv/bin/python -m benchmarks.adversarial_step

Plain: one value_and_grad of l1 and LPIPS (with the divergence) through encoder and decoder. Adversarial:
the generator's turn, which adds the discriminator's judgement, and the two gradients at the last layer.
Both are compiled with the same options and called by turns in one process; no optimizer, random weights.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from sgm_jax.parallel.host_memory import restart_with_large_pages

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Prints both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=8, help='timed calls of each side')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--size', type=int, default=128)
    flags = parser.parse_args()
    import jax
    import jax.numpy as jnp

    from sgm_jax.config import load_config
    from sgm_jax.engines import build
    from sgm_jax.engines.autoencoding import GENERATOR
    from sgm_jax.parallel.compiler import jit
    from sgm_jax.training.step import first_players

    config = load_config(f'{ROOT / "configs" / "autoencoder_kl_f8.py"}:tiny')
    # The published discriminator, not the small one.
    config.model.loss.update(
        perceptual_start=0, disc_start=0, discriminator={'ndf': 64, 'n_layers': 3}
    )
    engine = build(config)
    players = jax.jit(lambda key: first_players(engine, key))(jax.random.key(0))
    frozen = jax.device_put(engine.init_frozen(jax.random.key(0)))
    shape = (flags.batch, flags.size, flags.size, 3)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
    key = jax.random.key(1)

    def plain_loss(params, frozen, x):
        model = engine.structure.merge(
            {k: v for k, v in params.items() if k != 'loss'}, frozen['autoencoder']
        )
        z, reg = model.regularized(model.encode(x), key)
        rec = model.decode(z)
        lpips = engine._lpips.merge({}, frozen['perceptual'])(x, rec)
        logvar = params['loss']['logvar']
        rec_loss = (
            jnp.abs(x - rec) + engine.objective.perceptual_weight * lpips[:, None, None, None]
        )
        nll = (rec_loss / jnp.exp(logvar) + logvar).sum() / len(x)
        return nll + engine.objective.regularization_weights['kl_loss'] * reg['kl_loss']

    sides = {
        'plain': (jit(jax.value_and_grad(plain_loss)), (players.params, frozen, x)),
        'adversarial': (
            jit(lambda *args: engine.gradients(GENERATOR, *args)),
            (players, frozen, {'jpg': x}, key),
        ),
    }
    for function, arguments in sides.values():
        for _ in range(2):
            jax.block_until_ready(function(*arguments))
    times = {name: [] for name in sides}
    for _ in range(flags.rounds):
        for name, (function, arguments) in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times[name].append(time.perf_counter() - start)
    print(f'generator step, {flags.batch} pictures of {flags.size}x{flags.size}, float32')
    for measure, of in (('least', min), ('median', statistics.median)):
        plain, adversarial = (of(times[name]) for name in sides)
        print(
            f'{measure:7} plain {plain:.3f} s, adversarial {adversarial:.3f} s, '
            f'ratio {adversarial / plain:.2f}'
        )


if __name__ == '__main__':
    restart_with_large_pages()  # as train.py does
    main()
