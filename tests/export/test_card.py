"Cards of odd runs and reports: no local path in any, and what is not known is said to be unknown"

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tokenizers import normalizers

from ft_notebooks.export.card import model_card
from ft_notebooks.export.run_origin import base_origin
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

BASE = "Qwen/Qwen3-0.6B"
COMMIT = "0123456789" * 4
ADAPTER = {"adapter.r": 8, "adapter.lora_alpha": 16, "adapter.target_modules": ["q_proj", "v_proj"]}


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def finished(run, base=BASE, trainer="SFTTrainer", name=None, system="Answer briefly.", **more):
    "A run's record, as ft writes it; `name` is the model that it was given, if it is another one than the base."
    settings = {"trainer": trainer, "learning_rate": 0.001, "lr_scheduler_type": "linear", "seed": 0}
    write(run / "manifest.json", {
        "run": {**settings, **ADAPTER, **more},
        "recorded": {"model": str(base), "versions": {"torch": "2.13.0", "peft": None}},
    })  # fmt: skip
    write(run / "run.json", {
        "command": "sft", "model.name": str(name or base), "model.bits": 16,
        "data.trained": "128 rows, sha256 0123456789abcdef", "data.held_out": None,
    })  # fmt: skip
    write(run / "metrics.json", {"data": {"file": str(run / "rows.jsonl")}, "system": system, "history": [{"step": 7}]})
    write(run / "adapter_config.json", {"base_model_name_or_path": str(base), "revision": COMMIT})
    tiny_tokenizer().save_pretrained(run)
    return run


def report(to="gguf", **changes):
    file = "model.gguf" if to == "gguf" else "model.safetensors"
    parity = {"rows": {"tokens": 300, "kl": 1e-5, "largest": 1e-3, "same": 1.0}}
    found = {"to": to, "type": "f16", "files": {file: {"bytes": 1234, "sha256": "f" * 64}}, "parity": parity}
    rest = {"checked": {"strings": 512}, "scores": {}, "allowed": [], "versions": {"xllamacpp": "2026"}}
    return found | rest | changes


@pytest.fixture
def run(tmp_path):
    return finished(tmp_path / "runs" / "sft")


def local(text, *folders):
    "Parts of paths of this machine in a text, and the placeholder of huggingface_hub's own template."
    here = [str(Path.home()) + "/", str(Path.cwd()), "[More Information Needed]", *map(str, folders)]
    return [part for part in here if part in text]


@pytest.mark.parametrize("to", ["gguf", "safetensors"])
@pytest.mark.parametrize("license", [None, "apache-2.0"])
def test_no_card_has_a_local_path_or_a_placeholder(tmp_path, run, to, license):
    tiny_model().save_pretrained(tmp_path / "base")
    gone = finished(tmp_path / "gone", base=tmp_path / "was" / "here")
    local_base = finished(tmp_path / "of-a-folder", base=tmp_path / "base")
    for one in (run, gone, local_base, finished(tmp_path / "dpo", trainer="DPOTrainer", name=run)):
        allowed = [
            f"parity: {one}/out/model.gguf is apart",
            f"tokens: '{Path.home()}/x/y.json', see {tmp_path / 'a b'}",
            "template: of /srv/team/model.json",
        ]
        card = str(model_card(one, report(to, allowed=allowed), license))
        assert local(card, tmp_path, tmp_path.name, "/srv", "team/") == []
        assert "model.gguf is apart" in card and "template: of model.json" in card


def test_a_message_that_names_a_folder_of_this_machine_loses_it_and_an_address_stays(tmp_path):
    run = finished(tmp_path / "run", system=f"Read {tmp_path}/run, or https://x.org{tmp_path}/run and 3/4 of it.")
    card = str(model_card(run, report()))
    assert "Read run, or https://x.org/" in card and "3/4 of it." in card


def test_the_metadata_is_that_of_the_hub_and_can_be_read_again(tmp_path, run):
    model_card(run, report(), "mit").save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    expected = {"base_model": BASE, "base_model_relation": "finetune", "library_name": "gguf", "license": "mit"}
    assert data == {**expected, "pipeline_tag": "text-generation", "tags": ["sft", "lora", "gguf", "f16"]}
    data = model_card(run, report("safetensors")).data.to_dict()
    assert data["library_name"] == "transformers" and "license" not in data and data["tags"] == ["sft", "lora"]


def test_every_value_of_the_report_stands_in_the_card(run):
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 80}
    scores = {"exact_match": {"transformers": score, "file": {**score, "value": 0.47}, "p": 0.31}}
    text = str(model_card(run, report(scores=scores, allowed=["score: 0.47 is below 0.5"])))
    for part in ("`" + "f" * 64 + "`", "1,234", "f16", "1e-05", "0.001", "100.0%", "512 strings", "0.47 [0.25, 0.75]"):
        assert part in text, part
    assert "| exact_match | 80 | 0.50 [0.25, 0.75] | 0.47 [0.25, 0.75] | 0.31 |" in text
    assert "## Kept in spite of a failed check" in text and "- score: 0.47 is below 0.5" in text
    assert "| xllamacpp | – | 2026 |" in text and "| torch | 2.13.0 | – |" in text and "peft" not in text
    assert f"revision `{COMMIT}`" in text and "128 rows, sha256 0123456789abcdef" in text


@pytest.mark.parametrize("normalizer, said", [(normalizers.NFC(), True), (normalizers.NFKC(), False), (None, False)])
def test_a_card_says_that_the_tokenizer_composes_characters(run, normalizer, said):
    tok = tiny_tokenizer()
    tok.backend_tokenizer.normalizer = normalizer
    tok.save_pretrained(run)
    assert ("send text in NFC" in str(model_card(run, report()))) == said


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"r": 24, "use_dora": False}, "vllm serve BASE --enable-lora --max-lora-rank 32 --lora-modules tuned=.\n"),
        ({"r": 8, "use_dora": True}, "vLLM does not serve an adapter with DoRA: merge it"),
        ({"r": 8, "modules_to_save": ["lm_head"]}, "vLLM does not serve an adapter with modules_to_save: merge it"),
    ],
)
def test_a_card_of_an_adapter_has_the_command_for_its_rank_or_says_that_vllm_does_not_serve_it(run, fields, said):
    write(run / "adapter_config.json", {"base_model_name_or_path": BASE, "revision": COMMIT, **fields})
    text = str(model_card(run, report("adapter")))
    assert said in text and ("vllm serve" in text) == said.startswith("vllm serve")


def test_a_card_without_allowed_failures_has_no_section_for_them(run):
    assert "failed check" not in str(model_card(run, report()))


def test_both_stages_stand_in_the_card_of_a_run_that_continues_another(tmp_path, run):
    dpo = finished(tmp_path / "dpo", trainer="DPOTrainer", name=run, beta=0.1)
    text = str(model_card(dpo, report()))
    assert "# Qwen3-0.6B, fine-tuned with SFT and DPO" in text
    assert "|  | SFT | DPO |" in text and "| beta | – | 0.1 |" in text and "| steps | 7 | 7 |" in text
    of_a_checkpoint = finished(tmp_path / "dpo2", trainer="DPOTrainer", name=run / "checkpoint-4")
    assert "SFT and DPO" in str(model_card(of_a_checkpoint, report()))
    lost = finished(tmp_path / "dpo3", trainer="DPOTrainer", name=tmp_path / "moved")
    assert "continued an earlier run, whose record is no longer there" in str(model_card(lost, report()))


def test_the_scores_are_those_of_the_run_s_report_card(run):
    score = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 20}
    better = {**score, "value": 0.9, "high": 1.0, "against": {"base": {"p": 1.9e-6}}}
    write(run / "eval" / "report.json", {"base": {"f1": score}, "sft": {"f1": better, "new": {**score, "n": 10}}})
    text = str(model_card(run, report()))
    assert "| score | n | base | sft | p, sft against base |" in text
    assert "| f1 | 20 | 0.10 [0.00, 0.20] | 0.90 [0.00, 1.00] | 1.9e-06 |" in text
    assert "| new | 10 | – | 0.10 [0.00, 0.20] | – |" in text


def test_a_run_of_a_script_has_a_card_too(run):
    for name in ("run.json", "metrics.json", "adapter_config.json"):
        (run / name).unlink()
    text = str(model_card(run, report()))
    assert "The run recorded no system message." in text and "holds no scores of its own" in text
    assert f"[{BASE}](https://huggingface.co/{BASE}): no revision was recorded" in text


def test_a_message_with_backticks_and_a_setting_with_a_bar_do_not_break_the_page(tmp_path):
    run = finished(tmp_path / "run", system='Write ```json\n{"a": "|"}\n``` and {{ braces }}.', loss_type="a|b")
    text = str(model_card(run, report()))
    assert '````text\nWrite ```json\n{"a": "|"}\n``` and {{ braces }}.\n````' in text and "| loss | a\\|b |" in text


def test_a_folder_that_is_no_finished_run_is_an_error(tmp_path, run):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="holds no manifest.json, so it is no run"):
            model_card(folder, report())
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match="has not finished"):
        model_card(run, report())
    (run / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json is damaged"):
        model_card(run, report())


def test_a_report_that_lacks_a_part_is_an_error_that_names_it(run):
    for name in report():
        with pytest.raises(ValueError, match=f"the report has no '{name}'"):
            model_card(run, {key: value for key, value in report().items() if key != name})


@pytest.mark.parametrize("license", ["", "Apache-2.0", "apache 2.0", "mit\nlicense_link: x", "/etc/passwd"])
def test_a_licence_that_is_no_identifier_is_an_error(run, license):
    with pytest.raises(ValueError, match="license must be an identifier of the hub"):
        model_card(run, report(), license)


def test_a_relative_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    assert base_origin("models/base")[0] == "models/base"
    tiny_model().save_pretrained(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    assert base_origin("models/base")[0] is None
    assert base_origin("~/there/is/none")[0] is None and base_origin(r"C:\models\base")[0] is None
    assert base_origin(f"/x/models--gpt2/snapshots/{COMMIT}")[0] == "gpt2"
