"Edges of merging: what stands where the folder is to be, what is too far away, what is left behind."

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ft_notebooks.loading.example_models import smollm2, tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantization_error import logits_distance
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora import merging
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config, merge_adapter
from ft_notebooks.lora.merging import _MOST_KL_OF_ONE, MOST_KL, check_merged, merge_folder, whole_folder
from ft_notebooks.tokenization.padding import load_tokenizer

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
    with pytest.raises(ValueError, match="is not empty"), whole_folder(tmp_path / "place") as part:
        (part / "file").write_text("ours")
        (tmp_path / "place").mkdir()
        (tmp_path / "place/file").write_text("theirs")
    assert (tmp_path / "place/file").read_text() == "theirs"


def test_others_may_read_what_was_made(tmp_path):
    (tmp_path / "usual").mkdir()
    with whole_folder(tmp_path / "place"):
        pass
    assert (tmp_path / "place").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.fixture
def distances(monkeypatch):
    def are(kl, same):
        monkeypatch.setattr(merging, "token_distances", lambda *args: (torch.tensor(kl), torch.tensor(same)))

    return are


@pytest.mark.parametrize(
    "kl", [[MOST_KL * 1.01] * 9, [0.0] * 999 + [_MOST_KL_OF_ONE * 1.01], [0.0, float("nan")], [float("inf")]]
)
def test_both_limits_of_the_budget_hold(distances, kl):
    distances(kl, [True] * len(kl))
    with pytest.raises(ValueError, match="logits differ from the adapter's: KL per token"):
        check_merged(None, None, ROWS)


def test_what_is_within_both_limits_passes_and_ties_decide_nothing(distances):
    distances([0.0] * 98 + [0.49, 0.49], [True] * 100)
    assert check_merged(None, None, ROWS) == pytest.approx((0.0098, 1.0))
    distances([-1e-9], [True])
    assert check_merged(None, None, ROWS) == (0.0, 1.0)
    distances([0.001] * 35, [True] * 33 + [False] * 2)
    assert check_merged(None, None, ROWS) == pytest.approx((0.001, 33 / 35))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "`trained(bits, tie, **fields)`: a folder with a base and an adapter; each is trained once for the module."
    made = {}

    def make(bits, tie=False, **fields):
        if (key := repr((bits, tie, fields))) not in made:
            made[key] = folder = tmp_path_factory.mktemp("trained")
            base = tiny_model()
            if tie:
                base.config.tie_word_embeddings = True
                base.tie_weights()
            base.save_pretrained(folder / "base")
            base = load_model(folder / "base", bits)
            model = add_adapter(base, lora_config(base, **fields))
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
            for _ in range(25):
                for row in ROWS:
                    ids = torch.tensor([row]).to(model.device)
                    model(ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            model.save_pretrained(folder / "adapter")
            tiny_tokenizer().save_pretrained(folder / "adapter")
        return made[key]

    return make


@pytest.fixture
def adapter(trained, tmp_path):
    "The folder of such an adapter, beside its base, in a folder of the test's own."

    def copied(bits, tie=False, **fields):
        folder = trained(bits, tie, **fields)
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        config = tmp_path / "adapter/adapter_config.json"
        config.write_text(config.read_text().replace(str(folder), str(tmp_path)))
        return tmp_path / "adapter"

    return copied


@pytest.mark.whole
@pytest.mark.parametrize("bits, tie", [(4, True), (16, True), (32, False)])
def test_the_folder_is_plain_and_its_weights_are_tied_as_they_were(adapter, tmp_path, bits, tie):
    kl, _ = merge_folder(adapter(bits, tie), tmp_path / "merged", ROWS, bits)
    assert kl <= MOST_KL / 10
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["tie_word_embeddings"] is tie and "quantization_config" not in config
    with safe_open(tmp_path / "merged/model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tie
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}
    assert len(dtypes) == 1 and (dtypes == {"F32"}) == (config["dtype"] == "float32") == (bits == 32)
    assert {p.suffix for p in (tmp_path / "merged").iterdir()} == {".json", ".safetensors", ".jinja"}
    assert len({p.stat().st_mode for p in (tmp_path / "merged").iterdir()}) == 1  # others can read the weights, too


@pytest.mark.whole
def test_a_head_that_was_trained_is_not_lost_with_the_tie(adapter, tmp_path):
    folder = adapter(4, tie=True, modules_to_save=["lm_head"])
    kl, _ = merge_folder(folder, tmp_path / "merged", ROWS, 4)
    assert kl <= MOST_KL and not json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"]


@pytest.mark.numbers
@pytest.mark.whole
def test_a_base_in_eight_bits_is_measured_on_its_dequantised_weights(adapter, tmp_path, monkeypatch):
    check, measures = merging.check_merged, []
    monkeypatch.setattr(merging, "check_merged", lambda model, *rest: measures.append(model) or check(model, *rest))
    kl, _ = merge_folder(adapter(8), tmp_path / "merged", ROWS, 8)
    (base,) = (model.get_base_model() for model in measures)
    assert kl < 1e-3 and not getattr(base, "is_quantized", False) and not measures[0].training


@pytest.mark.parametrize("bits, said", [(3, "bits must be"), (32, "logits differ")])
def test_other_bits_than_those_that_were_trained_on_are_found_out(adapter, tmp_path, monkeypatch, bits, said):
    folder, load = adapter(4), merging.load_adapter
    loaded = iter([bits, 4])  # merged into another base than the adapter's model has
    monkeypatch.setattr(merging, "load_adapter", lambda folder, _: load(folder, next(loaded)))
    monkeypatch.setattr(merging, "MOST_KL", 1e-6)
    with pytest.raises(ValueError, match=said):
        merge_folder(folder, tmp_path / "merged", ROWS, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.whole
@pytest.mark.parametrize("bits", [4, 32])
def test_the_bits_of_the_run_are_those_that_are_merged_into(adapter, tmp_path, monkeypatch, bits):
    folder, load, asked = adapter(bits), merging.load_adapter, []
    monkeypatch.setattr(merging, "load_adapter", lambda folder, bits=None: asked.append(bits) or load(folder, bits))
    dtypes = {4: ["bfloat16", "uint8"], 32: ["float32"]}[bits]
    config = {"model.config.quantization_config": {"load_in_4bit": True}} if bits == 4 else {}
    (folder / "manifest.json").write_text(json.dumps({"run": {"model.dtypes": dtypes, **config}, "recorded": {}}))
    merge_folder(folder, tmp_path / "merged", ROWS)
    assert set(asked) == {bits}
    assert (json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == "float32") == (bits == 32)


@pytest.mark.numbers
@pytest.mark.whole
def test_a_wrong_merge_is_found_out_and_a_right_one_passes(adapter):
    folder = adapter(4)
    model = load_adapter(folder, 4)

    def planted(part, change):
        wrong = load_adapter(folder, 4)
        with torch.no_grad():
            for name, p in wrong.named_parameters():
                if "lora_B" in name and part in name:
                    change(p)
        return merge_adapter(wrong)

    assert check_merged(model, planted("none", None), ROWS)[0] < 0.001
    wrong = {"twice": planted("", lambda p: p.mul_(2)), "half": planted("", lambda p: p.mul_(0.5))}
    wrong |= {"layer": planted("layers.1.", torch.zero_), "queries": planted("q_proj", torch.zero_)}
    wrong |= {"base": load_model(folder.parent / "base", 4)}
    for merged in wrong.values():
        with pytest.raises(ValueError, match="logits differ from the adapter's"):
            check_merged(model, merged, ROWS)


@pytest.mark.numbers
@pytest.mark.whole
def test_one_token_that_is_lost_is_found_out_among_many_that_are_right(adapter):
    folder = adapter(32)
    model, merged = load_adapter(folder, 32), merge_adapter(load_adapter(folder, 32))
    lost = ROWS[1][0]  # "w", which stands nowhere in the first row
    rows = [ROWS[0]] * 50 + [[lost]]
    assert lost not in ROWS[0] and check_merged(model, merged, rows)[0] < 1e-6
    with torch.no_grad():
        merged.get_input_embeddings().weight[lost] = 0
    assert logits_distance(model, merged, rows)[0] < MOST_KL
    with pytest.raises(ValueError, match="logits differ from the adapter's"):
        check_merged(model, merged, rows)


@pytest.mark.slow
@pytest.mark.smol
def test_the_real_model_in_four_bits_says_the_same_words_once_it_is_merged(real_model, tmp_path):
    base, tok = load_model(smollm2(), 4), load_tokenizer(smollm2())
    model = add_adapter(base, lora_config(base, target_modules=["v_proj", "down_proj"]))
    chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A ship's cat, and hungry."}]
    row = torch.tensor([tok.apply_chat_template(chat, return_dict=False)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(10):
        model(row, labels=row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "adapter")
    tok.save_pretrained(tmp_path / "adapter")
    texts = ["The tide was out, and the boats lay on the sand.", "Two and two are four, and three and three are six."]
    kl, _ = merge_folder(tmp_path / "adapter", tmp_path / "merged", [row[0].tolist(), *tok(texts).input_ids], 4)
    assert kl <= MOST_KL
    ids = tok.apply_chat_template(chat[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    plain, start = AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids["input_ids"].shape[1]
    how = {"do_sample": False, "max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True}
    found = [m.eval().generate(**ids.to(m.device), **how) for m in (model, plain)]
    best = torch.stack(found[0].logits).float().topk(2).values[:, 0]
    assert (best[:, 0] - best[:, 1]).min() > 1, (
        "a near tie, which rounding of about 0.1 could decide: train for more steps"
    )
    said = [out.sequences[0, start:].tolist() for out in found]
    assert said[0] == said[1] and "cat" in tok.decode(said[1])
