"""What breaks between the rows of a run and its server, and the link of `check_run` that finds it: the table FAULTS.

Each row plants one fault in a copy of a finished run, or the harmless change beside it, after which
every link is right.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.export.run_check import LINKS, check_run
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole


class Run:
    "A copy of a run and of its base, to be changed."

    def __init__(self, tiny_run: Path, tmp: Path):
        self.base, self.folder, self.rows = tmp / "base", tmp / "run", appointments(8)
        shutil.copytree(tiny_run.parent / "base", self.base)
        shutil.copytree(tiny_run, self.folder)
        config = self.folder / "adapter_config.json"
        config.write_text(config.read_text().replace(str(tiny_run.parent / "base"), str(self.base)))
        (self.folder / "complete.json").unlink()  # which lists the config as it was

    def adapter(self, change) -> None:
        "Changes one tensor of the adapter's file."
        file = self.folder / "adapter_model.safetensors"
        weights = load_file(file)
        name = min(key for key in weights if "lora_B" in key)
        save_file({**weights, name: change(weights[name])}, file)

    def template(self, old: str, new: str) -> None:
        tok = AutoTokenizer.from_pretrained(self.folder)
        assert old in tok.chat_template
        tok.chat_template = tok.chat_template.replace(old, new)
        tok.save_pretrained(self.folder)

    def stops_at(self, *ids: int) -> None:
        GenerationConfig(eos_token_id=list(ids)).save_pretrained(self.base)

    def without_answers(self) -> None:
        self.rows = self.rows.map(lambda row: {"messages": row["messages"][:-1]}, load_from_cache_file=False)


FAULTS = {  # what is planted, and the link that is broken; None: harmless
    "a layer that was never trained": (lambda run: run.adapter(torch.zeros_like), "trained"),
    "a layer trained a little": (lambda run: run.adapter(lambda b: 1e-3 * b), None),
    "NaN in the adapter": (lambda run: run.adapter(lambda b: b * torch.nan), "trained"),
    "a thought opened in use alone": (
        lambda run: run.template("assistant\n' }}", "assistant\n<think>\n' }}"),
        "labels",
    ),
    "another separator of turns": (lambda run: run.template("<|im_end|>\n' }}", "<|im_end|>' }}"), None),
    "generation stops at another token": (lambda run: run.stops_at(5), "labels"),
    "generation stops at a further token": (lambda run: run.stops_at(2, 5), None),
    "no answer in the rows": (Run.without_answers, "labels"),
    "a base that is gone": (lambda run: shutil.rmtree(run.base), "labels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_broken_link_is_named(fault, tiny_run, tmp_path):
    run = Run(tiny_run, tmp_path)
    plant, broken = FAULTS[fault]
    plant(run)
    links = list(check_run(run.folder, run.rows))
    said = "\n".join(map(str, links))
    if broken:
        assert (links[-1].name, links[-1].state) == (broken, "broken"), said
    else:
        assert [link.name for link in links] == list(LINKS), said
        assert not [link for link in links if link.state == "broken"], said


def test_a_file_that_has_changed_since_it_was_saved(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: 2 * tensor for name, tensor in weights.items()}, file)
    *_, last = check_run(folder, appointments(8))
    assert (last.name, last.state) == ("saved", "broken") and "adapter_model.safetensors" in last.said


def trained_by_ft(*settings: str) -> None:
    "A run of ft sft in the working folder, with held-out rows, on a tiny base."
    tiny_model().save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    appointments(24).to_json("rows.jsonl")
    given = ["model.name=base", "model.bits=32", "data.eval=0.25", "sft.max_steps=2", *settings]
    main(["sft", "rows.jsonl", "--output", "run", *(word for one in given for word in ("--set", one))])


def checked(capsys) -> tuple[str, int]:
    "What `ft check run` prints, and its exit code."
    capsys.readouterr()
    try:
        main(["check", "run"])
    except SystemExit as ended:
        return capsys.readouterr().out, ended.code
    return capsys.readouterr().out, 0


def test_ft_check_measures_the_held_out_rows_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained_by_ft()
    said, code = checked(capsys)
    assert all(f"\n{name:9}" in f"\n{said}" for name in LINKS) and "BROKEN" not in said and not code
    recorded = json.loads(Path("run/metrics.json").read_text())
    assert f"{recorded['perplexity']:.4g} after training" in said
    Path("run/metrics.json").write_text(json.dumps({**recorded, "perplexity": 1.1 * recorded["perplexity"]}))
    said, code = checked(capsys)
    assert "loaded   BROKEN: the perplexity" in said and code == 1


def test_a_matrix_that_training_has_not_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained_by_ft("model.method=full")
    said, code = checked(capsys)
    assert "trained  all 16 matrices of the model have changed" in said and "every weight was trained" in said
    name = "model.layers.0.self_attn.q_proj.weight"
    file = Path("run/model.safetensors")
    Path("run/complete.json").unlink()
    save_file({**load_file(file), name: load_file("base/model.safetensors")[name]}, file, {"format": "pt"})
    said, code = checked(capsys)
    assert f"trained  BROKEN: 1 of 16 matrices have not changed in training, the first is {name}" in said
    assert code == 1
