"""Edges of perplexity, bits per byte and forced match; loops by hand, and generation, are the oracles."""

import json
import math
import threading
import time
import weakref

import pytest
import torch
from datasets import Dataset
from small_runs import TALKS as CHATS
from small_runs import chat

from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.evaluation import likelihood
from ft_notebooks.evaluation.likelihood import (
    answer_bytes,
    bits_per_byte,
    forced_match,
    last_turns,
    perplexity,
    row_losses,
)
from ft_notebooks.evaluation.runner import evaluate
from ft_notebooks.inference.generation import answers, generate
from ft_notebooks.loading.example_models import CHATML, tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.tokenization.padding import IGNORE

TOK = tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def by_hand(model, rows):
    total, count = 0.0, 0
    for row in rows:
        logp = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for t in range(1, len(row["labels"])):
            if row["labels"][t] != IGNORE:
                total, count = total - logp[t - 1, row["labels"][t]].item(), count + 1
    return math.exp(total / count)


@pytest.mark.numbers
@torch.no_grad()
def test_perplexity_counts_every_assistant_turn_of_a_conversation(model):
    encoded, _ = encode_chats(TOK, CHATS)
    assert perplexity(model, TOK, CHATS) == pytest.approx(by_hand(model, encoded), rel=1e-5)
    assert perplexity(model, TOK, encoded, batch_size=2) == pytest.approx(by_hand(model, encoded), rel=1e-5)


@pytest.mark.numbers
@torch.no_grad()
def test_perplexity_is_that_of_the_real_task_in_any_order_and_batch(model):
    notes = appointments(9, part="test")
    expected = by_hand(model, encode_chats(TOK, notes)[0])
    for size, rows in ((1, notes), (4, notes.shuffle(seed=3)), (9, notes.select(range(8, -1, -1)))):
        assert perplexity(model, TOK, rows, batch_size=size) == pytest.approx(expected, rel=1e-5)


@pytest.mark.numbers
def test_rows_without_a_trained_token_add_nothing(model):
    encoded, _ = encode_chats(TOK, CHATS)
    silent = {"input_ids": [5] * 40, "labels": [IGNORE] * 40}
    with_silence = Dataset.from_list([silent, *encoded.to_list()])
    assert perplexity(model, TOK, with_silence) == pytest.approx(perplexity(model, TOK, encoded), rel=1e-5)


def test_a_label_on_the_first_token_is_not_counted(model):
    rows = encode_chats(TOK, CHATS)[0].to_list()
    first = [{**row, "labels": [row["input_ids"][0], *row["labels"][1:]]} for row in rows]
    assert perplexity(model, TOK, Dataset.from_list(first)) == perplexity(model, TOK, Dataset.from_list(rows))


@pytest.mark.parametrize(
    "dataset",
    [
        CHATS.select([]),
        encode_chats(TOK, CHATS)[0].select([]),
        Dataset.from_list([{"input_ids": [1, 2], "labels": [IGNORE] * 2}]),
    ],
    ids=["no chats", "no rows", "no label"],
)
def test_perplexity_over_nothing_is_refused(model, dataset):
    with pytest.raises(ValueError, match="no token is trained"):
        perplexity(model, TOK, dataset)


def test_a_row_longer_than_the_context_is_refused_before_anything_runs(model, monkeypatch):
    monkeypatch.setattr(model, "forward", None)
    long = Dataset.from_list([chat("hi", "yo"), chat("hi", "yo" * 1100)])
    for measure in (perplexity, bits_per_byte):
        with pytest.raises(
            ValueError, match=r"row 1 has 22\d\d tokens, more than the model's context of 2048; leave the row out"
        ):
            measure(model, TOK, long)
    with pytest.raises(ValueError, match="row 1 has"):
        forced_match(model, TOK, long)


def test_a_model_with_nan_weights_is_refused_with_the_row():
    broken = tiny_model()
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match="row 0: the loss is nan"):
        perplexity(broken, TOK, CHATS)


@pytest.mark.parametrize("mode", [True, False])
def test_dropout_is_off_and_the_mode_is_put_back(mode):
    dropping = tiny_model()
    for layer in dropping.model.layers:
        layer.self_attn.attention_dropout = 0.5
    plain = perplexity(dropping, TOK, CHATS)
    dropping.train(mode)
    assert perplexity(dropping, TOK, CHATS) == plain
    assert dropping.training is mode


def test_the_mode_is_put_back_when_the_model_fails():
    broken = tiny_model().train()
    broken.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        perplexity(broken, TOK, CHATS)
    assert broken.training


def test_no_gradient_is_recorded_and_no_logits_outlive_their_batch(model):
    alive, most = [], []

    def watch(module, args, output):
        assert not output.requires_grad
        most.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(output))

    handle = model.lm_head.register_forward_hook(watch)
    perplexity(model, TOK, appointments(6), batch_size=1)
    handle.remove()
    assert len(most) == 6 and max(most) == 0


@pytest.mark.numbers
@torch.no_grad()
def test_bits_per_byte_is_the_loss_in_bits_over_the_bytes_of_the_answers(model):
    rows, _ = encode_chats(TOK, CHATS)
    tokens = sum(label != IGNORE for labels in rows["labels"] for label in labels[1:])
    size = len("yo") + len("one two three four five") + len("b") + len("d e f")
    expected = tokens * math.log2(by_hand(model, rows)) / size
    for batch_size, dataset in ((1, CHATS), (2, CHATS.select([2, 0, 1])), (8, CHATS)):
        assert bits_per_byte(model, TOK, dataset, batch_size) == pytest.approx(expected, rel=1e-5)


def test_the_bytes_are_those_of_what_the_assistant_said_and_of_no_other():
    call = {"type": "function", "function": {"name": "f", "arguments": {"town": "Köln"}}}
    system = {"messages": [{"role": "system", "content": "be brief"}, *chat("hi", "ä", "more", "")["messages"]]}
    tools = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    }
    sizes = [answer_bytes(Dataset.from_list([row]))[0] for row in (system, chat("hi", "日本"))]
    assert sizes == [2, 6]
    said = json.dumps([call], ensure_ascii=False)
    assert answer_bytes(Dataset.from_list([tools])) == [len(said) + 1]  # one letter of two bytes


def test_bits_per_byte_without_a_byte_is_refused(model):
    with pytest.raises(ValueError, match="all 1 chats have empty answers"):
        bits_per_byte(model, TOK, Dataset.from_list([chat("hi", "")]))
    with pytest.raises(ValueError, match=r"give chats \(\"messages\"\), not \['input_ids', 'labels'\]"):
        bits_per_byte(model, TOK, encode_chats(TOK, CHATS)[0])


@pytest.mark.numbers
def test_the_losses_come_row_by_row_in_the_order_of_the_rows(model):
    sums, counts = row_losses(model, TOK, CHATS, batch_size=2)
    assert counts.tolist() == [3, 24, 2 + 6] and sums.shape == (3,)
    for i in range(3):
        alone, [count] = row_losses(model, TOK, CHATS.select([i]))
        assert alone[0] == pytest.approx(sums[i], rel=1e-5) and count == counts[i]


FACTS = Dataset.from_list(
    [chat("p", "Paris"), chat("m", "Madrid"), chat("r", "x", "r", "Rome"), chat("w", "Warsaw is it"), chat("o", "")]
    + [chat("b", "Berlin", "and?", "Bonn", "then?")]  # a question that nobody answered
)
ANSWERS = ["Paris", "Madrid", "Rome", "Warsaw is it", "", "Bonn"]


def taught(rows, steps):
    model, rows = tiny_model(), encode_chats(TOK, rows)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        row = rows[step % len(rows)]
        model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def pupil():
    return taught(FACTS.select([0, 1, 3, 4, 5]), 100)


def heard(model, facts=FACTS, expected=ANSWERS):
    asked = [messages[:turn] for messages, turn in zip(facts["messages"], last_turns(facts))]
    said = answers(model, TOK, asked, max_new_tokens=20, progress=False)
    return [float(a["text"] == text and a["ended"]) for a, text in zip(said, expected)]


@pytest.mark.whole
@pytest.mark.parametrize("steps", [0, 60])
def test_a_forced_match_is_what_greedy_decoding_says_to_the_letter(steps):
    model = taught(FACTS, steps)
    expected = heard(model)
    for size in (1, 2, 8):
        assert forced_match(model, TOK, FACTS, size) == expected


@pytest.mark.whole
def test_some_answers_of_the_pupil_match_and_some_do_not(pupil):
    assert {0.0, 1.0} == set(heard(pupil)) and forced_match(pupil, TOK, FACTS) == heard(pupil)


def test_only_the_last_answer_counts(pupil):
    before = Dataset.from_list([chat("zzz", "qqq", *("p", "Paris")), chat("p", "Paris", "zzz", "qqq")])
    assert forced_match(pupil, TOK, before) == heard(pupil, before, ["Paris", "qqq"])


def test_a_forced_match_ends_with_whatever_token_ends_the_generation(pupil):
    "The head says another token where the end of the turn would be."
    end, other = TOK.eos_token_id, TOK("~").input_ids[0]
    weight = pupil.lm_head.weight.data
    own, swapped = pupil.generation_config.eos_token_id, weight.clone()
    swapped[[end, other]] = weight[[other, end]]
    before, pupil.lm_head.weight.data = forced_match(pupil, TOK, FACTS), swapped
    try:
        goes_on = heard(pupil), forced_match(pupil, TOK, FACTS)
        pupil.generation_config.eos_token_id = [end, other]
        ends = heard(pupil), forced_match(pupil, TOK, FACTS)
    finally:
        pupil.lm_head.weight.data, pupil.generation_config.eos_token_id = weight, own
    assert goes_on == ([0.0] * 6, [0.0] * 6) and ends == (before, before) and sum(before) > 0


@pytest.mark.parametrize(
    "old, new",
    [
        ("'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>assistant\nWell: ' }}{% endif"),  # asks with more
        ("'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>assistant:' }}{% endif"),  # with as much, and other
        (
            "+ message['content']",
            "+ ('Well: ' if message['role'] == 'assistant' else '') + message['content']",
        ),  # with less
    ],
)
def test_a_template_that_asks_otherwise_than_it_shows_is_refused(pupil, old, new):
    tok = tiny_tokenizer()
    tok.chat_template = CHATML.replace(old, new)
    assert tok.chat_template != CHATML
    with pytest.raises(
        ValueError, match="row 0: the chat template's prompt differs from the conversation that it renders"
    ):
        forced_match(pupil, tok, FACTS)


def test_a_template_that_trims_an_answer_is_no_other_template(pupil):
    tok = tiny_tokenizer()
    tok.chat_template = CHATML.replace("message['content']", "message['content'] | trim")
    spaced = Dataset.from_list([chat("p", " Paris\n"), chat("m", "Madrid")])
    assert forced_match(pupil, tok, spaced) == forced_match(pupil, TOK, FACTS.select([0, 1]))


@pytest.mark.whole
def test_a_forced_match_reads_through_an_adapter():
    model = taught(FACTS, 90)
    plain = forced_match(model, TOK, FACTS)
    assert forced_match(add_adapter(model, lora_config(model)), TOK, FACTS) == plain and sum(plain) > 0


def test_a_model_that_gives_all_logits_is_read_the_same(pupil, monkeypatch):
    forward, plain = pupil.forward, forced_match(pupil, TOK, FACTS)
    monkeypatch.setattr(pupil, "forward", lambda logits_to_keep, **inputs: forward(**inputs))
    assert forced_match(pupil, TOK, FACTS) == plain


def test_a_forced_match_is_found_in_bfloat16_too(pupil):
    assert set(forced_match(tiny_model().bfloat16(), TOK, FACTS)) <= {0.0, 1.0}


def test_what_has_no_answer_to_match_is_refused(model):
    for dataset in (CHATS.select([]), encode_chats(TOK, CHATS)[0]):
        with pytest.raises(ValueError, match='needs chats \\("messages"\\), got'):
            forced_match(model, TOK, dataset)
    with pytest.raises(ValueError, match="row 1 has no assistant turn"):
        forced_match(model, TOK, Dataset.from_list([chat("a", "b"), {"messages": chat("a", "b")["messages"][:1]}]))


@pytest.mark.parametrize("function", [perplexity, bits_per_byte, forced_match])
def test_a_path_is_read_and_swapped_arguments_are_named(model, tmp_path, function):
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    assert function(model, TOK, file) == function(model, TOK, str(file)) == function(model, TOK, rows)
    for wrong in ((TOK, model, file), (model, file, TOK), (model, TOK, iter(rows)), (model, TOK, None)):
        with pytest.raises(ArgumentError, match=f"{function.__name__}: (model|tok|dataset) must be"):
            function(*wrong)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", True])
def test_a_batch_size_is_a_whole_number_of_at_least_1(model, size):
    for measure in (perplexity, bits_per_byte, forced_match, row_losses, evaluate):
        with pytest.raises(ArgumentError, match=f"{measure.__name__}: batch_size must be a whole"):
            measure(model, TOK, CHATS, batch_size=size)


@pytest.mark.parametrize("second", [perplexity, generate], ids=["perplexity", "generate"])
def test_a_thread_waits_until_another_has_read_its_rows_and_the_mode_is_restored(monkeypatch, second):
    model = add_adapter(tiny_model(), lora_config(tiny_model(), lora_dropout=0.5)).train()
    inside, modes, compute = threading.Event(), [], likelihood.token_losses

    def slowly(model, batch):
        inside.set()
        time.sleep(0.2)
        modes.append(model.training)
        return compute(model, batch)

    monkeypatch.setattr(likelihood, "token_losses", slowly)
    first = threading.Thread(target=perplexity, args=(model, TOK, CHATS))
    first.start()
    inside.wait()
    second(model, TOK, CHATS) if second is perplexity else generate(model, TOK, [CHATS[0]["messages"][:1]], 2)
    assert model.training or not first.is_alive()
    first.join()
    assert model.training and not any(modes)
