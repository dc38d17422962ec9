"Edges of `ft_notebooks.training.gradient_flow`."

import contextlib
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from small_runs import ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers import MixtralConfig, MixtralForCausalLM
from trl import SFTConfig, SFTTrainer

from ft_notebooks.core.fingerprints import fingerprint
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.training.gradient_flow import GradientFlowCallback, _error_message

ARGS = SimpleNamespace(device=torch.device("cpu"))
ROWS = encode_chats(tiny_tokenizer(), appointments(16))[0]


def begin(model, optimizer):
    guard = GradientFlowCallback()
    guard.on_train_begin(ARGS, None, None, model=model, optimizer=optimizer)
    return guard


def steps(guard, model, optimizer, *losses, scaler=None):
    "What the Trainer does at each step, as far as the guard sees it"
    for loss in losses:
        optimizer.zero_grad()
        (scaler.scale(loss(model)) if scaler else loss(model)).backward()
        optimizer.step()
        guard.on_optimizer_step(ARGS, None, None, model=model, optimizer=optimizer)


@pytest.fixture
def trainer(tmp_path):
    def trainer(model, *callbacks, **settings):
        fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        fields = {"max_steps": 4, "learning_rate": 1e-2, "gradient_checkpointing": False} | settings
        args = SFTConfig(output_dir=tmp_path, per_device_train_batch_size=2, **(fixed | fields))
        return SFTTrainer(model, args, train_dataset=ROWS, processing_class=tiny_tokenizer(), callbacks=list(callbacks))

    return trainer


def adapted(model=None, **fields):
    model = model or tiny_model()
    return add_adapter(model, lora_config(model, **fields))


def cut_off(model):
    layer = model.get_decoder().layers[1]
    layer.register_forward_pre_hook(lambda layer, args: (args[0].detach(), *args[1:]))
    return model


class Two(nn.Module):
    "Two numbers that are multiplied by what comes in"

    def __init__(self, first=1.0, second=1.0):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.tensor([value])) for value in (first, second))


def both(model):
    return (model.first + model.second).sum()


# what has moved


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_the_last_bit_of_any_element_changes_the_fingerprint(dtype):
    tensor = torch.randn(2000, generator=torch.Generator().manual_seed(0)).to(dtype)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    seen = {fingerprint(tensor).item()}
    for at in range(0, 2000, 7):
        other = tensor.clone()
        other.view(bits)[at] ^= 1
        seen.add(fingerprint(other).item())
    assert len(seen) == 1 + len(range(0, 2000, 7))


def test_changes_that_would_cancel_in_a_sum_change_the_fingerprint():
    ones = torch.ones(1000, dtype=torch.bfloat16)
    seen = {fingerprint(ones).item()}
    for at in range(998):
        other = ones.clone()
        other.view(torch.int16)[at : at + 3] += torch.tensor([1, -2, 1], dtype=torch.int16)
        seen.add(fingerprint(other).item())
    assert len(seen) == 999


def test_the_fingerprint_sees_an_exchange_across_its_chunks_and_takes_any_shape():
    tensor = torch.zeros(3 * 2**20)
    tensor[5] = 1
    other = tensor.roll(2**20)
    assert fingerprint(tensor) != fingerprint(other)
    square = torch.arange(12.0).view(3, 4)
    assert fingerprint(square.T) == fingerprint(square.T.contiguous()) != fingerprint(square)
    assert fingerprint(torch.empty(0)) == 0 and fingerprint(torch.tensor(1.0)) != 0


# which steps count


def test_a_step_that_the_gradient_scaler_skips_does_not_count():
    Accelerator(cpu=True).sync_gradients = True  # whatever a training before has left
    model = Two()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = AcceleratedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), device_placement=False, scaler=scaler)
    guard, infinite = begin(model, optimizer), lambda model: both(model) * torch.inf
    steps(guard, model, optimizer, infinite, infinite, infinite, scaler=scaler)
    assert optimizer.step_was_skipped and guard.steps == 0 and guard.start
    steps(guard, model, optimizer, both, infinite, scaler=scaler)
    assert guard.steps == 1
    steps(guard, model, optimizer, both, scaler=scaler)
    assert guard.steps == 2 and not guard.start


def test_steps_with_a_learning_rate_of_zero_do_not_count():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps(guard := begin(model, optimizer), model, optimizer, both, both, both)
    assert guard.steps == 0
    optimizer.param_groups[0]["lr"] = 0.1
    steps(guard, model, optimizer, both, both)
    assert guard.steps == 2 and not guard.start


def test_a_tensor_that_has_its_gradient_in_one_of_the_two_steps_is_well():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps(guard := begin(model, optimizer), model, optimizer, lambda m: m.first.sum(), lambda m: m.second.sum())
    assert guard.steps == 2 and not guard.start
    with pytest.raises(ValueError, match=r"1 of 2 trainable tensors have had no gradient \(second\)"):
        steps(begin(model, optimizer), model, optimizer, lambda m: m.first.sum(), lambda m: m.first.sum(), both)


def test_the_verdict_is_not_a_step_late(trainer):
    run = trainer(cut_off(adapted()), GradientFlowCallback(), warmup_steps=1)
    with pytest.raises(ValueError, match="after 2 optimizer steps"):
        run.train()
    assert (
        run.state.global_step == 2
    )  # of four: one without a learning rate, one that counts; the third was not finished


def test_a_run_of_one_step_gets_no_verdict(trainer):
    guard = GradientFlowCallback()
    trainer(cut_off(adapted()), guard, max_steps=1).train()
    assert guard.steps == 1


# what is wrong


def test_weight_decay_moves_what_has_no_gradient_and_deceives_nobody():
    model = Two()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"have had no gradient \(second\)"):
        steps(begin(model, optimizer), model, optimizer, *[lambda m: (m.first + 0 * m.second).sum()] * 2)
    assert model.second != 1


@pytest.mark.numbers
def test_what_rounds_its_updates_away_is_named_when_the_learning_rate_does_not_rise():
    model = Two(first=1.0, second=1000.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    with pytest.raises(
        ValueError, match=r"1 of 2 trainable tensors have a gradient and have not changed \(second\); .*bits=32"
    ):
        steps(begin(model, optimizer), model, optimizer, both, both)


@pytest.mark.numbers
def test_while_the_learning_rate_rises_what_is_rounded_away_is_waited_for():
    model = Two(first=1.0, second=1000.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    guard = begin(model, optimizer)
    for lr in (1e-6, 2e-6, 1e-5):
        optimizer.param_groups[0]["lr"] = lr
        steps(guard, model, optimizer, both)
    assert list(guard.start) == ["second"]
    optimizer.param_groups[0]["lr"] = 1e-3
    steps(guard, model, optimizer, both)
    assert not guard.start


@pytest.mark.numbers
def test_small_steps_add_up_before_the_verdict():
    model = Two(first=0.0, second=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    steps(guard := begin(model, optimizer), model, optimizer, both, both)
    assert not guard.start


def test_the_learning_rate_of_a_group_may_be_zero_only_if_nothing_is_to_move():
    model = Two()
    groups = [{"params": [model.first]}, {"params": [model.second], "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match=r"have a gradient and have not changed \(second\)"):
        steps(begin(model, optimizer), model, optimizer, both, both)


def test_an_error_names_three_tensors_and_counts_the_others():
    told = _error_message(
        "now", 9, {"have had no gradient": list("abcd"), "have a gradient and have not changed": ["z"]}
    )
    assert "now, 4 of 9 trainable tensors have had no gradient (a, b, c, ...); " in told
    assert "; and 1 of 9 trainable tensors have a gradient and have not changed (z); " in told


def test_frozen_by_mistake_is_refused_at_the_start_of_trls_silent_run(trainer):
    run = trainer(adapted().requires_grad_(False), GradientFlowCallback(), gradient_checkpointing=True)
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        run.train()


def test_what_the_optimizer_does_not_hold_is_named_before_the_first_step():
    model = Two()
    optimizer = torch.optim.SGD([model.first], lr=0.1)
    with pytest.raises(
        ValueError, match=r"before the first step, 1 of 2 trainable tensors are not held .*\(second\); create it"
    ):
        begin(model, optimizer)


def test_an_optimizer_of_copies_is_taken_for_what_it_is():
    model, copies = Two(), Two()
    optimizer = torch.optim.SGD(copies.parameters(), lr=0.1)
    steps(guard := begin(model, optimizer), model, optimizer, lambda m: both(m) + both(copies).detach())
    model.first.data += 1
    with pytest.raises(ValueError, match=r"have a gradient and have not changed \(second\)"):
        steps(guard, model, optimizer, both)


# what must not stop a run


def test_experts_without_a_token_are_excused_by_another_of_their_layer():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))

    model = nn.ModuleList([Layer(), Layer()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def one_each(model):
        return (model[0].experts[1](torch.ones(2)) + model[1].experts[2](torch.ones(2))).sum()

    steps(guard := begin(model, optimizer), model, optimizer, one_each, one_each)
    assert not guard.start
    with pytest.raises(ValueError, match=r"3 of 6 trainable tensors have had no gradient \(1.experts.0.weight, "):

        def first(model):
            return model[0].experts[1](torch.ones(2)).sum()

        steps(begin(model, optimizer), model, optimizer, first, first)


@pytest.mark.filterwarnings("ignore")
def test_experts_in_one_tensor_train_with_an_adapter_on_it(trainer):
    config = MixtralConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    guard = GradientFlowCallback()
    trainer(adapted(MixtralForCausalLM(config)), guard).train()
    assert guard.steps == 2 and not guard.start


def test_a_row_for_a_new_token_may_wait_for_it(trainer):
    guard = GradientFlowCallback()
    model = adapted(trainable_token_indices={"embed_tokens": [258]})  # no row holds that byte
    assert not any(258 in ids for ids in ROWS["input_ids"])
    trainer(model, guard).train()
    assert guard.steps == 2 and not guard.start


def test_what_is_frozen_on_the_way_is_no_longer_judged():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = begin(model, optimizer)
    steps(guard, model, optimizer, lambda m: m.first.sum())
    model.second.requires_grad_(False)
    steps(guard, model, optimizer, lambda m: m.first.sum())
    assert guard.steps == 2 and not guard.start


@pytest.mark.parametrize("still", [[], ["second"], ["first", "second"]])
def test_where_no_gradient_is_kept_moving_is_proof_enough(still):
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = begin(model, optimizer)
    said = (
        pytest.raises(ValueError, match=f"have had no gradient .{', '.join(still)}")
        if still
        else contextlib.nullcontext()
    )
    with said:
        for _ in range(2):  # an optimizer that updates in the backward pass, or keeps the gradients elsewhere
            for name, p in model.named_parameters():
                p.data += name not in still
            guard.on_optimizer_step(ARGS, None, None, model=model, optimizer=optimizer)
    assert guard.steps == 2


def test_a_tensor_that_is_empty_everywhere_is_not_judged():
    model = Two()
    model.second = nn.Parameter(torch.empty(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps(guard := begin(model, optimizer), model, optimizer, *[lambda m: m.first.sum()] * 2)
    assert guard.steps == 2 and not guard.start


# resuming


@pytest.mark.whole
def test_a_resumed_run_is_watched_from_where_it_goes_on(trainer, tmp_path):
    save = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "lr_scheduler_type": "constant"}
    trainer(adapted(), GradientFlowCallback(), **save).train()
    guard = GradientFlowCallback()
    trainer(adapted(), guard, max_steps=6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert guard.steps == 2 and not guard.start
    broken = trainer(cut_off(adapted()), GradientFlowCallback(), max_steps=6)
    with pytest.raises(ValueError, match="after 2 optimizer steps .* 14 of 28 trainable tensors have had no gradient"):
        broken.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert broken.state.global_step == 3


def test_a_second_run_of_the_same_trainer_is_watched_anew(trainer):
    run = trainer(adapted(), guard := GradientFlowCallback())
    run.train()
    cut_off(run.model)
    with pytest.raises(ValueError, match="have had no gradient"):
        run.train()
    assert guard.steps == 2


# several processes


def verdict(cut):
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(8, 4), "head": nn.Linear(4, 1, bias=False)})
    fully_shard(model["table"]), fully_shard(model["head"])  # each process holds four of the eight rows

    def loss(m):
        rows = m["table"](torch.tensor([7]))
        return m["head"](rows.detach() if cut else rows).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        steps(guard := begin(model, optimizer), model, optimizer, loss, loss)
    except ValueError as e:
        return str(e)
    return f"{'table.weight' in guard.with_gradient}, {guard.start}"


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_processes_come_to_one_verdict_though_a_row_moves_in_one_of_them_only(tmp_path):
    (first, cut), (other, cut_too) = ranks(tmp_path, *[lambda: [verdict(False), verdict(True)]] * 2)
    assert {first, other} == {"True, {}", "False, {}"}  # the row that moves is in one process, and both are content
    assert cut == cut_too and "1 of 2 trainable tensors have had no gradient (table.weight)" in cut
