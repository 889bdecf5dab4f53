"""Weights through every kind of file, by the functions and by the command line."""

import json
import logging
import os
import pathlib
import re
import subprocess
import sys

import golden
import ml_dtypes
import numpy as np
import pytest
import shrunk
import tiny

import sgm_jax
from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.interop import (
    checkpoint_files,
    diffusers_configs,
    open_tensors,
    to_sgm,
    workdir_files,
    write_diffusers,
    write_sgm,
)
from sgm_jax.interop.diffusers_configs import Hints
from sgm_jax.interop.diffusers_files import plan
from sgm_jax.interop.tensors import Lazy, Tensors
from sgm_jax.tools import conversions
from sgm_jax.tools import convert as convert_tool
from sgm_jax.training.loop import train
from sgm_jax.training.workdir import open_workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A config file that says what tests/tiny.py does, with an image tower that is not trained.
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
import tiny


def get_config(variant=''):
    config = tiny.config()
    image, *others = config.model.conditioner
    config.model.conditioner = ({{**image, 'is_trainable': False}}, *others)
    return config
"""


def convert(*words: object, code: int = 0) -> str:
    """The last line of what the command says."""
    done = subprocess.run(
        [sys.executable, '-m', 'sgm_jax.tools.convert', *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    assert done.returncode == code, done.stderr
    return (done.stderr if code else done.stdout).strip().splitlines()[-1]


def assert_bits(got, want) -> None:
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        assert got[name].tobytes() == want[name].tobytes(), name


@pytest.fixture(scope='module')
def frozen_config():
    """tests/tiny.py, with an image tower that is not trained."""
    scope: dict = {}
    exec(CONFIG.format(tests=str(ROOT / 'tests')), scope)
    return scope['get_config']()


@pytest.fixture(scope='module')
def sgm_file(frozen_config, tmp_path_factory) -> pathlib.Path:
    """A whole tiny video model in half precision, by sgm's names."""
    shapes = {k: x.shape for k, x in to_sgm(build(frozen_config).structure.module()).items()}
    weights = {k: golden.generate(k, shape).astype(np.float16) for k, shape in shapes.items()}
    path = tmp_path_factory.mktemp('sgm') / 'tiny.safetensors'
    write_sgm(path, weights)
    return path


@pytest.fixture(scope='module')
def workdir(frozen_config, sgm_file, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp('runs') / 'converted'
    conversions.write_workdir(path, conversions.open_source(sgm_file, config=frozen_config))
    return path


def test_sgm_to_workdir_and_back(sgm_file, workdir, tmp_path):
    before = open_tensors(sgm_file)
    source = conversions.open_source(workdir)
    assert set(source.tensors) == set(before)
    for name, array in before.items():
        frozen = name.startswith('conditioner.')
        assert source.tensors.dtype(name) == (np.float16 if frozen else np.float32)
        np.testing.assert_array_equal(source.tensors[name], array, err_msg=name)
    write_sgm(
        tmp_path / 'again.safetensors', conversions.cast(source.tensors, np.dtype(np.float16))
    )
    assert_bits(open_tensors(tmp_path / 'again.safetensors'), before)


def test_a_checkpoint_may_be_a_workdir(sgm_file, workdir, frozen_config):
    config = frozen_config.copy_and_resolve_references()
    config.model.checkpoint = str(workdir)
    engine, tensors = build(config), open_tensors(sgm_file)
    bias = engine.pretrained()['network']['frame']['out_conv']['bias']
    np.testing.assert_array_equal(bias, tensors['model.diffusion_model.out.2.bias'])
    # What is frozen comes from where that workdir has it from.
    visual = engine.init_frozen(None)['conditioner']['embedders'][0]['open_clip']['visual']
    name = 'conditioner.embedders.0.open_clip.model.visual.positional_embedding'
    np.testing.assert_array_equal(visual['positional_embedding'], tensors[name])


@pytest.fixture(scope='module')
def rewritten(run, tmp_path_factory) -> pathlib.Path:
    """A run's averaged weights, out as an sgm file and in again as a workdir."""
    folder = tmp_path_factory.mktemp('rewritten')
    write_sgm(folder / 'run.safetensors', conversions.open_source(run.workdir).tensors)
    source = conversions.open_source(folder / 'run.safetensors', config=run.config)
    conversions.write_workdir(folder / 'new', source)
    return folder / 'new'


def test_a_run_of_all_parts_needs_no_base(run, rewritten):
    model = sgm_jax.load(run.workdir)
    want = to_sgm(model.engine.structure.merge(model.params, model.frozen))
    assert_bits(open_tensors(rewritten.parent / 'run.safetensors'), want)


def test_a_workdir_that_was_converted_samples_as_its_run_does(run, rewritten):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    sample = lambda workdir: sgm_jax.load(workdir).sample(image=picture)
    np.testing.assert_array_equal(sample(rewritten), sample(run.workdir))
    with pytest.raises(UserError, match='holds averaged weights alone'):
        conversions.open_source(rewritten, raw=True)


@pytest.mark.slow
def test_training_begins_with_converted_weights(run, rewritten):
    before = conversions.open_source(rewritten).tensors
    before = {name: before[name] for name in before}
    assert workdir_files.weights_alone(rewritten, 0)
    assert train(run.config, rewritten).step == 4
    assert not workdir_files.weights_alone(rewritten, 4)
    raw = conversions.open_source(rewritten, raw=True).tensors
    moved = max(np.abs(raw[name] - before[name]).max() for name in raw)
    # A step of Adam moves a parameter by about the learning rate: it began there, and not at random.
    assert 0 < moved < 4 * 2 * run.config.optimizer.learning_rate
    averaged = conversions.open_source(rewritten).tensors
    assert any(np.any(averaged[name] != raw[name]) for name in raw)


def test_frozen_parts_come_from_the_base(workdir, sgm_file, tmp_path):
    config = json.loads((workdir / 'config.json').read_text())
    assert config['model']['checkpoint'] == str(sgm_file)
    copy = tmp_path / 'copy'
    copy.mkdir()
    config['model']['checkpoint'] = ''
    (copy / 'config.json').write_text(json.dumps(config))
    (copy / 'checkpoints').symlink_to(workdir / 'checkpoints')
    with pytest.raises(
        UserError, match=r'frozen tensors are missing, such as conditioner\..*--base'
    ):
        conversions.open_source(copy)
    assert set(conversions.open_source(copy, base=str(sgm_file)).tensors) == set(
        open_tensors(sgm_file)
    )
    write_sgm(tmp_path / 'other.safetensors', {'a': np.zeros(1)})
    with pytest.raises(UserError, match=r'other\.safetensors: the checkpoint does not fit'):
        conversions.open_source(copy, base=str(tmp_path / 'other.safetensors'))


def test_the_workdir_of_a_first_stage(tmp_path):
    config = load_config('configs/demo_first_stage.py')
    structure = build(config).structure
    shapes = {k: x.shape for k, x in to_sgm(structure.module()).items()}
    weights = {name: golden.generate(name, shape) for name, shape in shapes.items()}
    filled = checkpoint_files.fill(structure.module(), weights, 'weights')
    open_workdir(tmp_path / 'w', config)
    workdir_files.write_weights(tmp_path / 'w', structure.split(filled)[1])
    source = conversions.open_source(tmp_path / 'w')
    write_sgm(tmp_path / 'stage.safetensors', source.tensors)
    assert_bits(open_tensors(tmp_path / 'stage.safetensors'), weights)
    assert 'encoder.conv_in.weight' in weights
    source = conversions.open_source(tmp_path / 'stage.safetensors', config=config)
    with pytest.raises(
        UserError, match="the config is of 'autoencoding'; a workdir is written for"
    ):
        conversions.write_workdir(tmp_path / 'x', source)


def test_files_on_the_hub_stay_so_in_a_workdir(frozen_config, tmp_path):
    config = frozen_config.copy_and_resolve_references()
    config.model.checkpoint = 'hf://org/repo/a.safetensors'
    workdir = open_workdir(tmp_path / 'w', config)
    assert workdir_files.read_config(workdir).model.checkpoint == 'hf://org/repo/a.safetensors'
    (workdir / 'config.json').write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(UserError, match='is not that of a run'):
        workdir_files.read_config(workdir)


def test_numbers_that_do_not_fit_a_type_are_named():
    tensors = Tensors.of({'big': np.array([1e5], np.float32), 'count': np.array([3])})
    with pytest.raises(
        UserError, match='big has numbers too large for float16; use --dtype=bfloat16'
    ):
        conversions.cast(tensors, np.dtype(np.float16))['big']
    small = conversions.cast(tensors, np.dtype(ml_dtypes.bfloat16))
    assert small.dtype('big') == small['big'].dtype == ml_dtypes.bfloat16
    assert small['count'].dtype == np.int64


def test_what_a_config_tells_a_diffusers_folder(frozen_config):
    hints = conversions.hints_of(frozen_config)
    assert hints == {
        'num_head_channels': 16,
        'scale_factor': 1.0,
        'num_frames': tiny.FRAMES,
        'vision_head_width': 8,
    }
    config = frozen_config.copy_and_resolve_references()
    config.model.denoiser.scaling = {'name': 'v'}
    assert conversions.hints_of(config)['prediction_type'] == 'v_prediction'


@pytest.mark.parametrize(
    ('manifest', 'variant', 'said', 'size', 'prediction'),
    [
        ('sd_2_1', None, r'512x512, .*for 768-v, .* configs/sd21.py:768v', 64, 'epsilon'),
        ('sd_2_1', 'sd21.py:768v', '', 96, 'v_prediction'),
        (
            'sd_xl_base',
            None,
            r'SDXL base; for SDXL-Turbo, .* configs/sdxl_turbo.py',
            128,
            'epsilon',
        ),
        ('sd_xl_base', 'sdxl_turbo.py', '', 64, 'epsilon'),
        ('sd_xl_refiner', None, '', 128, 'epsilon'),
        ('svd', None, r'14 frames; for SVD-XT of 25, .* configs/svd.py:xt', 96, 'v_prediction'),
    ],
)
def test_a_folder_says_what_sample_py_takes_its_file_for(
    manifest, variant, said, size, prediction, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger('sgm_jax'), 'propagate', True)
    tensors = Tensors(
        {
            name: Lazy(tuple(shape), np.dtype(np.float16), None)
            for name, shape in golden.manifest(manifest).items()
        },
        'a.safetensors',
    )
    config = variant and load_config(f'configs/{variant}')
    source = conversions.Source(
        tensors=tensors, path=pathlib.Path('a.safetensors'), base='', config=config
    )
    with caplog.at_level(logging.INFO, 'sgm_jax'):
        hints = conversions.hints_for(source)
    assert bool(caplog.text) == bool(said)
    assert re.search(said, caplog.text)
    layout, plans, _ = plan(tensors, hints)
    unet = next(config for part, _, config in plans if part.folder == 'unet')
    assert unet['sample_size'] == size
    schedule = diffusers_configs.scheduler(layout, Hints(**hints))
    assert schedule['prediction_type'] == prediction


def test_a_folder_keeps_what_it_said(tmp_path):
    hints = dict(num_head_channels=1, text_head_width=1, prediction_type='v_prediction')
    write_diffusers(tmp_path / 'a', shrunk.checkpoint('sd_2_1'), hints={**hints, 'sample_size': 96})
    source = conversions.open_source(tmp_path / 'a')
    assert conversions.hints_for(source) == {
        'prediction_type': 'v_prediction',
        'sample_size': 96,
        'scale_factor': 0.18215,
    }


@pytest.fixture(scope='module')
def sdxl(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp('sdxl') / 'sdxl.safetensors'
    weights = shrunk.checkpoint('sd_xl_base')
    ema = {
        f'model_ema.{k.removeprefix("model.").replace(".", "")}': x + 1
        for k, x in weights.items()
        if k.startswith('model.')
    }
    write_sgm(path, weights | ema)
    return path


# A head of one channel, as only a shrunk model has.
_HEADS = """
import ml_collections


def get_config(variant=''):
    clip = {'text_cfg': {'width': 1, 'heads': 1, 'layers': 1}}
    model = {'network': {'num_head_channels': 1}, 'conditioner': ({'arch': clip},)}
    return ml_collections.ConfigDict({'model': model})
"""


def test_the_command_line_there_and_back(sdxl, tmp_path):
    config = tmp_path / 'heads.py'
    config.write_text(_HEADS)
    said = convert(
        f'--input={sdxl}',
        f'--output={tmp_path}/d/',
        '--to=diffusers',
        f'--config={config}',
        '--ema',
    )
    assert re.fullmatch(rf'wrote {tmp_path}/d: 2514 tensors of {sdxl}', said)
    unet = json.loads((tmp_path / 'd/unet/config.json').read_text())
    assert unet['attention_head_dim'] == [5, 10, 20]
    convert(f'--input={tmp_path}/d', f'--output={tmp_path}/back.safetensors', '--dtype=bfloat16')
    want = {k: x.astype(ml_dtypes.bfloat16) for k, x in open_tensors(sdxl, ema=True).items()}
    assert_bits(open_tensors(tmp_path / 'back.safetensors'), want)


def test_the_command_line_makes_a_workdir(sgm_file, workdir, tmp_path):
    config = tmp_path / 'tiny_config.py'
    config.write_text(CONFIG.format(tests=str(ROOT / 'tests')))
    convert(f'--input={sgm_file}', f'--output={tmp_path}/w', '--to=workdir', f'--config={config}')
    assert_bits(
        conversions.open_source(tmp_path / 'w').tensors,
        {
            k: x if k.startswith('conditioner.') else x.astype(np.float32)
            for k, x in open_tensors(sgm_file).items()
        },
    )


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--output=x.safetensors'], 'give --input'),
        (['--input={sdxl}', '--output={tmp}/w', '--to=workdir'], 'needs a config'),
    ],
)
def test_mistakes_end_in_one_line(words, message, sdxl, tmp_path):
    words = [word.format(tmp=tmp_path, sdxl=sdxl) for word in words]
    assert re.match(f'error: .*{message}', convert(*words, code=2))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_named(sdxl, tmp_path):
    assert convert_tool.kind_of('a.safetensors', None) == 'sgm'
    assert convert_tool.kind_of('a/', 'diffusers') == 'diffusers'
    for output, wanted, words in (
        ('x.ckpt', None, 'sgm files are written as .safetensors'),
        ('folder', 'sgm', 'sgm files are written as .safetensors'),
        ('x.safetensors', 'workdir', 'sgm files are written as .safetensors'),
        ('folder', None, 'say of which kind: --to=diffusers or --to=workdir'),
    ):
        with pytest.raises(UserError, match=words):
            convert_tool.kind_of(output, wanted)
    (tmp_path / 'something').write_text('')
    with pytest.raises(UserError, match='is there already'):
        conversions.check_place(tmp_path, folder=True)
    with pytest.raises(UserError, match='is a folder; give the name of a file'):
        conversions.check_place(tmp_path, folder=False)
    with pytest.raises(UserError, match='there is no checkpoint file'):
        conversions.open_source(tmp_path / 'none.safetensors')
    for options, flag in ((dict(raw=True), 'raw'), (dict(base='x'), 'base')):
        with pytest.raises(UserError, match=f'is no workdir, to which --{flag} belongs'):
            conversions.open_source(sdxl, **options)


MEMORY = """
import pathlib, sys
from sgm_jax.tools import conversions
from sgm_jax.tools import convert as convert_tool
from sgm_jax.interop import write_sgm
import numpy as np
peak = lambda: int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
before = peak()
source = conversions.open_source(sys.argv[1])
write_sgm(sys.argv[2], conversions.cast(source.tensors, np.dtype(np.float16)))
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='asks Linux')
def test_converting_needs_memory_for_one_tensor(tmp_path):
    # 200 MB in tensors of 8 MB.
    one = np.ones((2048, 1024), np.float32)
    write_sgm(tmp_path / 'a.safetensors', {f'layer.{i}': one for i in range(25)})
    done = subprocess.run(
        [sys.executable, '-c', MEMORY, tmp_path / 'a.safetensors', tmp_path / 'b.safetensors'],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'JAX_PLATFORMS': 'cpu'},
    )
    assert int(done.stdout) < 60_000
