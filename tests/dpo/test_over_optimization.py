"The guard that hears a collapse: what it leaves as it was, what ends a run, and that processes decide alike."

import contextlib
import io
import json
import os
import random
import socket

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from small_runs import ended, lines, title_gaps
from trl import DPOConfig, DPOTrainer

from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.dpo import over_optimization
from ft_notebooks.dpo.over_optimization import CollapseCallback, _fallen, _fitting, _measure, plot_collapse
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config

TOK = tiny_tokenizer()
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"I am {name}"}],
        "chosen": [{"role": "assistant", "content": f"hello {name}"}],
        "rejected": [{"role": "assistant", "content": f"go away {name}"}],
    }
    for name in ["Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal", "Ida"]
]


@pytest.fixture(scope="module")
def rows():
    datasets.disable_progress_bars()
    return encode_pairs(TOK, PAIRS)[0]


def adapted():
    return add_adapter(tiny_model(), lora_config(tiny_model(), r=4, lora_dropout=0.3))


def made(folder, guard=None, model=None, **fields):
    fixed = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}
    fields = {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"} | fields
    args = DPOConfig(str(folder), per_device_train_batch_size=2, **(fixed | fields))
    data = datasets.Dataset.from_list(PAIRS)
    given = {"train_dataset": data, "processing_class": TOK, "callbacks": [guard] if guard else []}
    return DPOTrainer(model or adapted(), tiny_model() if model else None, args, **given)


def trained(trainer, **how):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trainer.train(**how)
    trainer.said = said.getvalue()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def ends(monkeypatch, *counts):
    "In place of the answers: how many of eight end at each look"
    counts = iter(counts)
    monkeypatch.setattr(
        over_optimization, "greedy_answers", lambda *a: [([1], n < at) for at in [next(counts)] for n in range(8)]
    )


# what it leaves as it was


@pytest.mark.numbers
@pytest.mark.bfloat16
@pytest.mark.whole
def test_an_adapter_with_dropout_is_trained_to_the_same_bits_with_the_guard_and_without(rows, tmp_path):
    fields = {"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    guard = CollapseCallback(TOK, rows, every=1, scorer=lambda answers, some: torch.rand(()).item(), stop=False)
    heard, alone = (trained(made(tmp_path / str(bool(g)), g, **fields)) for g in (guard, None))
    assert torch.equal(weights(heard), weights(alone)) and len(lines(tmp_path / "True" / "collapse.jsonl")) == 5
    logs = [
        [{k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k} for e in t.state.log_history]
        for t in (heard, alone)
    ]
    assert logs[0] == logs[1]


@pytest.mark.numbers
@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_the_model_its_settings_and_all_random_numbers(rows, training):
    model = adapted().train(training)
    core = model.get_base_model()
    model.gradient_checkpointing_enable()
    core.config.use_cache, core.generation_config.do_sample, own = False, True, core.generation_config
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    (one, before), (other, now) = (
        _measure(model, TOK, list(rows), 20, lambda answers, some: torch.rand(())) for _ in range(2)
    )
    assert {**one, "score": 0} == {**other, "score": 0} and torch.equal(before, now)  # no dropout, and nothing drawn
    assert core.generation_config is own and own.do_sample and core.config.use_cache is False
    assert all(module.training is training for module in model.modules())
    assert core.model.gradient_checkpointing and all(p.grad is None for p in model.parameters())
    now = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(now[0], states[0]) and now[1:] == states[1:]


def test_a_scorer_that_fails_leaves_the_model_as_it_was(rows):
    model = adapted().train()
    own = model.get_base_model().generation_config
    with pytest.raises(ZeroDivisionError):
        _measure(model, TOK, list(rows), 20, lambda answers, some: 1 / 0)
    assert model.training and model.get_base_model().generation_config is own


# what ends a run


def line(stop_rate, n=8, **more):
    return {"step": 3, "answers": n, "max_new_tokens": 9, "stop_rate": stop_rate, "said": ["x"], **more}


@pytest.mark.parametrize("n", range(1, 9))
def test_less_than_half_of_the_answers_ends_a_run_unless_it_is_one_answer(n):
    for then in range(n + 1):
        for now in range(n + 1):
            fallen = _fallen(line(now / n, n), line(then / n, n)) is not None
            assert fallen is (2 * now < then and then > 1)


def test_a_score_that_was_not_there_at_the_start_or_is_no_share_is_judged_as_it_can_be():
    assert _fallen(line(1, score=0.0), line(1)) is None
    assert _fallen(line(1), line(1)) is None
    assert _fallen(line(1, score=-9.0), line(1, score=-2.0)) is None  # half of a negative score is no fall
    assert "the score of the answers is 3, down from 8" in _fallen(line(1, score=3.0), line(1, score=8.0))


@pytest.mark.whole
def test_a_fall_of_the_score_ends_a_run_after_a_save_and_says_what_the_model_says(rows, tmp_path):
    scores = iter([0.9, 0.8, 0.4])
    trainer = made(
        tmp_path, CollapseCallback(TOK, rows, every=1, scorer=lambda answers, some: next(scores)), model=tiny_model()
    )
    with pytest.raises(
        ValueError,
        match="at step 2 the score of the answers is 0.4, down from 0.9 at the start.*step 1.*the model generates '",
    ):
        trained(trainer)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()
    assert [entry.get("guards") for entry in lines(tmp_path / "collapse.jsonl")] == [["score"], None, None]


@pytest.mark.whole
def test_where_nothing_can_fall_it_is_said_once_and_with_stop_false_nothing_ends_the_run(rows, tmp_path, monkeypatch):
    ends(monkeypatch, 1, 0, 0)
    trainer = trained(made(tmp_path / "deaf", CollapseCallback(TOK, rows, every=2)))
    assert (
        trainer.said.count("1 of 8 answers end within") == 1
        and lines(tmp_path / "deaf" / "collapse.jsonl")[0]["guards"] == []
    )
    ends(monkeypatch, 8, 0, 0)
    trainer = trained(made(tmp_path / "off", CollapseCallback(TOK, rows, every=2, stop=False)))
    assert "answers end" not in trainer.said and lines(tmp_path / "off" / "collapse.jsonl")[0]["guards"] == []
    assert trainer.state.global_step == 4


@pytest.mark.whole
def test_a_look_comes_every_so_many_steps_or_a_fifth_of_the_run_rounded_up_and_at_the_end(rows, tmp_path):
    for name, every, expected in (("a", 4, [0, 4, 6]), ("b", None, [0, 2, 4, 6])):
        trained(made(tmp_path / name, CollapseCallback(TOK, rows, every=every, stop=False), max_steps=6))
        assert [entry["step"] for entry in lines(tmp_path / name / "collapse.jsonl")] == expected


@pytest.mark.whole
def test_a_run_that_resumes_keeps_its_start_and_is_refused_with_other_pairs(rows, tmp_path):
    trained(made(tmp_path, CollapseCallback(TOK, rows, every=1, stop=False), save_strategy="steps", save_steps=2))
    whole = lines(tmp_path / "collapse.jsonl")
    asked = []
    again = CollapseCallback(
        TOK, rows, every=1, stop=False, scorer=lambda answers, some: asked.append((again.last, answers)) or 1.0
    )
    trained(
        made(tmp_path, again, save_strategy="steps", save_steps=2),
        resume_from_checkpoint=str(tmp_path / "checkpoint-2"),
    )
    resumed = [
        {key: value for key, value in entry.items() if key != "score"} for entry in lines(tmp_path / "collapse.jsonl")
    ]
    assert resumed == whole and whole[-1]["kl"] > 0
    assert asked == [(2, whole[3]["said"]), (3, whole[4]["said"])]
    other = made(tmp_path, CollapseCallback(TOK, rows.select(range(1, 9)), every=1, stop=False))
    with pytest.raises(ValueError, match="checked different pairs before"):
        trained(other, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (tmp_path / ".reference" / "chosen.safetensors").unlink()
    with pytest.raises(ValueError, match="its start values are unknown; start it again"):
        trained(other, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# what it asks


def test_a_scorer_gets_text_without_special_tokens_and_the_rows(rows, tmp_path, monkeypatch):
    got = []
    said = TOK("so<|im_start|> it is").input_ids
    monkeypatch.setattr(over_optimization, "greedy_answers", lambda *a: [(said, True)] * 8)
    trained(
        made(
            tmp_path,
            CollapseCallback(TOK, rows, every=4, scorer=lambda answers, some: got.append((answers, some)) or 1.0),
        )
    )
    assert got[0] == (["so it is"] * 8, [rows[i] for i in range(8)])
    assert lines(tmp_path / "collapse.jsonl")[0]["said"] == ["so it is"] * 8


def test_a_score_that_is_no_number_is_refused_before_the_first_step(rows, tmp_path):
    trainer = made(tmp_path, CollapseCallback(TOK, rows, scorer=lambda answers, some: float("nan")))
    with pytest.raises(ValueError, match="the scorer returned nan at step 0"):
        trained(trainer)
    assert trainer.state.global_step == 0


def test_an_answer_has_the_room_that_the_context_leaves(rows):
    longest = max(len(row["prompt_ids"]) for row in rows)
    model = tiny_model()
    model.config.max_position_embeddings = longest + 5
    assert _fitting(model, rows, 20) == 5 and _fitting(model, rows, 3) == 3
    model.config.max_position_embeddings = longest
    with pytest.raises(ValueError, match=f"a prompt has {longest} tokens, but the model's context is {longest}"):
        _fitting(model, rows, 20)


def test_an_answer_has_twice_the_room_of_the_longest_chosen_one_of_eight(rows):
    assert CollapseCallback(TOK, rows).max_new_tokens == 2 * max(
        len(row["chosen_ids"]) for row in rows.select(range(8))
    )
    assert (
        CollapseCallback(TOK, rows, max_new_tokens=5).max_new_tokens == 5 and len(CollapseCallback(TOK, rows).rows) == 8
    )


@pytest.mark.whole
def test_the_figure_shows_what_was_heard_and_where_the_guard_waits(rows, tmp_path, monkeypatch):
    ends(monkeypatch, 6, 6, 5, 4, 4)
    trainer = trained(
        made(tmp_path, CollapseCallback(TOK, rows, every=1, stop=False, scorer=lambda answers, some: 0.5))
    )
    looks = lines(tmp_path / "collapse.jsonl")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history))
    drawn = {ax.get_title(): ax for ax in plot_collapse(tmp_path).axes}
    assert list(drawn["KL to the start (nats a token)"].lines[0].get_ydata()) == [entry["kl"] for entry in looks]
    stops, scores, waits = drawn["stop rate, and score"].lines
    assert list(stops.get_ydata()) == [entry["stop_rate"] for entry in looks] and list(scores.get_ydata()) == [0.5] * 5
    assert waits.get_ydata()[0] == looks[0]["stop_rate"] / 2
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert list(drawn["margin of the rewards"].lines[0].get_ydata()) == margins and len(drawn) == 8


@pytest.mark.whole
def test_the_title_of_a_panel_is_nearer_to_it_than_to_the_panel_above(tmp_path):
    looks = [{"step": n, "stop_rate": 1.0, "score": 0.5, "length": 20, "kl": n / 10} for n in (0, 5)]
    history = [{"step": n, "loss": 0.7 / n, "rewards/margins": n, "logps/chosen": -200.0 * n} for n in (1, 5)]
    for name, entries in (("collapse", looks), ("metrics", history)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    gaps = title_gaps(plot_collapse(tmp_path))
    assert len(gaps) == 6 and all(0 < own < above / 2 for own, above in gaps), gaps


# several processes


def of_rank(rank, port, tmp_path, rows):
    "One of two processes: its own scorer and folder, so that only what the first has heard can be the same."
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    found = {}
    for name, mine, its in (("first", [1, 1, 0], [1, 1, 1]), ("other", [1, 1, 1], [1, 0, 0])):
        scores = iter((mine, its)[rank])
        guard = CollapseCallback(TOK, rows, every=2, scorer=lambda answers, some: next(scores))
        trainer = made(tmp_path / name / str(rank), guard, model=tiny_model(), ddp_backend="gloo", save_only_model=True)
        try:
            trained(trainer)
            found[name] = "whole"
        except ValueError as e:
            found[name] = str(e)
        found[name + " weights"] = weights(trainer).sum().item()
    if rank == 0:
        found["looks"] = len(lines(tmp_path / "first" / "0" / "collapse.jsonl"))
    else:
        found["own file"] = (tmp_path / "first" / "1" / "collapse.jsonl").exists()
    (tmp_path / f"{rank}.json").write_text(json.dumps(found | {"world": PartialState().num_processes}))


@pytest.mark.whole
def test_two_processes_decide_as_the_first_has_heard(rows, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            try:
                of_rank(rank, port, tmp_path, rows)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert ended(children) == [0, 0]
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["world"] == two["world"] == 2 and one["looks"] == 3 and two["own file"] is False
    assert "at step 4 the score of the answers is 0, down from 1" in one["first"] and one["first"] == two["first"]
    assert one["other"] == two["other"] == "whole" and one["other weights"] == two["other weights"]
