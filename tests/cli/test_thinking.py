"[data] thinking: what ft sft trains of thoughts, records, resumes and evaluates, and what ft doctor finds before it."

import json
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from ft_notebooks import load_adapter, perplexity
from ft_notebooks.cli.commands import main
from ft_notebooks.data import encode_chats, read_chats
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.runs.pipeline import train_run

SETTINGS = "--set model.name=tiny --set sft.bf16=false --set sft.max_steps=4 --set sft.save_steps=2".split()
LIMITS = "--set evaluation.max_new_tokens=30 --set evaluation.max_thought_tokens=4".split()


def answer(text, thought=None):
    return {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})


def talk(n, thinks=True):
    first, second = f"{n} + {n} is {2 * n}.", f"{2 * n} + 1 is {2 * n + 1}."
    return [
        {"role": "user", "content": f"What is {n} and {n}?"},
        answer(str(2 * n), first if thinks else None),
        {"role": "user", "content": "And one more?"},
        answer(str(2 * n + 1), second if thinks else None),
    ]


def write(name, chats):
    Path(name).write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))


@pytest.fixture
def thinking(here):
    "The tiny model with Qwen3's template, and twelve conversations of two turns."
    tok = tiny_tokenizer()
    tok.chat_template = (files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    tok.save_pretrained("tiny")
    write("talks.jsonl", [talk(n) for n in range(12)])
    return tok


class Ends(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("the session has ended")


def settings(thinking):
    sft = {"bf16": False, "max_steps": 4, "save_steps": 2, "effective_batch": 8}
    return {"model": {"name": "tiny"}, "data": {"thinking": thinking}, "sft": sft}


def code_of(*words):
    try:
        main([*words])
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.whole
def test_a_run_of_a_row_a_turn_says_so_records_it_and_is_evaluated_alike(thinking, capsys):
    expand = ["--set", "data.thinking=expand", "--set", "data.eval=last:4"]
    main(["sft", "talks.jsonl", *SETTINGS, *expand, *LIMITS])
    said = capsys.readouterr().out
    assert "conversations: 8  rows: 16" in said and "plan: 16 rows" in said
    assert "«<think>" in said and "learns to answer without" not in said
    assert json.loads(Path("runs/sft/run.json").read_text())["data.thinking"] == "expand"
    main(["eval", "runs/sft", *LIMITS])
    held = read_chats("talks.jsonl").select(range(8, 12))
    ids = encode_chats(thinking, held, thoughts="expand")[0]
    report = json.loads(next(Path("runs/sft/eval").glob("*.json")).read_text())
    by_hand = perplexity(load_adapter("runs/sft"), thinking, ids)
    assert report["sft"]["perplexity"]["value"] == pytest.approx(by_hand, rel=1e-4)
    main(["eval", "runs/sft", "talks.jsonl", *LIMITS, "--output", "again"])  # as the run was trained
    main(["check", "runs/sft"])
    assert "problem" not in capsys.readouterr().out.lower()


@pytest.mark.whole
def test_a_killed_run_of_expanded_rows_goes_on_to_the_same_weights_and_another_value_is_refused(thinking, capsys):
    rows = read_chats("talks.jsonl")
    train_run(rows, None, settings("expand"), "whole")
    with pytest.raises(RuntimeError):
        train_run(rows, None, settings("expand"), "stopped", guards=lambda tok, ids: [Ends()])
    train_run(rows, None, settings("expand"), "stopped")
    one, other = (load_file(f"{run}/adapter_model.safetensors") for run in ("whole", "stopped"))
    assert all((one[name] == other[name]).all() for name in one)
    for value in ("keep", "drop"):
        with pytest.raises(ValueError, match="data.thinking was 'expand', is"):
            train_run(rows, None, settings(value), "whole")


@pytest.mark.whole
def test_without_thoughts_a_run_is_that_of_rows_that_never_had_any_and_says_what_it_teaches(thinking, capsys):
    write("plain.jsonl", [talk(n, thinks=False) for n in range(12)])
    none = ["--set", "data.eval=none"]
    main(["sft", "talks.jsonl", *SETTINGS, *none, "--set", "data.thinking=drop", "--output", "drop"])
    assert "it learns to answer without one" in capsys.readouterr().out
    main(["sft", "plain.jsonl", *SETTINGS, *none, "--output", "plain"])
    assert "it learns to answer without one" in capsys.readouterr().out
    one, other = (load_file(f"{run}/adapter_model.safetensors") for run in ("drop", "plain"))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.whole
def test_the_doctor_finds_thoughts_in_view_and_its_command_is_the_cure(thinking, capsys):
    quick = ["--quick", "--set", "model.name=tiny", "--set", "data.intended=answers-conflict"]
    assert code_of("doctor", "talks.jsonl", *quick) == 1
    said = capsys.readouterr().out
    assert "thoughts-in-view" in said and "12 of 12 rows" in said and "--set data.thinking=expand" in said
    code_of("doctor", "talks.jsonl", *quick, "--set", "data.thinking=expand")
    assert "thoughts-" not in capsys.readouterr().out
    code_of("doctor", "talks.jsonl", *quick, "--set", "data.thinking=drop")
    assert "thoughts-missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sft", "cut.jsonl"], "cut.jsonl:13: message 2 opens a thought and does not close it"),
        (["sft", "talks.jsonl", "--set", "data.thinking=all"], "thinking"),
        (["dpo", "talks.jsonl", "--set", "data.thinking=expand"], "is of ft sft alone"),
        (["sft", "talks.jsonl", "--set", "evaluation.max_thought_tokens=0"], "max_thought_tokens must be"),
    ],
)
def test_wrong_input_ends_with_its_place_and_the_cure(thinking, capsys, words, said):
    write("cut.jsonl", [*(talk(n) for n in range(12)), [talk(1)[0], answer("<think>\nOne and one")]])
    assert code_of(*words) == 2
    assert said in capsys.readouterr().err
