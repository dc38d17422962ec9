"Hybrids and mixtures of experts answer in a batch as alone, and a mixture while its router logits are on."

import pytest
import torch
from architectures import HYBRIDS, family_of

from ft_notebooks.evaluation.metrics import exact_match
from ft_notebooks.evaluation.runner import evaluate
from ft_notebooks.inference.generation import encode_prompts, generate
from ft_notebooks.inference.prefix_cache import shared_generation, shared_prefix
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.tokenization.padding import pad_batch

TOK = tiny_tokenizer()
RULES = {"role": "system", "content": "answer in a few words, and be kind" * 4}
CHATS = [[RULES, {"role": "user", "content": text}] for text in ("a", "a much longer question?", "what", "b" * 40)]
EXPERTS = ["mixtral", "qwen3_moe", "granitemoehybrid", "gpt_oss"]


def with_flag(kind):
    model = family_of(kind)
    model.config.output_router_logits = True  # as TRL sets it, and as a folder that was trained in full has it
    return model


@pytest.mark.numbers
@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_batch_gives_the_answers_of_one_by_one(kind):
    model = family_of(kind)
    alone = generate(model, TOK, CHATS, 8, 1)
    assert len({*alone}) > 1
    assert generate(model, TOK, CHATS, 8, 4) == alone


@pytest.mark.parametrize("kind", HYBRIDS)
def test_the_prefix_of_a_hybrid_is_computed_with_each_prompt(kind):
    model = family_of(kind)
    assert shared_prefix(model, encode_prompts(model, TOK, CHATS, 8)) is None


@pytest.mark.numbers
@pytest.mark.parametrize("kind", HYBRIDS)
def test_repeated_prompts_of_a_hybrid_are_answered_as_without_sharing(kind):
    model = family_of(kind)
    batch = pad_batch([*map(list, encode_prompts(model, TOK, CHATS[:2], 8))] * 4, 0, side="left")
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    config = model.generation_config
    config.update(max_new_tokens=6, do_sample=False, pad_token_id=0)
    alone = model.generate(**given, generation_config=config)
    with shared_generation(model):
        assert torch.equal(model.generate(**given, generation_config=config), alone)


@pytest.mark.numbers
@pytest.mark.parametrize(("kind", "adapted"), [*((kind, False) for kind in EXPERTS), ("mixtral", True)])
def test_experts_answer_while_their_router_logits_are_on(kind, adapted):
    model, plain = with_flag(kind), family_of(kind)
    if adapted:
        model = add_adapter(model, lora_config(model, r=2))
    assert generate(model, TOK, CHATS, 8) == generate(plain, TOK, CHATS, 8)
    assert model.config.output_router_logits
    rows = [{"messages": [*chat, {"role": "assistant", "content": "yes"}]} for chat in CHATS]
    assert evaluate(model, TOK, rows, exact_match, max_new_tokens=2) and model.config.output_router_logits


def test_answers_are_of_the_same_model_with_and_without_the_flag(tmp_path):
    file = tmp_path / "answers.jsonl"
    said = generate(family_of("mixtral"), TOK, CHATS, 2, file=file)
    assert generate(with_flag("mixtral"), TOK, CHATS, 2, file=file) == said


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_folder_with_router_logits_on_generates(kind, tmp_path):
    with_flag(kind).save_pretrained(tmp_path)
    model = load_model(tmp_path, 32)
    ids = torch.tensor([[3, 4, 5], [0, 6, 7]])
    said = model.generate(input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=4, do_sample=False)
    assert said.shape == (2, 7)


@pytest.mark.parametrize("kind", EXPERTS)
def test_prompts_of_rl_are_answered_while_router_logits_are_on(kind):
    model = with_flag(kind)
    ids = torch.tensor([[3, 4, 5], [0, 6, 7]] * 2)
    config = model.generation_config
    config.update(max_new_tokens=4, do_sample=False, pad_token_id=0)
    with shared_generation(model):
        model.generate(input_ids=ids, attention_mask=(ids != 0).long(), generation_config=config)
    assert model.config.output_router_logits
