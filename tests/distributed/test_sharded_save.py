"""Whole saves and exact restarts of runs in parts, through the trainers.

A CPU gets DDP where FSDP was asked for, as accelerate has no case for it. `fsdp_on_a_cpu` adds the case, in the tests'
processes only; all else is what runs on GPUs. No test of this project ran FSDP on several GPUs.
"""

import contextlib
import io
import shutil
import time
from unittest.mock import patch

import datasets
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from ranks_of import ranks
from safetensors.torch import load_file, save_file
from small_runs import ROUNDED, only_rounded
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ft_notebooks.distributed.sharded_save import check_whole, save_whole, sharded_memory
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.memory_estimate import Memory
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import IGNORE

pytestmark = pytest.mark.whole

TOK = tiny_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def row(i):  # of 21 to 30 tokens, some of them trained
    ids = torch.randint(5, 200, (21 + 7 * i % 10,), generator=torch.Generator().manual_seed(i)).tolist()
    return {"input_ids": ids, "labels": [IGNORE] * 18 + ids[18:]}


ROWS = Dataset.from_list([row(i) for i in range(9)])  # steps of 4 leave one row for the last
as_it_is = AcceleratorState.__init__


def fsdp_on_a_cpu(self, *args, fsdp_plugin=None, **kwargs):
    as_it_is(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def small(method, folder):
    plain = AutoModelForCausalLM.from_pretrained(folder / "base")
    return plain if method == "full" else add_adapter(plain, lora_config(plain, r=4))


def trained(method, folder, run, kind=None, resume=None):
    """Four steps, of which the third ends an epoch with one row: losses, norms of the gradients, evaluation; two
    checkpoints, two saves.
    """
    fixed = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False}
    fields = fixed | {
        "effective_batch": 4,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "save_steps": 2,
    }
    if kind:
        wrap = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}
        fields |= {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": kind, **wrap}}
    with contextlib.ExitStack() as as_on_a_gpu:
        as_on_a_gpu.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if kind:  # what makes a CPU faster is off too
            as_on_a_gpu.enter_context(patch.object(AcceleratorState, "__init__", fsdp_on_a_cpu))
            as_on_a_gpu.enter_context(
                patch("ft_notebooks.sft.trainer.speed_up", lambda model: contextlib.nullcontext())
            )
            as_on_a_gpu.enter_context(patch("ft_notebooks.sft.trainer.LabelHead", lambda model, **_: model))
        rate = 1e-2 if method == "lora" else 1e-3
        held = ROWS.select(range(5))
        trainer = sft_trainer(small(method, folder), TOK, ROWS, held, output_dir=str(run), learning_rate=rate, **fields)
        trainer.train(resume)
        evaluation = trainer.evaluate()["eval_loss"]
        trainer.save_model(f"{run}/saved")
        save_whole(trainer.model, f"{run}/whole")
    logs = [[log["loss"], log["grad_norm"]] for log in trainer.state.log_history if "loss" in log]
    return {"type": trainer.accelerator.distributed_type, "log": torch.tensor(logs), "eval": torch.tensor(evaluation)}


def weights(folder):
    return load_file(next(folder.glob("*model.safetensors")))


def apart(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys() and all(one[name].shape == other[name].shape for name in one)
    return torch.cat([(one[name] - other[name]).abs().flatten() for name in one])


@pytest.fixture(scope="module", params=["full", "lora"])
def runs(request, tmp_path_factory):
    "The same run by one process, and in parts by two, each method with one of the two ways to save."
    folder, method = tmp_path_factory.mktemp(request.param), request.param
    kind = {"full": "SHARDED_STATE_DICT", "lora": "FULL_STATE_DICT"}[method]
    tiny_model().save_pretrained(folder / "base")
    [one] = ranks(1, lambda rank: trained(method, folder, folder / "one"), folder / "1")
    return method, kind, folder, one, ranks(2, lambda rank: trained(method, folder, folder / "two", kind), folder / "2")


def test_a_model_in_parts_learns_what_one_process_learns(runs):
    _, _, folder, one, two = runs
    for rank in two:
        assert rank["type"] == DistributedType.FSDP
        assert torch.allclose(rank["log"], one["log"], atol=ROUNDED)
        assert torch.allclose(rank["eval"], one["eval"], atol=ROUNDED)
    assert only_rounded(apart(folder / "one/saved", folder / "two/whole"), 4 * 2e-2)


def test_the_trainer_saves_the_whole_or_nothing(runs):
    _, kind, folder, _, _ = runs
    check_whole(folder / "one/saved")
    check_whole(folder / "two/whole")
    if kind == "FULL_STATE_DICT":
        assert apart(folder / "two/saved", folder / "two/whole").max() == 0
        return
    assert not (folder / "two/saved").exists()  # and says nothing
    with pytest.raises(ValueError, match="shards of several processes .pytorch_model_fsdp_0.*save_whole"):
        check_whole(folder / "two/checkpoint-4")


@pytest.mark.parametrize("runs", ["lora"], indirect=True)
def test_a_checkpoint_of_a_run_in_parts_holds_every_row(runs):
    method, _, folder, _, _ = runs
    state = torch.load(folder / "two/checkpoint-4/pytorch_model_fsdp.bin", weights_only=True)
    want = {name: p for name, p in small(method, folder).named_parameters() if p.requires_grad}
    assert state.keys() == want.keys() and all(state[name].shape == p.shape for name, p in want.items())
    assert all(p.any(1).all() for name, p in state.items() if "lora_B" in name)


def test_a_run_in_parts_goes_on_as_if_it_had_not_stopped(runs, tmp_path):
    method, kind, folder, _, two = runs
    shutil.copytree(folder / "two", again := tmp_path / "again", ignore=shutil.ignore_patterns("checkpoint-4", "whole"))
    resume = str(again / "checkpoint-2")
    resumed = ranks(2, lambda rank: trained(method, folder, again, kind, resume), tmp_path / "2")
    assert all(torch.equal(rank["log"], was["log"]) for rank, was in zip(resumed, two))
    assert apart(folder / "two/whole", again / "whole").max() == 0


def saved_in_parts(make, folder, steps=2):
    model = make()
    layers = (model.get_base_model() if hasattr(model, "get_base_model") else model).model.layers
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        ids = torch.tensor([ROWS[0]["input_ids"]])  # the same on all ranks: their number changes nothing
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_whole(model, folder)


def joined(job):
    def run(rank):
        dist.init_process_group("gloo")
        return job()

    return run


def tied():
    config = tiny_model().config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def with_a_whole_head():
    model = tiny_model()
    return add_adapter(model, lora_config(model, r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]))


def preferred(folder, run, in_parts=False):
    "A step of four pairs and one of one"
    fields = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    fields |= {
        "effective_batch": 4,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    pairs = [
        {"prompt_ids": row(i)["input_ids"][:18], "chosen_ids": [5 + i, 9, 2], "rejected_ids": [30 + i, 2]}
        for i in range(5)
    ]
    if in_parts:
        how = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
        fields |= {"fsdp": True, "fsdp_config": how}
    with (
        contextlib.redirect_stdout(io.StringIO()),
        patch.object(AcceleratorState, "__init__", fsdp_on_a_cpu if in_parts else as_it_is),
    ):
        trainer = dpo_trainer(
            small("lora", folder), TOK, Dataset.from_list(pairs), output_dir=str(run), learning_rate=1e-3, **fields
        )
        trainer.train()
        save_whole(trainer.model, f"{run}/whole")
    return {
        "type": trainer.accelerator.distributed_type,
        "loss": [log["loss"] for log in trainer.state.log_history if "loss" in log],
    }


def test_preferences_are_learned_in_parts_too(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    [one] = ranks(1, lambda rank: preferred(tmp_path, tmp_path / "one"), tmp_path / "1")
    for rank in ranks(2, lambda rank: preferred(tmp_path, tmp_path / "two", True), tmp_path / "2"):
        assert rank["type"] == DistributedType.FSDP and rank["loss"] == pytest.approx(one["loss"], abs=ROUNDED)
    assert len(one["loss"]) == 2 and only_rounded(apart(tmp_path / "one/whole", tmp_path / "two/whole"), 2 * 2e-3)


@pytest.mark.parametrize("make", [tied, with_a_whole_head])  # what two save of others is compared above
def test_what_three_processes_save_is_what_one_saves(make, tmp_path):
    for n in (1, 3):
        ranks(n, joined(lambda n=n: saved_in_parts(make, tmp_path / f"by{n}")), tmp_path / f"log{n}")
    assert {file.name for file in (tmp_path / "by1").iterdir()} == {file.name for file in (tmp_path / "by3").iterdir()}
    assert only_rounded(apart(tmp_path / "by1", tmp_path / "by3"), 2 * 2e-2)


def test_nobody_goes_on_before_all_is_written(tmp_path):
    def save():
        model = tiny_model()
        write = model.save_pretrained
        model.save_pretrained = lambda *args, **kwargs: (time.sleep(0.2), write(*args, **kwargs))
        save_whole(model, tmp_path / "saved")
        return (tmp_path / "saved/model.safetensors").exists()

    assert ranks(2, joined(save), tmp_path) == [True, True]


def test_a_model_that_lies_with_deepspeed_is_refused(tmp_path):
    def save():
        model = tiny_model()
        model.lm_head.weight.ds_id = 7
        with pytest.raises(ValueError, match="lm_head.weight is sharded by DeepSpeed's ZeRO-3.*stage3_gather_16bit"):
            save_whole(model, tmp_path / "saved")
        return (tmp_path / "saved").exists()

    assert ranks(1, joined(save), tmp_path) == [False]


def test_a_model_of_which_a_part_was_saved_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    check_whole(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name: p.chunk(2)[0].clone() for name, p in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="missing in the files, or have another shape there"):
        check_whole(tmp_path)


def test_zeros_in_most_matrices_are_refused_and_in_a_few_are_not(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = small("lora", tmp_path)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            torch.nn.init.ones_(p)
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    whole = load_file(file)
    names = [name for name in whole if "lora_B" in name]
    for many in (0, 1, 7, 8, 14):  # of 14
        save_file(
            {
                name: p * (torch.arange(len(p))[:, None] != 3) if name in names[:many] else p
                for name, p in whole.items()
            },
            file,
        )
        with (
            contextlib.nullcontext()
            if many < 8
            else pytest.raises(ValueError, match=f"{many} of 14 lora_B matrices .*: 1 rows")
        ):
            check_whole(tmp_path / "adapter")


def test_what_is_divided_is_divided_and_nothing_else():
    memory = Memory(
        weights=100, adapter=20, gradients=30, optimizer=40, copies=7, activations=11, logits=13, working=17
    )
    want = {
        "ddp": {"gradients": 60},
        "zero1": {"optimizer": 10},
        "zero2": {"optimizer": 10, "gradients": 8},
        "zero3": {"optimizer": 10, "gradients": 8, "weights": 25, "adapter": 5, "copies": 0, "working": 17 + 9},
    }
    want["fsdp2"] = want["zero3"]
    for strategy, changed in want.items():
        assert vars(sharded_memory(memory, strategy, 4, gathered=9)) == vars(memory) | changed
        assert sharded_memory(memory, strategy, 1, gathered=9) == memory
    with pytest.raises(ValueError, match="strategy must be one of"):
        sharded_memory(memory, "FSDP", 2, 0)
    for processes, gathered in ((0, 0), (2, -1)):
        with pytest.raises(ValueError, match=f"processes={processes} must be at least 1, and gathered={gathered}"):
            sharded_memory(memory, "ddp", processes, gathered)
