"Edges of `ft_notebooks.tokenization.padding` that would interrupt the lesson."

import json
from pathlib import Path

import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaForCausalLM

from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.tokenization.padding import (
    _PAD_NAMES,
    IGNORE,
    add_pad_token,
    check_vocabulary,
    ensure_pad_token,
    load_tokenizer,
    pad_batch,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def without_pad():
    tok = tiny_tokenizer()
    tok.pad_token = tok.eos_token
    return tok


def saved(tok, folder, **config):
    "The tokenizer's folder, with some keys of its configuration set by hand; None takes a key out."
    tok.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    merged = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
    return folder


def test_a_tokenizer_with_a_pad_token_of_its_own_is_left_alone():
    tok = tiny_tokenizer()
    tok.pad_token = "<|im_start|>"
    assert ensure_pad_token(tok).pad_token == "<|im_start|>"


def test_names_are_tried_in_order_and_eos_is_never_taken():
    tok = tiny_tokenizer()
    tok.pad_token = None
    assert ensure_pad_token(tok, names=("<nope>", "<|im_end|>", "<|im_start|>", "<pad>")).pad_token == "<|im_start|>"


def test_no_token_is_ever_added():
    tok = without_pad()
    before = len(tok)
    assert len(ensure_pad_token(tok)) == before and tok.pad_token in _PAD_NAMES


def test_the_refusal_names_the_tokenizer_and_both_cures(tmp_path):
    tok = AutoTokenizer.from_pretrained(saved(without_pad(), tmp_path))
    with pytest.raises(ValueError, match=f"of {tmp_path} has none of .*pass names=.*or add_pad_token") as refusal:
        ensure_pad_token(tok, names=("<nope>",))
    assert "'<|im_end|>'" in str(refusal.value)


RESERVED = "<|finetune_right_pad_id|> <pad> [PAD] <|pad|> <|padding|> <|endoftext|> <unk> <|fim_pad|>".split()


@pytest.mark.parametrize("name", RESERVED)
def test_every_reserved_name_is_recognised(name):
    tok = tiny_tokenizer()
    tok.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": [name]})
    tok.pad_token = None
    assert ensure_pad_token(tok, names=tuple(n for n in _PAD_NAMES if n != "<pad>" or n == name)).pad_token == name


@pytest.mark.parametrize("side", ["Right", "", None])
def test_an_unknown_side_is_refused(side):
    with pytest.raises(ValueError, match="side must be 'right' or 'left', got"):
        pad_batch([[1]], pad_id=0, side=side)


def test_labels_given_with_the_rows_are_kept_and_padded():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORE, IGNORE, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = pad_batch(rows, pad_id=0)
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7], [IGNORE] * 3]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"].dtype == torch.int64


def with_holes(far):
    "A tokenizer of 259 tokens whose vocabulary lacks id 100 and has a token `far` instead."
    tok = without_pad()
    raw = json.loads(tok.backend_tokenizer.to_str())
    vocab = raw["model"]["vocab"]
    raw["model"]["vocab"] = {token: i for token, i in vocab.items() if i != 100} | {"far": far}
    tok._tokenizer = Tokenizer.from_str(json.dumps(raw))
    return tok


def test_a_vocabulary_with_holes_is_judged_by_its_highest_id():
    tok, model = with_holes(400), tiny_model()
    assert len(tok) == 259
    with pytest.raises(ValueError, match=r"up to 400 \('far'\), but the model has 259 rows.*embeddings\(401\)"):
        check_vocabulary(tok, model)
    add_pad_token(tok, model, "<gap>")
    assert check_vocabulary(tok, model) == 0 and model.get_input_embeddings().num_embeddings == 401


def test_a_new_token_that_got_the_id_of_another_is_refused():
    tok, model = with_holes(259), tiny_model()
    with pytest.raises(ValueError, match="'<gap>' got another token's id, 259; load `tok` again"):
        add_pad_token(tok, model, "<gap>")
    assert tok.convert_tokens_to_ids("far") == 259 and model.config.vocab_size == 259


def test_the_head_is_looked_at_too():
    model = tiny_model()
    model.set_output_embeddings(torch.nn.Linear(64, 100, bias=False))
    with pytest.raises(ValueError, match="the model has 100 rows, 0 to 99"):
        check_vocabulary(tiny_tokenizer(), model)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3]},
    ],
)
def test_an_adapter_hides_no_rows(fields):
    model = get_peft_model(tiny_model(), LoraConfig(r=2, task_type="CAUSAL_LM", **fields))
    assert check_vocabulary(tiny_tokenizer(), model) == 0


def test_rows_are_counted_right_where_peft_ties_a_head_anew():
    config = tiny_model().config
    config.tie_word_embeddings = True
    fields = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, task_type="CAUSAL_LM", **fields))
    assert check_vocabulary(tiny_tokenizer(), model) == 0


def test_a_model_without_a_head_can_be_checked_and_grown():
    tok, model = without_pad(), GPT2Model(GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=2))
    assert check_vocabulary(tok, model) == 0
    add_pad_token(tok, model, "<gap>")
    assert model.wte.num_embeddings == 260 and model.config.pad_token_id == 259


def test_tied_tables_grow_together_and_stay_tied():
    tok, model = without_pad(), GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=2))
    add_pad_token(tok, model, "<gap>", multiple_of=64)
    assert model.lm_head.weight is model.transformer.wte.weight and model.lm_head.weight.shape == (320, 32)
    assert model.lm_head.out_features == model.config.vocab_size == 320


@pytest.mark.numbers
def test_a_grown_model_comes_back_as_it_was(tmp_path):
    tok, model = without_pad(), tiny_model()
    add_pad_token(tok, model, "<gap>")
    for part in (tok, model):
        part.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[74, 75, 259]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.model.embed_tokens.padding_idx == model.model.embed_tokens.padding_idx == 259
    assert load_tokenizer(tmp_path).pad_token == "<gap>" and again.generation_config.pad_token_id == 259


@pytest.mark.numbers
def test_a_new_row_is_the_mean_of_the_old_ones_for_every_seed():
    for seed in (0, 1):
        torch.manual_seed(seed)
        tok, model = without_pad(), tiny_model()
        add_pad_token(tok, model, "<gap>")
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            torch.testing.assert_close(weight[259], weight[:259].mean(0), atol=1e-4, rtol=0)


def test_eos_gets_gradient_again_when_it_no_longer_pads():
    tok, model = without_pad(), tiny_model()
    ids = torch.tensor([[74, 2, 75, 2]])
    model.model.embed_tokens.padding_idx = 2  # as `from_pretrained` sets it for a configuration whose pad token is EOS
    model(ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad[2].count_nonzero() == 0
    model.zero_grad()
    add_pad_token(tok, model, "<gap>")
    model(ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad[2].count_nonzero() > 0


def test_a_pad_token_of_its_own_is_kept_and_the_model_is_told():
    tok, model = tiny_tokenizer(), tiny_model()
    model.config.pad_token_id = model.generation_config.pad_token_id = 2
    add_pad_token(tok, model, "<gap>")
    assert (tok.pad_token, len(tok)) == ("<pad>", 259)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 0


def test_a_token_that_the_vocabulary_has_costs_no_row():
    tok, model = without_pad(), tiny_model()
    assert add_pad_token(tok, model, "<pad>").pad_token_id == 0 and model.config.vocab_size == 259


def test_eos_and_a_model_with_an_adapter_are_refused_before_anything_changes():
    tok, model = without_pad(), get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="add the pad token to its base, save base and tokenizer"):
        add_pad_token(tok, model, "<gap>")
    with pytest.raises(ValueError, match="'<|im_end|>' is the EOS token"):
        add_pad_token(tok, tiny_model(), "<|im_end|>")
    assert len(tok) == 259 and tok.pad_token == tok.eos_token and model.config.vocab_size == 259


def test_a_saved_tokenizer_comes_back_with_its_template_and_pad_token(tmp_path):
    tok = load_tokenizer(saved(tiny_tokenizer(), tmp_path))
    assert (tok.pad_token, tok.eos_token) == ("<pad>", "<|im_end|>")
    assert tok("hi").input_ids == [74, 75] and tok.chat_template == tiny_tokenizer().chat_template


def test_arguments_of_from_pretrained_are_passed_on(tmp_path):
    assert load_tokenizer(saved(tiny_tokenizer(), tmp_path), padding_side="left").padding_side == "left"


@pytest.mark.parametrize(
    "asked", [{"truncation": True}, {"padding": "max_length"}, {"truncation": True, "padding": True}]
)
def test_what_a_call_left_in_the_file_is_gone_before_the_first_call(tmp_path, asked):
    tok = tiny_tokenizer()
    tok("hello", max_length=4, **asked)
    tok = load_tokenizer(saved(tok, tmp_path))
    assert tok.backend_tokenizer.truncation is None and tok.backend_tokenizer.padding is None
    assert tok.backend_tokenizer.encode("hello").ids == tiny_tokenizer()("hello").input_ids
    tok.save_pretrained(tmp_path)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    assert file["truncation"] is None and file["padding"] is None


def test_a_pad_token_that_only_an_earlier_call_knew_is_not_taken_if_it_ends_turns(tmp_path):
    tok = without_pad()
    tok("hi", padding="max_length", max_length=8)
    saved(tok, tmp_path, pad_token=None)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|im_end|>"
    assert load_tokenizer(tmp_path).pad_token == "<pad>"


def test_a_pad_token_that_the_template_writes_is_replaced_but_for_bos(tmp_path):
    tok = tiny_tokenizer()
    tok.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tok.pad_token = "<|im_end|>"
    assert load_tokenizer(saved(tok, tmp_path)).pad_token == "<pad>"
    tok.add_special_tokens({"bos_token": "<bos>"})
    tok.pad_token, tok.chat_template = "<bos>", "{{ bos_token }}" + tok.chat_template
    assert load_tokenizer(saved(tok, tmp_path)).pad_token == "<bos>"


def test_a_reserved_name_that_the_template_writes_is_not_taken(tmp_path):
    tok = without_pad()
    tok.chat_template = tok.chat_template.replace("<|im_end|>", "<pad>")
    with pytest.raises(ValueError, match="has none of"):
        load_tokenizer(saved(tok, tmp_path))


def test_a_gguf_file_is_refused_whatever_lies_beside_it(tmp_path):
    saved(tiny_tokenizer(), tmp_path)
    (tmp_path / "tiny.gguf").touch()
    with pytest.raises(ValueError, match=r"gguf_file='tiny.gguf'.*gguf_tokenizer\(FILE\).save_pretrained\(FOLDER\)"):
        load_tokenizer(tmp_path, gguf_file="tiny.gguf")


def test_code_that_comes_with_a_tokenizer_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"
    folder = tmp_path / "evil"
    saved(tiny_tokenizer(), folder, tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast): pass\n"
    )
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert ran.exists()
    ran.unlink()
    with pytest.raises(ValueError, match="would run Python code from .*leave it out"):
        load_tokenizer(folder, trust_remote_code=True)
    try:
        load_tokenizer(folder)  # transformers refuses, or reads tokenizer.json with a class of its own
    except ValueError as e:
        assert "needs Python code" in str(e) and "trust_remote_code" not in str(e)
    assert not ran.exists()


def test_a_folder_in_place_of_the_tokenizers_file_advises_no_further_package(tmp_path):
    saved(tiny_tokenizer(), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ValueError, match="the tokenizer has no tokenizer.json that can be read; copy tokenizer.json"):
        load_tokenizer(tmp_path)


IMAGES = {"idefics3", "llava_next", "smolvlm"}


@pytest.mark.parametrize("file", sorted(TEMPLATES.glob("*.jinja")), ids=lambda file: file.stem)
def test_every_template_of_trl_is_taken_but_those_that_leave_plain_text_out(tmp_path, file):
    tok = tiny_tokenizer()
    tok.add_special_tokens({"bos_token": "<s>"})
    tok.chat_template = file.read_text()
    saved(tok, tmp_path)
    if file.stem.removesuffix("_training") in IMAGES:
        with pytest.raises(ValueError, match="the chat template (leaves words out|fails on a question)"):
            load_tokenizer(tmp_path)
    else:
        assert load_tokenizer(tmp_path).pad_token == "<pad>"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('no') }}", r"fails on a question and an answer \(TemplateError: no\)"),
        ("{{ messages[0].content.text() }}", "fails on a question and an answer"),
        ("{% for m in messages %}", "fails on a question and an answer"),
        ("{{ messages[0].content }}", "leaves words out"),
        ("{{ messages[1].content }}{{ messages[0].content }}", "leaves words out"),
        ("a fixed text", "leaves words out"),
    ],
)
def test_a_template_that_cannot_write_a_conversation_is_refused_by_name(tmp_path, template, problem):
    tok = tiny_tokenizer()
    tok.chat_template = template
    with pytest.raises(ValueError, match=f"{tmp_path}: the chat template {problem}.*repair tok.chat_template"):
        load_tokenizer(saved(tok, tmp_path))
