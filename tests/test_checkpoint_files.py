"""Files of published weights: what is in them by sgm's names, how much memory that takes, what is refused."""

import json
import os
import subprocess
import sys
import types

import golden
import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_archives

from sgm_jax.errors import UserError
from sgm_jax.interop import hub, open_tensors, safetensors_files
from sgm_jax.interop.tensors import Lazy, Tensors

NETWORK = 'model.diffusion_model.'
MODEL = {
    f'{NETWORK}input_blocks.0.0.weight': np.arange(12, dtype=np.float32).reshape(4, 3),
    f'{NETWORK}out.2.bias': np.arange(4).astype(np.float16),
    'first_stage_model.encoder.conv_in.bias': np.arange(3).astype(ml_dtypes.bfloat16),
    'conditioner.embedders.0.model.logit_scale': np.array(4.6, np.float32),
}
# What sgm, Latent Diffusion and Lightning keep beside the weights.
BESIDE = {
    'model_ema.decay': np.zeros((), np.float32),
    'model_ema.num_updates': np.zeros((), np.float32),
    'model_ema.diffusion_modelinput_blocks00weight': np.full((4, 3), 7, np.float32),
    'model_ema.diffusion_modelout2bias': np.full(4, 8, np.float32),
    'betas': np.zeros(5, np.float32),
    'alphas_cumprod_prev': np.zeros(5, np.float32),
    'log_one_minus_alphas_cumprod': np.zeros(5, np.float32),
    'posterior_mean_coef1': np.zeros(5, np.float32),
    'conditioner.embedders.0.transformer.text_model.embeddings.position_ids': np.zeros((1, 5)),
    'conditioner.embedders.0.model.attn_mask': np.zeros((5, 5), np.float32),
}


def assert_same(got, want) -> None:
    assert set(got) == set(want)
    for name, array in want.items():
        assert got.shape(name) == array.shape
        assert got.dtype(name) == array.dtype == got[name].dtype
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_a_safetensors_file_without_what_is_beside_the_weights(tmp_path):
    safetensors.numpy.save_file(MODEL | BESIDE, tmp_path / 'a.safetensors')
    assert_same(open_tensors(tmp_path / 'a.safetensors'), MODEL)


def test_files_written_are_those_of_the_package_safetensors(tmp_path):
    every = {
        **MODEL,
        'bytes': np.arange(5, dtype=np.uint8),
        'empty': np.zeros((0, 3), np.float32),
        'turned': np.arange(6, dtype=np.float32).reshape(2, 3).T,
        'counts': np.arange(3),
        'double': np.arange(3.0),
        'is': np.array([True, False]),
    }
    path = tmp_path / 'new' / 'a.safetensors'
    safetensors_files.write(path, every)
    read = safetensors.numpy.load_file(path)
    assert read.keys() == every.keys()
    for name, array in every.items():
        np.testing.assert_array_equal(read[name], array, err_msg=name)
        assert read[name].dtype == array.dtype
    assert_same(open_tensors(path), every)
    assert [p.name for p in path.parent.iterdir()] == ['a.safetensors']


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    def full():
        raise OSError(28, 'No space left on device')

    bad = Tensors({'a': Lazy((2,), np.dtype(np.float32), full)})
    (tmp_path / 'a.safetensors').write_text('before')
    with pytest.raises(UserError, match=r'a\.safetensors could not be written \(No space left'):
        safetensors_files.write(tmp_path / 'a.safetensors', bad)
    assert [p.read_text() for p in tmp_path.iterdir()] == ['before']


@pytest.mark.parametrize('nested', [True, False])
def test_a_torch_file(nested, tmp_path, monkeypatch):
    whole = {k: x for k, x in (MODEL | BESIDE).items() if x.dtype != np.float64}
    tree = {'epoch': 3, 'state_dict': whole} if nested else whole
    torch_archives.save(tmp_path / 'a.ckpt', tree, monkeypatch)
    assert_same(open_tensors(tmp_path / 'a.ckpt'), MODEL)


def test_the_text_encoder_of_old_files(tmp_path):
    old = {
        'cond_stage_model.model.positional_embedding': np.ones((5, 2), np.float32),
        'cond_stage_model.transformer.text_model.final_layer_norm.bias': np.ones(2, np.float32),
    }
    safetensors.numpy.save_file(old, tmp_path / 'a.safetensors')
    new = {k.replace('cond_stage_model', 'conditioner.embedders.0'): x for k, x in old.items()}
    assert_same(open_tensors(tmp_path / 'a.safetensors'), new)


def test_averages_take_the_place_of_weights(tmp_path):
    path = tmp_path / 'a.safetensors'
    safetensors.numpy.save_file(MODEL | BESIDE, path)
    averaged = {
        **MODEL,
        f'{NETWORK}input_blocks.0.0.weight': np.full((4, 3), 7, np.float32),
        f'{NETWORK}out.2.bias': np.full(4, 8, np.float32),
    }
    assert_same(open_tensors(path, ema=True), averaged)
    # An autoencoder's averages are of all of it.
    stage = {'encoder.conv_in.bias': np.zeros(3, np.float32)}
    kept = {'model_ema.encoderconv_inbias': np.ones(3, np.float32)}
    safetensors.numpy.save_file(stage | kept, path)
    assert open_tensors(path, ema=True)['encoder.conv_in.bias'].tolist() == [1, 1, 1]
    safetensors.numpy.save_file(MODEL, path)
    with pytest.raises(UserError, match=r'a\.safetensors has no averaged weights'):
        open_tensors(path, ema=True)
    safetensors.numpy.save_file(stage | {'model_ema.elsewhere': np.zeros(1)}, path)
    with pytest.raises(UserError, match=r'1 averaged weights have no place .*model_ema\.elsewhere'):
        open_tensors(path, ema=True)


@pytest.mark.parametrize('name', ['sd_xl_base', 'sd_xl_refiner', 'sd_2_1', 'svd'])
def test_names_without_dots_are_one_for_each_weight(name):
    names = [name for name in golden.manifest(name) if name.startswith(NETWORK)]
    assert len({name.replace('.', '') for name in names}) == len(names)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def note(path):
    path.write_text('hello')


def garbled(path):
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"'))


def moved(path):
    path.write_bytes(path.read_bytes().replace(b'offsets":[0,', b'offsets":[4,'))


def huge(path):
    path.write_bytes(path.read_bytes().replace(b'shape":[4]', b'shape":[4294967296,4294967296]'))


def nested(path):
    text = b'[' * 100_000
    path.write_bytes(len(text).to_bytes(8, 'little') + text)


@pytest.mark.parametrize('damage', [cut, note, garbled, moved, huge, nested])
def test_a_damaged_safetensors_file_is_named(damage, tmp_path):
    path = tmp_path / 'a.safetensors'
    safetensors_files.write(path, {'a': np.zeros(4, np.float32)})
    damage(path)
    with pytest.raises(
        UserError, match=r'a\.safetensors is not a whole \.safetensors file .*again$'
    ):
        open_tensors(path)


def test_a_file_cut_while_it_is_open(tmp_path):
    path = tmp_path / 'a.safetensors'
    safetensors_files.write(path, {'a': np.zeros(4, np.float32)})
    tensors = open_tensors(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(UserError, match='was cut short while it was read'):
        tensors['a']


class Code:
    def __reduce__(self):
        return os.system, ('false',)


@pytest.mark.parametrize('damage', [cut, note])
def test_a_damaged_torch_file_is_named(damage, tmp_path, monkeypatch):
    torch_archives.save(tmp_path / 'a.ckpt', MODEL, monkeypatch)
    damage(tmp_path / 'a.ckpt')
    with pytest.raises(UserError, match=r'a\.ckpt is not a whole file of weights'):
        open_tensors(tmp_path / 'a.ckpt')


def test_torch_files_with_code_or_without_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / 'a.ckpt'
    torch_archives.save(path, {'state_dict': MODEL, 'callbacks': Code()}, monkeypatch)
    with pytest.raises(UserError, match=r'^[^\n]*a\.ckpt holds \w+\.system, .*not run[^\n]*$'):
        open_tensors(path)
    torch_archives.save(path, {'epoch': 3}, monkeypatch)
    with pytest.raises(UserError, match=r'a\.ckpt holds no state dict'):
        open_tensors(path)


@pytest.mark.parametrize('module', ['pytorch_lightning', 'lightning.pytorch'])
def test_a_file_that_lists_its_callbacks_by_class_is_read(module, tmp_path, monkeypatch):
    path, module = tmp_path / 'a.ckpt', f'{module}.callbacks.model_checkpoint'
    cls = type('ModelCheckpoint', (), {'__module__': module})
    parts = module.split('.')
    with monkeypatch.context() as patch:
        for depth in range(1, len(parts) + 1):
            name = '.'.join(parts[:depth])
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[module].ModelCheckpoint = cls
        best = {'monitor': 'val/loss', 'best_model_score': np.zeros(3, np.float32)}
        torch_archives.save(path, {'callbacks': {cls: best}, 'state_dict': MODEL}, monkeypatch)
        torch_archives.save(tmp_path / 'b.ckpt', {'callbacks': cls()}, monkeypatch)
    assert_same(open_tensors(path), MODEL)
    # The class stands for nothing: an object of it is not made.
    with pytest.raises(UserError, match=r'b\.ckpt (holds|is not a whole file)'):
        open_tensors(tmp_path / 'b.ckpt')
    assert parts[0] not in sys.modules


@pytest.mark.parametrize('dtype', ['F4', 'F8_E8M0'])
def test_numbers_of_an_unknown_kind_are_named(dtype, tmp_path):
    text = json.dumps({'a': {'dtype': dtype, 'shape': [2], 'data_offsets': [0, 2]}}).encode()
    path = tmp_path / 'a.safetensors'
    path.write_bytes(len(text).to_bytes(8, 'little') + text + bytes(2))
    with pytest.raises(UserError, match=rf'a\.safetensors: a is {dtype}, which is not read here'):
        open_tensors(path)


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    safetensors_files.write('~/new/a.safetensors', MODEL)
    assert_same(open_tensors(tmp_path / 'new' / 'a.safetensors'), MODEL)
    assert not (tmp_path / '~').exists()


def test_what_is_no_checkpoint_is_named(tmp_path):
    note(tmp_path / 'note.txt')
    for path, words in {
        'none.safetensors': 'there is no checkpoint file',
        'none.ckpt': 'there is no file of weights',
        'none': 'there is no checkpoint file',
        'note.txt': 'no file of weights that is known here',
        '': 'no diffusers folder',
    }.items():
        with pytest.raises(UserError, match=words):
            open_tensors(tmp_path / path)


MEMORY = """
import pathlib, sys
import numpy as np
from sgm_jax.interop import open_tensors, safetensors_files
from sgm_jax.interop.tensors import Lazy, Tensors
peak = lambda: int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
one = Lazy((1024, 1024), np.dtype(np.float32), lambda: np.ones((1024, 1024), np.float32))
before = peak()
safetensors_files.write(sys.argv[1], Tensors({f'layer.{i}': one for i in range(60)}))
tensors = open_tensors(sys.argv[1])
assert sum(float(tensors[name][-1, -1]) for name in tensors) == 60
safetensors_files.write(sys.argv[1], tensors)
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='asks Linux')
def test_memory_does_not_grow_with_what_was_read(tmp_path):
    # 240 MB in tensors of 4 MB: written, read and copied with room for a few of them.
    done = subprocess.run(
        [sys.executable, '-c', MEMORY, str(tmp_path / 'a.safetensors')],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert int(done.stdout) < 40_000


def test_files_on_the_hub(tmp_path, monkeypatch):
    safetensors.numpy.save_file(MODEL, tmp_path / 'a.safetensors')
    asked = []
    fetch = lambda repo, file: asked.append((repo, file)) or str(tmp_path / 'a.safetensors')
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fetch)
    assert_same(open_tensors('hf://org/repo/sub/a.safetensors'), MODEL)
    assert asked == [('org/repo', 'sub/a.safetensors')]
    with pytest.raises(UserError, match='names no repository'):
        open_tensors('hf://org')

    def no_network(repo, file):
        raise huggingface_hub.errors.LocalEntryNotFoundError('no network\nmore')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', no_network)
    with pytest.raises(UserError, match=r'repo/a\.safetensors cannot be fetched \(no network\); '):
        open_tensors('hf://org/repo/a.safetensors')


def test_folders_on_the_hub_are_fetched_once(tmp_path, monkeypatch):
    files = [
        'model_index.json',
        'unet/config.json',
        'unet/diffusion_pytorch_model.safetensors',
        'unet/diffusion_pytorch_model.fp16.safetensors',
        'unet/diffusion_pytorch_model.bin',
        'vae/diffusion_pytorch_model.fp16.safetensors',
        'text_encoder/pytorch_model.bin',
        'sd_xl_base_1.0.safetensors',
        'README.md',
    ]
    calls = {}
    fake = types.SimpleNamespace(
        list_repo_files=lambda repo: files,
        snapshot_download=lambda repo, **options: calls.update(options) or str(tmp_path),
    )
    assert hub._folder(fake, 'org/repo') == tmp_path
    assert sorted(calls['allow_patterns']) == [
        'model_index.json',
        'text_encoder/pytorch_model.bin',
        'unet/config.json',
        'unet/diffusion_pytorch_model.safetensors',
        'vae/diffusion_pytorch_model.fp16.safetensors',
    ]
    files.remove('model_index.json')
    with pytest.raises(UserError, match=r'no diffusers folder; name a file of it .*sd_xl_base_1'):
        hub._folder(fake, 'org/repo')
