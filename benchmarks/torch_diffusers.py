"""The diffusers side of benchmarks.diffusers_parity: real classes, fed with what this project writes.

.bench-venv/bin/python -m benchmarks.torch_diffusers names CONFIGS.json NAMES.json
.bench-venv/bin/python -m benchmarks.torch_diffusers pictures FOLDER INPUTS.npz OUTPUTS.npz
.bench-venv/bin/python -m benchmarks.torch_diffusers videos FOLDER INPUTS.npz OUTPUTS.npz
"""

import json
import sys
import warnings
from collections.abc import Callable

import diffusers
import numpy as np
import torch
import transformers

warnings.simplefilter('ignore')


def names(configs: dict) -> dict:
    """Names and shapes of the class of each config.json, as the published folders have them."""
    found = {}
    for part, config in configs.items():
        with torch.device('meta'):
            if '_class_name' in config:
                module = getattr(diffusers, config['_class_name']).from_config(config)
            else:
                kind = getattr(transformers, config['architectures'][0])
                module = kind(kind.config_class.from_dict(config))
        tensors = {k: list(v.shape) for k, v in module.state_dict().items()}
        if isinstance(module, transformers.CLIPTextModel):
            # Since version 5 without the prefix, which it still reads.
            tensors = {f'text_model.{k.removeprefix("text_model.")}': v for k, v in tensors.items()}
        found[part] = {k: v for k, v in tensors.items() if not k.endswith('position_ids')}
    return found


def pictures(folder: str, x: dict) -> dict:
    """What the parts of a StableDiffusionXLPipeline make of given inputs."""
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(folder)
    found = {
        'unet': pipeline.unet(
            x['latents'],
            x['timesteps'],
            x['context'],
            added_cond_kwargs={'text_embeds': x['pooled'], 'time_ids': x['time_ids']},
        ).sample,
        'moments': pipeline.vae.encode(x['images']).latent_dist.parameters,
        'decoded': pipeline.vae.decode(x['latents']).sample,
    }
    first = pipeline.text_encoder(x['tokens'], output_hidden_states=True)
    second = pipeline.text_encoder_2(x['tokens'], output_hidden_states=True)
    # SDXL is told the layer before the last of each, and the second one's vector.
    return found | {
        'text_1': first.hidden_states[-2],
        'text_2': second.hidden_states[-2],
        'text_2_pooled': second.text_embeds,
    }


def videos(folder: str, x: dict) -> dict:
    """What the parts of a StableVideoDiffusionPipeline make of given inputs, clips (b, t, c, h, w)."""
    pipeline = diffusers.StableVideoDiffusionPipeline.from_pretrained(folder)
    count = x['latents'].shape[1]
    return {
        'unet': pipeline.unet(
            x['latents'], x['timesteps'], x['context'], added_time_ids=x['time_ids']
        ).sample,
        'moments': pipeline.vae.encode(x['images']).latent_dist.parameters,
        'decoded': pipeline.vae.decode(
            x['latents'][:, :, :4].flatten(0, 1), num_frames=count
        ).sample,
        'image': pipeline.image_encoder(x['pixels']).image_embeds,
    }


@torch.no_grad()
def outputs(compute: Callable, folder: str, given: dict) -> dict:
    """`compute` on numpy arrays."""
    found = compute(folder, {name: torch.from_numpy(array) for name, array in given.items()})
    return {name: array.numpy() for name, array in found.items()}


def main() -> None:
    """Answers one question, in a file."""
    what, *paths = sys.argv[1:]
    if what == 'names':
        with open(paths[0]) as source, open(paths[1], 'w') as target:
            models = json.load(source)
            json.dump({model: names(configs) for model, configs in models.items()}, target)
    else:
        with np.load(paths[1]) as npz:
            compute = {'pictures': pictures, 'videos': videos}[what]
            np.savez(paths[2], **outputs(compute, paths[0], dict(npz)))


if __name__ == '__main__':
    main()
