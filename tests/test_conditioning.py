"""Embedders, and the conditioner that joins them."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgm_jax.conditioning.conditioner import GeneralConditioner, Slot
from sgm_jax.conditioning.embedders import ClassEmbedder, ConcatTimestepEmbedder, Identity
from sgm_jax.engines.conditioners import build_conditioner
from sgm_jax.errors import UserError
from sgm_jax.networks.clip import CLIP_MEAN, CLIP_STD, clip_preprocess
from sgm_jax.networks.layers import Keys


def make(*nodes):
    return GeneralConditioner([Identity() for _ in nodes], [Slot(**node) for node in nodes])


def test_numbers_become_the_references_sinusoids():
    inputs, outputs = golden.arrays('concat_timestep_embedder')
    embedder = ConcatTimestepEmbedder(**golden.config('concat_timestep_embedder'))
    got = np.asarray(jax.jit(lambda x: embedder(x))(inputs['x'])).reshape(2, 2, 2, 128)
    want = outputs['out'].reshape(got.shape)
    # At 1024 the last bit of a frequency turns the angle by 3e-5. Frequency 13 is 0.473 of a bit above
    # ours in truth, and the stored run has rounded it up; PyTorch 2.13 itself, on an AMD processor,
    # rounds 13 as we do and 12 otherwise, 3.0e-5 away from the stored run too. So for that one
    # frequency the bound is what one bit makes of the largest number; for all others it is as ever.
    one_bit = 1024 * np.spacing(np.float32(np.exp(-np.log(10000.0) * 13 / 128)))
    golden.assert_close(np.delete(got, 13, -1), np.delete(want, 13, -1))
    golden.assert_close(got[..., 13], want[..., 13], 2e-5 + one_bit)
    # One number per example is the same as a row of one.
    np.testing.assert_array_equal(
        embedder(jnp.array([3.0, 5.0])), embedder(jnp.array([[3.0], [5.0]]))
    )


def test_classes_become_rows_or_tokens():
    rows = ClassEmbedder(embed_dim=4, n_classes=3, rngs=Keys(0))
    tokens = ClassEmbedder(embed_dim=4, n_classes=3, add_sequence_dim=True, rngs=Keys(0))
    classes = jnp.array([2, 0, 2])
    table = np.asarray(rows.embedding.embedding[...])
    assert table.shape == (3, 4)
    assert table.std() > 0.3
    np.testing.assert_array_equal(rows(classes), table[[2, 0, 2]])
    np.testing.assert_array_equal(tokens(classes), table[[2, 0, 2]][:, None])


def test_clip_sees_normalised_pictures():
    grey = clip_preprocess(jnp.zeros((1, 40, 50, 3)), 16)
    # Zero is middle grey: 0.5 before CLIP's mean and deviation.
    wanted = (0.5 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(grey, np.broadcast_to(wanted, (1, 16, 16, 3)), rtol=1e-5)


def test_rank_decides_the_kind_and_order_the_place():
    conditioner = make(*({'input_key': k} for k in ('a', 'b', 'tokens', 'map')))
    batch = {
        'a': np.ones((2, 3)),
        'b': np.zeros((2, 1)),
        'tokens': np.ones((2, 5, 4)),
        'map': np.ones((2, 6, 6, 1)),
    }
    out = conditioner(batch)
    assert {k: v.shape for k, v in out.items()} == {
        'vector': (2, 4),
        'crossattn': (2, 5, 4),
        'concat': (2, 6, 6, 1),
    }
    np.testing.assert_array_equal(out['vector'][0], [1, 1, 1, 0])


def test_embeddings_of_clips_are_repeated_over_their_frames():
    out = make({'input_key': 'a'})({'a': np.array([[1.0], [2.0]])}, examples=2, num_frames=3)
    np.testing.assert_array_equal(out['vector'][:, 0], [1, 1, 1, 2, 2, 2])


def test_dropout_is_a_share_of_the_examples_and_groups_share_their_coins():
    conditioner = make(
        {'input_key': 'a', 'ucg_rate': 0.3, 'ucg_group': 'image'},
        {'input_key': 'b', 'ucg_rate': 0.3, 'ucg_group': 'image'},
        {'input_key': 'c', 'ucg_rate': 0.3},
        {'input_key': 'd'},
    )
    batch = {k: np.ones((4000, 1)) for k in 'abcd'}
    a, b, c, d = np.asarray(conditioner(batch, key=jax.random.key(1))['vector']).T
    np.testing.assert_array_equal(a, b)
    assert abs((a == 0).mean() - 0.3) < 0.03
    assert abs((c == 0).mean() - 0.3) < 0.03
    # Tossed apart, two coins agree by chance: 0.3 * 0.3 + 0.7 * 0.7.
    assert abs((a == c).mean() - 0.58) < 0.04
    assert (d == 1).all()
    np.testing.assert_array_equal(conditioner(batch)['vector'], np.ones((4000, 4)))


def test_forced_zeros_are_for_the_unconditional_pass_only():
    conditioner = make({'input_key': 'a'}, {'input_key': 'b'})
    batch = {'a': np.ones((1, 2)), 'b': np.ones((1, 1))}
    cond, uncond = conditioner(batch), conditioner(batch, zero={'a': True})
    np.testing.assert_array_equal(cond['vector'], [[1, 1, 1]])
    np.testing.assert_array_equal(uncond['vector'], [[0, 0, 1]])


def test_only_trainable_embedders_get_gradients():
    from flax import nnx

    conditioner = build_conditioner(
        (
            {'name': 'class', 'input_key': 'cls', 'embed_dim': 2, 'is_trainable': True},
            {'name': 'class', 'input_key': 'other', 'embed_dim': 2},
        ),
        Keys(0),
    )
    graphdef, params = nnx.split(conditioner)
    batch = {'cls': jnp.array([1]), 'other': jnp.array([1])}
    total = lambda params: jnp.sum(nnx.merge(graphdef, params)(batch)['vector'])
    trained, frozen = jax.tree.leaves(jax.grad(total)(params))
    assert float(jnp.abs(trained).sum()) == 2.0
    assert float(jnp.abs(frozen).sum()) == 0.0


def test_what_does_not_fit_is_named():
    conditioner = make({'input_key': 'a'})
    with pytest.raises(UserError, match="no 'a', which Identity reads; it has: b"):
        conditioner({'b': np.ones((1, 1))})
    with pytest.raises(UserError, match='rank 2'):
        conditioner({'a': np.ones((1,))})
    with pytest.raises(UserError, match=r"conditioner\[0\]: unknown name 'clas'"):
        build_conditioner(({'name': 'clas', 'input_key': 'x'},), Keys(0))
    with pytest.raises(UserError, match="did you mean 'embed_dim'"):
        build_conditioner(({'name': 'class', 'input_key': 'x', 'embed_dims': 2},), Keys(0))
    with pytest.raises(UserError, match="missing 'input_key'"):
        build_conditioner(({'name': 'class', 'embed_dim': 2},), Keys(0))
