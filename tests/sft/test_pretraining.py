"Continued pretraining as a person meets it: text files, a kill, silent failures, and what comes after."

import json
import signal
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from safetensors.torch import load_file
from small_runs import killed_at

from ft_notebooks.checkpointing.finished_runs import known_run
from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.read import read_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import load_adapter
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import load_tokenizer
from ft_notebooks.training.run import fit

PAGES = [topics[name][:500] for name in sorted(topics)[:24]]
REPLAY = ("data.replay=chats.jsonl", "data.replay_share=0.4")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, appointments(24))))
    folder(PAGES)
    return tmp_path


def folder(texts, name="docs"):
    Path(name).mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        Path(name, f"{number:02}.txt").write_text(text, encoding="utf-8")


def ft(command, data, *settings, output=None):
    own = ("model.name=tiny", "model.bits=32") if not any("model.name" in one for one in settings) else ()
    words = [command, data, *(["--output", output] if output else [])]
    main([*words, *(word for one in (*own, *settings) for word in ("--set", one))])


def pretrain(output, *more):
    steps = ("pretrain.max_steps=4", "pretrain.save_steps=2", "pretrain.effective_batch=4", "pretrain.max_length=250")
    ft("pretrain", "docs", "data.eval=0.2", "lora.lora_dropout=0.1", *steps, *REPLAY, *more, output=output)


def codes(capsys, data, *settings):
    "The codes of what the doctor warns of, without the model."
    own = (word for one in ("model.name=tiny", "model.bits=32", *settings) for word in ("--set", one))
    with pytest.raises(SystemExit) as end:
        main(["doctor", data, "--json", "--quick", *own])
        raise SystemExit(0)
    found = json.loads(capsys.readouterr().out)["findings"]
    assert end.value.code in (0, 1)
    return {one["code"] for one in found if one["level"] in ("warning", "error")}


@pytest.mark.whole
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not_and_sft_goes_on_from_it(here, capsys):
    assert killed_at(3, lambda: pretrain("killed")) == -signal.SIGKILL
    assert Path("killed/checkpoint-2").exists() and not Path("killed/metrics.json").exists()
    pretrain("killed")
    assert "goes on from killed/checkpoint-2" in capsys.readouterr().out
    pretrain("whole")
    said = capsys.readouterr().out
    assert "documents to train on" in said and "replay: 4" in said and "chats of replay, which is not trained" in said
    whole, again = (load_file(f"{run}/adapter_model.safetensors") for run in ("whole", "killed"))
    assert all((whole[name] == again[name]).all() for name in whole)
    record = known_run("whole")[1]
    assert record["perplexity"] < record["perplexity_before"] and record["general"] < record["general_before"]
    with pytest.raises(SystemExit):  # another share of replay is another run
        pretrain("whole", "data.replay_share=0.2")
    assert "data.replay_share was 0.4, is 0.2" in capsys.readouterr().err
    ft("sft", "chats.jsonl", "model.name=whole", "sft.max_steps=2", "data.eval=0.2", output="sft")
    assert Path("sft/adapter_model.safetensors").is_file()
    with pytest.raises(SystemExit):
        main(["eval", "whole"])
    assert "give a file of chats" in capsys.readouterr().err


def weights(run):
    return load_file(f"{run}/adapter_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


@pytest.mark.whole
def test_sft_trains_the_one_adapter_of_the_pretraining_on_and_resumes_after_a_kill(here):
    pretrain("pre")
    before = weights("pre")
    settings = ("model.name=pre", "sft.max_steps=2", "sft.save_steps=1", "data.eval=none")
    assert killed_at(1, lambda: ft("sft", "chats.jsonl", *settings, output="sft")) == -signal.SIGKILL
    ft("sft", "chats.jsonl", *settings, output="sft")
    model = load_adapter("pre", bits=32, trainable=True)
    how = {"output_dir": "hand", "max_steps": 2, "seed": 0}
    fit(sft_trainer(model, load_tokenizer("pre"), read_chats("chats.jsonl"), **how))
    assert equal(weights("sft"), weights("hand")) and not equal(weights("sft"), before)
    assert equal(weights("pre"), before)  # the first run is as it was
    assert Path(known_run("sft")[1]["model.name"]) == Path("pre").resolve()
    base = json.loads(Path("sft/adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base) == Path("tiny").resolve()


@pytest.mark.whole
def test_sft_of_the_merged_model_has_an_adapter_of_its_own(here):
    pretrain("pre")
    main(["merge", "pre"])
    ft("sft", "chats.jsonl", "model.name=pre/merged", "lora.r=4", "sft.max_steps=1", "data.eval=none", output="sft")
    config = json.loads(Path("sft/adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == Path("pre/merged").resolve() and config["r"] == 4


@pytest.mark.parametrize(
    ("write", "settings", "said"),
    [
        (lambda: Path("docs/x.txt").write_bytes(b"caf\xe9 au lait"), (), "docs/x.txt: not read: the byte 0xe9"),
        (lambda: Path("docs/x.txt").write_text("a\0b"), (), "docs/x.txt: not read: the file is binary"),
        (lambda: Path("docs/rows.csv").write_text("text\nabc\n"), (), "24 text files and 1 files of rows"),
        (lambda: None, ("data.separator=~~~",), "the separator '~~~' stands in none of the 24 texts"),
        (lambda: None, ("data.replay_share=0.5",), "--set data.replay=FILE"),
        (lambda: None, ("data.replay=none.jsonl",), "none.jsonl: no such file"),
        (lambda: None, ("pretrain.max_length=5000",), "pretrain.max_length=2048, which cuts them"),
        (lambda: None, ("pretrain.max_length=50", *REPLAY), "data.replay: 20 of 20 answers would lose their end"),
        (lambda: None, ("pretrain.dataset_text_field=page",), "set data.text"),
        (lambda: None, ("pretrain.assistant_only_loss=true",), "every token of a document is trained"),
    ],
    ids=["latin", "binary", "mixed", "separator", "share", "no-replay", "context", "long-chats", "column", "labels"],
)
def test_a_mistake_is_a_sentence_with_the_cure_before_the_model_is_loaded(here, capsys, write, settings, said):
    write()
    if "2048" in said:
        folder([" ".join(PAGES)] * 2)
    with pytest.raises(SystemExit) as end:
        ft("pretrain", "docs", *settings)
    assert end.value.code == 2 and said in capsys.readouterr().err and not Path("runs/pretrain/manifest.json").exists()


def test_documents_that_run_together_are_found_and_parted_as_the_doctor_says(here, capsys):
    Path("one.txt").write_text("<|endoftext|>".join(PAGES))
    assert "documents-joined" in codes(capsys, "one.txt")
    assert "documents-joined" not in codes(capsys, "one.txt", "data.separator=<|endoftext|>")


def test_lines_and_tags_that_every_document_has_are_found(here, capsys):
    menu = "Home | Products | About us | Contact | Imprint\nAll rights reserved by the authors of this page.\n"
    folder([menu + text[:300] for text in PAGES], "menu")
    folder([f"<div class='a'><p>{text[:60]}</p><a href='/next'>next</a></div>" for text in PAGES], "html")
    assert "documents-alike" in codes(capsys, "menu") and "documents-alike" in codes(capsys, "html")


def test_chats_are_refused_with_their_command(here, capsys):
    Path("chats.txt").write_text(Path("chats.jsonl").read_text())
    for file, said in {"chats.jsonl": "train it with ft sft", "chats.txt": "train it with ft sft"}.items():
        with pytest.raises(SystemExit):
            ft("pretrain", file)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("what", ["a licence", "code and a foreign word", "a long one"])
def test_what_documents_usually_have_is_no_warning(here, capsys, what):
    code = "```python\nfor i in range(9):\n    print(i)\n```"
    texts = {
        "a licence": [f"{text}\n\nLicence: CC BY 4.0" for text in PAGES],
        "code and a foreign word": [f"# {n}\n\n{code}\n\n{text}\n\nEine Übung. <br>" for n, text in enumerate(PAGES)],
        "a long one": [*PAGES, "\n\n".join(topics[name] for name in sorted(topics)[30:34])],
    }[what]
    folder(texts, "usual")
    assert codes(capsys, "usual") == set()
