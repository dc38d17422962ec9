"`ft dpo`: from pairs in a file to a run, on a base and on what `ft sft` has made."

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ft_notebooks.cli import evaluation
from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.data.read import read_preferences
from ft_notebooks.dpo.loss import pair_logps
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import load_adapter
from ft_notebooks.runs import pipeline

pytestmark = pytest.mark.whole

SETTINGS = ("dpo.bf16=false", "model.bits=32", "dpo.effective_batch=4", "dpo.learning_rate=1e-3")


def pair(chat, chosen="yes, of course"):
    return {"prompt": chat[:2], "chosen": [{"role": "assistant", "content": chosen}], "rejected": chat[2:]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    tiny_model().save_pretrained(folder / "tiny")
    appointments(8).to_json(folder / "notes.jsonl")
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair(chat)) for chat in appointments(24)["messages"]))
    return folder


@pytest.fixture
def here(files, monkeypatch):
    monkeypatch.chdir(files)
    return files


def dpo(output, *more, model="tiny", data="pairs.jsonl"):
    settings = (*SETTINGS, f"model.name={model}", *more)
    main(["dpo", data, "--output", output, *(part for setting in settings for part in ("--set", setting))])


def refused(capsys, *argv, **given):
    with pytest.raises(SystemExit) as e:
        dpo(*argv, **given)
    assert e.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(files):
    "A run on the base with six pairs held out, and what it said."
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        said = []
        patch.setattr(pipeline, "say", lambda *words, **how: said.append(" ".join(map(str, words))))
        dpo("base", "dpo.max_steps=4", "data.eval=last:6")
    return files / "base", "\n".join(said)


def test_a_run_says_what_a_pair_is_and_how_the_held_out_pairs_are_ranked(trained):
    run, said = trained
    assert "equal: 0" in said and "equal rows" not in said
    assert said.index("chosen:\n") < said.index("«yes, of course<|im_end|>»") < said.index("rejected:\n")
    metrics = json.loads((run / "metrics.json").read_text())
    rows = encode_pairs(tiny_tokenizer(), read_preferences(run.parent / "pairs.jsonl").select(range(18, 24)))[0]
    now, then = (pair_logps(model, rows).double() for model in (load_adapter(run, 32), tiny_model()))
    gained = ((now - then)[:, 0] > (now - then)[:, 1]).sum().item()
    assert (
        metrics["reward_accuracy"]["value"] == gained / 6
        and metrics["ranked"]["n"] == metrics["ranked_before"]["n"] == 6
    )
    assert "(n = 6)" in said and "logps" not in metrics and "perplexity" not in metrics


def test_a_run_leaves_an_adapter_without_the_copy_that_was_its_reference_and_two_figures(trained):
    run = trained[0]
    assert not (run / "ref").exists() and all(
        ".ref." not in name for name in load_file(run / "adapter_model.safetensors")
    )
    assert {"loss.png", "collapse.png", "run.json", "manifest.json", "tokenizer.json"} <= {
        p.name for p in run.iterdir()
    }
    assert (run / "checkpoint-4/trainer_state.json").is_file()
    known = json.loads((run / "run.json").read_text())
    assert (
        known["command"] == "dpo" and known["dpo.max_steps"] == 4 and not any(key.startswith("sft.") for key in known)
    )


def test_the_pairs_kept_aside_are_evaluated_by_their_chosen_answers(trained, here, capsys):
    main(["eval", "base", "--set", "evaluation.max_new_tokens=3"])
    report = json.loads(Path("base/eval/report.json").read_text())
    assert list(report) == ["base", "dpo"] and report["dpo"]["exact_match"]["n"] == 6
    assert report["dpo"]["perplexity"]["value"] != report["base"]["perplexity"]["value"]
    rows = evaluation._rows("pairs.jsonl", {})
    assert [row["messages"][-1]["content"] for row in rows] == ["yes, of course"] * 24


def test_dpo_goes_on_with_the_adapter_of_a_run(here, capsys):
    main(
        [
            "sft",
            "notes.jsonl",
            "--output",
            "sft",
            *(
                x
                for s in (
                    "model.name=tiny",
                    "model.bits=32",
                    "sft.bf16=false",
                    "sft.max_steps=1",
                    "sft.effective_batch=4",
                    "lora.r=4",
                )
                for x in ("--set", s)
            ),
        ]
    )
    dpo("after", "dpo.max_steps=2", "data.eval=last:6", model="sft")
    before, after = (load_file(Path(run, "adapter_model.safetensors")) for run in ("sft", "after"))
    assert before.keys() == after.keys() and any((before[name] != after[name]).any() for name in before)
    assert json.loads(Path("after/adapter_config.json").read_text())["r"] == 4
    capsys.readouterr()
    assert "; remove these keys" in refused(capsys, "no", "lora.r=8", model="sft")
    assert "merge it first: ft merge" in refused(capsys, "no", "model.method=full", model="sft")
    assert "was trained on a base in 32 bits, not 16" in refused(capsys, "no", "model.bits=16", model="sft")
    assert not Path("no").exists()


def test_equal_and_long_pairs_are_refused_until_they_are_allowed_by_name(here, capsys):
    chats = appointments(24)["messages"]
    rows = [*map(pair, chats), pair(chats[3], chats[3][2]["content"])]
    Path("odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = refused(capsys, "odd", data="odd.jsonl")
    found = ("1 of 25 pairs have two equal answers", "such as row 24 (counted from 0): both are", "allow_equal=0.04")
    assert all(words in said for words in found)
    assert "do not fit into max_length=150" in refused(
        capsys, "odd", "data.allow_equal=0.04", "dpo.max_length=150", data="odd.jsonl"
    )
    dpo("odd", "data.allow_equal=0.04", "dpo.max_steps=1", data="odd.jsonl")
    assert "equal: 1" in capsys.readouterr().out
    assert json.loads(Path("odd/run.json").read_text())["data.allow_equal"] == 0.04
    assert "data.allow_equal was 0.04" in refused(
        capsys, "odd", "data.allow_equal=0.5", "dpo.max_steps=1", data="odd.jsonl"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "hi", "chosen": "yo"}, ["bad.jsonl:2", "rejected"]),
        ({"prompt": "hi", "chosen": "", "rejected": "no"}, ["bad.jsonl:2", "chosen"]),
        ({"messages": [{"role": "user", "content": "hi"}]}, ["bad.jsonl:2"]),
        ({"prompt": [{"role": "user", "content": "hi"}], "chosen": "yo", "rejected": 3}, ["bad.jsonl:2", "rejected"]),
    ],
)
def test_a_row_that_is_no_pair_is_refused_by_its_line(here, capsys, row, said):
    Path("bad.jsonl").write_text(json.dumps(pair(appointments(1)[0]["messages"])) + "\n" + json.dumps(row))
    error = refused(capsys, "bad", data="bad.jsonl")
    assert all(part in error for part in said)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("dpo.sync_ref_model=true", "the reference is the model at the start of training"),
        ("dpo.loss_type=sigmoit", "['sigmoit'] is no loss of trl.DPOTrainer"),
        ("dpo.loss_type=orpo", "SimPO are trainers of trl.experimental"),
        ("dpo.loss_type=sft", "would not compare the answers of a pair"),
        ("dpo.max_steps=0", "[dpo] max_steps must be more than 0"),
        ("dpo.bta=1", "did you mean 'beta'"),
        ("dpo.beta=0", "beta=0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(here, capsys, setting, said):
    assert said in refused(capsys, "never", setting)
