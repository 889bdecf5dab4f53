"""Four steps of an adversarial first stage in PyTorch: what tests/test_gan_steps.py compares with.

.bench-venv/bin/python -m benchmarks.torch_gan_steps > tests/goldens/gan_steps.json

Written from the papers and from sgm's behaviour, plainly: two Adams by turns, the adaptive weight by two
calls of autograd. Parameters are made from their names, pictures from a seed, on both sides alike.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests'))
from gan_case import CASE, parameters, pictures


class ResnetBlock(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, i, 1e-6), nn.GroupNorm(32, o, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(i, o, 3, 1, 1), nn.Conv2d(o, o, 3, 1, 1)
        if i != o:
            self.nin_shortcut = nn.Conv2d(i, o, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, 'nin_shortcut') else x) + h


class Middle(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.block_1, self.block_2 = ResnetBlock(c, c), ResnetBlock(c, c)

    def forward(self, x):
        return self.block_2(self.block_1(x))


class Resample(nn.Module):
    def __init__(self, c, stride):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride, 1 if stride == 1 else 0)
        self.stride = stride

    def forward(self, x):
        if self.stride == 1:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    def __init__(self, blocks, name, resample):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.name = name
        if resample is not None:
            setattr(self, name, resample)

    def forward(self, x):
        for block in self.block:
            x = block(x)
        return getattr(self, self.name)(x) if hasattr(self, self.name) else x


class Encoder(nn.Module):
    def __init__(self, ch, z):
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, 1, 1)
        down = [
            Level([ResnetBlock(ch, ch)], 'downsample', Resample(ch, 2)),
            Level([ResnetBlock(ch, 2 * ch)], 'downsample', None),
        ]
        self.down, self.mid = nn.ModuleList(down), Middle(2 * ch)
        self.norm_out = nn.GroupNorm(32, 2 * ch, 1e-6)
        self.conv_out = nn.Conv2d(2 * ch, 2 * z, 3, 1, 1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(self, ch, z):
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(z, 2 * ch, 3, 1, 1), Middle(2 * ch)
        up = [
            Level([ResnetBlock(2 * ch, ch), ResnetBlock(ch, ch)], 'upsample', None),
            Level([ResnetBlock(2 * ch, 2 * ch) for _ in range(2)], 'upsample', Resample(2 * ch, 1)),
        ]
        self.up, self.norm_out = nn.ModuleList(up), nn.GroupNorm(32, ch, 1e-6)
        self.conv_out = nn.Conv2d(ch, 3, 3, 1, 1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def discriminator(ndf, layers):
    found, width = [nn.Conv2d(3, ndf, 4, 2, 1), nn.LeakyReLU(0.2)], ndf
    for level in range(1, layers + 1):
        last, width = width, ndf * min(2**level, 8)
        stride = 2 if level < layers else 1
        found += [nn.Conv2d(last, width, 4, stride, 1, bias=False), nn.BatchNorm2d(width)]
        found += [nn.LeakyReLU(0.2)]
    return nn.Sequential(*found, nn.Conv2d(width, 1, 4, 1, 1))


def lpips(weights, a, b):
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    stages = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

    def features(x):
        x, found = (x - shift) / scale, []
        for stage, layers in enumerate(stages, 1):
            x = F.max_pool2d(x, 2) if stage > 1 else x
            for layer in layers:
                name = f'net.slice{stage}.{layer}'
                x = F.relu(
                    F.conv2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'], padding=1)
                )
            found.append(x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10))
        return found

    pairs = enumerate(zip(features(a), features(b), strict=True))
    return sum(
        F.conv2d((x - y) ** 2, weights[f'lin{k}.model.1.weight']).mean((2, 3), keepdim=True)
        for k, (x, y) in pairs
    )


def main() -> None:
    ch, z = CASE['ch'], CASE['z_channels']
    model = nn.ModuleDict({'encoder': Encoder(ch, z), 'decoder': Decoder(ch, z)})
    judge = discriminator(CASE['ndf'], CASE['n_layers'])
    tensors = lambda values: {k: torch.from_numpy(np.asarray(v)) for k, v in values.items()}
    shapes = lambda module: {k: list(v.shape) for k, v in module.state_dict().items()}
    model.load_state_dict(tensors(parameters(shapes(model))))
    judge.load_state_dict(
        {
            k.removeprefix('main.'): v
            for k, v in tensors(
                parameters({f'main.{k}': v for k, v in shapes(judge).items()})
            ).items()
        }
    )
    weights = tensors(parameters(CASE['lpips_shapes']))
    weights = {k: v.abs() if k.startswith('lin') else v for k, v in weights.items()}
    logvar = nn.Parameter(torch.tensor(CASE['logvar_init']))
    adam = lambda found: torch.optim.AdamW(found, CASE['learning_rate'], weight_decay=0.0)
    first, second = adam([logvar, *model.parameters()]), adam(judge.parameters())

    def reconstruct(x):
        mean, log = model['encoder'](x).chunk(2, 1)
        log = log.clamp(-30.0, 20.0)
        kl = 0.5 * (mean**2 + log.exp() - 1.0 - log).sum((1, 2, 3))
        return model['decoder'](mean), kl.sum() / len(x)

    steps = []
    for number in range(4):
        x = torch.from_numpy(np.moveaxis(pictures(number), -1, 1)).contiguous()
        rec, kl = reconstruct(x)
        if number % 2 == 0:
            rec_loss = (x - rec).abs() + CASE['perceptual_weight'] * lpips(weights, x, rec)
            nll = (rec_loss / logvar.exp() + logvar).sum() / len(x)
            g = -judge(rec).mean()
            last = model['decoder'].conv_out.weight
            nll_norm, g_norm = (
                torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (nll, g)
            )
            weight = (nll_norm / (g_norm + 1e-4)).clamp(0.0, 1e4).detach() * CASE['disc_weight']
            loss = nll + weight * g + CASE['kl_weight'] * kl
            first.zero_grad()
            loss.backward()
            first.step()
            found = {'loss/total': loss, 'loss/nll': nll, 'loss/g': g, 'kl_loss': kl}
            found |= {'scalars/d_weight': weight}
        else:
            real, fake = judge(x), judge(rec.detach())
            loss = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
            second.zero_grad()
            loss.backward()
            second.step()
            found = {'loss/disc': loss, 'logits/real': real.mean(), 'logits/fake': fake.mean()}
        steps.append({name: float(value.detach()) for name, value in found.items()})
    print(json.dumps({'steps': steps, 'logvar': float(logvar)}, indent=1))


if __name__ == '__main__':
    main()
