"`ft grpo` from a file: the run and its report, an SFT run's adapter, reward models, a stop, and what it refuses."

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ft_notebooks.rlhf.grpo
from ft_notebooks.cli.commands import main
from ft_notebooks.inference.generation import answers
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config
from ft_notebooks.rlhf.reward_model import load_reward_model

pytestmark = pytest.mark.whole

TOK = tiny_tokenizer()
STEP = {"prompts_a_step": 2, "generations": 4, "max_completion_length": 12, "max_steps": 4, "learning_rate": 1e-3}
STEP |= {"save_steps": 2, "beta": 0.05, "num_iterations": 2}
TIDY = """
def lowercase(generated, expected, example):
    return sum("a" <= letter <= "z" for letter in generated[:16]) / 16

def none(generated, expected, example):
    return None

def picky(generated, expected, example):
    return float(example["wantd"] == generated)
"""


REWARDS = ("--reward", "tidy.py:lowercase", "--reward", "length:0.01")


def asked(n):
    return [{"role": "user", "content": f"What is {n} + {n}? Say it in a word, number {n}."}]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("here"), os.getcwd()
    os.chdir(folder)
    tiny_model().save_pretrained("tiny")
    TOK.save_pretrained("tiny")
    Path("tidy.py").write_text(TIDY)
    chats = [{"messages": asked(n) + [{"role": "assistant", "content": f"{2 * n}"}]} for n in range(12)]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    yield folder
    os.chdir(before)


def ft(*words, **settings):
    fixed = {"model.name": "tiny", "model.bits": 32, "grpo.bf16": "false", "data.eval": "last:4"}
    fixed |= {f"grpo.{key}": value for key, value in STEP.items()}
    given = fixed | {key.replace("__", "."): value for key, value in settings.items()}
    main([*words, *(part for key, value in given.items() for part in ("--set", f"{key}={value}"))])


def refused(capsys, *words, **settings):
    with pytest.raises(SystemExit) as e:
        ft(*words, "--output", "refused", **settings)
    assert e.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(here):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ft("grpo", "chats.jsonl", *REWARDS)
    return Path("runs/grpo"), said.getvalue()


def test_a_run_says_what_the_rows_hold_and_what_the_first_rewards_are(trained):
    run, said = trained
    assert "chats.jsonl: 8 prompts to train on, 4 held out" in said
    assert said.index("prompts: 8") < said.index("before step 1, 8 answers to 2 prompts: mean reward")
    assert "with an answer: 8" in said and "expected: 0" in said and "<|im_start|>assistant" in said
    assert "of which, with their weights: lowercase " in said


def test_a_run_leaves_the_rewards_of_held_out_prompts_before_and_after(trained, here):
    run, said = trained
    assert {"reward.png", "held_out.jsonl", "samples.jsonl", "run.json", "adapter_model.safetensors"} <= {
        file.name for file in run.iterdir()
    }
    assert not (run / "loss.png").exists() and not (run / "ref").exists()
    metrics = json.loads((run / "metrics.json").read_text())
    assert [*metrics["rewards"]] == ["exact_match", "lowercase", "length"]
    held = [asked(n) for n in range(8, 12)]
    for model, name in ((tiny_model(), "rewards_before"), (load_adapter(run, 32), "rewards")):
        found = answers(model, TOK, held, 12, progress=False)
        assert metrics[name]["length"]["value"] == pytest.approx(sum(len(one["text"]) for one in found) / 4)
        assert metrics[name]["length"]["n"] == 4
    assert "greedy answers to 4 held-out prompts, mean before and after:" in said and "  lowercase: " in said
    lines = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4] and {"stop_rate", "exact_match"} <= lines[0].keys()
    known = json.loads((run / "run.json").read_text())
    assert known["grpo.rewards"] == ["tidy.py:lowercase", "length:0.01"] and len(known["reward.lowercase"]) == 16


def test_a_finished_run_is_left_as_it_is_and_a_function_that_has_changed_is_another_reward(trained, here, capsys):
    before = {file: file.stat().st_mtime_ns for file in trained[0].iterdir()}
    ft("grpo", "chats.jsonl", *REWARDS)
    assert "is finished; nothing is changed" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in trained[0].iterdir()}
    Path("tidy.py").write_text(TIDY + "\n")
    with pytest.raises(SystemExit):
        ft("grpo", "chats.jsonl", *REWARDS)
    assert "reward.lowercase was" in capsys.readouterr().err
    Path("tidy.py").write_text(TIDY)


def test_eval_shows_the_rewards_on_the_held_out_rows_and_a_figure_of_rewards(trained, here, capsys):
    short = ["--set", "evaluation.max_new_tokens=12"]
    main(["eval", "runs/grpo", "--score", "exact_match", "--score", "tidy.py:lowercase", *short])
    report = json.loads(Path("runs/grpo/eval/report.json").read_text())
    assert list(report) == ["base", "grpo"] and report["grpo"]["lowercase"]["n"] == 4
    metrics = json.loads(Path("runs/grpo/metrics.json").read_text())
    assert report["grpo"]["lowercase"]["value"] == pytest.approx(metrics["rewards"]["lowercase"]["value"])
    files = {file.name for file in Path("runs/grpo/eval").iterdir()}
    assert "reward.png" in files and "loss.png" not in files
    main(["eval", "runs/grpo", "chats.jsonl", "--score", "tidy.py:lowercase", "--output", "all", *short])
    found = json.loads(Path("all/report.json").read_text())["grpo"]
    assert found["lowercase"]["n"] == 12 and "exact_match" not in found


def test_the_adapter_of_an_sft_run_goes_on_and_a_reward_run_is_a_reward(here, capsys):
    quick = [x for s in ("model.name=tiny", "model.bits=32", "data.eval=none", "lora.r=4") for x in ("--set", s)]
    sft = [x for s in ("bf16=false", "max_steps=1", "effective_batch=4") for x in ("--set", f"sft.{s}")]
    main(["sft", "chats.jsonl", *quick, *sft])
    pairs = [{"prompt": f"number {n}", "chosen": f"yes {n}", "rejected": "no no no"} for n in range(16)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    reward = [x.replace("sft.", "reward.") for x in sft]
    main(["reward", "pairs.jsonl", *quick, *reward])
    ft(
        "grpo",
        "pairs.jsonl",
        "--reward",
        "runs/reward:2",
        "--output",
        "after",
        model__name="runs/sft",
        grpo__max_steps=2,
    )
    before, after = (load_file(Path(run, "adapter_model.safetensors")) for run in ("runs/sft", "after"))
    assert before.keys() == after.keys() and any((before[name] != after[name]).any() for name in before)
    assert json.loads(Path("after/adapter_config.json").read_text())["r"] == 4
    known = json.loads(Path("after/run.json").read_text())
    assert known["grpo.rewards"] == ["runs/reward:2"] and len(known["reward.reward"]) == 16
    assert [*json.loads(Path("after/metrics.json").read_text())["rewards"]] == ["exact_match", "reward"]
    capsys.readouterr()
    assert "was saved as a language model, without a head" in refused(
        capsys, "grpo", "chats.jsonl", "--reward", "runs/sft"
    )


def test_questions_and_answers_are_read_as_they_are_and_number_match_rewards_them(here, monkeypatch):

    rows = [
        {"question": f"What is {n} + 1?", "answer": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
        for n in range(8)
    ]
    Path("gsm.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seen, make = [], ft_notebooks.rlhf.grpo.reward_functions

    def counting(rewards, model, tok):
        def spread(text, expected, row):
            seen.append((expected, rewards["number_match"](text, expected, row)))
            return len(text) / 100

        return make({"number_match": spread}, model, tok)

    monkeypatch.setattr(ft_notebooks.rlhf.grpo, "reward_functions", counting)  # the tiny model gives no right answer
    ft(
        "grpo",
        "gsm.jsonl",
        "--reward",
        "number_match",
        "--output",
        "gsm",
        grpo__max_completion_length=64,
        grpo__max_steps=1,
    )
    assert len(seen) == 8 and all("####" in expected and value in (0, 1) for expected, value in seen)
    metrics = json.loads(Path("gsm/metrics.json").read_text())
    assert metrics["rewards"]["number_match"]["n"] == 4


def test_prompts_alone_keep_their_columns_for_the_reward_and_need_no_answer(here, capsys):
    Path("by.py").write_text(
        "def near(generated, expected, example):\n    return -abs(len(generated) - example['size'])\n"
    )
    rows = [{"prompt": asked(n), "size": n} for n in range(8)]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ft("grpo", "prompts.jsonl", "--reward", "by.py:near", "--output", "alone", grpo__max_steps=2)
    assert [*json.loads(Path("alone/metrics.json").read_text())["rewards"]] == ["near"]
    assert "with an answer" not in capsys.readouterr().out
    first = json.loads(Path("alone/held_out.jsonl").read_text().splitlines()[0])
    assert "stop_rate" in first and "exact_match" not in first


@pytest.mark.parametrize(
    ("rewards", "settings", "said"),
    [
        ((), {}, "FILE.py:FUNCTION or a run of ft reward: ft grpo chats.jsonl"),
        (("exact_macth",), {}, "did you mean 'exact_match'"),
        (("none.py:f",), {}, "there is no file 'none.py'"),
        (("tidy.py:lowercas",), {}, "no function or class 'lowercas' in tidy.py; did you mean 'lowercase'?"),
        (("tidy.py",), {}, "name the function too: tidy.py:FUNCTION"),
        (("length:much",), {}, "the weight 'much' is not a finite number"),
        (("length:nan",), {}, "the weight 'nan' is not a finite number"),
        (("length", "length:2"), {}, "two rewards have the name 'length'"),
        (("runs/nowhere",), {}, "runs/nowhere: there is no such folder"),
        (("length",), {"grpo__prompts_a_step": 9}, "8 prompts are fewer than prompts_a_step=9"),
        (("length",), {"grpo__generations": 1}, "generations=1: an answer is compared with the other answers"),
        (("length",), {"grpo__max_completion_length": 1}, "max_completion_length=1 would cut answers"),
        (("length",), {"grpo__max_steps": 0}, "[grpo] max_steps must be more than 0"),
        (("length",), {"grpo__num_generations": 4}, "ft sets num_generations itself; set generations"),
        (("length",), {"grpo__bta": 0.1}, "did you mean 'beta'"),
        (("length",), {"grpo__reward_weights": 1}, "--reward NAME:WEIGHT"),
        (("length",), {"data__eval": "last:12"}, "write last:N with N from 1 to 11"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_a_model_is_loaded(here, capsys, monkeypatch, rewards, settings, said):
    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ft_notebooks.training.stage.Stage.load", load)
    assert said in refused(capsys, "grpo", "chats.jsonl", *(x for r in rewards for x in ("--reward", r)), **settings)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("tidy.py:none", "it returned None; a reward must be one finite number"),
        ("tidy.py:picky", "it raised KeyError('wantd'); the row has the columns"),
        ("valid_json", "the 4 answers to a prompt all have the same reward"),
    ],
)
def test_a_reward_from_which_nothing_can_be_learned_ends_the_run_before_step_1(here, capsys, reward, said):
    assert said in refused(capsys, "grpo", "chats.jsonl", "--reward", reward)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Count."}, "is text, without the chat template"),
        (
            {"prompt": [*asked(1), {"role": "assistant", "content": "2"}]},
            "the prompt ends with the assistant's message '2'",
        ),
        ({"prompt": asked(1), "expected": ["2", "two"]}, "\"expected\" is ['2', 'two']; give the answer as text"),
        ({"prompt": asked(1), "messages": asked(2)}, "rename the columns messages"),
        ({"prompt": asked(1), "facts": 2**64}, '"facts" holds 18446744073709551616'),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_named_by_its_line(here, capsys, row, said):
    Path("bad.jsonl").write_text("\n".join(json.dumps(r) for r in ({"prompt": asked(0)}, row)))
    error = refused(capsys, "grpo", "bad.jsonl", "--reward", "length")
    assert said in error and "bad.jsonl:2" in error


def test_a_reward_run_of_another_vocabulary_or_in_few_bits_is_refused_before_the_policy(here, capsys, monkeypatch):
    other = Path("other")
    other.mkdir()
    judge, tok = load_reward_model("tiny", TOK, seed=0), tiny_tokenizer()
    add_adapter(judge, lora_config(judge)).save_pretrained(other)
    tok.add_tokens(["<other>"])
    tok.save_pretrained(other)
    monkeypatch.setattr("ft_notebooks.training.stage.Stage.load", None)
    assert "was trained with another vocabulary" in refused(capsys, "grpo", "chats.jsonl", "--reward", "other")
    monkeypatch.setattr("ft_notebooks.rlhf.reward_model.trained_bits", lambda folder: 4)
    assert "would quantize the head too" in refused(capsys, "grpo", "chats.jsonl", "--reward", "other")


def test_launch_takes_grpo(here, capsys):
    main(["launch", "--processes", "2", "--slurm", "--", "grpo", "chats.jsonl", "--reward", "length"])
    assert "grpo chats.jsonl --reward length" in Path("runs/job.sh").read_text()
