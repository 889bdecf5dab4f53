"""Orbits as data: drawn objects, folders with cameras, and pictures made ready for the model."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sgm_jax.conditioning.cameras import static_orbit
from sgm_jax.data import objects, pipeline
from sgm_jax.data.orbits import on_white
from sgm_jax.errors import UserError
from sgm_jax.sampling.subjects import list_pictures, prepare

ROOT = pathlib.Path(__file__).resolve().parents[1]
VIEWS = 6


def node(path, **options) -> dict:
    return dict(name='orbits', path=str(path), num_frames=4, height=16, width=16, **options)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp('orbits') / 'objects'
    words = f'--output {path} --objects 5 --views {VIEWS} --size 16 --elevation 30 --seed 3'.split()
    subprocess.run(
        [sys.executable, '-m', 'sgm_jax.tools.render_orbits', *words],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    return path


# A process that may write no more than a few bytes to a file, as on a disk that is full.
FULL = """
import resource, sys
from sgm_jax import cli
from sgm_jax.tools import render_orbits
resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
render_orbits.define_flags()
cli.run(render_orbits.main, ['x', '--output', sys.argv[1], '--views=1', '--size=8', '--objects=1'])
"""


def test_a_place_without_room_is_a_line(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    for place, words in (('full', 'File too large'), ('file/deep', 'Not a directory')):
        done = subprocess.run(
            [sys.executable, '-c', FULL, tmp_path / place],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        )
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f'error: {tmp_path / place / "000000"}: cannot be written ({words})')
        assert 'Traceback' not in done.stderr
    assert list((tmp_path / 'full').iterdir()) == []


def test_every_view_of_an_object_differs():
    path = static_orbit(8, 30.0)
    one = objects.render(objects.draw_object(0), path.elevations, path.azimuths, (32, 32))
    again = objects.render(objects.draw_object(0), path.elevations, path.azimuths, (32, 32))
    np.testing.assert_array_equal(one, again)
    other = objects.render(objects.draw_object(1), path.elevations, path.azimuths, (32, 32))
    assert (one != other).any()
    # Transparent at the rim, an object in the middle.
    assert one[:, [0, -1]].max() == 0
    assert (one[..., 3] == 255).mean((1, 2)).min() > 0.1
    views = on_white(one).astype(float)
    apart = np.abs(views[:, None] - views[None]).mean((2, 3, 4))
    assert apart[~np.eye(8, dtype=bool)].min() > 2


def test_what_objects_are_made_of():
    for seed in range(20):
        base, *parts = objects.draw_object(seed)
        assert (base.shape, base.texture) == ('cylinder', 'sectors')
        assert len(base.colors) in (2, 3)
        assert len(parts) in (1, 2)
        assert {part.texture for part in parts} == {'plain'}
    textured = [objects.draw_object(seed, textured=True) for seed in range(20)]
    assert {base.shape for base, *_ in textured} == {'cylinder', 'box'}
    assert {part.texture for _, *parts in textured for part in parts} == set(objects.TEXTURES)


def test_a_camera_sees_where_things_are():
    ball = objects.Part(
        shape='sphere',
        center=np.array([0.0, 0.6, 0.3]),
        scale=np.full(3, 0.2),
        turn=0.0,
        texture='plain',
        colors=np.array([[1.0, 0.0, 0.0]]),
    )
    seen = objects.render((ball,), np.zeros(3), np.array([0.0, 180.0, 90.0]), (33, 33))[..., 3]
    middle = [np.argwhere(view).mean(0) for view in seen]
    # y is to the right of a camera on the x axis, to the left of one behind; z is up.
    assert middle[0][1] > 20
    assert middle[1][1] < 12
    assert middle[2][1] == pytest.approx(16, abs=0.5)
    assert all(row < 14 for row, _ in middle)
    assert seen[2].astype(bool).sum() > seen[0].astype(bool).sum()  # it is nearer


def test_a_folder_gives_orbits_that_end_at_the_given_view(folder):
    source = pipeline.make_source(node(folder, held_out_fraction=0.2))
    held_out = pipeline.make_source(node(folder, held_out_fraction=0.2), split='held_out')
    assert (len(source), len(held_out)) == (4, 1)
    record = source.record(0)
    assert record['jpg'].shape == (4, 16, 16, 3)
    np.testing.assert_allclose(np.rad2deg(record['azimuths_rad']), [120, 180, 240, 0], atol=1e-3)
    np.testing.assert_allclose(np.rad2deg(record['polars_rad']), 60, atol=1e-3)
    drawn = [source.record(0, np.random.default_rng(i)) for i in range(8)]
    for record in drawn:
        assert record['azimuths_rad'][-1] == 0
        assert (np.diff(record['azimuths_rad'][:-1]) > 0).all()
    assert len({record['jpg'][-1].tobytes() for record in drawn}) > 1
    assert '4 objects' in pipeline.describe(source)
    batch = next(pipeline.make_iterator(source, batch_size=2, seed=0, num_threads=0))
    assert batch['polars_rad'].shape == (2, 4)


def test_the_demo_needs_no_files():
    source = pipeline.make_source(node('demo', demo_objects=10))
    record = source.record(1, np.random.default_rng(0))
    assert set(record) == {'jpg', 'polars_rad', 'azimuths_rad'}
    np.testing.assert_array_equal(record['jpg'], source.record(1, np.random.default_rng(0))['jpg'])
    assert len(pipeline.make_source(node('demo', demo_objects=10), split='held_out')) == 1


def test_folders_that_cannot_be(tmp_path):
    def check(words, path=tmp_path, **options):
        with pytest.raises(UserError, match=words) as error:
            pipeline.make_source(node(path, **options))
        assert '\n' not in str(error.value)

    check('no objects there')
    check('data.path is empty', path='')
    (tmp_path / 'a').mkdir()
    cameras = tmp_path / 'a' / 'cameras.json'
    for text, words in (
        ('{', 'not the cameras of an object'),
        ('{"views": [{"file": "a.png", "azimuth": 0}]}', "no 'elevation'"),
        (
            json.dumps({'views': [{'file': 'a.png', 'elevation': 95, 'azimuth': 0}]}),
            r'elevation of a\.png is 95; give degrees from -90 to 90',
        ),
        (
            json.dumps({'views': [{'file': 'a.png', 'elevation': 5, 'azimuth': 0}]}),
            '1 views, and data.num_frames is 4',
        ),
    ):
        cameras.write_text(text)
        check(words, held_out_fraction=0.0)


@pytest.fixture
def damaged(folder, tmp_path) -> pathlib.Path:
    """The five objects again: one without cameras, one with too few views, one with a broken view."""
    copy = tmp_path / 'set'
    shutil.copytree(folder, copy)
    objects = sorted(copy.iterdir())
    (objects[0] / 'cameras.json').write_text('{')
    views = json.loads((objects[1] / 'cameras.json').read_text())['views']
    (objects[1] / 'cameras.json').write_text(json.dumps({'views': views[:3]}))
    view = objects[3] / min(views, key=lambda view: view['azimuth'] % 360)['file']
    view.write_bytes(view.read_bytes()[:60])
    return copy


def test_damaged_objects_are_named_and_others_stand_in(damaged, folder, caplog):
    options = dict(held_out_fraction=0.0)
    whole = pipeline.make_source(node(folder, **options))
    source = pipeline.make_source(node(damaged, **options, max_damaged=0.4))
    assert len(source) == 3
    one, two, _, four, _ = sorted(damaged.iterdir())
    assert f'{two}: 3 views, and data.num_frames is 4' in caplog.text
    assert f'damaged object: {one}: cameras.json: not the cameras of an object' in caplog.text
    seen = [source.record(i)['jpg'] for i in range(3)]
    # The first view is always given, and it is broken.
    for got, true in zip(seen, (2, 4, 4), strict=True):
        np.testing.assert_array_equal(got, whole.record(true)['jpg'])
    assert source.damage.names.keys() == {str(one), str(four)}
    assert 'not a readable picture' in source.damage.names[str(four)]
    told = pipeline.describe(source)
    assert '1 objects skipped; the first:' in told
    assert '2 damaged objects skipped; the first:' in told
    threads = [
        next(pipeline.make_iterator(source, batch_size=3, seed=1, num_threads=n)) for n in (0, 4)
    ]
    np.testing.assert_array_equal(threads[0]['jpg'], threads[1]['jpg'])
    assert pipeline.identity(source) != pipeline.identity(whole)


def test_more_damaged_objects_than_may_be_end_the_run(damaged):
    source = pipeline.make_source(node(damaged, held_out_fraction=0.0))
    with pytest.raises(UserError, match='2 of 5 objects cannot be used, more than'):
        source.record(1)
    with pytest.raises(UserError, match=r'1 of 5 objects cannot be used.*max_damaged=0 allows'):
        pipeline.make_source(node(damaged, held_out_fraction=0.0, max_damaged=0.0))


def rgba(height: int, width: int, box: tuple[slice, slice]) -> np.ndarray:
    picture = np.zeros((height, width, 4), np.uint8)
    picture[(*box, slice(None))] = (200, 0, 0, 255)
    return picture


def test_an_object_is_centred_on_white():
    # 20 x 10 pixels in a corner of a picture that is not square.
    picture = rgba(40, 100, (slice(0, 20), slice(85, 95)))
    got = prepare(picture, (64, 64), frame_ratio=0.5)
    assert got.shape == (64, 64, 3)
    red = np.argwhere(got[..., 1] < 128)
    np.testing.assert_array_equal((red.min(0), red.max(0)), ((16, 24), (47, 39)))
    assert (got[:12] == 255).all()
    # As it is, padded: nothing is cut off.
    kept = prepare(picture, (64, 64), frame_ratio=0.0)
    red = np.argwhere(kept[..., 1] < 128)
    assert red[:, 1].min() == pytest.approx(85 * 0.64, abs=1)
    assert (kept[0] == 255).all()
    opaque = np.full((10, 20, 3), 7, np.uint8)
    assert (prepare(opaque, (20, 20), frame_ratio=0.0)[5:15] == 7).all()


def test_pictures_that_cannot_be(tmp_path, monkeypatch):
    empty = tmp_path / 'empty.png'
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(empty)
    with pytest.raises(UserError, match=r'empty\.png: nothing is left of it.*alpha mask is empty'):
        prepare(empty, (16, 16), frame_ratio=0.9)
    monkeypatch.setitem(sys.modules, 'rembg', None)  # as if it were not installed
    with pytest.raises(UserError, match=r"run 'pip install rembg\[cpu\]'"):
        prepare(np.zeros((8, 8, 3), np.uint8), (16, 16), frame_ratio=0.9)
    with pytest.raises(UserError, match=r'frame_ratio is 1\.5'):
        prepare(empty, (16, 16), frame_ratio=1.5)
    without = tmp_path / 'without'
    without.mkdir()
    with pytest.raises(UserError, match='no pictures there'):
        list_pictures(without)
    assert list_pictures(tmp_path) == [empty]
