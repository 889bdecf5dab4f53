"""sgm's YAML files as configs of this project: `load_sgm_config`."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
import yaml

from sgm_jax.config import lookup
from sgm_jax.errors import UserError
from sgm_jax.interop import sgm_nodes
from sgm_jax.interop.sgm_nodes import family, kind, params

_REFERENCE = re.compile(r'\$\{([\w.]+)\}')
# What sgm's inference scripts and demos add to the YAMLs of published models.
_SAMPLE = {
    'sampler': {'name': 'euler_edm'},
    'discretization': {'name': 'legacy_ddpm'},
    'guider': {'name': 'vanilla_cfg', 'scale': 5.0},
    'steps': 40,
}
_VIDEO_SAMPLE = {
    'sampler': {'name': 'euler_edm'},
    'discretization': {'name': 'edm', 'sigma_min': 0.002, 'sigma_max': 700.0, 'rho': 7.0},
    'guider': {'name': 'linear', 'max_scale': 2.5, 'min_scale': 1.0},
    'steps': 25,
}
_FRAMES = 14
_ORBIT_FRAMES = 21
# (height, width) of samples, by what tells the models apart: the width of the network's vector.
_SIZES = {
    2816: (1024, 1024),
    2560: (1024, 1024),
    768: (576, 1024),
    256: (576, 576),
    1280: (576, 576),
}
_LOSSES = {
    'GeneralLPIPSWithDiscriminator': 'lpips_with_discriminator',
    'LPIPSWithDiscriminator': 'lpips_with_discriminator',
}


def load_sgm_config(path: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config of an sgm YAML file: of inference, or of training.

    What such a file does not say (sizes, guidance of published models, paths) is as sgm's scripts and demos
    have it, and can be changed like any config's. Its data pipelines are named, not translated: data.path
    is left for the user.

    Args:
      path: the file; references of the form ${model.params.x} are followed.

    Raises:
      UserError: the file is missing or no YAML, or names a class or a key that is not known here.
    """
    root = _resolved(_read(path))
    model = root.get('model')
    if not isinstance(model, Mapping):
        raise UserError(f"{path}: no 'model' in it; sgm's configs have one")
    engines = {
        'DiffusionEngine': _diffusion,
        'AutoencodingEngine': _autoencoding,
        'AutoencoderKL': _autoencoding,
        'AutoencodingEngineLegacy': _autoencoding,
    }
    try:
        make = lookup(engines, kind(model, 'model'), 'model.target')
        config = ml_collections.ConfigDict(_tuples(make(model, root)))
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except KeyError as error:
        raise UserError(f'{path}: missing {error}') from error
    return config


def _read(path: str | pathlib.Path) -> dict:
    path = pathlib.Path(path).expanduser()
    try:
        root = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise UserError(f'there is no config file {path}') from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{path} cannot be read as YAML ({reason})') from error
    if not isinstance(root, dict):
        raise UserError(f"{path}: no 'model' in it; sgm's configs have one")
    return root


def _resolved(root: dict) -> dict:
    """Follows ${a.b.c}, as OmegaConf does for whole values."""

    def walk(node: Any, depth: int = 0) -> Any:
        if isinstance(node, dict):
            return {key: walk(value, depth) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, depth) for value in node]
        match = _REFERENCE.fullmatch(node) if isinstance(node, str) else None
        if match is None:
            return node
        found: Any = root
        for key in match.group(1).split('.'):
            if not isinstance(found, dict) or key not in found:
                raise UserError(f'{node} refers to nothing in this file')
            found = found[key]
        if depth > 8:
            raise UserError(f'{node} refers to itself')
        return walk(found, depth + 1)

    return walk(root)


def _tuples(node: Any) -> Any:
    # Configs have no lists. Numbers like 1e-6 are text in YAML 1.1 without a dot.
    if isinstance(node, Mapping):
        return {key: _tuples(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return tuple(_tuples(item) for item in node)
    return _number(node)


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r'[+-]?\d+(\.\d*)?[eE][+-]?\d+', value):
        return float(value)
    return value


def _diffusion(model: Mapping, root: Mapping) -> dict:
    own = params(model)
    network = sgm_nodes.network(own['network_config'], 'network_config')
    video = network['name'] == 'video_unet'
    nodes = params(own.get('conditioner_config') or {}).get('emb_models', ())
    embedders = [
        sgm_nodes.embedder(node, f'emb_models[{index}]') for index, node in enumerate(nodes)
    ]
    # What SV3D is told is what SVD is, without how fast and how much it moves.
    orbit = video and 'fps_id' not in {node.get('input_key') for node in embedders}
    stage = own.get('first_stage_config')
    denoiser = family('denoiser', own['denoiser_config'], 'denoiser_config')
    sample = _sample(own, network, denoiser, embedders, root, video)
    if orbit:
        # simple_video_sample.py's.
        sample['steps'] = params(own.get('sampler_config') or {}).get('num_steps', 50)
    size = {'height': sample['height'], 'width': sample['width']}
    return {
        'seed': 0,
        'model': {
            'name': 'diffusion',
            'checkpoint': own.get('ckpt_path') or '',
            'first_stage_checkpoint': _stage_checkpoint(stage),
            'from_scratch': False,
            'scale_factor': own.get('scale_factor', 1.0),
            'encode_chunk': own.get('en_and_decode_n_samples_a_time') or 0,
            'network': network,
            'denoiser': denoiser,
            'loss': _loss(own, denoiser),
            'task': _task(video, orbit),
            'conditioner': embedders,
            'first_stage': sgm_nodes.first_stage(stage, 'first_stage_config')
            if stage
            else {'name': 'none'},
        },
        'data': _data(root, embedders, size, video, orbit),
        **_training(model, own, root),
        'sample': sample,
    }


def _task(video: bool, orbit: bool) -> dict:
    if orbit:
        return {'name': 'image_to_orbit', 'num_frames': _ORBIT_FRAMES}
    return {'name': 'image_to_video', 'num_frames': _FRAMES} if video else {'name': 'images'}


def _stage_checkpoint(stage: Mapping | None) -> str:
    path = params(stage or {}).get('ckpt_path') or ''
    # sgm's example files have words for the user to replace.
    return '' if path.isupper() else path


def _loss(own: Mapping, denoiser: Mapping) -> dict:
    if own.get('loss_fn_config'):
        loss = family('loss', own['loss_fn_config'], 'loss_fn_config')
        if 'weighting' not in loss:
            # Older files have it beside the denoiser's scaling.
            weighting = params(own['denoiser_config']).get('weighting_config')
            loss['weighting'] = family('weighting', weighting, 'weighting_config')
        return loss
    # Files of inference have no loss: that which each prediction is trained with.
    weights = {'v_edm_cnoise': 'v'}.get(denoiser['scaling']['name'], denoiser['scaling']['name'])
    discrete = denoiser['name'] == 'discrete'
    sampling = {'name': 'discrete'} if discrete else {'name': 'edm', 'p_mean': 0.7, 'p_std': 1.6}
    return {'name': 'standard', 'sigma_sampling': sampling, 'weighting': {'name': weights}}


def _sample(own, network, denoiser, embedders, root, video) -> dict:
    result = dict(_VIDEO_SAMPLE if video else _SAMPLE)
    node = own.get('sampler_config')
    if node:
        result['sampler'] = family('sampler', node, 'sampler_config')
        inner = params(node)
        result['steps'] = inner.get('num_steps', result['steps'])
        result['guider'] = {'name': 'identity'}
        for key, name in (('discretization_config', 'discretization'), ('guider_config', 'guider')):
            if inner.get(key):
                result[name] = family(name, inner[key], f'sampler_config.{key}')
    height, width = _size(root, network, denoiser, embedders)
    known = {node.get('input_key') for node in embedders}
    zero = [
        node['input_key']
        for node in embedders
        if node.get('ucg_rate') and 'legacy_ucg_value' not in node and 'input_key' in node
    ]
    if video:
        zero = [key for key in ('cond_frames', 'cond_frames_without_noise') if key in known]
    elif [node['name'] for node in embedders[:2]] == ['clip_text', 'open_clip_text']:
        zero = ['txt']
    # sgm's samples are told the sizes in both passes.
    told = ('original_size_as_tuple', 'crop_coords_top_left', 'target_size_as_tuple')
    zero = tuple(dict.fromkeys(key for key in zero if key not in told))
    return {**result, 'zero': zero, 'height': height, 'width': width}


def _size(root, network, denoiser, embedders) -> tuple[int, int]:
    data = (root.get('data') or {}).get('target', '')
    toys = {'MNISTLoader': (28, 28), 'CIFAR10Loader': (32, 32)}
    if data:
        side = _resize(root['data']) or 256
        return toys.get(data.rsplit('.', 1)[-1], (side, side))
    width = network.get('adm_in_channels')
    plain = (768, 768) if denoiser['scaling']['name'] == 'v' else (512, 512)
    return _SIZES.get(width, plain) if embedders else plain


def _resize(node: Any) -> int:
    """The size of a Resize anywhere in a data pipeline; 0 if there is none."""
    if isinstance(node, Mapping):
        if str(node.get('target', '')).endswith('.Resize'):
            return int(params(node)['size'])
        node = list(node.values())
    return max(map(_resize, node), default=0) if isinstance(node, list) else 0


def _data(root, embedders, size, video, orbit) -> dict:
    target = (root.get('data') or {}).get('target', '').rsplit('.', 1)[-1]
    labelled = {'MNISTLoader': 'mnist', 'CIFAR10Loader': 'cifar10'}
    if target in labelled:
        return {'name': 'labelled', 'dataset': labelled[target], **size}
    if orbit:
        return {'name': 'orbits', 'path': '', 'num_frames': _ORBIT_FRAMES, **size}
    if video:
        return {'name': 'video_clips', 'path': '', 'num_frames': _FRAMES, **size}
    known = {node.get('input_key') for node in embedders}
    data = {'name': 'captioned_pictures', 'path': '', **size}
    data['text'] = 'sidecar' if 'txt' in known else 'none'
    data['classes'] = 'cls' in known
    if 'aesthetic_score' in known:
        data['aesthetic_score'] = 6.0
    return data


def _training(model: Mapping, own: Mapping, root: Mapping) -> dict:
    data = params(root.get('data') or {})
    lightning = root.get('lightning') or {}
    loader = (data.get('train') or {}).get('loader') or data
    callbacks = lightning.get('callbacks') or {}
    every = params(lightning.get('modelcheckpoint') or {}).get('every_n_train_steps', 1000)
    warmup = params(own.get('scheduler_config') or {}).get('warm_up_steps', [0])[0]
    optimizer = params(own.get('optimizer_config') or {})
    betas = optimizer.get('betas', (0.9, 0.999))
    return {
        'optimizer': {
            'name': 'adamw',
            'learning_rate': _number(model.get('base_learning_rate', 1e-4)),
            'weight_decay': _number(optimizer.get('weight_decay', 0.01)),
            'b1': betas[0],
            'b2': betas[1],
        },
        'schedule': {'name': 'constant', 'warmup_steps': int(warmup)},
        'train': {
            'batch_size': loader.get('batch_size', 64),
            'steps': (lightning.get('trainer') or {}).get('max_steps') or 100_000,
            'accumulate': (lightning.get('trainer') or {}).get('accumulate_grad_batches', 1),
            # Without use_ema sgm keeps no average: here it is the weights themselves.
            'ema_decay': own.get('ema_decay_rate', 0.9999) if own.get('use_ema') else 0.0,
            'log_every': 50,
            'image_every': params(callbacks.get('image_logger') or {}).get('batch_frequency', 1000),
            'checkpoint_every': every,
            'keep': 3,
        },
        'mesh': {'data': -1, 'fsdp': 1},
    }


def _autoencoding(model: Mapping, root: Mapping) -> dict:
    own = params(model)
    stage = sgm_nodes.first_stage(model, 'model')
    loss_node = own.get('loss_config') or own.get('lossconfig') or {}
    loss = params(loss_node)
    name = lookup(_LOSSES, kind(loss_node, 'loss_config'), 'loss_config.target')
    learned = {
        key: _number(loss[key])
        for key in (
            'perceptual_weight',
            'disc_start',
            'disc_weight',
            'disc_factor',
            'disc_loss',
            'learn_logvar',
            'logvar_init',
            'regularization_weights',
        )
        if key in loss
    }
    if 'kl_weight' in loss:
        learned['regularization_weights'] = {'kl_loss': _number(loss['kl_weight'])}
    training = _training(model, own, root)
    training['optimizer']['weight_decay'] = 0.0  # sgm's autoencoders take Adam
    training['train']['ema_decay'] = own.get('ema_decay') or 0.0
    side = _resize(root.get('data')) or 256
    return {
        'seed': 0,
        'model': {
            'name': 'autoencoding',
            'first_stage': stage,
            'loss': {'name': name, **learned},
            'checkpoint': own.get('ckpt_path') or own.get('ckpt_engine') or '',
            'lpips_checkpoint': '',
        },
        'data': {'name': 'pictures', 'path': '', 'height': side, 'width': side},
        **training,
    }
