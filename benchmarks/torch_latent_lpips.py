"""Losses between latents in PyTorch: what tests/test_latent_lpips.py compares with.

.bench-venv/bin/python -m benchmarks.torch_latent_lpips > tests/goldens/latent_lpips.json

Written from what sgm's LatentLPIPS does, around the decoder and the LPIPS of torch_gan_steps.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.torch_gan_steps import Decoder, lpips

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
from gan_case import CASE, LATENT_CASES, latents, parameters


def main() -> None:
    first = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1)).contiguous()
    tensors = lambda values: {k: torch.from_numpy(np.asarray(v)) for k, v in values.items()}
    decoder = Decoder(CASE['ch'], CASE['z_channels'])
    shapes = {k: list(v.shape) for k, v in decoder.state_dict().items()}
    decoder.load_state_dict(tensors(parameters(shapes)))
    weights = tensors(parameters(CASE['lpips_shapes']))
    weights = {k: v.abs() if k.startswith('lin') else v for k, v in weights.items()}
    resize = lambda x, to: F.interpolate(x, to.shape[2:], mode='bicubic', antialias=True)
    found = {}
    for name, (options, size) in LATENT_CASES.items():
        z, predicted, x = map(first, latents(size))
        predicted.requires_grad_()
        decoded = decoder(predicted)
        loss = options.get('latent_weight', 1.0) * ((z - predicted) ** 2).mean()
        perceptual = lpips(weights, decoder(z), decoded).mean()
        loss = loss + options.get('perceptual_weight', 1.0) * perceptual
        values = {'perceptual_loss': perceptual}
        if 'perceptual_weight_on_inputs' in options:
            if options.get('scale_input_to_tgt_size'):
                x = resize(x, decoded)
            elif options.get('scale_tgt_to_input_size'):
                decoded = resize(decoded, x)
            on_inputs = lpips(weights, x, decoded).mean()
            loss = loss + options['perceptual_weight_on_inputs'] * on_inputs
            values['perceptual_loss_on_inputs'] = on_inputs
        (gradient,) = torch.autograd.grad(loss, predicted)
        values |= {'loss': loss, 'gradient_norm': gradient.norm(), 'gradient': gradient[1, 2, 3, 4]}
        found[name] = {key: float(value.detach()) for key, value in values.items()}
    print(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
