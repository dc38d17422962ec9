"What a notebook of export would be interrupted by: each way in which an export must fail, and what it leaves"

import json
import signal
import subprocess
import sys
from unittest.mock import patch

import pytest

from ft_notebooks.data.example_task import appointments
from ft_notebooks.export import gguf_writer
from ft_notebooks.export.check import check_export, file_findings
from ft_notebooks.export.gguf_writer import write_gguf
from ft_notebooks.export.parity import Parity, beyond_limits
from ft_notebooks.export.run_export import export_run, run_model
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config, merge_adapter
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit

ROWS = appointments(8, part="validation")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run of an adapter that changes the answers, on a base of its own."
    folder, tok = tmp_path_factory.mktemp("export"), tiny_tokenizer()
    tiny_model().save_pretrained(folder / "base")
    tok.save_pretrained(folder / "base")
    model = load_model(folder / "base", 32)
    model = add_adapter(model, lora_config(model, init_lora_weights=False))
    fit(sft_trainer(model, tok, appointments(8), output_dir=folder / "run", max_steps=2, effective_batch=4))
    return folder / "run"


@pytest.fixture(scope="module")
def merged(run):
    folder = run.parent / "merged"
    merge_adapter(run_model(run)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def refused(model, folder, file, type="f32"):
    with pytest.raises(ValueError, match="is not the same model") as error:
        check_export(model, folder, file, type, ROWS, max_new_tokens=8)
    return str(error.value)


def test_a_file_of_the_base_alone_is_not_the_run(run, merged, tmp_path):
    base = run.parent / "base"
    write_gguf(base, tmp_path / "base.gguf")
    said = refused(run_model(run), merged, tmp_path / "base.gguf")
    assert "tensors: " in said and "parity: KL on the run's rows" in said


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_an_adapter_of_another_strength_is_not_the_run(run, tmp_path, scale):
    model = run_model(run)
    for layer in model.modules():
        if hasattr(layer, "scaling"):
            layer.scaling = {name: scale * value for name, value in layer.scaling.items()}
    merge_adapter(model).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf")  # right for its folder, and the folder is wrong
    assert file_findings(tmp_path, tmp_path / "m.gguf", "f32") == []
    assert "parity: KL on the run's rows" in refused(run_model(run), tmp_path, tmp_path / "m.gguf")


def test_queries_and_keys_in_the_order_of_transformers_are_found(run, merged, tmp_path):
    with patch.object(gguf_writer, "llama_cpp_order", lambda config, key, weight: weight):
        write_gguf(merged, tmp_path / "m.gguf")
    assert "parity: KL on the run's rows" in refused(run_model(run), merged, tmp_path / "m.gguf")


def test_special_tokens_that_are_written_as_text_are_found(run, merged, tmp_path):
    right = gguf_writer._token_types

    def as_text(tok, rows):
        names, types = right(tok, rows)
        return names, [1] * len(types)

    with patch.object(gguf_writer, "_token_types", as_text):
        write_gguf(merged, tmp_path / "m.gguf")
    assert "tokens: " in refused(run_model(run), merged, tmp_path / "m.gguf")


def test_not_a_number_is_beyond_every_limit():
    nan = Parity(4, float("nan"), float("nan"), 0.0)
    for type in ("f32", "f16", "bf16", "q8_0", "q4_k_m"):
        assert beyond_limits(type, nan, nan)


def test_what_is_allowed_stays_and_is_named(run, merged, tmp_path):
    write_gguf(run.parent / "base", tmp_path / "base.gguf")
    report = check_export(
        run_model(run), merged, tmp_path / "base.gguf", "f32", ROWS, max_new_tokens=8, allow=("tensors", "parity")
    )
    assert {finding.split(":")[0] for finding in report["allowed"]} == {"tensors", "parity"}


def test_a_folder_that_holds_something_is_left_as_it_is(run, tmp_path):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty"):
        export_run(run, ROWS, tmp_path, type="f32")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(run, tmp_path):
    with (
        patch("gguf.GGUFWriter.write_tensor_data", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="No space left"),
    ):
        export_run(run, ROWS, tmp_path / "out", type="f32")
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_killed_leaves_no_folder(run, tmp_path):
    script = (
        "import os, signal, sys\nfrom unittest.mock import patch\n"
        "from ft_notebooks.data.example_task import appointments\n"
        "from ft_notebooks.export import run_export\n"
        "kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with patch.object(run_export, 'check_export', kill):\n"
        "    run_export.export_run(sys.argv[1], appointments(4), sys.argv[2], type='f32')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, run, tmp_path / "out"], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert export_run(run, ROWS, tmp_path / "out", type="f32", max_new_tokens=8).is_dir()


def test_a_converter_gets_the_merged_folder_and_its_file_is_checked_too(run, tmp_path):
    converter = tmp_path / "convert.py"
    converter.write_text(
        "import sys\nfrom ft_notebooks.export.gguf_writer import write_gguf\n"
        "folder, _, out, _, type = sys.argv[1:]\nwrite_gguf(folder, out, type)\n",
        encoding="utf-8",
    )
    out = export_run(run, ROWS, tmp_path / "out", type="f16", converter=str(converter), max_new_tokens=8)
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["parity"]["rows"]["kl"] < 1e-4


def test_a_quantizing_program_makes_the_other_types_and_the_score_is_compared(run, tmp_path):
    program = tmp_path / "llama-quantize"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        "Path(sys.argv[2]).write_bytes(Path(sys.argv[1]).read_bytes())\n",
        encoding="utf-8",
    )
    program.chmod(0o700)
    out = export_run(run, ROWS, tmp_path / "out", type="q4_k_m", quantize=str(program), max_new_tokens=8)
    report = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert report["scores"]["exact_match"]["file"]["n"] == len(ROWS) and not (out / "f32.gguf").exists()


def test_no_card_and_no_manifest_names_a_path_of_this_machine(run, tmp_path):
    out = export_run(run, ROWS, tmp_path / "out", to="safetensors", type="f32")
    for name in ("README.md", "manifest.json"):
        assert str(run.parent) not in (out / name).read_text(encoding="utf-8")
