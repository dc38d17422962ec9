"Each rule of `PRE_TOKENIZERS` that a written file can name: the tokenizer, llama.cpp and `gguf_tokenizer` agree"

import pytest
from tokenizers import normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from ft_notebooks.export.gguf_writer import pre_tokenizer_name, write_gguf
from ft_notebooks.export.token_suite import different_tokens, token_strings
from ft_notebooks.inference.llama_cpp import llama_server
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.loading.gguf_files import byte_level_bpe, gguf_tokenizer

RULES = ["gpt-2", "smollm", "qwen2", "llama-bpe"]
MERGES = "1 2,12 3,3 4,Ġ Ġ,ĠĠ Ġ,Ċ Ċ,ĊĊ Ċ,č Ċ,Ċ Ġ,Ġ a,Ġ 1,T h,Th e,' s,S a,' S,. Ċ,( x,Ã ©,- 5"


def tokenizer(rule):
    special, merges = ["<pad>", "<|im_start|>", "<|im_end|>"], [tuple(pair.split(" ")) for pair in MERGES.split(",")]
    whole = ["camelCase", "123"]  # of which no merge makes the first
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges), *whole]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    tok = byte_level_bpe(vocab, merges, special, rule, pad_token=special[0], eos_token=special[2])
    tok.chat_template = tiny_tokenizer().chat_template
    return tok


def ids_of(tok):
    return lambda text: tok(text, add_special_tokens=False).input_ids


def strings(tok):
    return token_strings(
        tok, [[{"role": "user", "content": "IT'Salt 1234"}, {"role": "assistant", "content": "we'll\n\n"}]]
    )


@pytest.mark.whole
@pytest.mark.parametrize("rule", RULES)
def test_llama_cpp_gives_the_ids_of_the_tokenizer_on_all_strings(rule, tmp_path):
    tok = tokenizer(rule)
    assert pre_tokenizer_name(tok) == rule
    sizes = {"vocab_size": len(tok), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, pad_token_id=0)).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf")
    texts, read = strings(tok), gguf_tokenizer(tmp_path / "model.gguf")
    with llama_server(tmp_path / "model.gguf", 256) as server:
        assert different_tokens(texts, ids_of(tok), server.token_ids) == []
        accent = different_tokens(["e\u0301"], ids_of(tok), server.token_ids)
    assert bool(accent) == (rule == "qwen2")  # which composes it, and llama.cpp does not
    assert different_tokens(texts, ids_of(tok), ids_of(read)) == []


@pytest.mark.parametrize("rule", RULES)
def test_the_strings_tell_a_rule_from_each_other_rule(rule):
    tok = tokenizer(rule)
    for other in {*RULES} - {rule}:
        assert different_tokens(strings(tok), ids_of(tok), ids_of(tokenizer(other))), other


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda bpe: setattr(bpe, "normalizer", normalizers.Lowercase()), "changes text by .*Lowercase.*--converter"),
        (lambda bpe: setattr(bpe.model, "ignore_merges", True), "rule .*Digits.* is not one of gpt-2, .*--converter"),
    ],
    ids=["lower case", "whole tokens without Llama 3's rule"],
)
def test_a_rule_that_llama_cpp_does_not_have_is_refused(change, found):
    tok = tokenizer("smollm")
    change(tok.backend_tokenizer)
    with pytest.raises(ValueError, match=found):
        pre_tokenizer_name(tok)
