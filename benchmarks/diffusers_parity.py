"""What this project writes for diffusers, held against diffusers itself.

.venv/bin/python -m benchmarks.diffusers_parity [--peer-python .bench-venv/bin/python] [--manifests]

1. Names: the real classes of diffusers and transformers, made without memory from the config.json files
   that are written for the published models' shapes, have exactly the tensors that are written.
2. Numbers: a tiny SDXL and a tiny Stable Video Diffusion, written as folders, are loaded by their pipelines,
   whose networks, autoencoders and encoders are compared with this project's on the same inputs.

With --manifests the names of 1. are written to tests/manifests, where the tests read them.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import tiny_models
from benchmarks.tiny_models import FRAME, FRAMES, IMAGE, NETWORK, SDXL, STAGE, SVD, WORDS, golden
from sgm_jax.interop import from_sgm, write_diffusers
from sgm_jax.interop.diffusers_files import plan
from sgm_jax.interop.targets import TARGETS
from sgm_jax.interop.tensors import Lazy, Tensors
from sgm_jax.networks.layers import timestep_embedding

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ('sd_xl_base', 'sd_xl_refiner', 'sd_2_1', 'svd')
TOLERANCE = 1e-4
HINTS = dict(
    num_head_channels=32,
    text_head_width=tiny_models.HEAD,
    vision_head_width=tiny_models.HEAD,
    sample_size=8,
    num_frames=FRAMES,
)


def names(peer: str, folder: Path, keep: bool) -> bool:
    """Whether the published models' names are those of the real classes."""
    written = {}
    for model in PUBLISHED:
        shapes = golden.manifest(model)
        lazies = {k: Lazy(tuple(s), np.dtype(np.float32), None) for k, s in shapes.items()}
        parts = plan(Tensors(lazies))[1]
        written[model] = {part.folder: (found, config) for part, found, config in parts}
    configs = {
        model: {part: config for part, (_, config) in parts.items()}
        for model, parts in written.items()
    }
    (folder / 'configs.json').write_text(json.dumps(configs))
    ask(peer, 'names', folder / 'configs.json', folder / 'names.json')
    real = json.loads((folder / 'names.json').read_text())
    same = True
    for model, parts in written.items():
        for part, (found, _) in parts.items():
            ours = {name: list(lazy.shape) for name, lazy in found.items()}
            equal = ours == real[model][part]
            said = 'the same' if equal else 'NOT the same'
            print(f'{model:14}{part:16}{len(ours):5} tensors: {said}')
            same &= equal
        if keep:
            text = json.dumps(real[model], separators=(',', ':')).encode()
            path = golden.MANIFESTS / f'diffusers_{model}.json.gz'
            path.write_bytes(gzip.compress(text, 9, mtime=0))
    return same


def numbers(peer: str, folder: Path, model: dict) -> bool:
    """Whether a tiny model computes the same there and here."""
    kind, compute = ('pictures', pictures) if model is SDXL else ('videos', videos)
    weights, given = tiny_models.weights(model), inputs(kind)
    write_diffusers(folder / kind, weights, hints=HINTS)
    np.savez(folder / 'inputs.npz', **given)
    ask(peer, kind, folder / kind, folder / 'inputs.npz', folder / 'outputs.npz')
    with np.load(folder / 'outputs.npz') as npz:
        theirs = dict(npz)
    ours, same = compute(weights, given), True
    for name, array in theirs.items():
        if name not in ours:
            print(f'{kind:10}{name:14} not compared: its target is not among those of from_sgm')
            continue
        error = np.abs(ours[name].reshape(array.shape) - array).max() / np.abs(array).max()
        print(f'{kind:10}{name:14} largest difference {error:.1e} of the largest value')
        same &= bool(error < TOLERANCE)
    return same


def inputs(kind: str) -> dict[str, np.ndarray]:
    """In PyTorch's layouts."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    if kind == 'videos':
        return {
            'latents': normal(2, FRAMES, 8, 8, 8),
            'timesteps': np.array([0.3, -0.7], np.float32),
            'context': normal(2, 1, 24),
            'time_ids': np.array([[6, 127, 0.02], [24, 3, 0.1]], np.float32),
            'images': normal(2, 3, 16, 16),
            'pixels': normal(2, 3, 32, 32),
        }
    tokens = rng.integers(1, WORDS - 2, (2, 77))
    tokens[:, 0], tokens[:, 12:] = WORDS - 2, WORDS - 1
    return {
        'latents': normal(2, 4, 8, 8),
        'timesteps': np.array([7, 801]),
        'context': normal(2, 5, 96),
        'pooled': normal(2, 64),
        'time_ids': np.array([[64, 48, 0, 3, 64, 64], [32, 32, 1, 0, 16, 64]], np.float32),
        'images': normal(2, 3, 16, 16),
        'tokens': tokens,
    }


def pictures(weights: dict, given: dict) -> dict[str, np.ndarray]:
    """Of a tiny SDXL."""
    unet = from_sgm(*SDXL[NETWORK], part(weights, NETWORK))
    stage = from_sgm(*SDXL[STAGE], part(weights, STAGE))
    latents = last(given['latents'])
    vector = np.concatenate([given['pooled'], embedded(given['time_ids'])], -1)
    found = {
        'unet': first(unet(latents, given['timesteps'], given['context'], vector)),
        'moments': first(stage.encode(last(given['images']))),
        'decoded': first(stage.decode(latents)),
    }
    targets = tiny_models.TEXT_TARGETS
    if any(target not in TARGETS for target, _ in targets):
        return found
    texts = [
        from_sgm(*target, part(weights, prefix))(given['tokens'])
        for target, prefix in zip(targets, tiny_models.TEXTS, strict=True)
    ]
    found |= dict(text_1=texts[0], text_2=texts[1][0], text_2_pooled=texts[1][1])
    return {name: np.asarray(array) for name, array in found.items()}


def videos(weights: dict, given: dict) -> dict[str, np.ndarray]:
    """Of a tiny Stable Video Diffusion."""
    unet = from_sgm(*SVD[NETWORK], part(weights, NETWORK))
    stage = from_sgm(*SVD[STAGE], part(weights, STAGE))
    frame = from_sgm(*SVD[FRAME], part(weights, FRAME))
    image = from_sgm(*SVD[IMAGE], part(weights, f'{IMAGE}open_clip.'))
    x = last(given['latents'].reshape(-1, *given['latents'].shape[2:]))
    each = lambda array: np.repeat(array, FRAMES, 0)
    told = (given['timesteps'], given['context'], embedded(given['time_ids']))
    return {
        'unet': first(unet(x, *map(each, told), num_frames=FRAMES)),
        'moments': first(frame.encode(last(given['images']))),
        'decoded': first(stage.decode(x[..., :4], num_frames=FRAMES)),
        'image': np.asarray(image.model.visual(last(given['pixels']))),
    }


def part(weights: dict, prefix: str) -> dict:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(prefix): x for k, x in weights.items() if k.startswith(prefix)}


def embedded(numbers: np.ndarray) -> np.ndarray:
    """Numbers (n, k) as eight sines and cosines each."""
    return np.asarray(timestep_embedding(numbers.reshape(-1), 8)).reshape(len(numbers), -1)


def last(x: np.ndarray) -> np.ndarray:
    """Channels first to channels last."""
    return np.moveaxis(x, 1, -1)


def first(x) -> np.ndarray:
    """Channels last to channels first."""
    return np.moveaxis(np.asarray(x), -1, 1)


def ask(peer: str, *words: object) -> None:
    """Runs the side of diffusers."""
    command = [peer, '-m', 'benchmarks.torch_diffusers', *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f'error: {done.stderr.strip().splitlines()[-1]}')


def main() -> int:
    """Runs both comparisons; 1 if something is not the same."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--peer-python', default=str(ROOT / '.bench-venv' / 'bin' / 'python'))
    parser.add_argument('--manifests', action='store_true', help='write tests/manifests')
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        same = [names(flags.peer_python, Path(folder), flags.manifests)]
        same += [numbers(flags.peer_python, Path(folder), model) for model in (SDXL, SVD)]
    return 0 if all(same) else 1


if __name__ == '__main__':
    sys.exit(main())
