"""Tokenizers against open_clip's ids, and what happens to long texts."""

import json
import logging

import golden
import numpy as np
import pytest
import tokenizers as hf

from sgm_jax.conditioning.tokenizers import make_tokenizer
from sgm_jax.errors import UserError

START, END = 49406, 49407


def cases() -> list[dict]:
    return json.loads((golden.FOLDER / 'clip_tokens.json').read_text())['cases']


@pytest.mark.parametrize('case', cases(), ids=lambda case: ascii(case['text'][:20]))
def test_clip_ids_are_open_clips(case):
    (row,) = make_tokenizer('clip')([case['text']], 77)
    ids = [START, *case['tokens'][:75], END]
    assert row.dtype == np.int32
    assert row.tolist() == ids + [0] * (77 - len(ids))


def test_all_cases_in_one_batch_are_the_same_rows():
    texts = [case['text'] for case in cases()]
    tokenizer = make_tokenizer('clip')
    rows = tokenizer(texts, 77)
    np.testing.assert_array_equal(rows, np.concatenate([tokenizer([text], 77) for text in texts]))
    assert make_tokenizer('clip') is tokenizer


def test_a_long_text_is_cut_and_the_cut_named_once(caplog):
    words = ' '.join(f'word{i}' for i in range(10))
    with caplog.at_level(logging.WARNING, 'sgm_jax'):
        (row,) = make_tokenizer('clip')([words], 8)
        make_tokenizer('clip')([words], 8)
    # "word3" is two tokens, so three words fill the six places.
    assert row[0] == START
    assert row[-1] == END
    assert (row != 0).all()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "8 tokens; cut off was 'word 3 word 4" in message
    assert words in message


def test_bytes_are_byt5s():
    # The ids of transformers' ByT5Tokenizer for these two.
    rows = make_tokenizer('byt5')(['Hi é', ''], 8)
    assert rows.tolist() == [[75, 108, 35, 198, 172, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


def test_bytes_are_cut_too(caplog):
    with caplog.at_level(logging.WARNING, 'sgm_jax'):
        rows = make_tokenizer('byt5')(['abcdef'], 4)
    assert rows.tolist() == [[100, 101, 102, 1]]
    assert "cut off was 'def'" in caplog.text


@pytest.fixture
def file(tmp_path) -> str:
    """A tokenizer.json in the manner of T5: words, </s> at the end."""
    vocabulary = {'<pad>': 0, '</s>': 1, '<unk>': 2, 'red': 3, 'cat': 4, 'on': 5, 'mats': 6}
    made = hf.Tokenizer(hf.models.WordLevel(vocabulary, unk_token='<unk>'))
    made.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    made.post_processor = hf.processors.TemplateProcessing(
        single='$A </s>', special_tokens=[('</s>', 1)]
    )
    path = str(tmp_path / 'tokenizer.json')
    made.save(path)
    return path


def test_a_file_names_its_own_ids(file, caplog):
    rows = make_tokenizer(file)(['red cat', 'a cat'], 5)
    assert rows.tolist() == [[3, 4, 1, 0, 0], [2, 4, 1, 0, 0]]
    with caplog.at_level(logging.WARNING, 'sgm_jax'):
        assert make_tokenizer(file)(['red cat on mats'], 3).tolist() == [[3, 4, 1]]
    assert "cut off was 'on mats', the end of 'red cat on mats'" in caplog.text


def test_two_tokenizers_lie_side_by_side(file):
    rows = make_tokenizer(('clip', file))(['cat'], (4, 3))
    assert rows.tolist() == [[START, 2368, END, 0, 4, 1, 0]]


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r'no tokenizer nowhere\.json.*byt5, clip'):
        make_tokenizer('nowhere.json')
    broken = tmp_path / 'broken.json'
    broken.write_text('{}')
    with pytest.raises(UserError, match=r'broken\.json is no tokenizer\.json'):
        make_tokenizer(str(broken))
    with pytest.raises(UserError, match=r'path of its tokenizer\.json'):
        make_tokenizer('')
    with pytest.raises(TypeError, match='not the one text'):
        make_tokenizer('clip')('a cat', 77)
