"What an export leaves behind where it fails, and what other programs and --allow may add"

import json
import os
import signal
import sys
from unittest.mock import patch

import pytest
from small_runs import forked

from ft_notebooks.course.example_task import appointments
from ft_notebooks.export.check import check_export
from ft_notebooks.export.gguf_writer import write_gguf
from ft_notebooks.export.lora_gguf import write_lora_gguf
from ft_notebooks.export.parity import Parity, beyond_limits
from ft_notebooks.export.run_export import export_run, run_model

pytestmark = pytest.mark.whole

ROWS = appointments(8, part="validation")


def test_not_a_number_is_beyond_every_limit():
    nan = Parity(4, float("nan"), float("nan"), 0.0)
    for type in ("f32", "f16", "bf16", "q8_0", "q4_k_m"):
        assert beyond_limits(type, nan, nan)


def test_what_is_allowed_stays_and_is_named(tiny_run, tiny_merged, tmp_path):
    file, allow = tmp_path / "base.gguf", ("tensors", "parity")
    write_gguf(tiny_run.parent / "base", file)
    report = check_export(run_model(tiny_run), tiny_merged, file, "f32", ROWS, max_new_tokens=8, allow=allow)
    assert {finding.split(":")[0] for finding in report["allowed"]} == {*allow}
    with pytest.raises(ValueError, match="is not the same model:\n  parity: (.|\n)*--allow parity, ") as error:
        check_export(run_model(tiny_run), tiny_merged, file, "f32", ROWS, max_new_tokens=8, allow=allow[:1])
    assert "tensors" not in str(error.value)


def test_a_folder_that_holds_something_is_left_as_it_is(tiny_run, tmp_path):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty"):
        export_run(tiny_run, ROWS, tmp_path, type="f32")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("write", [write_gguf, write_lora_gguf])
def test_what_is_no_gguf_is_never_replaced(tiny_run, tmp_path, write):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="thesis.txt exists and is no GGUF"):
        write(tiny_run, tmp_path / "thesis.txt")
    with pytest.raises(ValueError, match=r"is a folder; the order is \(folder, file\)"):
        write("out.gguf", tiny_run)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_nothing(tiny_run, tmp_path):
    with (
        patch("gguf.GGUFWriter.write_tensor_data", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="no space is left on the disk"),
    ):
        export_run(tiny_run, ROWS, tmp_path / "out", type="f32")
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_killed_leaves_no_folder(tiny_run, tmp_path):
    def killed():
        with patch("ft_notebooks.export.run_export.check_export", lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
            export_run(tiny_run, ROWS, tmp_path / "out", type="f32")

    assert forked(killed) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert export_run(tiny_run, ROWS, tmp_path / "out", type="f32", max_new_tokens=8).is_dir()


def test_a_converter_gets_the_merged_folder_and_its_file_is_checked_too(tiny_run, tiny_merged, tmp_path):
    write_gguf(tiny_merged, tmp_path / "right.gguf", "f16")
    write_gguf(tiny_run.parent / "base", tmp_path / "wrong.gguf", "f16")
    converter = tmp_path / "convert.py"  # which does what takes no imports: it copies a file that is already there
    converter.write_text(
        "import sys\nfrom pathlib import Path\nfolder, _, out, _, type = sys.argv[1:]\n"
        "assert Path(folder, 'config.json').is_file() and not Path(folder, 'adapter_config.json').exists()\n"
        "here = Path(__file__).parent\nwrong = here / 'wrong.gguf'\n"
        "Path(out).write_bytes((wrong if wrong.exists() else here / 'right.gguf').read_bytes())\n",
        encoding="utf-8",
    )
    settings = dict(type="f16", converter=str(converter), max_new_tokens=8)
    with pytest.raises(ValueError, match="model-f16.gguf is not the same model:\n  tensors: (.|\n)*  parity: "):
        export_run(tiny_run, ROWS, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    (tmp_path / "wrong.gguf").unlink()
    out = export_run(tiny_run, ROWS, tmp_path / "out", **settings)
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["parity"]["rows"]["kl"] < 1e-4


def test_a_quantizing_program_makes_the_other_types_and_the_score_is_compared(tiny_run, tmp_path):
    program = tmp_path / "llama-quantize"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        "Path(sys.argv[2]).write_bytes(Path(sys.argv[1]).read_bytes())\n",
        encoding="utf-8",
    )
    program.chmod(0o700)
    out = export_run(tiny_run, ROWS, tmp_path / "out", type="q4_k_m", quantize=str(program), max_new_tokens=8)
    report = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert report["scores"]["exact_match"]["file"]["n"] == len(ROWS) and not (out / "f32.gguf").exists()


def test_no_card_and_no_manifest_names_a_path_of_this_machine(tiny_run, tmp_path):
    out = export_run(tiny_run, ROWS, tmp_path / "out", to="safetensors", type="f32")
    for name in ("README.md", "manifest.json"):
        assert str(tiny_run.parent) not in (out / name).read_text(encoding="utf-8")


def test_without_llama_cpp_an_export_ends_before_anything_is_computed(tiny_run, tmp_path):
    with (
        patch("ft_notebooks.export.run_export.find_spec", return_value=None),
        patch("ft_notebooks.export.run_export.run_stages", side_effect=AssertionError),
        pytest.raises(ValueError, match=r"not installed; pip install 'ft-notebooks\[export\]'"),
    ):
        export_run(tiny_run, ROWS, tmp_path / "out")


def test_the_rows_may_be_a_path(tiny_run, tmp_path):
    ROWS.to_json(tmp_path / "rows.jsonl")
    assert export_run(tiny_run, tmp_path / "rows.jsonl", tmp_path / "out", to="safetensors", type="f32").is_dir()
