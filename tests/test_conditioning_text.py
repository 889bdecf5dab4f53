"""Prompts: tokens on the host, dropped in training as zeros or as other words."""

import jax
import numpy as np
import pytest
from tiny_pictures import CLIP, OPEN_CLIP

from sgm_jax.conditioning.conditioner import GeneralConditioner, Slot
from sgm_jax.conditioning.embedders import Identity
from sgm_jax.conditioning.tokenizers import make_tokenizer
from sgm_jax.engines.conditioners import build_conditioner
from sgm_jax.errors import UserError
from sgm_jax.networks.layers import Keys

PROMPTS = np.array(['a fox', 'a cat', 'a dog', 'a hen'])


def build(**slot):
    nodes = (
        {'name': 'clip_text', 'input_key': 'txt', 'arch': CLIP, **slot},
        {
            'name': 'open_clip_text',
            'input_key': 'txt',
            'arch': OPEN_CLIP,
            'layer': 'penultimate',
            'always_return_pooled': True,
            'legacy': False,
            **slot,
        },
    )
    return build_conditioner(nodes, Keys(0))


def embed(conditioner, prompts, **options):
    batch = conditioner.tokenize({'txt': prompts})
    return conditioner(batch, **options)


def test_two_encoders_read_one_prompt():
    conditioner = build()
    batch = conditioner.tokenize({'txt': PROMPTS, 'other': np.ones(4)})
    # One tokenisation serves both, and the words are gone.
    assert sorted(batch) == ['other', 'txt/clip/77']
    assert batch['txt/clip/77'].shape == (4, 77)
    out = conditioner(batch)
    assert out['crossattn'].shape == (4, 77, 16)
    assert out['vector'].shape == (4, 8)


def test_a_legacy_value_takes_the_prompts_place_for_all_who_read_it():
    conditioner = build(ucg_rate=0.5, ucg_group='text', legacy_ucg_value='')
    plain, empty = embed(conditioner, PROMPTS), embed(conditioner, np.array([''] * 4))
    dropped = embed(conditioner, PROMPTS, key=jax.random.key(1))
    is_plain = np.isclose(dropped['vector'], plain['vector']).all(-1)
    is_empty = np.isclose(dropped['vector'], empty['vector']).all(-1)
    np.testing.assert_array_equal(is_plain, ~is_empty)
    assert 0 < is_empty.sum() < 4
    np.testing.assert_allclose(
        np.where(is_empty[:, None, None], empty['crossattn'], plain['crossattn']),
        dropped['crossattn'],
        atol=1e-6,
    )
    # In sampling nothing is dropped.
    np.testing.assert_array_equal(embed(conditioner, PROMPTS)['vector'], plain['vector'])


def test_a_legacy_value_may_be_a_number():
    conditioner = GeneralConditioner(
        [Identity()], [Slot(input_key='a', ucg_rate=0.5, legacy_ucg_value=-1.0)]
    )
    out = conditioner({'a': np.ones((1000, 1))}, key=jax.random.key(0))['vector']
    assert set(np.unique(out)) == {-1.0, 1.0}
    assert abs((np.asarray(out) == -1).mean() - 0.5) < 0.06


def test_zeros_may_be_decided_later():
    conditioner = build()
    batch = conditioner.tokenize({'txt': PROMPTS})
    run = jax.jit(lambda zero: conditioner(batch, zero={'txt': zero}))
    assert (np.asarray(run(np.bool_(True))['vector']) == 0).all()
    np.testing.assert_allclose(
        run(np.bool_(False))['vector'], conditioner(batch)['vector'], atol=1e-6
    )


def test_several_entries_may_be_read_at_once():
    class Sum(Identity):
        def __call__(self, x, y):
            return x + y

    conditioner = GeneralConditioner([Sum()], [Slot(input_keys=('a', 'b'))])
    out = conditioner({'a': np.ones((2, 1)), 'b': np.full((2, 1), 2.0)})
    np.testing.assert_array_equal(out['vector'], [[3], [3]])
    with pytest.raises(UserError, match="no 'b', which Sum reads"):
        conditioner({'a': np.ones((2, 1))})
    with pytest.raises(ValueError, match="missing 'input_key'"):
        Slot(input_key='a', input_keys=('b',))


def test_tokens_are_the_tokenizers():
    conditioner = build()
    tokens = conditioner.tokenize({'txt': PROMPTS})['txt/clip/77']
    np.testing.assert_array_equal(tokens, make_tokenizer('clip')(list(PROMPTS), 77))
