"""Clips decoded a few frames at a time: how far from all at once, and in how much memory."""

import dataclasses
import functools

import golden
import jax
import numpy as np
import pytest

from sgm_jax.config import load_config
from sgm_jax.engines import build
from sgm_jax.engines.ahead import trace_sampling
from sgm_jax.interop import checkpoint_files, to_sgm
from sgm_jax.tools.plan_batch import sampling_batch

FRAMES = 25
# A little above what docs/sampling.md has: the root mean square of what chunks change in one frame, as a
# share of the frames' deviation. By chunk and overlap: of the first and the last frame, and of any.
BOUNDS = {
    (1, 0): (0.60, 0.95),
    (5, 0): (0.07, 0.65),
    (1, 2): (0.07, 0.22),
    (5, 2): (0.05, 0.16),
    (5, 8): (0.015, 0.025),
}


@functools.cache
def model(decoder: str, num_frames: int = FRAMES):
    """An engine with a small decoder, and its weights: made up, so that time is mixed in earnest."""
    config = load_config('configs/svd.py:tiny')
    stage = config.model.first_stage
    stage.decoder = {**stage.decoder, 'name': decoder}
    if decoder == 'video_decoder':
        stage.decoder['video_kernel_size'] = (3, 1, 1)
    config.model.task.num_frames = config.data.num_frames = num_frames
    engine = build(config)
    tensors = {k: golden.generate(k, x.shape) for k, x in to_sgm(engine.structure.shape).items()}
    module = checkpoint_files.fill(engine.structure.module(), tensors, 'made up')
    return engine, *engine.structure.split(module)[1:]


def latents(num_frames: int) -> np.ndarray:
    """Of a clip that changes slowly."""
    there, here = np.random.default_rng(0).normal(size=(2, 1, 8, 8, 4)).astype(np.float32)
    turn = np.linspace(0, np.pi, num_frames, dtype=np.float32)[:, None, None, None]
    return np.cos(turn) * there + np.sin(turn) * here


def decode(decoder: str, chunk: int, overlap: int) -> np.ndarray:
    engine, params, frozen = model(decoder)
    z = latents(FRAMES)
    return np.asarray(engine.decode(params, frozen, z, chunk=chunk, overlap=overlap))


@pytest.fixture(scope='module')
def whole() -> np.ndarray:
    return decode('video_decoder', FRAMES, 2)


@pytest.mark.parametrize(('chunk', 'overlap'), BOUNDS)
def test_chunks_of_a_temporal_decoder_are_near(whole, chunk, overlap):
    found = decode('video_decoder', chunk, overlap)
    assert found.shape == whole.shape
    apart = np.sqrt(((found - whole) ** 2).mean((1, 2, 3))) / whole.std()
    ends, anywhere = BOUNDS[chunk, overlap]
    assert max(apart[0], apart[-1]) <= ends
    assert apart.max() <= anywhere


def test_more_frames_than_there_are_is_all_of_them(whole):
    np.testing.assert_array_equal(decode('video_decoder', 99, 2), whole)
    np.testing.assert_array_equal(decode('video_decoder', FRAMES, 0), whole)
    # Beside a chunk of 5 there is room for the whole clip.
    np.testing.assert_array_equal(decode('video_decoder', 5, 20), whole)


@pytest.mark.parametrize('chunk', [1, 5])
def test_without_a_kernel_over_time_chunks_change_nothing(chunk):
    whole = decode('decoder', FRAMES, 2)
    np.testing.assert_allclose(decode('decoder', chunk, 2), whole, atol=1e-4 * np.abs(whole).max())


def temporaries(num_frames: int, chunk: int, overlap: int) -> tuple[int, int]:
    """The most bytes of temporaries and of output that XLA plans for any of a clip's chunks."""
    engine, params, frozen = model('video_decoder', num_frames)
    run, calls = engine._decode, {}

    def planned(params, frozen, clips):
        abstract = jax.tree.map(jax.typeof, (params, frozen, clips))
        if clips.shape not in calls:
            calls[clips.shape] = run.lower(*abstract).compile().memory_analysis()
        return clips[..., :3]

    engine.__dict__['_decode'] = planned
    try:
        list(engine.decoded(params, frozen, latents(num_frames), chunk=chunk, overlap=overlap))
    finally:
        engine.__dict__['_decode'] = run
    plans = calls.values()
    return max(p.temp_size_in_bytes for p in plans), max(p.output_size_in_bytes for p in plans)


def test_memory_grows_with_the_chunk_alone():
    assert temporaries(25, 5, 2) == temporaries(50, 5, 2)
    one, five, all_of_them = (temporaries(25, chunk, 0)[0] for chunk in (1, 5, 25))
    # In proportion to the frames that are seen at once.
    assert five == pytest.approx(5 * one, rel=0.1)
    assert all_of_them == pytest.approx(25 * one, rel=0.1)


@pytest.mark.parametrize(('decoder', 'seen'), [('video_decoder', 9), ('decoder', 5)])
def test_a_plan_is_of_the_frames_that_a_decoder_is_given(decoder, seen):
    engine, params, frozen = model(decoder)
    sampling = dataclasses.replace(engine.sampling, decode_chunk=5, decode_overlap=2)
    engine = dataclasses.replace(engine, sampling=sampling)
    batch = sampling_batch(engine, load_config('configs/svd.py:tiny'), 1)
    place = lambda tree: tree
    traced = trace_sampling(engine, params, frozen, batch, count=1, place=place)
    assert traced['decode'].out_info.shape[:2] == (1, seen)
