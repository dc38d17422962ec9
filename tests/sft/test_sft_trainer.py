"Edges of `ft_notebooks.sft.trainer`."

import math

import pytest
import torch
import trl
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chat, encode_chats
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.lora.targets import token_rows
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import IGNORE
from ft_notebooks.training.config import split_overrides
from ft_notebooks.training.gradient_flow import GradientFlowCallback

EXACT = {"bf16": False, "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}


@pytest.fixture
def build(tmp_path):
    def build(model=None, data=None, **overrides):
        data = appointments(16) if data is None else data
        return sft_trainer(model or tiny_model(), tiny_tokenizer(), data, output_dir=tmp_path, **{**EXACT, **overrides})

    return build


def rows_of(n=16):
    return encode_chats(tiny_tokenizer(), appointments(n))[0]


def trained(rows) -> int:
    return sum(label != IGNORE for labels in rows["labels"] for label in labels)


@pytest.mark.parametrize("name", ["args", "model", "train_dataset", "processing_class", "self", "tokenizer"])
def test_what_the_trainer_is_given_anyway_is_no_override(name):
    with pytest.raises(ValueError, match=f"'{name}' is neither a field of SFTConfig nor an argument of SFTTrainer"):
        split_overrides({name: 1}, SFTConfig, SFTTrainer)


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(
        ValueError, match=rf"nor an argument of SFTTrainer in trl {trl.__version__} and transformers [\d.]+$"
    ):
        split_overrides({"zzzzzzzz": 1}, SFTConfig, SFTTrainer)


WITHOUT_EFFECT = ["resume_from_checkpoint", "assistant_only_loss", "completion_only_loss", "formatting_func",
                  "chat_template_path", "eos_token"]  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_setting_without_effect_is_refused(build, name):
    with pytest.raises(ValueError, match=f"'{name}' would have no effect"):
        build(**{name: None})


@pytest.mark.whole
def test_settings_are_ours_where_nothing_is_given_and_the_callers_where_it_is(build):
    ours = {
        "max_length": None, "padding_free": True, "train_sampling_strategy": "random", "logging_steps": 1,
        "logging_nan_inf_filter": False, "save_steps": 50, "save_total_limit": 2,
    }  # fmt: skip
    args = build().args
    assert {name: getattr(args, name) for name in ours} == ours
    given = {
        "padding_free": False,
        "max_length": 512,
        "train_sampling_strategy": "sequential",
        "logging_steps": 7,
        "save_total_limit": 3,
    }
    args = build(**given).args
    assert {name: getattr(args, name) for name in given} == given


def test_arguments_of_the_trainer_reach_it(build):
    optimizer = torch.optim.SGD(tiny_model().parameters(), lr=1.0)
    assert build(optimizers=(optimizer, None)).optimizer is optimizer


@pytest.mark.whole
def test_an_adapter_that_the_trainer_adds_gets_the_rate_of_one_and_a_given_one_rules(build):
    assert build(peft_config=lora_config(tiny_model())).args.learning_rate == 5e-4
    assert build(learning_rate=1e-3).args.learning_rate == 1e-3


@pytest.mark.whole
def test_a_batch_size_of_the_users_own_keeps_the_product(build):
    args = build(per_device_train_batch_size=2, effective_batch=8).args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    args = build(per_device_train_batch_size=2, gradient_accumulation_steps=3, effective_batch=6).args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 3)


@pytest.mark.whole
def test_the_rows_come_shuffled_by_the_seed(build):
    def order(seed):
        seen = []
        trainer = build(data=rows_of(32), seed=seed, max_steps=2, learning_rate=0.0)
        collate = trainer.data_collator
        trainer.data_collator = lambda rows: seen.extend(tuple(row["input_ids"]) for row in rows) or collate(rows)
        trainer.train()
        return seen

    given, first = [tuple(ids) for ids in rows_of(32)["input_ids"]], order(0)
    assert sorted(first) == sorted(given) and first != given
    assert order(0) == first != order(1)


@pytest.mark.parametrize("settings", [{"packing": True, "max_length": 512}, {"padding_free": True}])
def test_where_nothing_is_padded_rows_are_not_grouped_by_length(build, settings):
    assert build(**settings).args.train_sampling_strategy == "random"


def test_rows_of_one_batch_are_of_similar_length(build):
    def gaps(**settings):
        fields = {"effective_batch": 32, "per_device_train_batch_size": 4, "padding_free": False, **settings}
        batches = list(build(data=appointments(64), **fields).get_train_dataloader())
        return sum((batch["attention_mask"] == 0).sum().item() for batch in batches)

    assert gaps(train_sampling_strategy="group_by_length") < gaps(train_sampling_strategy="random") / 3


@pytest.mark.numbers
def test_the_evaluation_loss_is_of_the_answers_of_the_evaluation_rows(build):
    tok, held = tiny_tokenizer(), appointments(4, part="validation")
    expected = [encode_chat(tok, messages) for messages in held["messages"]]
    total = count = 0
    for row in expected:
        logits, labels = tiny_model()(torch.tensor([row["input_ids"]])).logits[0, :-1], torch.tensor(row["labels"][1:])
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum").item()
        count += (labels != IGNORE).sum().item()
    for data in (held, encode_chats(tok, held)[0]):
        trainer = build(eval_dataset=data)
        assert trainer.eval_dataset.to_list() == expected
        assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, abs=1e-5)


def test_an_evaluation_row_that_would_be_cut_is_refused_too(build):
    short = rows_of().map(lambda row: {name: row[name][-90:] for name in ("input_ids", "labels")})
    with pytest.raises(ValueError, match="eval_dataset: a row has"):
        build(data=short, eval_dataset=rows_of(), max_length=100)


NOTHING = {
    "no label": {"input_ids": [[1, 2]], "labels": [[IGNORE, IGNORE]]},
    "a first token has nothing before it": {"input_ids": [[5, 6]], "labels": [[5, IGNORE]]},
}


@pytest.mark.parametrize("rows", NOTHING.values(), ids=NOTHING)
def test_rows_in_which_nothing_is_trained_are_refused(build, rows):
    with pytest.raises(
        ValueError, match=f"train_dataset: none of the {len(rows['labels'])} rows has a label to train on"
    ):
        build(data=Dataset.from_dict(rows))


def test_packing_may_split_a_long_row_but_not_lose_its_end(build):
    with pytest.raises(ValueError, match="max_length=100 would cut it"):
        build(data=rows_of(), packing=True, max_length=100)
    split = build(data=rows_of(), packing=True, packing_strategy="bfd_split", max_length=100).train_dataset
    assert max(map(len, split["input_ids"])) == 100 and trained(split) == trained(rows_of())


def test_a_row_that_just_fits_is_not_cut(build):
    longest = max(map(len, rows_of()["input_ids"]))
    assert build(data=rows_of(), max_length=longest).train_dataset.to_list() == rows_of().to_list()
    with pytest.raises(ValueError, match=f"a row has {longest} tokens"):
        build(data=rows_of(), max_length=longest - 1)


@pytest.mark.whole
def test_float16_weights_may_carry_an_adapter_but_not_be_trained(build):
    with pytest.raises(ValueError, match="trainable tensors are float16"):
        build(tiny_model().half())
    half = tiny_model().half()
    build(add_adapter(half, lora_config(half)))
    build(tiny_model().half(), peft_config=lora_config(tiny_model()))


def test_bfloat16_weights_may_carry_an_adapter_but_not_be_trained(build):
    with pytest.raises(ValueError, match="21 weights of the model itself are trainable and bfloat16 .*bits=32"):
        build(tiny_model().bfloat16())
    narrow = tiny_model().bfloat16()
    build(add_adapter(narrow, lora_config(narrow)))
    build(tiny_model().bfloat16(), peft_config=lora_config(tiny_model()))


def test_one_bfloat16_weight_among_others_is_refused(build):
    mixed = tiny_model()
    mixed.model.norm.bfloat16()
    with pytest.raises(ValueError, match=r"1 weights of the model itself .*\(model.norm.weight"):
        build(mixed)
    mixed.model.norm.requires_grad_(False)
    build(mixed)


@pytest.mark.whole
def test_an_adapter_may_be_bfloat16_itself_but_not_what_is_trained_beside_it(build):
    narrow = tiny_model().bfloat16()
    adapted = add_adapter(narrow, lora_config(narrow))
    build(adapted.bfloat16())
    with pytest.raises(ValueError, match="1 weights of the model itself .*modules_to_save"):
        narrow = tiny_model().bfloat16()
        build(add_adapter(narrow, lora_config(narrow, modules_to_save=["lm_head"])))
    with pytest.raises(ValueError, match="1 weights of the model itself .*modules_to_save"):
        build(tiny_model().bfloat16(), peft_config=lora_config(tiny_model(), modules_to_save=["lm_head"]))


def test_who_brings_an_optimizer_may_train_bfloat16_weights(build):
    narrow = tiny_model().bfloat16()
    build(narrow, optimizers=(torch.optim.SGD(narrow.parameters(), lr=1.0), None))


def guards(trainer):
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, GradientFlowCallback)]


@pytest.mark.whole
def test_every_run_has_one_guard_beside_the_callbacks_given(build):
    class Mine(TrainerCallback):
        pass

    assert len(guards(build())) == 1 and len(guards(build(callbacks=None))) == 1
    trainer = build(callbacks=[mine := Mine()])
    assert mine in trainer.callback_handler.callbacks and len(guards(trainer)) == 1
    mine_too = GradientFlowCallback()
    assert guards(build(callbacks=[mine_too])) == [mine_too]


@pytest.mark.whole
def test_the_guard_ends_a_run_that_trains_half_of_the_adapter_and_can_be_taken_off(build):
    def cut_off():
        model = add_adapter(tiny_model(), lora_config(tiny_model()))
        model.get_decoder().layers[1].register_forward_pre_hook(lambda layer, args: (args[0].detach(), *args[1:]))
        return build(model, max_steps=3)

    with pytest.raises(ValueError, match="14 of 28 trainable tensors have had no gradient"):
        cut_off().train()
    trainer = cut_off()
    trainer.remove_callback(GradientFlowCallback)
    trainer.train()


@pytest.mark.numbers
@pytest.mark.whole
def test_the_guard_is_content_with_rows_of_new_tokens_and_changes_none(build):
    def trained(*taken_off):
        config = lora_config(tiny_model(), trainable_token_indices={"embed_tokens": [0]})
        trainer = build(add_adapter(tiny_model(), config), max_steps=3)
        for callback in taken_off:
            trainer.remove_callback(callback)
        trainer.train()
        return list(trainer.model.parameters())

    assert all(torch.equal(p, q) for p, q in zip(trained(), trained(GradientFlowCallback)))


def tied_model():
    config = tiny_model().config
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config).eval()


@pytest.mark.numbers
@pytest.mark.parametrize("make, given", [(tiny_model, "config"), (tied_model, "adapter")])
def test_rows_of_new_tokens_are_trained_on_the_loss_that_they_make(build, make, given):
    base = make()
    config = lora_config(base, trainable_token_indices=token_rows(base, range(60, 100)))
    fields = {"peft_config": config} if given == "config" else {}
    trainer = build(base if fields else add_adapter(base, config), padding_free=False, **fields)
    model, batch = trainer.model, next(iter(trainer.get_train_dataloader()))
    rows = {name: p for name, p in model.named_parameters() if "trainable_tokens_delta" in name}
    with torch.no_grad():
        [p.normal_() for p in rows.values()]
    loss = trainer.compute_loss(model, dict(batch))
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE
    )
    torch.testing.assert_close(loss, by_hand, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(by_hand, list(rows.values()))
    torch.testing.assert_close(torch.autograd.grad(loss, list(rows.values())), expected, atol=1e-5, rtol=1e-4)
    assert len(rows) == (1 if make is tied_model else 2) and all(grad.any() for grad in expected)


def test_columns_that_are_neither_chats_nor_labels_are_refused(build):
    with pytest.raises(ValueError, match=r"train_dataset: row 0 .*the columns are text|train_dataset: .*text"):
        build(data=Dataset.from_list([{"text": "hi"}]))
    with pytest.raises(ValueError, match="eval_dataset: row 0"):
        build(eval_dataset=Dataset.from_list([{"input_ids": [1, 2]}]))


def test_an_adapter_loaded_frozen_is_refused(build, tmp_path):
    from peft import PeftModel

    add_adapter(tiny_model(), lora_config(tiny_model())).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="trainable=True"):
        build(PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter"))
    build(PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter", is_trainable=True))


def test_the_metrics_that_trl_logs_are_all_there(build):
    trainer = build(max_steps=1)
    assert isinstance(trainer, SFTTrainer)
    trainer.train()
    first = trainer.state.log_history[0]
    assert {"loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"} <= set(first)


@pytest.mark.numbers
def test_packed_rows_have_the_loss_of_the_same_rows_apart(build):
    packed, apart = build(packing=True, max_length=4096), build(padding_free=False, per_device_train_batch_size=16)
    batches = [next(iter(trainer.get_train_dataloader())) for trainer in (packed, apart)]
    assert batches[0]["input_ids"].shape[0] == 1 and batches[1]["input_ids"].shape[0] == 16
    model = packed.model
    torch.testing.assert_close(*(packed.compute_loss(model, dict(batch)) for batch in batches))


@pytest.mark.whole
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_on_a_quantised_base_stays_float32(build, tmp_path, bits):
    tiny_model().save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", bits)
    trainer = build(add_adapter(base, lora_config(base)), max_steps=2)
    dtypes = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    trainer.train()
    assert {p.dtype for p in trainer.optimizer.state} == dtypes


def test_an_empty_set_and_an_empty_set_among_several_are_refused(build):
    with pytest.raises(ValueError, match="train_dataset: it has no rows"):
        build(data=rows_of().select([]))
    with pytest.raises(ValueError, match=r"eval_dataset\['new'\]: it has no rows"):
        build(eval_dataset={"known": rows_of(), "new": rows_of().select([])})


def test_several_evaluation_sets_have_a_loss_each(build):
    trainer = build(eval_dataset={"a": appointments(4, part="validation"), "b": rows_of(4)})
    assert {"eval_a_loss", "eval_b_loss"} <= set(trainer.evaluate())


@pytest.mark.whole
def test_a_loss_of_nan_stops_the_run_and_names_a_row(build, tmp_path):
    class BreaksAWeight(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            model.lm_head.weight.data.fill_(math.nan)

    trainer = build(max_steps=2)
    trainer.add_callback(BreaksAWeight())
    with pytest.raises(ValueError, match="step 1 is not taken, since the loss is not finite"):
        trainer.train()
    assert (tmp_path / "stopped.json").is_file()


def test_documents_that_would_see_each_other_are_padded_and_refused_where_one_row_is_asked_for(build, capsys):
    class Forgetful(LlamaForCausalLM):
        def forward(self, *args, position_ids=None, **kwargs):
            return super().forward(*args, **kwargs)

    why = "lets a document attend to the one before it"
    assert not build(Forgetful(tiny_model().config)).args.padding_free
    assert f"padded, since Forgetful with attn_implementation='documents' {why}" in capsys.readouterr().out
    for asked in ("padding_free", "packing", "eval_packing"):
        with pytest.raises(ValueError, match=why):
            build(Forgetful(tiny_model().config), **{asked: True})
    build(Forgetful(tiny_model().config), padding_free=False)
    assert why not in capsys.readouterr().out


def test_a_tracker_that_is_not_installed_is_refused_before_the_rows_are_looked_at(build):
    with pytest.raises(ValueError, match="report_to='comet_ml': no such tracker is installed"):
        build(data=Dataset.from_list([{"text": "hi"}]), report_to="comet_ml")


def test_the_best_model_must_have_a_checkpoint(build):
    best = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_dataset": rows_of(4),
    }
    with pytest.raises(ValueError, match="the best evaluation may have no checkpoint"):
        build(**best, eval_steps=2, save_steps=4)


@pytest.mark.whole
def test_saving_evaluating_and_the_models_attention_are_as_before_a_run(build, tmp_path):
    trainer = build(
        max_steps=2, save_strategy="steps", save_steps=1, eval_dataset=rows_of(4), eval_strategy="steps", eval_steps=1
    )
    before = trainer.model.config._attn_implementation
    trainer.train()
    assert trainer.model.config._attn_implementation == before == "sdpa"
    assert "documents" not in (tmp_path / "checkpoint-2" / "config.json").read_text()


@pytest.mark.parametrize(
    "held, said",
    [(appointments(4), True), ({"a": appointments(4, part="test"), "b": appointments(4)}, True)]
    + [(None, False), (appointments(4, part="test"), False)],
)
def test_an_evaluation_on_rows_that_are_trained_is_said(build, capsys, held, said):
    build(eval_dataset=held, eval_strategy="no")
    assert ("every row of eval_dataset is trained on" in capsys.readouterr().out) == said
