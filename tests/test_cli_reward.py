"`ft reward` from a file of pairs: the run, its statistics, a stop and what comes after it, and what it refuses."

import json
import os
from pathlib import Path

import pytest
from ranks_of import ranks
from safetensors.torch import load_file

from ft_notebooks.cli.commands import main
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_scoring import reward_scores
from ft_notebooks.rlhf.reward_statistics import evaluate_reward

pytestmark = pytest.mark.whole

QUIET = ("model.name=tiny", "model.bits=32", "reward.bf16=false", "reward.effective_batch=4", "data.eval=last:6")
TOK = tiny_tokenizer()
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("here"), os.getcwd()
    os.chdir(folder)
    tiny_model().save_pretrained("tiny")
    TOK.save_pretrained("tiny")
    words = [f"{day} {word}" for word in ("rain", "storms and wind", "sun") for day in DAYS]
    pairs = [
        {"prompt": f"{n} {text}?", "chosen": f"yes, {text}", "rejected": f"never {text}"}
        for n, text in enumerate(words)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    yield folder
    os.chdir(before)


def ft(*words, **settings):
    given = [part for setting in (*QUIET, *(f"{k.replace('__', '.')}={v}" for k, v in settings.items()))
             for part in ("--set", setting)]  # fmt: skip
    main([*words, *given])


def test_a_run_says_what_it_learned_on_held_out_pairs_and_keeps_it(here, capsys):
    ft("reward", "pairs.jsonl", reward__max_steps=3, reward__learning_rate=0.01)
    said = capsys.readouterr().out
    assert "15 pairs to train on, 6 held out" in said and "held-out pairs whose chosen answer scores higher:" in said
    assert (
        "of those whose chosen answer is the shorter one: " in said and "load_reward_model('runs/reward', tok)" in said
    )
    metrics = json.loads(Path("runs/reward/metrics.json").read_text())
    assert metrics["reward"]["accuracy"]["n"] == 6 and metrics["reward_before"]["accuracy"]["n"] == 6
    assert Path("runs/reward/held_out.png").stat().st_size > 0
    held = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()][-6:]
    found = evaluate_reward(load_reward_model("runs/reward", TOK), TOK, held)
    assert found["accuracy"] == metrics["reward"]["accuracy"]
    assert abs(found["margin"] - metrics["reward"]["margin"]) < 1e-4
    before = {file: file.stat().st_mtime_ns for file in Path("runs/reward").iterdir()}
    ft("reward", "pairs.jsonl", reward__max_steps=3, reward__learning_rate=0.01)
    assert "is finished; nothing is changed" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in Path("runs/reward").iterdir()}


def test_two_processes_are_one_run(here, capsys):
    steps = {"reward__max_steps": 4, "reward__learning_rate": 0.001}
    ft("reward", "pairs.jsonl", "--output", "one", **steps)
    ranks(2, lambda rank: ft("reward", "pairs.jsonl", "--output", "two", **steps), here / "ranks")
    one, two = (load_file(Path(run, "adapter_model.safetensors")) for run in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 4 * 2e-3
    one, two = (json.loads(Path(run, "metrics.json").read_text())["reward"] for run in ("one", "two"))
    assert one["accuracy"] == two["accuracy"] and abs(one["loss"] - two["loss"]) < 1e-3


def test_all_weights_and_the_adapter_of_an_sft_run_are_trained_too(here, capsys):
    ft("reward", "pairs.jsonl", "--output", "full", model__method="full", reward__max_steps=1)
    chat = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "yes"}]
    assert len(reward_scores(load_reward_model("full", TOK), TOK, [chat])) == 1
    Path("chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for _ in range(8)))
    given = [part for s in ("model.name=tiny", "model.bits=32", "sft.bf16=false", "sft.max_steps=1", "data.eval=none",
                            "sft.effective_batch=4") for part in ("--set", s)]  # fmt: skip
    main(["sft", "chats.jsonl", *given])
    ft("reward", "pairs.jsonl", "--output", "after", model__name="runs/sft", reward__max_steps=1)
    model = load_reward_model("after", TOK)
    assert model.peft_config["default"].task_type == "SEQ_CLS" and len(reward_scores(model, TOK, [chat])) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model__bits": 4}, "[model] bits=4: the head would be quantized too"),
        ({"reward__center_rewards_coefficient": -1}, "would drive the scores away from 0"),
        ({"reward__pad_token": "x"}, "ft sets pad_token itself"),
        ({"reward__beta": 0.1}, "[reward] has no key 'beta'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(here, capsys, settings, said):
    with pytest.raises(SystemExit):
        ft("reward", "pairs.jsonl", "--output", "mistake", **settings)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", ["export RUN", "merge RUN", "eval RUN pairs.jsonl", "chat RUN", "serve RUN",
                                   "sft chats.jsonl --set model.name=RUN --output onto"])  # fmt: skip
def test_a_run_that_writes_no_answers_is_refused_where_answers_are_needed(here, capsys, words):
    run, chat = Path("scores"), [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "yes"}]
    tiny_model().save_pretrained(run)
    TOK.save_pretrained(run)
    Path("chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for _ in range(8)))
    (run / "run.json").write_text('{"command": "reward", "model.name": "tiny", "model.bits": 32}')
    (run / "metrics.json").write_text('{"data": {}, "system": null, "history": []}')
    with pytest.raises(SystemExit) as e:
        main(words.replace("RUN", "scores").split())
    assert e.value.code == 2 and "ft grpo DATA --reward" in capsys.readouterr().err
