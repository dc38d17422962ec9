"What is passed by mistake is read as it was meant, or refused with the cure."

import json

import pytest
from datasets import DatasetDict

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chat, encode_chats
from ft_notebooks.data.deduplication import split
from ft_notebooks.data.preference_encoding import encode_pair, encode_pairs
from ft_notebooks.data.preference_report import pair_report, plot_pairs
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.tokenization.length_report import plot_lengths
from ft_notebooks.tokenization.token_view import show_tokens

TOK, CHATS = tiny_tokenizer(), appointments(4)
PAIRS = [{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}]


def test_a_path_a_list_and_other_formats_are_read_where_chats_are_encoded(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
    expected = encode_chats(TOK, CHATS)[0]["labels"][:]
    for given in (
        tmp_path / "a.jsonl",
        str(tmp_path / "a.jsonl"),
        CHATS.to_list(),
        CHATS.rename_column("messages", "conversations"),
    ):
        assert encode_chats(TOK, given)[0]["labels"][:] == expected
    (tmp_path / "b.jsonl").write_text(json.dumps(PAIRS[0]))
    assert encode_pairs(TOK, tmp_path / "b.jsonl")[0][:] == encode_pairs(TOK, PAIRS)[0][:]


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: encode_chats(CHATS, TOK),
            r"tok must be a tokenizer of transformers, got Dataset; the order is \(tok, dataset",
        ),
        (
            lambda: encode_pairs(PAIRS, TOK),
            r"tok must be a tokenizer of transformers, got list; the order is \(tok, dataset",
        ),
        (
            lambda: encode_pair(PAIRS[0], TOK),
            r"tok must be a tokenizer of transformers, got dict; the order is \(tok, dataset",
        ),
        (
            lambda: pair_report(encode_pairs(TOK, PAIRS)[0], TOK),
            r"tok must be a tokenizer of transformers, got Dataset; the order is \(tok, dataset",
        ),
        (
            lambda: encode_chats(TOK, DatasetDict(train=CHATS)),
            "cannot read a DatasetDict; pass a path, a list of rows",
        ),
        (lambda: encode_chats(TOK, (row for row in CHATS)), "cannot read a generator"),
        (
            lambda: plot_lengths(encode_chats(TOK, CHATS)),
            "cannot plot a tuple; give the rows that encode_chats returned",
        ),
        (
            lambda: plot_pairs(encode_pairs(TOK, PAIRS)),
            "give the rows that encode_pairs returned, without their account",
        ),
        (lambda: plot_lengths(encode_chats(TOK, CHATS)[0], TOK), "max_length must be a whole number of at least 1"),
        (lambda: encode_chat(TOK, "hi"), "messages must be a list of messages, got 'hi'"),
        (lambda: show_tokens(encode_chats(TOK, CHATS)[0][0], TOK), r"the order is show_tokens\(tok, row\)"),
        (
            lambda: split(CHATS.to_list(), 0.5),
            "cannot compare a list; pass what read_chats or read_preferences returned",
        ),
    ],
    ids=range(12),
)
def test_a_slip_is_refused_with_the_cure(call, words):
    with pytest.raises(ValueError, match=words):
        call()
