"Edges of `ft_notebooks.training.batch_plan`: processes, machines and packing."

import importlib
import importlib.metadata
import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, RewardConfig, SFTConfig

from ft_notebooks.core.device import Hardware
from ft_notebooks.core.seams import NameGone
from ft_notebooks.loading import memory_estimate, training_memory
from ft_notebooks.loading.example_models import tiny_model
from ft_notebooks.loading.memory_estimate import estimate_memory
from ft_notebooks.training.batch_plan import effective_batch, plan
from ft_notebooks.training.config import run_config

GB = 1_000_000_000
LENGTHS = [100, 200, 300, 400] * 16


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(monkeypatch):  # a machine whose memory takes a byte for each token, or a half with checkpointing
    def made(device="cuda:0", bf16=True, memory=16_000, exact=False):
        hw = Hardware(device, torch.bfloat16 if bf16 else torch.float16, bf16, "sdpa", memory)
        for module in ("training.batch_plan", "loading.training_memory"):
            monkeypatch.setattr(f"ft_notebooks.{module}.hardware", lambda: hw)
        if not exact:

            def peak(config, tokens, checkpointing, labelled, **settings):
                asked.append(settings)
                return tokens * (0.5 if checkpointing else 1) * (0.9 if labelled < 1 else 1)

            monkeypatch.setattr("ft_notebooks.loading.training_memory._peak", peak)
        return asked

    asked = []
    return made


def batch(chosen):
    return chosen.fields["per_device_train_batch_size"], chosen.fields["gradient_accumulation_steps"]


def checkpointed(chosen):
    return next(value for name, value in chosen.fields.items() if name.endswith("checkpointing"))


@pytest.mark.whole
def test_the_launchers_world_size_is_taken_into_account(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert effective_batch(16, micro=2) == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(("device", "micro"), [("cpu", 4), ("cuda", 8), ("cuda:1", 8), ("mps", 8)])
def test_a_gpu_takes_more_rows_at_a_time_than_a_cpu(monkeypatch, device, micro):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("ft_notebooks.training.batch_plan.hardware", lambda: SimpleNamespace(device=device))
    fields = effective_batch(16)
    assert fields == {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 16 // micro}


def test_the_rows_at_a_time_are_as_many_as_fit():
    assert effective_batch(12, micro=5, processes=1)["per_device_train_batch_size"] == 4
    assert effective_batch(7, micro=4, processes=1)["per_device_train_batch_size"] == 1
    assert effective_batch(2, micro=8, processes=1)["per_device_train_batch_size"] == 2


@pytest.mark.parametrize("arguments", [(0,), (16.0,), (16, -1), (16, 4, 0), (2, 4, 4)])
def test_impossible_batches_raise(arguments):
    with pytest.raises(ValueError, match="effective batch|effective_batch"):
        effective_batch(*arguments)


@pytest.mark.parametrize(
    ("memory", "rows", "checkpointing"),
    [
        (8000, 16, False),
        (7000, 8, False),
        (1800, 4, False),
        (450, 1, False),
        (440, 1, True),
        (230, 1, True),
        (215, 1, True),
    ],
)
def test_layers_are_computed_twice_only_where_not_one_row_fits_otherwise(machine, memory, rows, checkpointing):
    machine(memory=memory)
    chosen = plan(tiny_model(), LENGTHS)
    assert (batch(chosen), checkpointed(chosen)) == ((rows, 16 // rows), checkpointing)
    assert f"16 rows a step = {rows} x {16 // rows} on 1 GPU" in chosen.said
    assert ("no activation checkpointing" in chosen.said) != checkpointing


def test_what_surely_does_not_fit_raises_and_what_perhaps_does_is_tried(machine):
    machine(memory=181)
    assert batch(plan(tiny_model(), LENGTHS)) == (1, 16)
    machine(memory=179)
    with pytest.raises(
        ValueError, match="one row at a time and activation checkpointing; the longest row has 400 tokens. Take"
    ):
        plan(tiny_model(), LENGTHS)


def test_the_worst_micro_batch_is_of_the_longest_rows(machine):
    machine(memory=3000)
    assert batch(plan(tiny_model(), LENGTHS)) == (4, 4)  # 8 x 400 do not fit into nine tenths
    lengths = [400, 400, 300, 300, 300, 200, 200, 200] + [100] * 56
    chosen = plan(tiny_model(), lengths, unpadded=True)
    assert batch(chosen) == (8, 2)  # the eight longest are 2,300 tokens
    assert chosen.fields["padding_free"] and chosen.fields["train_sampling_strategy"] == "random"
    assert "no padding" in chosen.said and "grouped" not in chosen.said


def test_a_cpu_keeps_half_of_its_memory_for_others_and_its_processes_share_it(machine, monkeypatch):
    machine("cpu", memory=3300)
    assert batch(plan(tiny_model(), LENGTHS)) == (4, 4)
    machine("cpu", memory=3100)
    assert batch(plan(tiny_model(), LENGTHS)) == (2, 8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    chosen = plan(tiny_model(), LENGTHS)
    assert batch(chosen) == (1, 8) and "on each of 2 CPUs" in chosen.said


@pytest.mark.parametrize(
    ("device", "bf16", "given", "said"),
    [("cuda:0", True, {}, "bfloat16"), ("cuda:0", False, {}, "float16"), ("cpu", False, {}, "float32")]
    + [("cuda:0", True, {"fp16": True}, "float16"), ("cuda:0", True, {"bf16": False}, "float32")]
    + [("cuda:0", False, {"bf16": False}, "float32")],
)
def test_the_precision_is_the_machines_or_the_one_that_is_given_and_the_estimate_knows(
    machine, device, bf16, given, said
):
    asked = machine(device, bf16, memory=100_000)
    assert f", {said}, " in plan(tiny_model(), LENGTHS, given=given).said
    wanted = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": None}[said]
    assert asked[0]["dtype"] == wanted and asked[0]["device"] == device.split(":")[0]


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_that_is_given_rules_by_either_name(machine, name):
    machine(memory=100_000)
    assert checkpointed(plan(tiny_model(), LENGTHS, given={name: True}))
    machine(memory=400)
    chosen = plan(tiny_model(), LENGTHS, given={name: False})
    assert not checkpointed(chosen) and batch(chosen) == (1, 16) and "peak 0.0 of 0 GB" in chosen.said


def test_batch_fields_that_are_given_rule_where_they_agree(machine):
    machine(memory=100_000)
    assert batch(plan(tiny_model(), LENGTHS, given={"per_device_train_batch_size": 2})) == (2, 8)
    assert batch(plan(tiny_model(), LENGTHS, given={"gradient_accumulation_steps": 4})) == (4, 4)
    for given in ({"per_device_train_batch_size": 3}, {"gradient_accumulation_steps": 3}):
        with pytest.raises(ValueError, match="not effective_batch=16; give effective_batch alone, or make them agree"):
            plan(tiny_model(), LENGTHS, given=given)


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, RewardConfig])
def test_a_batch_larger_than_the_data_takes_all_rows_and_says_so(machine, config):
    machine(memory=100_000)
    assert plan(tiny_model(), [10] * 16, 16, config=config).said.endswith("3 steps")
    small = plan(tiny_model(), [10] * 15, 16, config=config)
    assert small.said.endswith("3 steps; effective_batch=16 is more than the rows, so a step takes 15")
    assert math.prod(batch(small)) == 15
    one = plan(tiny_model(), [10], 16, {"max_steps": 2}, config=config)
    assert batch(one) == (1, 1) and one.said.endswith("so a step takes 1")


def test_a_batch_larger_than_the_data_is_shared_by_the_processes_or_refused(machine, monkeypatch):
    machine(memory=100_000)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert math.prod(batch(plan(tiny_model(), [10] * 15, 16))) * 4 == 12
    with pytest.raises(ValueError, match="which has 3 rows; start at most 3 processes"):
        plan(tiny_model(), [10] * 3, 16)


@pytest.mark.parametrize("given", [{"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 2}])
def test_a_batch_larger_than_the_data_beside_a_factor_of_it_is_refused(machine, given):
    machine(memory=100_000)
    [name] = given
    with pytest.raises(ValueError, match=f"is larger than the data, which has 15 rows; leave out {name}"):
        plan(tiny_model(), [10] * 15, 16, given)


@pytest.mark.parametrize(
    ("rows", "given"),
    [(64, {}), (65, {"num_train_epochs": 1}), (63, {"num_train_epochs": 1.5}), (64, {"max_steps": 7})]
    + [(70, {"dataloader_drop_last": True, "num_train_epochs": 2}), (70, {"per_device_train_batch_size": 2})],
)
def test_the_steps_in_the_line_are_the_trainers_own(machine, tmp_path, rows, given):
    machine("cpu", memory=100_000)
    chosen = plan(tiny_model(), [3] * rows, 16, given)
    args = TrainingArguments(
        tmp_path,
        use_cpu=True,
        **{**given, **dict(zip(("per_device_train_batch_size", "gradient_accumulation_steps"), batch(chosen)))},
    )
    trainer = Trainer(tiny_model(), args, train_dataset=[{"input_ids": [1, 2, 3]}] * rows)
    steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[6]
    assert chosen.said.endswith(f"; {steps} steps")


def test_packed_rows_are_counted_by_the_examples_in_them(machine, monkeypatch):
    machine(memory=100_000)
    chosen = plan(tiny_model(), [100] * 64, 16, {"packing": True, "max_length": 400})
    assert batch(chosen) == (4, 1) and chosen.fields["max_length"] == 400
    assert chosen.said.startswith("16 examples a step in 4 packed rows of at most 400 tokens = 4 x 1 on 1 GPU")
    assert chosen.said.endswith("12 steps") and chosen.fields["train_sampling_strategy"] == "random"
    chosen = plan(tiny_model(), [100] * 64, 2, {"packing": True, "max_length": 400})
    assert chosen.said.startswith("4 examples a step in 1 packed row of")  # a row is not cut
    both = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    chosen = plan(tiny_model(), [100] * 64, 16, {"packing": True, "max_length": 400, **both})
    assert chosen.said.startswith("24 examples a step in 6 packed rows") and "= 2 x 3 on" in chosen.said
    assert plan(tiny_model(), [100] * 64, 16, {"packing": True}).fields["max_length"] == 1024
    assert plan(tiny_model(), [2000] * 64, 16, {"packing": True}).fields["max_length"] == 2000
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert batch(plan(tiny_model(), [100] * 64, 16, {"packing": True, "max_length": 400})) == (2, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")  # the same batch, or none
    with pytest.raises(ValueError, match="16 is 4 packed rows .* 3 processes cannot share; take effective_batch=24"):
        plan(tiny_model(), [100] * 64, 16, {"packing": True, "max_length": 400})


def test_where_memory_is_not_estimated_nothing_raises_and_the_line_gives_the_reason(machine, monkeypatch):
    machine(memory=1)
    frozen = tiny_model()
    next(frozen.parameters()).requires_grad_(False)
    eight = tiny_model()
    eight.is_quantized = True
    spread = tiny_model()
    spread.hf_device_map = {"a": 0, "b": 1}
    adapter = LoraConfig()
    for model, given, why in [
        (frozen, {}, "in part"),
        (tiny_model().bfloat16(), {}, "in 16 bits"),
        (spread, {}, "spread"),
    ] + [
        (eight, {}, "quantized"),
        (tiny_model(), {"optim": "sgd"}, "another optimizer"),
        (tiny_model(), {"fsdp": "full_shard"}, "sharded over"),
    ]:
        chosen = plan(model, LENGTHS, given=given, adapter=adapter if model is eight else None)
        assert why in chosen.said and "memory not estimated" in chosen.said
        assert batch(chosen) == (8, 2) and checkpointed(chosen)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "sharded over the processes" in plan(tiny_model(), LENGTHS).said


@pytest.mark.parametrize(
    ("model", "bits", "method"),
    [(tiny_model(), 32, "full"), (tiny_model().bfloat16(), 16, "lora"), (tiny_model(), 32, "lora")],
)
def test_the_estimate_is_of_the_model_and_of_its_own_adapter(machine, model, bits, method):
    asked = machine(memory=100_000)
    adapter = LoraConfig(r=3, target_modules=["q_proj"]) if method == "lora" else None
    plan(get_peft_model(model, adapter) if adapter else model, LENGTHS)
    assert (asked[0]["bits"], asked[0]["method"]) == (bits, method)
    assert (asked[0]["adapter"].r == 3) if adapter else (asked[0]["adapter"] is None)


def test_four_bits_are_known_by_the_models_own_flag(machine):
    asked, model = machine(memory=100_000), tiny_model()
    model.is_quantized = model.is_loaded_in_4bit = True
    plan(model, LENGTHS, adapter=LoraConfig())
    assert (asked[0]["bits"], asked[0]["method"]) == (4, "qlora")


@pytest.mark.whole
def test_a_plan_is_the_same_each_time_and_leaves_the_model_as_it_is(machine):
    machine("cpu", memory=25 * GB, exact=True)
    model, adapter = tiny_model().bfloat16(), LoraConfig(target_modules="all-linear")
    before = model.config.to_dict()  # it says float32, and an estimate writes what it has estimated
    first = plan(model, LENGTHS, adapter=adapter)
    assert plan(model, list(reversed(LENGTHS)), adapter=adapter) == first and model.config.to_dict() == before
    assert "estimated peak 0.1 of 25 GB" in first.said


@pytest.mark.parametrize(("config", "stage", "rate"), [(SFTConfig, "sft", 5e-4), (DPOConfig, "dpo", 1e-5)])
def test_a_config_of_either_stage_can_be_made_of_a_plan(machine, tmp_path, config, stage, rate):
    machine("cpu", memory=100_000)
    given = {"logging_steps": 3, "train_sampling_strategy": "random"}
    args = run_config(config, tmp_path, plan(tiny_model(), LENGTHS, 16, given, config), given, stage)
    assert isinstance(args, config) and args.learning_rate == rate and args.logging_steps == 3 and args.save_steps == 50
    assert args.train_sampling_strategy == "random" and args.logging_nan_inf_filter is False
    given = run_config(config, tmp_path, plan(tiny_model(), LENGTHS), {"learning_rate": 5.0}, stage)
    assert given.learning_rate == 5


def test_a_model_that_is_wrapped_twice_raises(machine):
    machine(memory=100_000)
    once = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear"))
    assert plan(once, LENGTHS).said
    for model, adapter in [(once, LoraConfig()), (get_peft_model(once, LoraConfig(target_modules="all-linear")), None)]:
        with pytest.raises(ValueError, match="would be wrapped twice"):
            plan(model, LENGTHS, adapter=adapter)


NAMES = [
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "transformers.modeling_layers.GradientCheckpointingLayer",
    "transformers.masking_utils.find_packed_sequence_indices",
    "trl.kernels.ChunkedLogProbFunction",
    "trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE",
    "trl.kernels.chunked_logprob._forward_tile",
    "trl.kernels.chunked_logprob._backward_tile",
    "trl.kernels.chunked_logprob._addmm_fp32",
    "bitsandbytes.functional.name2qmap",
    "transformers.quantizers.AutoHfQuantizer",
]


def four_bits():
    model = tiny_model()
    model.is_quantized = model.is_loaded_in_4bit = True
    return model


@pytest.fixture
def nothing_estimated(monkeypatch):
    monkeypatch.setattr(training_memory, "_ESTIMATES", {})


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_a_release_has_renamed_ends_no_plan(machine, monkeypatch, nothing_estimated, name):
    machine(memory=100 * GB, exact=True)
    importlib.import_module(name.rpartition(".")[0])
    monkeypatch.delattr(name)
    chosen = plan(four_bits(), LENGTHS, adapter=LoraConfig(target_modules="all-linear"))
    library = name.partition(".")[0]
    assert f"; memory not estimated, as {library} {importlib.metadata.version(library)} has no {name}" in chosen.said
    assert f"pip install '{library}==" in chosen.said
    assert batch(chosen) == (8, 2) and checkpointed(chosen)
    with pytest.raises(NameGone, match=f"has no {name}, and without it memory cannot be estimated; pip install"):
        estimate_memory(tiny_model().config, "qlora")


@pytest.mark.parametrize(
    "error", [AttributeError("no such field"), ImportError("gone"), TypeError("3 arguments"), KeyError("k")]
)
@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_an_estimate_that_fails_in_any_way_ends_no_plan(machine, monkeypatch, nothing_estimated, error, device):
    machine(device, memory=100 * GB, exact=True)

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(memory_estimate, "step_bytes", fails)
    chosen = plan(tiny_model(), LENGTHS)
    assert f"; memory not estimated, as the estimate raised {type(error).__name__}: {error}; " in chosen.said
    assert (batch(chosen), checkpointed(chosen)) == (((4, 4), False) if device == "cpu" else ((8, 2), True))
    with pytest.raises(type(error)):
        estimate_memory(tiny_model().config)
