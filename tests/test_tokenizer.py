"Edges of `ft_notebooks.tokenizer` that would interrupt the lesson."

import pytest
import torch

from ft_notebooks.models import tiny_tokenizer
from ft_notebooks.tokenizer import IGNORE, PAD_NAMES, ensure_pad_token, load_tokenizer, pad_batch


def test_a_tokenizer_with_a_pad_token_of_its_own_is_left_alone():
    tok = tiny_tokenizer()
    tok.pad_token = "<|im_start|>"
    assert ensure_pad_token(tok).pad_token == "<|im_start|>"


def test_names_are_tried_in_order_and_eos_is_never_taken():
    tok = tiny_tokenizer()
    tok.pad_token = None
    assert ensure_pad_token(tok, names=("<nope>", "<|im_end|>", "<|im_start|>", "<pad>")).pad_token == "<|im_start|>"


def test_no_token_is_ever_added():
    tok = tiny_tokenizer()
    tok.pad_token = tok.eos_token
    before = len(tok)
    assert len(ensure_pad_token(tok)) == before and tok.pad_token in PAD_NAMES


@pytest.mark.parametrize("side", ["Right", "", None])
def test_an_unknown_side_is_refused(side):
    with pytest.raises(ValueError, match="side must be 'right' or 'left', got"):
        pad_batch([[1]], pad_id=0, side=side)


def test_labels_given_with_the_rows_are_kept_and_padded():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORE, IGNORE, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = pad_batch(rows, pad_id=0)
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7], [IGNORE] * 3]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"].dtype == torch.int64


def test_a_saved_tokenizer_comes_back_with_its_template_and_pad_token(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tok = load_tokenizer(tmp_path)
    assert (tok.pad_token, tok.eos_token) == ("<pad>", "<|im_end|>")
    assert tok("hi").input_ids == [74, 75] and tok.chat_template == tiny_tokenizer().chat_template
