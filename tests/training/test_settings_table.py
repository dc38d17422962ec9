"The table of settings says what the trainers, `ft` and the doctor take."

import inspect
import re

import pytest
from datasets import Dataset
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from ft_notebooks.cli.commands import SETTINGS_INI
from ft_notebooks.cli.settings import find_setting, setting_types
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.data.preference_encoding import encode_pairs
from ft_notebooks.data.rated_encoding import encode_rated
from ft_notebooks.data.read import read_rated
from ft_notebooks.doctor.context import Context
from ft_notebooks.doctor.probe import probe_run
from ft_notebooks.dpo.kto_training import kto_trainer
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.distillation import distill_trainer
from ft_notebooks.rlhf.grpo import grpo_trainer, rloo_trainer
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_training import reward_trainer
from ft_notebooks.runs.stages import STAGES, stage_class
from ft_notebooks.sft.pretraining import pretrain_trainer
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.config import split_overrides
from ft_notebooks.training.settings import SETTINGS, default_of, settings_of

NOTES = appointments(20)
WRONG = [{"role": "assistant", "content": "No."}]
DOCUMENTS = Dataset.from_dict({"text": [chat[0]["content"] for chat in NOTES["messages"]]})
PAIRS = [{"prompt": chat[:-1], "chosen": chat[-1:], "rejected": WRONG} for chat in NOTES["messages"]]
RATED = [{"messages": chat, "label": i % 2 > 0} for i, chat in enumerate(NOTES["messages"])]
CPU = {"use_cpu": True, "bf16": False}


def model_of(stage, full, folder):
    "A tiny model as the stage trains it."
    model, tok = tiny_model(), tiny_tokenizer()
    if stage == "reward":
        model.save_pretrained(folder / "base")
        tok.save_pretrained(folder / "base")
        model = load_reward_model(str(folder / "base"), tok, seed=0, trainable=True)
    return model if full else add_adapter(model, lora_config(model))


def rows_of(kind):
    rows = {"pairs": Dataset.from_list(PAIRS), "rated answers": read_rated(RATED), "documents": DOCUMENTS}
    return rows.get(kind, NOTES)


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
@pytest.mark.parametrize("stage", STAGES)
def test_each_default_is_what_the_trainer_of_the_stage_gets(stage, full, tmp_path):
    tok, model = tiny_tokenizer(), model_of(stage, full, tmp_path)
    needed = {"grpo": {"rewards": ["exact_match"]}, "distill": {"teacher": tiny_model(seed=1)}}.get(stage, {})
    own = stage_class(stage)({stage: {**CPU, **needed}})
    if stage == "grpo":
        own.rewards = {"exact_match": lambda generated, expected, example: float(len(generated) % 2)}
    rows = own.encode(tok, rows_of(own.rows))[0]
    args = own.trainer(model, tok, rows, None, output_dir=str(tmp_path / "run")).args
    for name, row in settings_of(stage).items():
        if (stage, name) == ("pretrain", "max_length"):  # documents are cut before the trainer gets them
            continue
        if row.default is not ... and hasattr(args, name) and name not in needed:
            assert getattr(args, name) == default_of(stage, name, full), name
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if stage == "grpo":
        assert args.num_generations == default_of(stage, "generations")
        assert size == default_of(stage, "prompts_a_step") * default_of(stage, "generations")
    else:
        assert size == default_of(stage, "effective_batch")


@pytest.mark.parametrize(("stage", "full"), [("grpo", False), *((stage, True) for stage in STAGES)])
def test_the_doctor_tries_the_rate_that_the_run_would_take(stage, full, tmp_path):
    model, rows = model_of(stage, full, tmp_path), rows_of(stage_class(stage).rows)
    load = {"whole": lambda: rows, "tok": tiny_tokenizer, "name": lambda: None, "model": lambda: model}
    probed = probe_run(Context(stage, {stage: CPU}, load))
    assert probed.rate == default_of(stage, "learning_rate", full)


def test_the_signatures_have_the_defaults_of_the_table():
    functions = {"sft": sft_trainer, "dpo": dpo_trainer, "reward": reward_trainer, "grpo": grpo_trainer}
    functions |= {"kto": kto_trainer, "lora": lora_config, "pretrain": pretrain_trainer, "distill": distill_trainer}
    found = [(section, function) for section, function in functions.items()]
    found += [("grpo", rloo_trainer), ("data", encode_chats), ("data", encode_pairs), ("data", encode_rated)]
    shared = []
    for section, function in found:
        for name, given in inspect.signature(function).parameters.items():
            if name in settings_of(section) and given.default is not inspect.Parameter.empty:
                assert given.default == default_of(section, name), (section, name)
                shared.append(name)
    assert {"effective_batch", "prompts_a_step", "generations", "r", "allow_cut", "allow_equal"} <= set(shared)


def test_each_key_of_the_written_settings_is_in_the_table_and_its_examples_are_the_defaults():
    lines, section, found = SETTINGS_INI.splitlines(), "", {}
    for line in lines:
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif key := re.fullmatch(r"(?:# )?(\w+) = (\S+)", line):
            found[section, key[1]] = key[2]
    assert all(name in settings_of(section) for section, name in found)
    for section, name in (("sft", "effective_batch"), ("lora", "r")):
        assert found[section, name] == str(default_of(section, name))
    named = SETTINGS_INI.partition("# All keys:")[2]
    ours = [row.name for row in SETTINGS if row.kind]
    assert [name for name in ours if not re.search(rf"\b{name}\b", named)] == []


def test_every_name_of_another_tool_leads_to_its_setting():
    for row in SETTINGS:
        section = row.sections.split()[0]
        for other in row.elsewhere.split():
            name, sign, value = other.partition("=")
            assert find_setting(name, section) == f"{section}.{row.name}{sign}{value}"
            assert find_setting(name.replace("_", "-"), section) == find_setting(name, section)


def test_a_hint_names_a_setting_that_the_stage_has():
    with pytest.raises(ValueError, match="did you mean 'effective_batch'"):
        split_overrides({"batch_size": 8}, SFTConfig, SFTTrainer, "sft")
    with pytest.raises(ValueError, match="did you mean 'prompts_a_step'"):
        split_overrides({"batch_size": 8}, GRPOConfig, GRPOTrainer, "grpo")
    assert find_setting("batch_size", "grpo") == "grpo.prompts_a_step"


CLASSES = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer), "reward": (RewardConfig, RewardTrainer)}
CLASSES |= {"grpo": (GRPOConfig, GRPOTrainer), "kto": (KTOConfig, KTOTrainer), "pretrain": (SFTConfig, SFTTrainer)}
CLASSES |= {"distill": (DistillationConfig, DistillationTrainer)}


@pytest.mark.parametrize("stage", STAGES)
def test_what_has_no_effect_is_refused_with_the_cure(stage):
    without = {name: row.python for name, row in settings_of(stage).items() if row.python}
    assert "quantization_config" in without and "resume_from_checkpoint" in without
    for name, cure in without.items():
        with pytest.raises(ValueError, match=re.escape(f"{name!r} would have no effect as a setting; {cure}")):
            split_overrides({name: True}, *CLASSES[stage], stage)
        assert name not in setting_types(stage)
