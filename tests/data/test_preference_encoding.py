"""Edges of `dpo.loss`, `data.preference_encoding` and `data.preference_report`: strange pairs, exact limits, and what
the errors name.
"""

import math
import random

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset

from ft_notebooks.data.chat_encoding import encode_chat
from ft_notebooks.data.preference_encoding import encode_pair, encode_pairs
from ft_notebooks.data.preference_report import pair_report, plot_pairs, suspect_swapped
from ft_notebooks.data.read import read_preferences
from ft_notebooks.dpo.loss import dpo_loss, pair_logps
from ft_notebooks.loading.example_models import CHATML, tiny_model, tiny_tokenizer
from ft_notebooks.tokenization.padding import IGNORE

PIECES = ["a", "B c", " ", "\n", "é", "日本", "🙂", "user\n", "<|im_end|>", "assistant\n", "{{ x }}", "-100", "."]


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def tok():
    return tiny_tokenizer()


def words(*turns):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def ids(prompt, chosen, rejected):
    return dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), (prompt, chosen, rejected)))


def random_pairs(n, seed=0):
    draw = random.Random(seed)

    def text():
        return "x" + "".join(draw.choices(PIECES, k=draw.randint(1, 6)))

    for _ in range(n):
        system = [{"role": "system", "content": text()}] if draw.random() < 0.4 else []
        asked = words(*(text() for _ in range(2 * draw.randint(0, 2) + 1)))
        yield pair(
            system + asked, [{"role": "assistant", "content": text()}], [{"role": "assistant", "content": text()}]
        )


# --- margins


@pytest.mark.numbers
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_the_loss_is_the_cross_entropy_of_a_classifier_of_two_classes(beta):
    sums = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    losses, chosen, rejected = dpo_loss(*sums, beta=beta)
    classes = torch.stack([chosen, rejected], dim=1)
    torch.testing.assert_close(
        losses, torch.nn.functional.cross_entropy(classes, torch.zeros(50, dtype=torch.long), reduction="none")
    )


@pytest.mark.numbers
def test_the_loss_and_its_gradient_stay_finite_for_the_widest_margins():
    policy = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    losses, *_ = dpo_loss(policy, torch.zeros(3), torch.zeros(3), torch.zeros(3), beta=1.0)
    losses.sum().backward()
    assert losses.tolist() == [1e4, 0.0, pytest.approx(math.log(2))] and policy.grad.tolist() == [-1.0, 0.0, -0.5]


def test_rewards_have_no_gradient():
    policy = torch.zeros(2, requires_grad=True)
    _, chosen, rejected = dpo_loss(policy, policy, torch.zeros(2), torch.zeros(2))
    assert not chosen.requires_grad and not rejected.requires_grad


@pytest.mark.numbers
def test_the_sums_do_not_depend_on_the_batch_nor_on_dropout_and_the_mode_is_given_back(tok):
    rows = [encode_pair(tok, row) for row in random_pairs(5)]
    model = tiny_model()
    alone = torch.cat([pair_logps(model, [row], batch_size=1) for row in rows])
    assert not model.training
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    together = pair_logps(model, rows, batch_size=4)
    assert model.training and not together.requires_grad
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.numbers
def test_the_sums_keep_the_order_of_the_rows(tok):
    rows = [encode_pair(tok, row) for row in random_pairs(6, seed=1)]
    torch.testing.assert_close(
        pair_logps(tiny_model(), rows[::-1]).flip(0), pair_logps(tiny_model(), rows), rtol=1e-5, atol=1e-4
    )


# --- pairs


@pytest.mark.whole
def test_random_pairs_have_the_answers_of_the_conversations_they_are_made_of(tok):
    for row in random_pairs(30):
        made = encode_pair(tok, row)
        for key in ("chosen", "rejected"):
            whole, said = encode_chat(tok, row["prompt"] + row[key]), made[f"{key}_ids"]
            assert whole["input_ids"] == made["prompt_ids"] + said + tok("\n").input_ids
            assert whole["labels"][len(made["prompt_ids"]) :] == said + [IGNORE]
        assert (
            made["prompt_ids"]
            == encode_chat(tok, row["prompt"] + row["chosen"])["input_ids"][: len(made["prompt_ids"])]
        )


@pytest.mark.whole
def test_a_dataset_is_encoded_as_its_rows_are_also_by_two_processes(tok):
    rows = [row for row in random_pairs(31) if row["chosen"] != row["rejected"]]
    alone = [encode_pair(tok, row) for row in rows]
    for source, processes in ((rows, None), (read_preferences(rows), 2)):
        encoded, account = encode_pairs(tok, source, num_proc=processes)
        assert encoded.to_list() == alone and account["rows"] == len(rows)
        assert encoded.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert account["kept_as_text"] == sum(
        "<|im_end|>" in "".join(m["content"] for m in row["prompt"] + row[key])
        for row in rows
        for key in ("chosen", "rejected")
    )


def test_a_text_and_a_message_are_one_answer(tok):
    mixed = pair("hi", words("hi", "yo")[1:], "no")
    assert encode_pair(tok, mixed) == encode_pair(tok, pair(words("hi"), "yo", words("hi", "no")[1:]))
    assert encode_pairs(tok, [mixed])[0][0] == encode_pair(tok, mixed)


def test_each_row_has_its_own_tools(tok):
    tok.chat_template = "{% for tool in tools or [] %}{{ tool['name'] }};{% endfor %}" + CHATML
    rows = [{**pair("hi", "yo", "no"), "tools": [{"name": "clock"}]}, pair("hi", "yo", "no")]
    encoded, _ = encode_pairs(tok, rows)
    assert [tok.decode(prompt).split("<")[0] for prompt in encoded["prompt_ids"]] == ["clock;", ""]
    assert encoded.to_list() == [encode_pair(tok, row) for row in rows]


def test_a_variable_of_the_template_is_passed_on(tok):
    tok.chat_template = "{{ mood }}" + CHATML
    [row] = encode_pairs(tok, [pair("hi", "yo", "no")], mood="gay")[0]
    assert tok.decode(row["prompt_ids"]).startswith("gay<") and row == encode_pair(
        tok, pair("hi", "yo", "no"), mood="gay"
    )


def test_a_prompt_that_depends_on_the_answer_is_refused_by_row(tok):
    tok.chat_template = "{% if 'b' in messages[-1]['content'] %}B{% else %}A{% endif %}" + CHATML
    rows = [pair("hi", "a", "aa"), pair("hi", "a", "b")]
    with pytest.raises(
        ValueError,
        match=r"^row 1 \(counted from 0\): the chat template renders the prompt differently for the two answers",
    ):
        encode_pairs(tok, rows)
    with pytest.raises(ValueError, match="^the chat template renders the prompt differently for the two answers"):
        encode_pair(tok, rows[1])


@pytest.mark.parametrize("melted", ["chosen", "rejected"])
def test_answers_share_a_prompt_that_ends_before_the_token_with_which_one_of_them_melts(tok, melted):
    tok.add_tokens(["\n\n"])
    row = {"prompt": "hi", "chosen": "yo", "rejected": "no", melted: "\nso"}
    encoded, account = encode_pairs(tok, [row])
    made, other = encoded[0], {"chosen": "rejected_ids", "rejected": "chosen_ids"}[melted]
    assert tok.decode(made["prompt_ids"]).endswith("<|im_start|>assistant")
    assert tok.decode(made[f"{melted}_ids"]) == "\n\nso<|im_end|>" and tok.decode(made[other]).startswith("\n")
    assert made == encode_pair(tok, row) and account["merged"] == 1


def test_an_error_of_the_encoding_names_the_pair_and_the_answer(tok):
    with pytest.raises(ValueError, match=r'^row 1 \(counted from 0\): with "rejected": .*U\+FDD0'):
        encode_pairs(tok, [pair("hi", "yo", "no"), pair("hi", "yo", "no\ufdd0")])


@pytest.mark.parametrize("which", ["chosen", "rejected"])
def test_an_answer_of_several_messages_is_refused_by_row(tok, which):
    several = {**pair("hi", "yo", "no"), which: words("hi", "yo", "and?", "so")[1:]}
    with pytest.raises(ValueError, match=rf'^row 1 \(counted from 0\): "{which}" has 3 messages'):
        encode_pairs(tok, [pair("hi", "yo", "no"), several])


@pytest.mark.parametrize(
    "row, complaint",
    [
        (pair("hi", "yo", None), 'no "rejected"'),
        (pair("hi", "", "no"), "chosen"),
        (pair("hi", "yo", "  "), "rejected"),
        (pair("hi", words("hi", "yo")[1:], 7), "rejected"),
        (pair(None, "yo", "no"), "prompt"),
        ({"text": "hi"}, "the keys"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_by_row(tok, row, complaint):
    with pytest.raises(ValueError, match=rf"(?s)row 1 \(counted from 0\).*{complaint}"):
        encode_pairs(tok, [pair("hi", "yo", "no"), row])


def test_a_pair_fits_to_the_last_token_and_is_left_out_one_below(tok):
    row, short = pair("hello there", "yo", "no, never"), pair("h", "y", "n")
    made = encode_pair(tok, row)
    n, whole = len(made["prompt_ids"]), len(made["prompt_ids"]) + len(made["rejected_ids"])
    found = {}
    for max_length in (whole, whole - 1, n + 1, n):
        encoded, account = encode_pairs(tok, [row, short], max_length, allow_long=0.5)
        found[max_length] = (len(encoded), account["long_prompts"], account["long_answers"])
    assert found == {whole: (2, 0, 0), whole - 1: (1, 0, 1), n + 1: (1, 0, 1), n: (1, 1, 0)}
    with pytest.raises(
        ValueError, match=f"1 prompts leave no space for an answer, and 0 pairs .* the longest has {whole} tokens"
    ):
        encode_pairs(tok, [row, short], max_length=n)


def test_the_share_that_an_error_names_is_enough(tok):
    rows = [pair("hi", "yo", "yo"), pair("hi", "x" * 99, "b"), *(pair("hi", "yo", f"no {i}") for i in range(60))]
    for max_length, name in ((None, "allow_equal"), (60, "allow_long")):
        given = {} if name == "allow_equal" else {"allow_equal": 0.1}
        with pytest.raises(ValueError, match=name) as error:
            encode_pairs(tok, rows, max_length, **given)
        share = float(str(error.value).split(f"{name}=")[1].split()[0])
        assert encode_pairs(tok, rows, max_length, **given, **{name: share})[1]["equal"] == 1


def test_one_in_a_hundred_is_allowed_and_two_are_not(tok):
    rows = [pair("hi", "yo", f"no {i}") for i in range(100)]
    rows[3] = pair("hi", "yo", "yo")
    assert encode_pairs(tok, rows)[1]["equal_rows"] == [3]
    rows[5] = pair("hi", "yo", "yo")
    said = r"2 of 100 pairs have two equal answers, .* such as row 3 \(counted from 0\): both are "
    with pytest.raises(ValueError, match=said):
        encode_pairs(tok, rows)


def test_answers_are_equal_if_the_template_makes_them_so(tok):
    tok.chat_template = CHATML.replace("message['content']", "message['content'] | trim")
    rows = [pair("hi", "yo", "yo \n"), pair("hi", "yo", "no")]
    encoded, account = encode_pairs(tok, rows, allow_equal=0.5)
    assert (len(encoded), account["equal"], account["equal_rows"]) == (1, 1, [0])


def test_an_equal_pair_that_is_too_long_is_counted_once(tok):
    rows = [pair("hi", "x" * 99, "x" * 99), pair("hi", "yo", "no")]
    account = encode_pairs(tok, rows, max_length=60, allow_equal=0.5)[1]
    assert (account["equal"], account["long_prompts"], account["long_answers"]) == (1, 0, 0)


def test_no_pair_left_is_an_error_whatever_is_allowed(tok):
    with pytest.raises(ValueError, match="no pair is left to train on: {'rows': 1, 'equal': 1"):
        encode_pairs(tok, [pair("hi", "yo", "yo")], allow_equal=1)
    with pytest.raises(ValueError, match="no pair is left"):
        encode_pairs(tok, [pair("hi", "yo", "no")], max_length=3, allow_long=1)


# --- probe


def test_the_report_counts_what_a_slow_loop_counts(tok):
    draw = random.Random(0)
    rows = [
        ids(
            [1] * draw.randint(1, 9),
            [*draw.choices(range(5, 12), k=draw.randint(1, 8)), 2],
            [*draw.choices(range(5, 12), k=draw.randint(1, 8)), 2],
        )
        for _ in range(80)
    ]
    report, n = pair_report(tok, rows), len(rows)
    longer = [
        len(r["chosen_ids"]) > len(r["rejected_ids"]) for r in rows if len(r["chosen_ids"]) != len(r["rejected_ids"])
    ]
    assert report["chosen_longer"]["value"] == np.mean(longer) and report["chosen_longer"]["n"] == len(longer)
    assert report["same_start"] == sum(r["chosen_ids"][0] == r["rejected_ids"][0] for r in rows) / n
    assert report["equal"] == sum(r["chosen_ids"] == r["rejected_ids"] for r in rows) / n
    assert report["longest"] == max(
        len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows
    )
    for i in range(5, 12):
        one = sum(i in r["chosen_ids"] and i not in r["rejected_ids"] for r in rows)
        two = sum(i not in r["chosen_ids"] and i in r["rejected_ids"] for r in rows)
        named = [m for m in report["marks"] if m["mark"] == f"holds {tok.decode([i])!r}"]
        assert not named or (named[0]["chosen"], named[0]["rejected"], named[0]["ranks"]) == (
            one,
            two,
            round(0.5 + abs(one - two) / (2 * n), 4),
        )
    assert [m["ranks"] for m in report["marks"]] == sorted((m["ranks"] for m in report["marks"]), reverse=True)


def test_an_answer_cut_at_its_end_is_a_mark(tok):
    end = tok.eos_token_id
    rows = [ids([1], [10 + i, 11 + i], [10 + i, 11 + i, end]) for i in range(40)]
    assert any("the rejected answer holds '<|im_end|>'" in said for said in pair_report(tok, rows)["findings"])


def test_equal_answers_are_not_counted_as_nearly_equal_too(tok):
    found = pair_report(tok, [ids([1], [10, 2], [10, 2]), ids([1], [*range(9, 29), 2], [*range(9, 28), 30, 2])])
    assert (found["equal"], found["nearly_equal"]) == (0.5, 0.5)


def test_few_pairs_are_not_said_to_have_a_mark(tok):
    rows = [ids([1], [10, 2], [11, 2])] * 29
    assert pair_report(tok, rows)["findings"] == []
    assert pair_report(tok, rows + rows[:1])["findings"][0].startswith("one mark ranks 100%")


def test_pairs_of_one_length_leave_the_rule_of_length_unknown(tok):
    found = pair_report(tok, [ids([1], [10, 2], [11, 2])])["chosen_longer"]
    assert found == {"value": None, "low": 0.0, "high": 1.0, "n": 0}


@pytest.mark.parametrize("n", [1, 3, 1200])
def test_pairs_are_drawn_however_many_there_are(n):
    rows = [ids([1] * 5, [7] * (1 + i % 40) + [2], [8] * (1 + i % 3) + [2]) for i in range(n)]
    left, middle, _ = plot_pairs(Dataset.from_list(rows)).axes
    assert len(left.collections[0].get_offsets()) == n
    assert sum(bar.get_height() for bar in middle.patches) == len(rows[:: -(-n // 500)]) <= 500


def test_nothing_to_look_at_is_an_error(tok):
    for look in (lambda: pair_report(tok, []), lambda: plot_pairs([])):
        with pytest.raises(ValueError, match="there are no pairs"):
            look()


def test_sums_of_other_pairs_are_refused():
    with pytest.raises(ValueError, match=r"logps is \(2, 2\) and there are 1 pairs"):
        suspect_swapped(torch.zeros(2, 2), [ids([1], [2], [3])])


def test_a_reference_that_prefers_neither_is_no_suspicion():
    rows = [ids([1], [4, 2], [5, 2])] * 20
    assert suspect_swapped(torch.full((20, 2), -3.0), rows) == {
        "value": None,
        "low": 0.0,
        "high": 1.0,
        "n": 0,
        "finding": None,
    }


def test_swapping_the_columns_mirrors_the_share():
    rows = [ids([1], [4] * (1 + i % 3), [5] * (1 + i % 4)) for i in range(40)]
    sums = -torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 9
    mirrored = [ids(r["prompt_ids"], r["rejected_ids"], r["chosen_ids"]) for r in rows]
    one, other = suspect_swapped(sums, rows), suspect_swapped(sums.flip(1), mirrored)
    assert one["value"] == pytest.approx(1 - other["value"]) and one["low"] == pytest.approx(1 - other["high"])
