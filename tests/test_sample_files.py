"""What sample.py writes and when, of models whose pictures are known."""

import dataclasses
import importlib.machinery
import sys
import types

import numpy as np
import pytest
import tiny
import tiny_pictures

from sgm_jax.engines import build
from sgm_jax.errors import UserError
from sgm_jax.sampling import media
from sgm_jax.sampling.load import LoadedModel
from sgm_jax.sampling.run import run

SIDE = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Drawn(LoadedModel):
    """A model that makes pictures, or videos, of one grey level: 10 times the seed."""

    fails_after: int = 100

    def sample_batches(self, progress, seed=0, count=1, **given):
        if self.makes_videos:
            yield np.full((1, 2, SIDE, SIDE, 3), 10 * seed, np.uint8)
        for first in range(0, 0 if self.makes_videos else count, 2):
            if first >= self.fails_after:
                raise MemoryError
            levels = 10 * np.arange(seed + first, seed + min(first + 2, count), dtype=np.uint8)
            yield np.broadcast_to(levels[:, None, None, None], (len(levels), SIDE, SIDE, 3))


def drawn(config, **options) -> Drawn:
    config.sample.update(height=SIDE, width=SIDE)
    return Drawn(engine=build(config), params={}, frozen={}, **options)


@pytest.fixture
def loaded(monkeypatch):
    """Sets the model that sample.py loads."""
    return lambda model: monkeypatch.setattr('sgm_jax.sampling.load.load', lambda *_, **__: model)


def levels(folder) -> dict[str, int]:
    return {path.name: int(media.read_image(path)[0, 0, 0]) for path in sorted(folder.glob('*'))}


def sample(folder, name='out.png', **options):
    run(config=None, checkpoint='x', output=folder / name, keep_compiled=False, **options)


def test_pictures_are_written_as_they_are_made(tmp_path, loaded):
    loaded(drawn(tiny_pictures.config('sdxl_base'), fails_after=4))
    with pytest.raises(MemoryError):
        sample(tmp_path, prompt='a fox', count=12, seed=3)
    assert levels(tmp_path) == {f'out-0{n}.png': 10 * (3 + n) for n in range(4)}


def test_a_grid_of_many_is_smaller(tmp_path, loaded, monkeypatch):
    monkeypatch.setattr(media, 'LARGEST_GRID', 3 * SIDE // 2)
    loaded(drawn(tiny_pictures.config('sdxl_base')))
    sample(tmp_path, 'out.webp', prompt='a fox', count=9)
    assert media.read_image(tmp_path / 'out-8.webp').shape == (SIDE, SIDE, 3)
    grid = media.read_image(tmp_path / 'out.webp')
    assert grid.shape == (3 * SIDE // 2, 3 * SIDE // 2, 3)
    np.testing.assert_allclose(grid[SIDE // 4 :: SIDE // 2, 10, 0], [0, 30, 60], atol=3)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'in').mkdir()
    for name in ('chair.png', 'chair.jpg', 'table.png'):
        media.write_image(tmp_path / 'in' / name, np.zeros((8, 8, 3), np.uint8))
    return tmp_path / 'in'


def test_videos_of_pictures_of_one_name_are_apart(tmp_path, folder, loaded):
    loaded(drawn(tiny.config()))
    sample(tmp_path / 'a', image=folder, seed=1)
    names = {'out-chair.jpg.png': 10, 'out-chair.png.png': 20, 'out-table.png.png': 30}
    assert levels(tmp_path / 'a') == names
    (folder / 'chair.jpg').unlink()
    sample(tmp_path / 'b', image=folder, seed=1)
    assert levels(tmp_path / 'b') == {'out-chair.png': 10, 'out-table.png': 20}


@pytest.fixture
def marks(monkeypatch):
    """In the place of the watermark's library: a mark that anyone sees."""
    library = types.ModuleType('imwatermark')
    library.__spec__ = importlib.machinery.ModuleSpec('imwatermark', None)

    class WatermarkEncoder:
        def set_watermark(self, kind, bits):
            assert (kind, len(bits)) == ('bits', 48)

        def encode(self, image, method):
            marked = image.copy()
            marked[0, 0] = 7
            return marked

    library.WatermarkEncoder = WatermarkEncoder
    monkeypatch.setitem(sys.modules, 'imwatermark', library)


def test_every_frame_and_picture_is_marked(tmp_path, folder, loaded, marks):
    loaded(drawn(tiny.config()))
    sample(tmp_path / 'videos', image=folder / 'table.png', seed=1, mark=True)
    strip = media.read_image(tmp_path / 'videos' / 'out.png')
    assert [strip[0, 0, 0], strip[0, SIDE, 0], strip[1, 1, 0]] == [7, 7, 10]
    loaded(drawn(tiny_pictures.config('sdxl_base')))
    sample(tmp_path / 'pictures', prompt='a fox', count=3, mark=True)
    assert set(levels(tmp_path / 'pictures').values()) == {7}


def refuse(*_, **__):
    raise AssertionError('too late')


@pytest.mark.parametrize(
    ('wish', 'words'),
    [
        (dict(height=8, mark=True), '8x256 with 3 channels cannot hold a watermark'),
        (dict(aspect='4:1', height=8, mark=True), 'aspect goes without'),
    ],
)
def test_what_cannot_be_marked_is_named_before_the_work(
    tmp_path, loaded, marks, monkeypatch, wish, words
):
    loaded(drawn(tiny_pictures.config('sdxl_base')))
    monkeypatch.setattr(Drawn, 'sample_batches', refuse)
    with pytest.raises(UserError, match=words):
        sample(tmp_path, prompt='a fox', **wish)


@pytest.mark.parametrize(
    ('wish', 'words'),
    [
        (dict(name='in/chair.png/out.png'), r'out\.png: cannot be written \(.*chair\.png'),
        (dict(name='folder.png'), r'folder\.png is a folder; give the name of a file'),
        (dict(seed=2**32 - 2, image='in'), r'seed is 4294967294 \(the last of 3'),
        (dict(seed=-1), 'seed is -1; give 0 to 4294967295'),
    ],
)
def test_what_cannot_be_written_is_named_before_the_model_is_loaded(
    tmp_path, folder, monkeypatch, wish, words
):
    monkeypatch.setattr('sgm_jax.sampling.load.load', refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.png').mkdir()
    with pytest.raises(UserError, match=words):
        sample(tmp_path, **wish)
