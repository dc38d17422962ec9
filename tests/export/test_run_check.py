"""What breaks between the rows of a run and its server, and the link of `check_run` that finds it: the table FAULTS.

Each row plants one fault in a copy of a finished run of `ft sft`; BENIGN are the harmless changes beside them, after
which no link is broken. A run is named by its family; "full" trained every weight.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from tiny_families import family
from transformers import AutoTokenizer, GenerationConfig

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.export import gguf_writer, run_check, run_export
from ft_notebooks.export.run_check import LINKS, check_run
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit

pytestmark = pytest.mark.whole
RATES = {"llama": 1e-3, "qwen3_moe": 1e-3, "full": 1e-3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "f(family) -> the folder with a finished run, its base and its rows; made once."
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in made:
            return made[name]
        made[name] = folder = tmp_path_factory.mktemp(name)
        model = family("llama" if name == "full" else name)
        model.save_pretrained(folder / "base")
        tiny_tokenizer().save_pretrained(folder / "base")
        appointments(24).to_json(folder / "rows.jsonl")
        given = [f"model.name={folder / 'base'}", "model.bits=32", "data.eval=0.25", "sft.max_steps=6"]
        given += [f"sft.learning_rate={RATES[name]}"] + (["model.method=full"] if name == "full" else [])
        settings = [word for one in given for word in ("--set", one)]
        main(["sft", str(folder / "rows.jsonl"), "--output", str(folder / "run"), "--quiet", *settings])
        return folder

    return make


class Run:
    "A copy of a run, of its base and of its rows, to be changed."

    def __init__(self, made: Path, tmp: Path, patch):
        self.patch = patch
        self.place = tmp / "made"
        shutil.copytree(made, self.place)
        self.base, self.folder = self.place / "base", self.place / "run"
        for file in self.folder.glob("*.json"):
            file.write_text(file.read_text().replace(str(made), str(self.place)))
        (self.folder / "complete.json").unlink()  # by which a changed file would be found first

    @property
    def weights(self) -> Path:
        return next(self.folder.glob("*model.safetensors"))

    def change(self, wanted: str, change, file: Path | None = None) -> None:
        "Changes the first tensor whose name holds `wanted`; one that becomes None is left out."
        file = file or self.weights
        tensors = load_file(file)
        name = min(key for key in tensors if wanted in key)
        tensors[name] = change(tensors[name])
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})

    def rename(self, old: str, new: str) -> None:
        "Renames tensors of the run."
        tensors = load_file(self.weights)
        save_file({key.replace(old, new): tensor for key, tensor in tensors.items()}, self.weights, {"format": "pt"})

    def config(self, name: str, value, file: str = "run/adapter_config.json") -> None:
        path = self.place / file
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    def template(self, old: str, new: str) -> None:
        tok = AutoTokenizer.from_pretrained(self.folder)
        assert old in tok.chat_template
        tok.chat_template = tok.chat_template.replace(old, new)
        tok.save_pretrained(self.folder)

    def vocabulary(self, change) -> None:
        file = self.folder / "tokenizer.json"
        known = json.loads(file.read_text())
        change(known["model"]["vocab"])
        file.write_text(json.dumps(known, ensure_ascii=False))

    def stops_at(self, *ids: int) -> None:
        GenerationConfig(eos_token_id=list(ids)).save_pretrained(self.base)

    def rows(self, change) -> None:
        file = self.place / "rows.jsonl"
        file.write_text(change(file.read_text()))

    def merges(self, merge) -> None:
        "Another release of peft, whose merge of experts does this."
        self.patch.setattr(ParamWrapper, "merge", merge)

    def exports(self, change) -> None:
        "An export that changes the folder which it has written."
        write = run_export._write_merged

        def changed(run, folder, dtype):
            write(run, folder, dtype)
            change(folder)

        self.patch.setattr(run_export, "_write_merged", changed)


def changed_rows(run: Run) -> None:
    run.rows(lambda text: text.replace(". ", ".  "))


def as_its_base(run: Run) -> None:
    tensors = load_file(run.base / "model.safetensors")
    run.change("q_proj", lambda weight: tensors[min(name for name in tensors if "q_proj" in name)])


def another_base(run: Run) -> None:
    run.change("up_proj", lambda weight: 2 * weight, run.base / "model.safetensors")


def cut_off(run: Run) -> None:
    run.weights.write_bytes(run.weights.read_bytes()[:-100])


def exchanged(vocab: dict) -> None:
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]


def one_expert(tensor):  # the B of all experts is one matrix
    columns = tensor.shape[1] // 4
    return torch.cat([torch.zeros_like(tensor[:, :columns]), tensor[:, columns:]], 1)


def harmless(run: Run) -> None:
    run.rows(lambda text: text + "\n")  # a further blank line
    run.template("<|im_end|>\n' }}", "<|im_end|>' }}")  # another separator of turns
    run.stops_at(2, 5)  # at a further token
    run.change("lora_B", lambda b: 0.999 * b)  # a layer is trained a little less
    run.config("lora_alpha", 32.0)  # the same, as a float
    run.vocabulary(lambda vocab: None)  # the tokenizer is written again, and the base
    run.change("up_proj", lambda weight: weight, run.base / "model.safetensors")


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def other_base(folder: Path) -> None:
    file = next(folder.glob("model.safetensors"))
    tensors = load_file(file)
    name = min(key for key in tensors if "down_proj" in key)
    save_file({**tensors, name: tensors[name].flip(0)}, file, {"format": "pt"})


def other_rope(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["rope_parameters"] = {**config["rope_parameters"], "rope_theta": 100.0}
    file.write_text(json.dumps(config))


OPEN = ("assistant\n' }}", "assistant\n<think>\n' }}")
FAULTS = {  # what is planted: the run, how, and the link that is broken
    "the rows have changed since": ("llama", changed_rows, "rows"),
    "the rows are gone": ("llama", lambda run: (run.place / "rows.jsonl").unlink(), "rows"),
    "a thought is opened in use": ("llama", lambda run: run.template(*OPEN), "labels"),
    "the end of an answer has no token": ("llama", lambda run: run.template("<|im_end|>\n' }}", "\n' }}"), "labels"),
    "generation stops at another token": ("llama", lambda run: run.stops_at(5), "labels"),
    "the base is gone": ("llama", lambda run: shutil.rmtree(run.base), "labels"),
    "the tokenizer is gone": ("llama", lambda run: (run.folder / "tokenizer.json").unlink(), "labels"),
    "a layer was never trained": ("llama", lambda run: run.change("lora_B", torch.zeros_like), "trained"),
    "no expert was trained": ("qwen3_moe", lambda run: run.change("experts.lora_B", torch.zeros_like), "trained"),
    "a matrix was never trained": ("full", as_its_base, "trained"),
    "NaN in the adapter": ("llama", lambda run: run.change("lora_B", lambda b: b * torch.nan), "trained"),
    "a tensor is missing": ("llama", lambda run: run.change("lora_A", lambda a: None), "trained"),
    "the names of a wrapper": ("llama", lambda run: run.rename("model.layers", "language_model.layers"), "trained"),
    "the names of a merged layer": ("llama", lambda run: run.rename("q_proj", "qkv_proj"), "trained"),
    "the adapter is cut off": ("llama", cut_off, "trained"),
    "the rank is another": ("llama", lambda run: run.config("r", 8), "trained"),
    "the base has changed": ("llama", another_base, "trained"),
    "twice the alpha": ("llama", lambda run: run.config("lora_alpha", 64), "loaded"),
    "another adapter": ("llama", lambda run: run.change("down_proj.lora_B", lambda b: b.flip(0)), "loaded"),
    "two ids are exchanged": ("llama", lambda run: run.vocabulary(exchanged), "loaded"),
    "a weight is half of what it was": ("full", lambda run: run.change("o_proj", lambda w: w / 2), "loaded"),
    "the merge leaves experts out": ("qwen3_moe", lambda run: run.merges(lambda layer, *a, **k: None), "trained"),
    "the export forgets a layer": ("llama", lambda run: run.exports(other_base), "exported"),
    "the export loses the template": ("llama", lambda run: run.exports(without_template), "exported"),
    "the export has other positions": ("llama", lambda run: run.exports(other_rope), "exported"),
    "the file permutes no heads": (
        "llama",
        lambda run: run.patch.setattr(gguf_writer, "llama_cpp_order", lambda config, key, weight: weight),
        "served",
    ),
}  # fmt: skip
BENIGN = {
    "every weight trained": ("full", lambda run: None),
    "an expert that no token reached": ("qwen3_moe", lambda run: run.change("experts.lora_B", one_expert)),
    "harmless changes of each file": ("llama", harmless),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_broken_link_is_named(fault, trained, tmp_path, monkeypatch):
    name, plant, broken = FAULTS[fault]
    run = Run(trained(name), tmp_path, monkeypatch)
    plant(run)
    if broken in ("exported", "served"):  # what is planted is in the export alone
        monkeypatch.setattr(run_check, "LINKS", {name: LINKS[name] for name in ("rows", "labels", broken)})
    links = list(check_run(run.folder))
    said = "\n".join(map(str, links))
    assert (links[-1].name, links[-1].state) == (broken, "broken"), said


@pytest.mark.parametrize("change", BENIGN)
def test_no_link_is_broken_by_what_is_harmless(change, trained, tmp_path, monkeypatch):
    name, plant = BENIGN[change]
    run = Run(trained(name), tmp_path, monkeypatch)
    plant(run)
    links = list(check_run(run.folder))
    assert [link.name for link in links] == list(LINKS), "\n".join(map(str, links))
    assert not [link for link in links if link.state == "broken"], "\n".join(map(str, links))


def small(folder: Path, *settings: str) -> None:
    "A tiny base in `folder`, and a run of ft sft on it."
    family("llama").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    appointments(24).to_json(folder / "rows.jsonl")
    given = [f"model.name={folder / 'base'}", "model.bits=32", "data.eval=0.25", "sft.max_steps=2", *settings]
    words = [word for one in given for word in ("--set", one)]
    main(["sft", str(folder / "rows.jsonl"), "--output", str(folder / "run"), "--quiet", *words])


def test_rows_that_the_run_has_cut_are_measured_as_it_measured_them(tmp_path):
    small(tmp_path, "sft.max_length=232", "data.allow_cut=0.5")
    loaded = next(link for link in check_run(tmp_path / "run") if link.name == "loaded")
    assert loaded.state == "right", str(loaded)


def test_a_file_that_only_llama_cpps_converter_writes_is_unknown(tmp_path, monkeypatch):
    small(tmp_path)
    config = tmp_path / "base/config.json"
    config.write_text(config.read_text().replace('"silu"', '"gelu"'))
    monkeypatch.setattr(run_check, "LINKS", {name: LINKS[name] for name in ("rows", "labels", "served")})
    *_, last = check_run(tmp_path / "run")
    assert (last.name, last.state) == ("served", "unknown") and "--converter" in last.said


KINDS = {  # what no server takes as an adapter; the links that cannot be measured
    "IA3": (IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]), ["trained"]),
    "a trained head": (LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]), []),
    "prompt": (
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        ["trained", "merged", "exported", "served"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_adapter_is_not_called_broken(kind, tmp_path):
    config, unknown = KINDS[kind]
    family("llama").save_pretrained(tmp_path / "base")
    tok = tiny_tokenizer()
    tok.save_pretrained(tmp_path / "base")
    model = add_adapter(load_model(tmp_path / "base", 32), config)
    run = tmp_path / "run"
    trainer = sft_trainer(
        model, tok, appointments(8), output_dir=run, max_steps=2, effective_batch=4, padding_free=False
    )
    fit(trainer)
    links = list(check_run(run, appointments(8)))
    assert [link.name for link in links if link.state != "right"] == unknown, "\n".join(map(str, links))


def test_a_folder_that_is_no_run_is_refused_at_the_start(trained):
    with pytest.raises(ValueError, match="so it is no run"):
        list(check_run(trained("llama") / "base", appointments(4)))


def test_a_file_that_has_changed_since_it_was_saved(trained, tmp_path):
    folder = shutil.copytree(trained("llama"), tmp_path / "made") / "run"
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    *_, last = check_run(folder)
    assert (last.name, last.state) == ("saved", "broken") and "adapter_model.safetensors" in last.said


def test_what_ft_check_prints(trained, tmp_path, monkeypatch, capsys):
    run = Run(trained("llama"), tmp_path, monkeypatch)
    main(["check", str(run.folder)])
    said = capsys.readouterr().out
    assert all(f"\n{name:9}" in f"\n{said}" for name in LINKS) and "BROKEN" not in said
    recorded = json.loads((run.folder / "metrics.json").read_text())
    assert f"{recorded['perplexity']:.4g} after training" in said
    (run.folder / "metrics.json").write_text(json.dumps({**recorded, "perplexity": 1.1 * recorded["perplexity"]}))
    with pytest.raises(SystemExit) as ended:
        main(["check", str(run.folder)])
    assert "loaded   BROKEN: the perplexity" in capsys.readouterr().out and ended.value.code == 1
