"Reward models of other families, and files that are not what they should be."

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config

from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_scoring import encode_answered, reward_scores, score_ids

TOK = tiny_tokenizer()
SMALL = {"vocab_size": len(TOK), "bos_token_id": None, "eos_token_id": TOK.eos_token_id}
KINDS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, **SMALL),
    "qwen3": Qwen3Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=16, **SMALL),
}  # fmt: skip
CHATS = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
    for text in ("yo", "a longer answer, with more words", "ok", "no")
]


@pytest.mark.numbers
@pytest.mark.parametrize("kind", KINDS)
def test_another_family_scores_alone_as_in_a_batch_and_its_adapter_brings_its_head(kind, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(KINDS[kind]).save_pretrained(tmp_path / "base")
    model = load_reward_model(tmp_path / "base", TOK, seed=0)
    scores, alone = reward_scores(model, TOK, CHATS), [reward_scores(model, TOK, [chat])[0] for chat in CHATS]
    assert torch.allclose(torch.tensor(scores), torch.tensor(alone), atol=1e-4) and len(set(scores)) == 4
    add_adapter(model, lora_config(model, r=2)).save_pretrained(tmp_path / "adapter")
    again = load_reward_model(tmp_path / "adapter", TOK)
    assert torch.allclose(torch.tensor(reward_scores(again, TOK, CHATS)), torch.tensor(scores), atol=1e-5)


def test_a_tokenizer_that_truncates_cuts_no_conversation():
    tok = tiny_tokenizer()
    expected = encode_answered(tok, CHATS)
    tok("x" * 50, truncation=True, max_length=5)
    assert encode_answered(tok, CHATS) == expected


def test_the_ids_are_those_of_the_pairs_that_are_trained():
    pairs = [{"prompt": chat[:1], "chosen": chat[1:], "rejected": CHATS[1][1:]} for chat in CHATS if chat != CHATS[1]]
    rows = encode_pairs(TOK, pairs)[0]
    ids = encode_answered(TOK, [pair["prompt"] + pair["chosen"] for pair in pairs])
    assert ids == [row["prompt_ids"] + row["chosen_ids"] for row in rows]


@pytest.mark.parametrize("chats", ["hi", {"role": "user"}, [CHATS[0][:1]], [[]], ["hi"], [CHATS[0], None]])
def test_what_is_no_answered_conversation_is_refused(chats):
    with pytest.raises(ValueError, match="conversation"):
        encode_answered(TOK, chats)


def test_no_conversation_has_no_score(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert reward_scores(load_reward_model(tmp_path, TOK, seed=0), TOK, []) == []


def test_a_damaged_weight_gives_an_error_and_no_score(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = load_reward_model(tmp_path, TOK, seed=0)
    model.score.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="row 0 has the score nan"):
        reward_scores(model, TOK, CHATS)


def test_the_mode_of_the_model_is_left_as_it_was(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = load_reward_model(tmp_path, TOK, seed=0).train()
    reward_scores(model, TOK, CHATS)
    assert model.training


def test_a_folder_that_is_not_there_a_number_and_other_bits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_reward_model(tmp_path / "none", TOK)
    with pytest.raises(ValueError, match="bits=8 would quantize the head too"):
        load_reward_model(tmp_path, TOK, bits=8, seed=0)
    with pytest.raises(ValueError, match="tok must be a tokenizer"):
        load_reward_model(tmp_path, None)


@pytest.mark.numbers
@pytest.mark.bfloat16
def test_a_reward_model_stored_in_16_bits_keeps_the_head_of_its_file(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = load_reward_model(tmp_path / "base", TOK, seed=0)
    model.save_pretrained(tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    tensors = {name: t if name == "score.weight" else t.bfloat16() for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    for bits in (16, 32):
        again = load_reward_model(tmp_path / "run", TOK, bits=bits)
        assert torch.equal(again.score.weight.cpu(), model.score.weight.cpu())


def test_an_adapter_of_two_labels_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = load_reward_model(tmp_path / "base", TOK, seed=0)
    add_adapter(model, lora_config(model, r=2)).save_pretrained(tmp_path / "run")
    file = tmp_path / "run" / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = (name for name in tensors if "score" in name)
    save_file(tensors | {name: tensors[name].repeat(2, 1)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has the shape \[2, 64\], and the base needs \[1, 64\]"):
        load_reward_model(tmp_path / "run", TOK)


def test_a_model_whose_padding_was_changed_afterwards_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = load_reward_model(tmp_path, TOK, seed=0)
    other = copy.deepcopy(TOK)
    other.pad_token = "a"
    with pytest.raises(ValueError, match="config.pad_token_id is 0, and the tokenizer pads with"):
        score_ids(model, other, [[5, 6]])
