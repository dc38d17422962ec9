"Edges of merging: what stands where the folder is to be, what is too far away, what is left behind."

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ft_notebooks import merging
from ft_notebooks.loading import load_model
from ft_notebooks.lora import add_adapter, lora_config
from ft_notebooks.merging import LEAST_SAME, MOST_KL, check_merged, merge_folder, whole_folder
from ft_notebooks.models import smollm2, tiny_model, tiny_tokenizer
from ft_notebooks.tokenizer import load_tokenizer

ROWS = tiny_tokenizer()(["to be or not to be, that is the question", "whether it is nobler"]).input_ids


def test_an_empty_folder_and_a_place_deep_down_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a/b/c", str(tmp_path / "text")):
        with whole_folder(place) as part:
            (part / "file").write_text("x")
            assert not Path(place, "file").exists()
        assert Path(place, "file").read_text() == "x"


@pytest.mark.parametrize("there", ["file", "full"])
def test_what_is_there_is_left_alone(tmp_path, there):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/.hidden").write_text("mine")
    with pytest.raises(ValueError, match=f"{there} is there already and is not empty"):
        with whole_folder(tmp_path / there):
            pytest.fail("it went on")
    assert (tmp_path / "file").read_text() == (tmp_path / "full/.hidden").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_what_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "place") as part:
        (part / "half").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_filled_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(OSError), whole_folder(tmp_path / "place") as part:
        (part / "file").write_text("ours")
        (tmp_path / "place").mkdir()
        (tmp_path / "place/file").write_text("theirs")
    assert (tmp_path / "place/file").read_text() == "theirs"


def test_others_may_read_what_was_made(tmp_path):
    (tmp_path / "usual").mkdir()
    with whole_folder(tmp_path / "place"):
        pass
    assert (tmp_path / "place").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("kl, same", [(MOST_KL * 1.01, 1.0), (0.0, LEAST_SAME - 0.001), (float("nan"), 1.0)])
def test_both_limits_of_the_budget_hold(monkeypatch, kl, same):
    monkeypatch.setattr(merging, "logits_distance", lambda *args: (kl, same))
    with pytest.raises(ValueError, match="says other words than the adapter's: KL per token"):
        check_merged(None, None, ROWS)
    monkeypatch.setattr(merging, "logits_distance", lambda *args: (MOST_KL, LEAST_SAME))
    assert check_merged(None, None, ROWS) == (MOST_KL, LEAST_SAME)
    monkeypatch.setattr(merging, "logits_distance", lambda *args: (-1e-9, 1.0))
    assert check_merged(None, None, ROWS) == (0.0, 1.0)


@pytest.fixture
def adapter(tmp_path):
    def make(bits, tie=False, **fields):
        base = tiny_model()
        if tie:
            base.config.tie_word_embeddings = True
            base.tie_weights()
        base.save_pretrained(tmp_path / "base")
        base = load_model(tmp_path / "base", bits)
        model = add_adapter(base, lora_config(base, **fields))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
        for _ in range(25):
            for row in ROWS:
                ids = torch.tensor([row]).to(model.device)
                model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(tmp_path / "adapter")
        tiny_tokenizer().save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("bits", [4, 16, 32])
def test_the_folder_is_plain_and_its_weights_are_tied_as_they_were(adapter, tmp_path, bits, tie):
    kl, same = merge_folder(adapter(bits, tie), tmp_path / "merged", ROWS, bits)
    assert kl <= MOST_KL and same >= LEAST_SAME
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["tie_word_embeddings"] is tie and "quantization_config" not in config
    with safe_open(tmp_path / "merged/model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tie
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}
    assert len(dtypes) == 1 and (dtypes == {"F32"}) == (config["dtype"] == "float32") == (bits == 32)
    assert {p.suffix for p in (tmp_path / "merged").iterdir()} == {".json", ".safetensors", ".jinja"}


def test_a_head_that_was_trained_is_not_lost_with_the_tie(adapter, tmp_path):
    folder = adapter(4, tie=True, modules_to_save=["lm_head"])
    kl, same = merge_folder(folder, tmp_path / "merged", ROWS, 4)
    assert kl <= MOST_KL and not json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"]


def test_a_base_in_eight_bits_is_measured_on_its_dequantised_weights(adapter, tmp_path, monkeypatch):
    check, measures = merging.check_merged, []
    monkeypatch.setattr(merging, "check_merged", lambda model, *rest: measures.append(model) or check(model, *rest))
    kl, _ = merge_folder(adapter(8), tmp_path / "merged", ROWS, 8)
    (base,) = (model.get_base_model() for model in measures)
    assert kl < 1e-3 and not getattr(base, "is_quantized", False) and not measures[0].training


@pytest.mark.parametrize("bits, said", [(3, "bits must be"), (32, "says other words")])
def test_other_bits_than_those_that_were_trained_on_are_found_out(adapter, tmp_path, monkeypatch, bits, said):
    folder, load = adapter(4), merging.load_adapter
    loaded = iter([bits, 4])  # merged into another base than the adapter's model has
    monkeypatch.setattr(merging, "load_adapter", lambda folder, _: load(folder, next(loaded)))
    monkeypatch.setattr(merging, "MOST_KL", 1e-6)
    with pytest.raises(ValueError, match=said):
        merge_folder(folder, tmp_path / "merged", ROWS, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize("bits", [4, 16, 32])
def test_the_bits_of_the_run_are_those_that_are_merged_into(adapter, tmp_path, monkeypatch, bits):
    folder, load, asked = adapter(bits), merging.load_adapter, []
    monkeypatch.setattr(merging, "load_adapter", lambda folder, bits=None: asked.append(bits) or load(folder, bits))
    dtypes = {4: ["bfloat16", "uint8"], 16: ["bfloat16"], 32: ["float32"]}[bits]
    config = {"model.config.quantization_config": {"load_in_4bit": True}} if bits == 4 else {}
    (folder / "manifest.json").write_text(json.dumps({"run": {"model.dtypes": dtypes, **config}, "recorded": {}}))
    merge_folder(folder, tmp_path / "merged", ROWS)
    assert set(asked) == {bits}
    assert (json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == "float32") == (bits == 32)


@pytest.mark.smol
def test_the_real_model_in_four_bits_says_the_same_words_once_it_is_merged(real_model, tmp_path):
    base, tok = load_model(smollm2(), 4), load_tokenizer(smollm2())
    model = add_adapter(base, lora_config(base, target_modules=["v_proj", "down_proj"]))
    chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A ship's cat, and hungry."}]
    row = torch.tensor([tok.apply_chat_template(chat, return_dict=False)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(6):
        model(row, labels=row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "adapter")
    tok.save_pretrained(tmp_path / "adapter")
    texts = ["The tide was out, and the boats lay on the sand.", "Two and two are four, and three and three are six."]
    kl, same = merge_folder(tmp_path / "adapter", tmp_path / "merged", [row[0].tolist(), *tok(texts).input_ids], 4)
    assert kl <= MOST_KL and same >= LEAST_SAME
    ids = tok.apply_chat_template(chat[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    said = [m.eval().generate(**ids.to(m.device), do_sample=False, max_new_tokens=12)[0].tolist() for m in (model, plain)]
    assert said[0] == said[1] and "cat" in tok.decode(said[1][ids["input_ids"].shape[1] :])
