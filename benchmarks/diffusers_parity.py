"""What this project writes for diffusers, held against diffusers itself.

.venv/bin/python -m benchmarks.diffusers_parity [--peer-python .bench-venv/bin/python] [--manifests]

1. Names: the real classes of diffusers and transformers, made without memory from the config.json files
   that are written for the published models' shapes, have exactly the tensors that are written.
2. Numbers: a tiny SDXL, written as a folder, is loaded by StableDiffusionXLPipeline. Its U-Net, autoencoder
   and text encoders are compared with this project's, on the same inputs.

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

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tests'))

import golden  # noqa: E402 (of the tests' folder)

from sgm_jax.interop import from_sgm, to_sgm, write_diffusers  # noqa: E402
from sgm_jax.interop.diffusers_files import plan  # noqa: E402
from sgm_jax.interop.targets import TARGETS, make  # noqa: E402
from sgm_jax.interop.tensors import Lazy, Tensors  # noqa: E402

PUBLISHED = ('sd_xl_base', 'sd_xl_refiner', 'sd_2_1', 'svd')
TOLERANCE = 1e-4
_SGM = 'sgm.modules.'
UNET = (
    f'{_SGM}diffusionmodules.openaimodel.UNetModel',
    {
        'in_channels': 4,
        'out_channels': 4,
        'model_channels': 32,
        'channel_mult': [1, 2],
        'num_res_blocks': 2,
        'attention_resolutions': [2],
        'transformer_depth': [1, 2],
        'num_head_channels': 32,
        'context_dim': 96,
        'use_linear_in_transformer': True,
        'num_classes': 'sequential',
        'adm_in_channels': 64 + 6 * 8,
    },
)
STAGE = (
    'sgm.models.autoencoder.AutoencoderKL',
    {
        'embed_dim': 4,
        'ddconfig': {
            'z_channels': 4,
            'in_channels': 3,
            'out_ch': 3,
            'ch': 32,
            'ch_mult': [1, 2],
            'num_res_blocks': 1,
            'attn_resolutions': [],
            'double_z': True,
            'resolution': 16,
        },
    },
)
TEXTS = (
    f'{_SGM}encoders.modules.FrozenCLIPEmbedder',
    f'{_SGM}encoders.modules.FrozenOpenCLIPEmbedder2',
)
PREFIXES = ('model.diffusion_model.', 'first_stage_model.')
WORDS, LAYERS = 60, 3


def names(peer: str, folder: Path, keep: bool) -> bool:
    """Whether the published models' names are those of the real classes."""
    written = {}
    for model in PUBLISHED:
        lazies = {
            k: Lazy(tuple(s), np.dtype(np.float32), None) for k, s in golden.manifest(model).items()
        }
        written[model] = {
            p.folder: (found, config) for p, found, config in plan(Tensors(lazies))[1]
        }
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
            print(
                f'{model:14}{part:16}{len(ours):5} tensors: {"the same" if equal else "NOT the same"}'
            )
            same &= equal
        if keep:
            text = json.dumps(real[model], separators=(',', ':')).encode()
            path = golden.MANIFESTS / f'diffusers_{model}.json.gz'
            path.write_bytes(gzip.compress(text, 9, mtime=0))
    return same


def tiny() -> dict[str, np.ndarray]:
    """A whole small SDXL, made from its names."""
    shapes = {}
    for (target, params), prefix in zip((UNET, STAGE), PREFIXES, strict=True):
        shapes |= {prefix + name: x.shape for name, x in to_sgm(make(target, params)).items()}
    for name, shape in golden.manifest('sd_xl_base').items():
        if not name.startswith('conditioner.') or layer_of(name) >= LAYERS:
            continue
        # A 24th of CLIP-L's width is 32, a 20th of bigG's is 64.
        by = 24 if '.0.transformer.' in name else 20
        sizes = {49408: WORDS, 77: 77}
        shapes[name] = tuple(sizes.get(n, n // by) for n in shape)
    return {name: golden.generate(name, shape) for name, shape in shapes.items()}


def layer_of(name: str) -> int:
    """The number of the layer that a tensor of a text encoder is in, or -1."""
    return next((int(part) for part in name.split('.')[3:] if part.isdigit()), -1)


def inputs() -> dict[str, np.ndarray]:
    """In PyTorch's layouts."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
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


def numbers(peer: str, folder: Path) -> bool:
    """Whether a tiny SDXL computes the same there and here."""
    weights, given = tiny(), inputs()
    hints = dict(num_head_channels=32, text_head_width=16, sample_size=8)
    write_diffusers(folder / 'sdxl', weights, hints=hints)
    np.savez(folder / 'inputs.npz', **given)
    ask(peer, 'outputs', folder / 'sdxl', folder / 'inputs.npz', folder / 'outputs.npz')
    with np.load(folder / 'outputs.npz') as npz:
        theirs = dict(npz)
    ours, same = outputs(weights, given), True
    for name, array in theirs.items():
        if name not in ours:
            print(f'{name:14} not compared: its target is not among those of from_sgm')
            continue
        error = np.abs(ours[name] - array).max() / np.abs(array).max()
        print(f'{name:14} largest difference {error:.1e} of the largest value')
        same &= bool(error < TOLERANCE)
    return same


def outputs(weights: dict, given: dict) -> dict[str, np.ndarray]:
    """Those of this project's modules, in PyTorch's layouts."""
    from sgm_jax.networks.layers import timestep_embedding

    part = lambda prefix: {
        k.removeprefix(prefix): x for k, x in weights.items() if k.startswith(prefix)
    }
    last, first = lambda x: np.moveaxis(x, 1, -1), lambda x: np.moveaxis(np.asarray(x), -1, 1)
    unet = from_sgm(*UNET, part(PREFIXES[0]))
    stage = from_sgm(*STAGE, part(PREFIXES[1]))
    told = np.asarray(timestep_embedding(given['time_ids'].reshape(-1), 8)).reshape(2, -1)
    vector = np.concatenate([given['pooled'], told], -1)
    latents = last(given['latents'])
    found = {
        'unet': first(unet(latents, given['timesteps'], given['context'], vector)),
        'moments': first(stage.encode(last(given['images']))),
        'decoded': first(stage.decode(latents)),
    }
    if all(target in TARGETS for target in TEXTS):
        found |= texts(part, given['tokens'])
    return found


def texts(part, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The text encoders', on tokens."""
    first = from_sgm(
        TEXTS[0], {'layer': 'hidden', 'layer_idx': -2}, part('conditioner.embedders.0.')
    )
    second = from_sgm(TEXTS[1], {'layer': 'penultimate'}, part('conditioner.embedders.1.'))
    hidden, pooled = second(tokens)
    return {'text_1': first(tokens), 'text_2': hidden, 'text_2_pooled': pooled}


def ask(peer: str, *words: object) -> None:
    """Runs the side of diffusers."""
    command = [peer, '-m', 'benchmarks.torch_diffusers', *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


def main() -> int:
    """Runs both comparisons; 1 if something is not the same."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--peer-python', default=str(ROOT / '.bench-venv' / 'bin' / 'python'))
    parser.add_argument('--manifests', action='store_true', help='write tests/manifests')
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        same = names(flags.peer_python, Path(folder), flags.manifests)
        return 0 if numbers(flags.peer_python, Path(folder)) and same else 1


if __name__ == '__main__':
    sys.exit(main())
