"What `speed_up` leaves to PEFT and TRL; a run with it accumulates and is shared between processes as before."

import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
from peft import PromptTuningConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from small_runs import HANGS
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from trl import SFTConfig, SFTTrainer
from trl.trainer import add_fused_lm_head
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ft_notebooks.core.seams import attention_of, is_hooked
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.kernels.label_head import LabelHead
from ft_notebooks.kernels.log_probs import label_log_probs
from ft_notebooks.kernels.patching import optimizations, speed_up
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config, merge_adapter
from ft_notebooks.sft.packing_check import check_apart, document_leak

TOK = tiny_tokenizer()
ROWS = encode_chats(TOK, appointments(16))[0]


def adapted(**fields):
    model = add_adapter(tiny_model(), lora_config(tiny_model(), **fields))
    torch.manual_seed(2)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    return model


def batch(n=4, first=0):
    return DataCollatorForLanguageModeling(TOK.pad_token_id, padding_free=True)(
        ROWS.select(range(first, first + n)).to_list()
    )


def loss_and_gradient(model, quick, inputs=None, autocast=False, **how):
    inputs = dict(inputs or batch(), use_cache=False)
    model.zero_grad()
    torch.manual_seed(0)
    with speed_up(model) if quick else torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**inputs, **how).loss
        loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


class Quick(SFTTrainer):
    def train(self, *args, **kwargs):
        with speed_up(self.model):
            return super().train(*args, **kwargs)

    def compute_loss(self, model, *args, **kwargs):
        return super().compute_loss(LabelHead(model), *args, **kwargs)


def trainer(folder, kind=Quick, model=None, **settings):
    fixed = dict(use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, max_length=None)
    fixed |= dict(
        padding_free=True, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4, learning_rate=1e-2
    )
    args = SFTConfig(str(folder), logging_steps=1, **({"gradient_checkpointing": False} | fixed | settings))
    return kind(model or adapted(), args, train_dataset=ROWS, eval_dataset=ROWS.select(range(4)), processing_class=TOK)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.numbers
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_dropout": 0.3},
        {"lora_bias": True},
        {"target_modules": ["q_proj"]},
    ],
)
def test_every_kind_of_adapter_keeps_its_loss_and_gradient(fields):
    model = adapted(**fields)
    for mine, peft in zip(loss_and_gradient(model, True), loss_and_gradient(model, False)):
        assert_close(mine, peft, atol=1e-5, rtol=1e-4)


@pytest.mark.numbers
def test_under_autocast_gradients_agree_within_rounding():
    model = adapted()
    (_, mine), (_, peft) = (loss_and_gradient(model, quick, autocast=True) for quick in (True, False))
    _, exact = loss_and_gradient(model, False)
    assert 0 < (mine - exact).norm() < 1.5 * (peft - exact).norm() < 0.2 * exact.norm()


@pytest.mark.numbers
@pytest.mark.bfloat16
def test_sixteen_bit_base_without_autocast_stays_with_peft():
    model = adapted()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and not any(p.requires_grad for p in module.parameters()):
            module.bfloat16()
    layer = next(module for module in model.modules() if isinstance(module, LoraLinear))
    x = torch.randn(5, layer.in_features).bfloat16()
    before = layer(x)
    with speed_up(model):
        assert torch.equal(layer(x), before)


def test_merged_disabled_and_second_adapters_are_left_to_peft():
    model = adapted()
    with model.disable_adapter():
        assert optimizations(model)["lora"] is not None
    model.merge_adapter()
    assert optimizations(model)["lora"] is not None
    model.unmerge_adapter()
    assert optimizations(model)["lora"] is None
    model.add_adapter("second", lora_config(model))
    model.base_model.set_adapter(["default", "second"])
    assert optimizations(model)["lora"] is not None


def test_a_hook_on_a_part_is_called_and_one_on_the_layer_too():
    model, seen = adapted(), []
    first, second = [module for module in model.modules() if isinstance(module, LoraLinear)][:2]
    first.base_layer.register_forward_hook(lambda *args: seen.append("base"))
    second.register_forward_hook(lambda *args: seen.append("layer"))
    with speed_up(model):
        model(**batch(), use_cache=False)
        fused = ["forward" in vars(layer) for layer in (first, second)]
    assert sorted(seen) == ["base", "layer"] and fused == [False, True]


@pytest.mark.numbers
def test_windows_and_other_norms_are_the_models_own():
    sizes = dict(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    mistral = MistralForCausalLM(MistralConfig(**sizes, sliding_window=8))
    gemma = GemmaForCausalLM(GemmaConfig(**sizes, head_dim=8))
    torch.nn.init.normal_(gemma.model.norm.weight)
    assert "norm" in optimizations(gemma.requires_grad_(False))["norm"]
    for model in (mistral, gemma.requires_grad_(True)):
        for mine, theirs in zip(loss_and_gradient(model, True), loss_and_gradient(model, False)):
            assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.numbers
def test_documents_are_apart_with_the_attention_that_is_used():
    model = tiny_model()
    with speed_up(model):
        assert attention_of(model) == "documents"
        check_apart(model)
        assert document_leak(model, attention_mask=torch.ones(1, 24)) > 0.5


@pytest.mark.numbers
def test_short_and_long_documents_in_sixteen_bits_agree(monkeypatch):
    found = {}
    for limit in (256, 0):
        monkeypatch.setattr("ft_notebooks.kernels.attention._SHORT", limit)
        found[limit] = loss_and_gradient(adapted(), True, autocast=True)
    assert_close(found[256][0], found[0][0], atol=1e-2, rtol=0)
    assert (found[256][1] - found[0][1]).norm() < 0.05 * found[0][1].norm()


SIZES = dict(vocab_size=len(TOK), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SIZES |= dict(num_key_value_heads=2, pad_token_id=0)


def with_bias():
    model = tiny_model()
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.config.vocab_size))
    return model


def with_virtual_tokens():
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))


def hooked():
    model = adapted()
    model.get_output_embeddings().register_forward_hook(lambda *args: None)
    return model


HEADS = {  # name -> the model, and whether `label_log_probs` computes its head
    "frozen": (adapted, True),
    "trained": (tiny_model, True),
    "a bias": (with_bias, False),
    "a soft cap": (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)), False),
    "a scale": (lambda: Cohere2ForCausalLM(Cohere2Config(**SIZES)), False),
    "a hook": (hooked, False),
    "virtual tokens": (with_virtual_tokens, False),
}


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(
        "ft_notebooks.kernels.label_head.label_log_probs",
        lambda *given: found.append(len(given[0])) or label_log_probs(*given),
    )
    return found


def gradient(model, loss):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained, allow_unused=True) if g is not None])


@pytest.mark.numbers
@pytest.mark.parametrize("padded", [True, False], ids=["labels", "labels shifted"])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_ours_where_it_is_covered_and_trls_elsewhere(tmp_path, calls, name, padded):
    make, ours = HEADS[name]
    torch.manual_seed(0)
    run = trainer(tmp_path, SFTTrainer, make(), padding_free=False)
    inputs = run.data_collator(run.train_dataset.select(range(3)).to_list())
    if not padded:
        inputs["shift_labels"] = torch.nn.functional.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
        inputs |= {"labels": None}
    if name == "virtual tokens" and not padded:
        pytest.skip("TRL's own head does not shift the labels of virtual tokens")
    model = run.model.eval()
    theirs, mine = model(**inputs, fused_lm_head=True), LabelHead(model)(**inputs, fused_lm_head=True)
    fields = ("loss", "log_probs", "entropy", "is_top1", "label_mask")
    for field in fields:
        assert_close(getattr(mine, field), getattr(theirs, field), atol=2e-5, rtol=1e-4)
    assert_close(gradient(model, mine.loss), gradient(model, theirs.loss), atol=2e-5, rtol=1e-3)
    labelled = int(theirs.label_mask.sum())
    assert calls == ([labelled] if ours else []) and (
        optimizations(model)["head"] is None or not ours or name == "a hook"
    )


@pytest.mark.numbers
def test_another_call_argument_or_field_is_answered_by_the_model(tmp_path, calls):
    run = trainer(tmp_path, SFTTrainer, padding_free=False)
    inputs = run.data_collator(run.train_dataset.select(range(3)).to_list())
    model, head = run.model.eval(), LabelHead(run.model)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(head(**text).logits, model(**text).logits)
    assert torch.equal(head(text["input_ids"]).logits, model(text["input_ids"]).logits)
    assert torch.equal(head(**inputs).loss, model(**inputs).loss)
    asked = {"fused_lm_head": True, "num_items_in_batch": torch.tensor(7)}
    assert torch.equal(head(**inputs, **asked).loss, model(**inputs, **asked).loss) and not calls
    mine, theirs = (m(**inputs, fused_lm_head=True) for m in (head, model))
    assert calls and mine.aux_loss is None and mine.mean_logits is None and theirs.mean_logits is None
    assert mine["loss"] is mine.loss
    with pytest.raises(AttributeError, match="no_such_field"):
        mine.no_such_field
    assert torch.equal(LabelHead(model, off=True)(**inputs, fused_lm_head=True).loss, theirs.loss) and len(calls) == 1


def test_nothing_of_it_stays_on_the_head_even_if_the_model_fails(tmp_path):
    run = trainer(tmp_path, SFTTrainer, padding_free=False)
    inputs = run.data_collator(run.train_dataset.select(range(3)).to_list())
    head = run.model.get_output_embeddings()
    LabelHead(run.model)(**inputs, fused_lm_head=True)
    with pytest.raises(IndexError):
        LabelHead(run.model)(**inputs | {"input_ids": inputs["input_ids"] + 10**6}, fused_lm_head=True)
    assert not is_hooked(head) and not any("forward" in vars(m) for m in head.modules())


@pytest.mark.whole
def test_a_compiled_model_keeps_the_head_that_it_was_compiled_with(monkeypatch):
    compiled = torch.compile(tiny_model(), backend="eager")
    monkeypatch.setattr(type(compiled), "__call__", lambda self, **given: ("compiled", given))
    given = {"input_ids": torch.ones(1, 2), "labels": torch.ones(1, 2), "fused_lm_head": True}
    assert LabelHead(compiled)(**given) == ("compiled", given)


def test_an_optimization_can_be_left_out_and_speed_up_can_be_nested():
    model = adapted()
    with speed_up(model, off=("attention",)):
        assert attention_of(model) == "sdpa"
        with speed_up(model):
            assert attention_of(model) == "documents"
        assert attention_of(model) == "sdpa"
        assert sum("forward" in vars(module) for module in model.modules()) == 14 + 5
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.numbers
def test_weights_names_and_merging_are_as_before():
    model = adapted()
    names = list(model.state_dict())
    with speed_up(model):
        assert list(model.state_dict()) == names
    merged = merge_adapter(adapted()).state_dict()
    with speed_up(model):
        loss_and_gradient(model, True)
    assert all(torch.equal(p, merged[name]) for name, p in merge_adapter(model).state_dict().items())


@pytest.mark.numbers
@pytest.mark.whole
@pytest.mark.parametrize(
    "settings", [{"gradient_checkpointing": True}, {"packing": True, "max_length": 600}, {"loss_type": "dft"}]
)
def test_a_run_logs_what_trls_own_logs(tmp_path, settings):
    logs = []
    for kind in (Quick, SFTTrainer):
        run = trainer(tmp_path, kind, max_steps=2, eval_strategy="steps", eval_steps=2, **settings)
        run.train()
        numbers = [
            {k: v for k, v in log.items() if isinstance(v, float) and "second" not in k and "time" not in k}
            for log in run.state.log_history
        ]
        logs.append(numbers)
    for mine, theirs in zip(*logs):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)


def test_a_batch_without_a_label_has_a_gradient_of_zero(tmp_path):
    run = trainer(tmp_path)
    inputs = batch(2)
    inputs["labels"].fill_(-100)
    loss = run.training_step(run.model, inputs, num_items_in_batch=torch.tensor(0))
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in run.model.parameters())


def _rank(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = adapted()
    parallel = DistributedDataParallel(model)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    with speed_up(model):
        LabelHead(parallel)(**batch(2, first=2 * rank), use_cache=False, fused_lm_head=True).loss.backward()
    results.put(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).tolist())
    results.close()
    results.join_thread()
    dist.destroy_process_group()


@pytest.mark.whole
def test_two_processes_share_the_gradient():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    ranks = [fork.Process(target=_rank, args=(rank, port, results)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    first, second = (torch.tensor(results.get(timeout=HANGS)) for _ in ranks)
    for process in ranks:
        process.join(HANGS)
        assert process.exitcode == 0
    model = adapted()
    alone = sum(loss_and_gradient(model, False, batch(2, first=first_row))[1] for first_row in (0, 2)) / 2
    assert torch.equal(first, second)
    assert_close(first, alone, atol=1e-5, rtol=1e-3)


@pytest.mark.numbers
def test_an_adapter_that_is_switched_off_inside_is_off():
    model = add_adapter(tiny_model(), lora_config(tiny_model()))
    with torch.no_grad():
        [p.normal_() for name, p in model.named_parameters() if "lora_B" in name]
        ids, base = torch.tensor([[4, 5, 6, 7]]), tiny_model()
        with speed_up(model), model.disable_adapter():
            off = model(ids).logits
        with speed_up(model):
            on = model(ids).logits
    torch.testing.assert_close(off, base(ids).logits)
    assert not torch.allclose(on, off, atol=1e-2)
