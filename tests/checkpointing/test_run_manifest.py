"Edges of `checkpointing.run_manifest` and `run_identity`: processes, kills, damaged files, and which settings count."

import dataclasses
import json
import os
import re
import signal
import time

import pytest
from peft import LoraConfig, get_peft_model
from small_runs import ranks, several
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from trl import DPOConfig, SFTConfig

import ft_notebooks.checkpointing.run_identity
from ft_notebooks.checkpointing.metrics_log import MetricsCallback
from ft_notebooks.checkpointing.run_identity import describe
from ft_notebooks.checkpointing.run_manifest import ManifestCallback, check_folder, check_manifest, run_folder
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.tokenization.padding import pad_batch
from ft_notebooks.training.run import fit

ROWS = [{"input_ids": [n, n + 1, n + 2], "labels": [n, n + 1, n + 2]} for n in range(10, 18)]


def make(folder, model=None, data=ROWS, evaluate=None, callbacks=None, config=TrainingArguments, **args):
    given = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 2, "save_steps": 1, **args}
    args = config(str(folder), **{"per_device_train_batch_size": 4, **given})
    model = tiny_model() if model is None else model
    tools = {"data_collator": lambda rows: pad_batch(rows, 0), "callbacks": callbacks}
    return Trainer(model, args, train_dataset=data, eval_dataset=evaluate, **tools)


def held(folder, **settings):  # a folder in which a run has left a checkpoint
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint-1").mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(describe(make(folder, **settings))))
    return folder


@pytest.mark.whole
def test_several_processes_agree_on_one_new_folder(tmp_path):
    assert several(*[lambda: str(run_folder(tmp_path / "run", {"seed": 0}))] * 3) == [str(tmp_path / "run")] * 3
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_setting_that_is_new_or_gone_is_another_run_too(tmp_path):
    run_folder(tmp_path / "run", {"seed": 0})
    (tmp_path / "run" / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="r was not set, is 8"):
        run_folder(tmp_path / "run", {"seed": 0, "r": 8})
    with pytest.raises(ValueError, match="seed was 0, is not set"):
        run_folder(tmp_path / "run", {})


def test_a_run_that_ended_before_its_first_checkpoint_may_become_another(tmp_path):
    run_folder(tmp_path / "run", {"seed": 0})
    run = run_folder(tmp_path / "run", {"seed": 1})
    assert json.loads((run / "run.json").read_text()) == {"seed": 1}


def test_none_and_absent_are_not_the_same_setting(tmp_path):
    run_folder(tmp_path / "run", {"seed": 0, "r": None})
    (tmp_path / "run" / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="r was None, is not set"):
        run_folder(tmp_path / "run", {"seed": 0})


def test_settings_come_back_as_json_has_them(tmp_path):
    settings = {"target_modules": ("q_proj", "v_proj"), "seed": 0, "name": "naïve"}
    run = run_folder(tmp_path / "deep" / "run", settings)
    (run / "checkpoint-2").mkdir()
    assert run_folder(tmp_path / "deep" / "run", dict(reversed(settings.items()))) == run
    assert json.loads((run / "run.json").read_text(encoding="utf-8")) == {
        **settings,
        "target_modules": ["q_proj", "v_proj"],
    }


def test_what_a_killed_process_left_half_written_blocks_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.123").write_text('{"se')
    run_folder(tmp_path / "run", {"seed": 0})
    assert json.loads((run_folder(tmp_path / "run", {"seed": 1}) / "run.json").read_text()) == {"seed": 1}


def test_a_folder_of_other_things_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run.json"):
        run_folder(tmp_path, {"seed": 0})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("check", [run_folder, check_folder])
@pytest.mark.parametrize("text, lacks", [('{"my": "run"}', "command"), ('{"command": "make"}', "model.name")])
def test_a_run_json_of_another_program_is_left_as_it_is(tmp_path, check, text, lacks):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=f"run.json is of another program: it has no '{lacks}'; choose a different"):
        check(tmp_path, {"command": "sft", "model.name": "tiny", "seed": 0})
    assert (tmp_path / "run.json").read_text() == text


def test_a_folder_with_the_files_of_a_beginning_may_become_another_run(tmp_path):
    run_folder(tmp_path / "run", {"seed": 0})
    for name in ("manifest.json", "metrics.jsonl", "samples.jsonl"):
        (tmp_path / "run" / name).write_text("")
    run_folder(tmp_path / "run", {"seed": 1})
    (tmp_path / "run" / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match="seed was 1, is 2"):
        run_folder(tmp_path / "run", {"seed": 2})


@pytest.mark.parametrize("config", [TrainingArguments, SFTConfig, DPOConfig])
def test_a_setting_that_a_library_adds_counts_without_being_listed(tmp_path, config):
    @dataclasses.dataclass
    class Newer(config):
        of_tomorrow: float = 0.5

    plain = {"bf16": False} if config is not TrainingArguments else {}
    assert describe(make(tmp_path, config=Newer, **plain))["run"]["of_tomorrow"] == 0.5


def test_a_token_for_the_hub_is_not_written(tmp_path):
    assert "secret" not in json.dumps(describe(make(tmp_path, hub_token="hf_secret")))


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-3},
        {"warmup_steps": 0.1},
        {"optim": "sgd"},
        {"seed": 3},
        {"data_seed": 3},
        {"weight_decay": 0.1},
    ]
    + [{"gradient_accumulation_steps": 2}, {"bf16": True}, {"lr_scheduler_type": "cosine"}, {"max_grad_norm": 0.5}],
    ids=lambda change: next(iter(change)),
)
def test_a_change_of_what_changes_the_weights_raises_by_name(tmp_path, change):
    held(tmp_path)
    with pytest.raises(ValueError, match=f"holds a different run: {next(iter(change))} was"):
        check_manifest(tmp_path, describe(make(tmp_path, **change)))


@pytest.mark.parametrize(
    "change",
    [{"save_steps": 7}, {"logging_steps": 3}, {"save_total_limit": 1}, {"eval_strategy": "no"}, {"run_name": "x"}]
    + [
        {"dataloader_num_workers": 2},
        {"gradient_checkpointing": True},
        {"num_train_epochs": 9},
        {"disable_tqdm": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_no_weight_may_change(tmp_path, change):
    held(tmp_path)
    check_manifest(tmp_path, describe(make(tmp_path, **change)))


def test_epochs_count_where_they_are_read(tmp_path):
    held(tmp_path, max_steps=-1)
    with pytest.raises(ValueError, match="num_train_epochs was 3.0, is 4.*schedule"):
        check_manifest(tmp_path, describe(make(tmp_path, max_steps=-1, num_train_epochs=4)))


def test_how_often_it_is_evaluated_counts_where_that_decides_which_weights_are_kept(tmp_path):
    evaluated = {"evaluate": ROWS, "eval_strategy": "steps", "save_steps": 2, "max_steps": 8}
    for decides in ({"load_best_model_at_end": True}, {"callbacks": [EarlyStoppingCallback(3)]}):
        folder = held(tmp_path / next(iter(decides)), eval_steps=2, **evaluated, **decides)
        with pytest.raises(ValueError, match="eval_steps was 2, is 1"):
            check_manifest(folder, describe(make(folder, eval_steps=1, **evaluated, **decides)))
    held(tmp_path / "free", eval_steps=2, **evaluated)
    check_manifest(tmp_path / "free", describe(make(tmp_path, eval_steps=1, **evaluated)))


def test_every_difference_is_shown_at_once(tmp_path):
    held(tmp_path)
    with pytest.raises(ValueError) as e:
        check_manifest(tmp_path, describe(make(tmp_path, tiny_model(1), ROWS[1:], learning_rate=1e-3, max_steps=9)))
    for part in ("learning_rate was", "max_steps was 2, is 9", "data was '8 rows", "is '7 rows", "model.weights was"):
        assert part in str(e.value)
    for cure in ("a different schedule", "use the same rows", "load the model again", "choose a different folder"):
        assert cure in str(e.value)


def test_another_number_of_processes_is_another_run(tmp_path, monkeypatch):
    held(tmp_path)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="world_size was 1, is 2; start it on the same number of processes"):
        check_manifest(tmp_path, describe(make(tmp_path)))


def test_a_new_adapter_may_be_random_but_what_one_has_learned_counts(tmp_path):
    def adapted(learned=0.0, r=8):
        model = get_peft_model(tiny_model(), LoraConfig(r=r, target_modules=["q_proj"], init_lora_weights=True))
        for name, p in model.named_parameters():
            p.data += learned * ("lora_B" in name)
        return model

    held(tmp_path, model=adapted())
    check_manifest(tmp_path, describe(make(tmp_path, adapted())))
    with pytest.raises(ValueError, match="adapter.weights was"):
        check_manifest(tmp_path, describe(make(tmp_path, adapted(learned=0.1))))
    with pytest.raises(ValueError, match="adapter.r was 8, is 4"):
        check_manifest(tmp_path, describe(make(tmp_path, adapted(r=4))))
    with pytest.raises(ValueError, match="adapter.r was 8, is not set"):
        check_manifest(tmp_path, describe(make(tmp_path)))


def test_weights_in_another_format_are_another_model(tmp_path):
    assert describe(make(tmp_path))["run"]["model.dtypes"] == ["float32"]
    held(tmp_path)
    with pytest.raises(ValueError, match="model.dtypes was .'float32'., is .'bfloat16'."):
        check_manifest(tmp_path, describe(make(tmp_path, tiny_model().bfloat16())))


def test_another_template_is_another_run(tmp_path):
    first, other = make(tmp_path), make(tmp_path)
    first.processing_class, other.processing_class = tiny_tokenizer(), tiny_tokenizer()
    other.processing_class.chat_template += " "
    assert describe(first)["run"]["template"] != describe(other)["run"]["template"]


@pytest.mark.whole
def test_what_was_recorded_before_a_change_is_kept_with_its_step(tmp_path, monkeypatch):
    def start(resume=None, **said):
        trainer = make(tmp_path)
        trainer.add_callback(ManifestCallback(trainer, **said))
        trainer.train(resume_from_checkpoint=resume)
        return json.loads((tmp_path / "manifest.json").read_text())

    assert start(choices="one")["before"] == []
    first = str(tmp_path / "checkpoint-1")
    assert start(first, choices="one")["before"] == []
    found = start(first, choices="two")
    assert [(b["until_step"], b["choices"]) for b in found["before"]] == [(1, "one")]
    monkeypatch.setattr(ft_notebooks.checkpointing.run_identity, "library_versions", lambda: {"torch": "99"})
    assert len(start(first, choices="two")["before"]) == 2
    assert start(choices="two")["before"] == []  # from its first step, it is one again


@pytest.mark.whole
def test_a_process_killed_while_the_manifest_is_written_leaves_a_folder_in_which_a_run_may_start(tmp_path, monkeypatch):
    def begin():
        monkeypatch.setattr(os, "replace", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        trainer = make(tmp_path)
        trainer.add_callback(ManifestCallback(trainer))
        trainer.train()

    assert several(begin) == [None]
    assert [p.name.split(".")[1:3] for p in tmp_path.iterdir()] == [["manifest", "json"]]
    trainer = make(tmp_path, learning_rate=1e-3)
    trainer.add_callback(ManifestCallback(trainer))
    trainer.train()
    assert json.loads((tmp_path / "manifest.json").read_text())["run"]["learning_rate"] == 1e-3


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": {}}'])
def test_a_damaged_manifest_beside_a_checkpoint_is_an_error_that_says_so(tmp_path, text):
    (held(tmp_path) / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        check_manifest(tmp_path, describe(make(tmp_path)))


@pytest.mark.parametrize(
    "result", ["checkpoint-5", "model.safetensors", "adapter_model.safetensors", "pytorch_model.bin"]
)
def test_a_result_without_a_manifest_is_not_written_over(tmp_path, result):
    (tmp_path / result).touch()
    with pytest.raises(ValueError, match=f"holds {result} but no manifest.json"):
        check_manifest(tmp_path, describe(make(tmp_path)))


@pytest.mark.parametrize(
    "name", ["notes.txt", "metrics.jsonl", "training_args.bin", ".manifest.json.7", "traceback.txt"]
)
def test_a_file_that_is_no_result_keeps_no_run_out(tmp_path, name):
    (tmp_path / name).touch()
    check_manifest(tmp_path, describe(make(tmp_path)))


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl", "README.md", "loss.png", "reward.png"])
def test_a_file_of_the_user_that_a_run_would_replace_is_left_as_it_is(tmp_path, name):
    (tmp_path / name).write_text('{"name": "a web page"}')
    with pytest.raises(ValueError, match=f"{name} is .*choose (a different|another) folder"):
        fit(make(tmp_path))
    assert (tmp_path / name).read_text() == '{"name": "a web page"}' and not [*tmp_path.glob("checkpoint-*")]


def test_a_run_that_ended_before_its_first_step_is_started_again(tmp_path):
    class Fails(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            raise ValueError("a setting is wrong")

    with pytest.raises(ValueError, match="a setting is wrong"):
        fit(make(tmp_path, callbacks=[MetricsCallback(), Fails()]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "metrics.jsonl"]
    fit(make(tmp_path, callbacks=[MetricsCallback()]))


@pytest.mark.parametrize("recorded", [{}, {"versions": None}])
def test_a_manifest_whose_record_is_empty_is_compared_and_resumed(tmp_path, recorded):
    fit(make(tmp_path, max_steps=1))
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({"run": {**json.loads(file.read_text())["run"], "max_steps": 2}, "recorded": recorded}))
    fit(make(tmp_path))
    assert json.loads(file.read_text())["before"] == [{"until_step": 1, **recorded}]


@pytest.mark.parametrize("damage", [{"run": []}, {"recorded": 3}])
def test_a_manifest_with_parts_of_other_kinds_is_damaged(tmp_path, damage):
    fit(make(tmp_path))
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
    with pytest.raises(ValueError, match="manifest.json is damaged .*; restore it, or choose another folder"):
        fit(make(tmp_path))


@pytest.mark.whole
def test_of_two_processes_the_first_writes_and_both_agree(tmp_path):
    run = tmp_path / "run"

    def start(writes):
        def rank():
            trainer = make(run, save_strategy="no")
            callback = ManifestCallback(trainer)
            trainer.state.is_world_process_zero = writes
            if writes:
                time.sleep(0.3)  # the other would be past it, did it not wait
            callback.on_train_begin(trainer.args, trainer.state, trainer.control)
            return json.loads((run / "manifest.json").read_text())["run"]["learning_rate"]

        return rank

    assert ranks(tmp_path, start(True), start(False)) == [5e-5, 5e-5]


@pytest.mark.whole
def test_an_error_of_the_first_process_is_raised_in_all(tmp_path):
    run = held(tmp_path / "run")

    def start():
        return ManifestCallback(make(run, learning_rate=1e-3))

    for said in ranks(tmp_path, start, start):
        assert said.startswith("ValueError") and "learning_rate was 5e-05, is 0.001" in said


@pytest.mark.whole
def test_a_process_with_other_rows_is_named(tmp_path):
    def start(data):
        return lambda: ManifestCallback(make(tmp_path / "run", data=data)) is not None

    for said in ranks(tmp_path, start(ROWS), start(ROWS[1:])):
        assert re.match("ValueError: process 0 on .+ and process 1 on .+ are not the same run: data is '8 rows", said)


@pytest.mark.whole
def test_a_process_whose_weights_are_still_to_come_is_not_another_run(tmp_path):
    def start(seed):
        return lambda: ManifestCallback(make(tmp_path / "run", tiny_model(seed))) is not None

    assert ranks(tmp_path, start(0), start(1)) == [True, True]


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("model.dtypes", ["float32"], ["bfloat16"]),
        ("model.config.quantization_config", None, {"load_in_4bit": True}),
    ],
)
def test_weights_in_other_bits_are_not_called_trained(tmp_path, name, old, new):
    runs = [{"model.weights": "a", name: old}, {"model.weights": "b", name: new}]
    was, now = ({"run": run, "recorded": {"versions": {}}} for run in runs)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps(was))
    with pytest.raises(ValueError, match="load the model in the bits that the run was started with") as refused:
        check_manifest(tmp_path, now)
    assert f"{name} was {old!r}, is {new!r}" in str(refused.value) and "training in this process" not in str(
        refused.value
    )


def test_other_weights_alone_may_be_of_a_base_that_changed_on_disk(tmp_path):
    was, now = ({"run": {"model.weights": found}, "recorded": {"versions": {}}} for found in "ab")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps(was))
    with pytest.raises(ValueError, match="the base has changed on disk since the start of the run, or training in"):
        check_manifest(tmp_path, now)


def test_weights_of_another_model_are_not_called_trained(tmp_path):
    runs = [
        {"model.weights": "a", "model.config.hidden_size": 64},
        {"model.weights": "b", "model.config.hidden_size": 32},
    ]
    was, now = ({"run": run, "recorded": {"versions": {}}} for run in runs)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps(was))
    with pytest.raises(ValueError, match="hidden_size was 64, is 32. Use the old values"):
        check_manifest(tmp_path, now)
