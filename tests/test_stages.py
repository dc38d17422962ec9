"A further stage is one class and one line in a table: it trains, resumes and finishes through what `ft` calls."

import json
import signal
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from ft_notebooks.checkpointing.finished_runs import known_run
from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.commands import main
from ft_notebooks.cli.settings import read_settings, sections
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.readers import read_rows
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.runs.stages import STAGES, stage_class
from ft_notebooks.sft.stage import SFTStage


class ContinuedPretraining(SFTStage):
    "Plain text, of which every token is trained."

    name, rows, columns = "continue", "texts", ("prompt",)
    answers = False  # it continues texts

    def read(self, source, places=False):
        column = self.renamed.get("prompt", "text")  # --set data.prompt=NAME
        texts = [row[column] for _, row in read_rows(source, (column,))]
        return Dataset.from_list([{"messages": [{"role": "user", "content": text}]} for text in texts])

    def encode(self, tok, rows, held=False):
        ids = [[*tok(row["messages"][0]["content"])["input_ids"], tok.eos_token_id] for row in rows]
        return Dataset.from_dict({"input_ids": ids, "labels": ids}), {"rows": len(ids), "tokens": sum(map(len, ids))}

    def next_command(self, run, held):
        return f"ft sft DATA --set model.name={run}"


class Interrupted(ContinuedPretraining):
    "As above, and stopped after step 3."

    def callbacks(self, tok, held, held_ids):
        class Stops(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 3:
                    signal.raise_signal(signal.SIGINT)

        return [Stops()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STAGES, "continue", (f"{__name__}.ContinuedPretraining", "continues texts"))
    tiny_model().save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    texts = [chat[1]["content"] for chat in appointments(24)["messages"]]
    Path("texts.jsonl").write_text("\n".join(json.dumps({"story": text}) for text in texts))
    return tmp_path


def continued(output):
    settings = ["model.name=tiny", "model.bits=32", "data.eval=0.25", "continue.max_steps=4", "continue.save_steps=2"]
    settings += ["continue.effective_batch=4", "data.prompt=story"]
    main(["continue", "texts.jsonl", "--output", output, *(word for one in settings for word in ("--set", one))])


def test_a_new_stage_has_its_command_and_its_section_of_the_settings(here, capsys):
    assert parser().parse_args(["continue", "texts.jsonl"]).output == "runs/continue"
    assert "continue" in sections()
    assert list(STAGES) == ["sft", "pretrain", "dpo", "kto", "reward", "grpo", "distill", "continue"]
    with pytest.raises(ValueError, match=r"\[continue\] has no key 'maxsteps' .* did you mean 'max_steps'"):
        read_settings(overrides=["continue.maxsteps=1"])
    with pytest.raises(SystemExit):
        main(["launch", "--processes", "2", "--", "continue", "texts.jsonl", "--set", "continue.max_steps=0"])
    assert "[continue] max_steps must be more than 0" in capsys.readouterr().err


@pytest.mark.whole
def test_a_new_stage_trains_resumes_and_finishes_as_the_others_do(here, capsys, monkeypatch):
    continued("whole")
    said = capsys.readouterr().out
    assert "texts.jsonl: 18 texts to train on, 6 held out" in said
    assert "perplexity of the held-out rows: " in said and said.endswith("ft sft DATA --set model.name=whole\n")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setitem(STAGES, "continue", (f"{__name__}.Interrupted", "stopped"))
        continued("parts")
    assert e.value.code == 130 and "goes on from step 3" in capsys.readouterr().err
    continued("parts")
    whole, parts = (load_file(f"{run}/adapter_model.safetensors") for run in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)
    capsys.readouterr()
    continued("parts")
    assert "parts is finished; nothing is changed" in capsys.readouterr().out
    record = known_run("parts")[1]
    assert record["command"] == "continue" and record["perplexity"] < record["perplexity_before"]
    assert stage_class("continue") is ContinuedPretraining
