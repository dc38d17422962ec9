"Edges of `ft_notebooks.lora.targets`."

import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.lora.targets import expert_parameters, token_rows

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([tiny_tokenizer()("to be or not to be").input_ids])
SMALL = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
MIXTURES = {
    "mixtral": {"num_local_experts": 4}, "qwen3_moe": {"num_experts": 4}, "qwen2_moe": {"num_experts": 4},
    "granitemoe": {"num_local_experts": 4}, "gpt_oss": {"num_local_experts": 4}, "jetmoe": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4}, "phimoe": {"num_local_experts": 4},
}  # fmt: skip


def small(kind, **fields):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | fields))).eval()


def tied():
    config = copy.deepcopy(tiny_model().config)
    config.tie_word_embeddings = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


# expert_parameters


@pytest.mark.parametrize("kind", MIXTURES)
def test_all_weights_of_experts_are_found_and_nothing_else(kind):
    model = small(kind, moe_intermediate_size=24, **MIXTURES[kind])
    found = set(expert_parameters(model))
    assert found == {name for name, p in model.named_parameters() if p.ndim == 3} and found


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt_neox", "gemma3_text"])
def test_a_dense_model_has_no_experts(kind):
    assert expert_parameters(small(kind)) == []


def test_experts_are_a_target_where_all_linear_layers_are_and_nothing_else_was_said():
    model = small("gpt_oss", moe_intermediate_size=24, **MIXTURES["gpt_oss"])
    assert lora_config(model).target_parameters == expert_parameters(model)
    assert lora_config(model, target_modules=["q_proj"]).target_parameters is None
    assert lora_config(model, target_parameters=["experts.down_proj"]).target_parameters == ["experts.down_proj"]
    assert lora_config(tiny_model()).target_parameters is None


def test_a_convolution_of_three_dimensions_is_no_expert():
    model = torch.nn.ModuleDict({"experts": torch.nn.Conv1d(2, 2, 3), "table": torch.nn.Module()})
    model["table"].position = torch.nn.Parameter(torch.zeros(1, 4, 4))
    assert expert_parameters(model) == []


@pytest.mark.parametrize("kind", ["granitemoe", "gpt_oss", "jetmoe", "qwen2_moe"])
def test_each_expert_learns_something_of_its_own(kind):
    model = small(kind, moe_intermediate_size=24, num_experts_per_tok=4, **MIXTURES[kind])
    before = {name: model.get_parameter(name).clone() for name in expert_parameters(model)}
    adapted = add_adapter(model, lora_config(model, r=2))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        adapted(IDS, labels=IDS).loss.backward(), optimizer.step()
    merged = adapted.merge_and_unload()
    for name, old in before.items():
        update = (merged.get_parameter(name) - old).flatten(1)
        assert (update.norm(dim=1) > 0).all() and torch.linalg.matrix_rank(update @ update.T) == len(update), name


# token_rows


def test_the_names_are_those_of_the_model():
    gpt2 = AutoConfig.for_model("gpt2", vocab_size=259, n_embd=32, n_layer=1, n_head=2)
    assert token_rows(AutoModelForCausalLM.from_config(gpt2), [1, 2]) == {"wte": [1, 2]}
    model = small("gpt_neox", tie_word_embeddings=False)
    (head,) = (
        name for name, module in model.named_modules() if module is model.get_output_embeddings()
    )  # by its release
    assert token_rows(model, (3,)) == {"embed_in": [3], head: [3]}


@pytest.mark.parametrize("ids", [[], [259], [-1], [5, 300]])
def test_ids_without_a_row_are_refused(ids):
    with pytest.raises(ValueError, match="ids must be rows of the embeddings, 0 to 258"):
        token_rows(tiny_model(), ids)


@pytest.mark.parametrize("make", [tiny_model, tied])
def test_only_the_rows_change_in_both_tables_and_the_adapter_loads_again(make, tmp_path):
    base = make()
    base.resize_token_embeddings(261)
    adapted = add_adapter(copy.deepcopy(base), lora_config(base, trainable_token_indices=token_rows(base, [259, 260])))
    ids = torch.cat([IDS, torch.tensor([[259, 260]])], 1)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        adapted(ids, labels=ids).loss.backward(), optimizer.step()
    expected = logits(adapted.eval())
    adapted.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()), expected)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=0)
    for side in ("get_input_embeddings", "get_output_embeddings"):
        changed = (getattr(base, side)().weight != getattr(merged, side)().weight).any(1).nonzero().flatten()
        assert changed.tolist() == [259, 260]
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits(loaded), logits(merged))
    one = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert one == (make is tied)


# patterns


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj.weight", "norm.weight"])
def test_a_pattern_with_the_name_of_a_weight_is_refused(field, name):
    with pytest.raises(ValueError, match=f"{field}: the model has no module '{name}'"):
        lora_config(tiny_model(), 8, **{field: {name: 4}})


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_for_a_layer_without_an_adapter_is_refused_and_another_config_can_follow(field):
    model = tiny_model()
    with pytest.raises(
        ValueError, match=f"{field}: no layer with an adapter is named 'v_proj'; the nearest is 'q_proj'"
    ):
        add_adapter(model, lora_config(model, 8, target_modules=["q_proj"], **{field: {"v_proj": 4}}))
    add_adapter(model, lora_config(model, 8, target_modules=["q_proj"], **{field: {"layers.1.self_attn.q_proj": 4}}))
