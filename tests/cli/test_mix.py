"[data] mix: files with shares, for each way of training; no held-out row, exact resume, and a changed file is noticed."

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from ft_notebooks import appointments, encode_chats, tiny_model, tiny_tokenizer
from ft_notebooks.cli.commands import main
from ft_notebooks.data.read import read_chats
from ft_notebooks.runs.pipeline import train_run
from ft_notebooks.runs.record import trained_rows
from ft_notebooks.tokenization.padding import IGNORE

SETTINGS = "--set model.name=tiny --set sft.bf16=false --set sft.max_steps=4 --set sft.save_steps=2".split()
EARLIER = {"earlier.jsonl": 0.2}


def write(name, rows):
    Path(name).write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows))


@pytest.fixture
def files(here):
    write("new.jsonl", appointments(40))
    write("earlier.jsonl", appointments(8, seed=1))


class Ends(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("the session has ended")


def settings(**data):
    sft = {"bf16": False, "max_steps": 4, "save_steps": 2, "effective_batch": 16}
    return {"model": {"name": "tiny"}, "data": {"mix": EARLIER, **data}, "sft": sft}


@pytest.mark.whole
def test_the_mixture_is_said_and_recorded_and_its_rows_count_as_trained(files, capsys):
    main(["sft", "new.jsonl", *SETTINGS, "--set", f"data.mix={json.dumps(EARLIER)}", "--set", "data.eval=none"])
    said = capsys.readouterr().out
    assert "mixed in: 10 rows of" in said and "20% of the rows; each is read 1.25 times an epoch" in said
    assert "plan: 50 rows" in said
    shown = said[said.index("mixed in:") :].partition("«")[2].partition("<|im_end|>")[0]  # trained of its first row
    assert shown in {row["messages"][-1]["content"] for row in appointments(8, seed=1)}
    known = json.loads(Path("runs/sft/metrics.json").read_text()) | json.loads(Path("runs/sft/run.json").read_text())
    assert list(known["data"]["mix"].values()) == [0.2] and known["data.mix"][0][0] == 0.2
    assert len(trained_rows(known)) == 48
    write("earlier.jsonl", appointments(8, seed=2))
    assert trained_rows(known) is None and "no longer contains the training rows" in capsys.readouterr().out


@pytest.mark.whole
def test_a_killed_run_goes_on_to_the_same_weights_and_another_mixture_is_another_run(files, capsys):
    rows = read_chats("new.jsonl")
    train_run(rows, None, settings(), "whole")
    with pytest.raises(RuntimeError):
        train_run(rows, None, settings(), "stopped", guards=lambda tok, ids: [Ends()])
    train_run(rows, None, settings(), "stopped")
    one, other = (load_file(f"{run}/adapter_model.safetensors") for run in ("whole", "stopped"))
    assert all((one[name] == other[name]).all() for name in one)
    for other in (settings(mix={"earlier.jsonl": 0.3}), settings(mix_by="tokens")):
        with pytest.raises(ValueError, match="data.mix"):
            train_run(rows, None, other, "whole")


def gradients(model):
    return {name: weights.grad.double() for name, weights in model.named_parameters() if weights.requires_grad}


class Keeps(TrainerCallback):
    "The gradient of the step, and the weights before the optimizer changes them."

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradient = gradients(model)
        self.weights = {name: weights.clone() for name, weights in model.state_dict().items()}


def summed(model, row):
    "The gradient of the sum, not the mean, of the losses of one row's trained tokens."
    model.zero_grad()
    losses = -model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
    places = [place for place, label in enumerate(row["labels"][1:]) if label != IGNORE]
    sum(losses[place, row["labels"][place + 1]] for place in places).backward()
    return gradients(model), len(places)


@pytest.mark.whole
def test_a_step_weighs_each_trained_token_alike_whichever_file_it_is_of(here):
    write("new.jsonl", appointments(32))
    yes = {"role": "assistant", "content": "Yes."}  # shorter, so that the files' means would give another gradient
    write("earlier.jsonl", [{"messages": [*row["messages"][:-1], yes]} for row in appointments(8, seed=1)])
    kept = Keeps()
    sft = {"bf16": False, "max_steps": 1, "max_grad_norm": 0, "effective_batch": 40, "per_device_train_batch_size": 8}
    given = settings() | {"model": {"name": "tiny", "bits": 32}, "sft": sft}
    train_run(read_chats("new.jsonl"), None, given, "run", guards=lambda tok, ids: [kept])

    chats = [chat for name in ("new.jsonl", "earlier.jsonl") for chat in read_chats(name)]
    rows, _ = encode_chats(tiny_tokenizer(), chats)
    model = PeftModel.from_pretrained(tiny_model(), "run", is_trainable=True).double()
    model.load_state_dict(kept.weights)
    parts, counts = zip(*(summed(model, row) for row in rows))
    terms = sum(map(len, rows["input_ids"]))  # the gradient of a weight is a sum over all tokens of the step
    for name, gradient in kept.gradient.items():
        by_hand = sum(part[name] for part in parts) / sum(counts)
        size = sum(part[name].norm() for part in parts) / sum(counts)
        assert (gradient - by_hand).norm() <= torch.finfo(torch.float32).eps * terms * size


@pytest.mark.whole
def test_no_row_that_is_held_out_is_mixed_in(files, capsys):
    rows = read_chats("new.jsonl")
    write("earlier.jsonl", [*appointments(8, seed=1), *rows.select(range(36, 40))])
    train_run(rows.select(range(36)), rows.select(range(36, 40)), settings(), "run")
    assert "4 rows are duplicates or near-duplicates of held-out rows" in capsys.readouterr().out


@pytest.mark.whole
def test_pairs_are_mixed_by_rows_and_refuse_tokens(files, capsys):
    chats = read_chats("new.jsonl")
    with open("pairs.jsonl", "w") as file:
        for row in chats:
            *prompt, answer = row["messages"]
            rejected = [{"role": "assistant", "content": "I do not know."}]
            file.write(json.dumps({"prompt": prompt, "chosen": [answer], "rejected": rejected}) + "\n")
    Path("more.jsonl").write_text("".join(Path("pairs.jsonl").read_text().splitlines(keepends=True)[:4]))
    pairs = ["dpo", "pairs.jsonl", "--set", "model.name=tiny", "--set", "dpo.max_steps=2", "--set", "dpo.bf16=false"]
    pairs += ["--set", 'data.mix={"more.jsonl": 0.1}', "--set", "data.eval=none"]
    main(pairs)
    assert "mixed in: 5 rows of" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*pairs, "--set", "data.mix_by=tokens", "--output", "other"])
    assert 'mix them by="rows"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "data, words",
    [
        ({"mix": {"earlier.jsonl": 2}}, "data.mix: earlier.jsonl: its share of the mixture must be from 0 to below 1"),
        ({"mix": {"earlier.jsonl": 0.2, "new.jsonl": 0.8}}, "data.mix: the shares"),
        ({"mix": ["earlier.jsonl"]}, "write each file with its share"),
        ({"mix_by": "words"}, "data.mix: shares of 'words'"),
        ({"mix": {"nowhere.jsonl": 0.2}}, "nowhere.jsonl"),
    ],
)
def test_a_mixture_that_cannot_be_is_an_error_before_anything_is_loaded(files, data, words):
    with pytest.raises(ValueError, match=words):
        train_run(read_chats("new.jsonl"), None, settings(**data), "run")
    assert not Path("run").exists()


def doctored(capsys, mix, *more):
    "What `ft doctor --quick` says of a mixture, and the codes of what it warns of."
    settings = ["model.name=tiny", "data.eval=0.2", f"data.mix={json.dumps(mix)}", *more]
    given = [word for one in settings for word in ("--set", one)]
    with pytest.raises(SystemExit):
        main(["doctor", "new.jsonl", "--quick", *given])
        raise SystemExit(0)
    said = " ".join(capsys.readouterr().out.split())
    return said, set(re.findall(r"(?:error|warning) ([a-z]+(?:-[a-z]+)+)", said))


@pytest.mark.parametrize(
    "mix, more, words",
    [
        ({"few.jsonl": 0.9}, (), "few.jsonl has 2 rows for 90% of the rows, so each is read about 432 times"),
        ({"few.jsonl": 0.9}, ("data.mix_by=tokens",), "few.jsonl has 2 rows for 90% of the tokens"),
        ({"few.jsonl": 0.9}, ("sft.max_steps=100",), "each is read about 720 times"),
        ({"nowhere.jsonl": 0.2}, (), "no such file"),
        ({"earlier.jsonl": 2}, (), "its share of the mixture must be from 0 to below 1"),
        ({"broken.jsonl": 0.2}, (), "broken.jsonl:1"),
    ],
)
def test_the_doctor_finds_a_mixture_that_is_learned_by_heart_or_cannot_be(files, capsys, mix, more, words):
    write("few.jsonl", appointments(2, seed=2))
    Path("broken.jsonl").write_text('{"messages": [{"role": "user", "content": "half a li\n')
    said, codes = doctored(capsys, mix, *more)
    assert words in said and codes and "could-not-look" not in codes


@pytest.mark.parametrize("more", [(), ("data.mix_by=tokens",), ("sft.max_steps=20",)], ids=["rows", "tokens", "steps"])
def test_the_doctor_lets_a_usual_mixture_alone_and_says_that_it_has_not_read_it(files, capsys, more):
    said, codes = doctored(capsys, EARLIER, *more)
    assert not codes and "what the rows of earlier.jsonl say, which are mixed in: ft doctor earlier.jsonl" in said
