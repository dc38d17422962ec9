"The command line as a person meets it: real processes, mistakes, and a kill in the middle."

import contextlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from datasets import Dataset
from small_exports import on_few_texts
from small_runs import killed_at
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import ft_notebooks.sft.stage
import ft_notebooks.sft.trainer
from ft_notebooks.checkpointing.integrity import mark_checkpoint
from ft_notebooks.cli import commands, console, evaluation, model_export
from ft_notebooks.cli.arguments import parser
from ft_notebooks.cli.commands import SETTINGS_INI, main
from ft_notebooks.core.fingerprints import data_fingerprint
from ft_notebooks.core.progress import phase, say, show_phases
from ft_notebooks.course import demo_task
from ft_notebooks.course.demo_task import DEMO_DPO, _demo_scores, demo_pairs
from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chat
from ft_notebooks.data.read import read_chats
from ft_notebooks.doctor.findings import Finding
from ft_notebooks.evaluation.comparison import score_table
from ft_notebooks.evaluation.likelihood import perplexity
from ft_notebooks.evaluation.runner import Evaluation
from ft_notebooks.inference.generation import generate
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, load_adapter, lora_config
from ft_notebooks.runs import model_choice, record
from ft_notebooks.runs.stages import stage_class
from ft_notebooks.sft.stage import SFTStage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    "A folder with a tiny model and 24 notes."
    folder = tmp_path_factory.mktemp("start")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    tiny_model().save_pretrained(folder / "tiny")
    appointments(24).to_json(folder / "notes.jsonl")
    return folder


@pytest.fixture
def here(start, tmp_path, monkeypatch):
    "A copy of `start`, in which the test may do as it likes."
    shutil.copytree(start, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quick(*settings):
    "The arguments of a run on the tiny model, with more settings."
    return [part for setting in ("model.name=tiny", "sft.bf16=false", *settings) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    "`trained(*settings)`: a folder with `runs/sft`, and what `ft sft` printed; a run is trained once for the module."
    runs = {}

    def run(*settings):
        if settings not in runs:
            folder, out, err = tmp_path_factory.mktemp("trained"), io.StringIO(), io.StringIO()
            shutil.copytree(start, folder, dirs_exist_ok=True)
            with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(["sft", "notes.jsonl", *quick(*settings)])
            runs[settings] = folder, out.getvalue(), err.getvalue()
        return runs[settings]

    return run


@pytest.fixture
def copied(here, trained):
    "`copied(*settings)`: what that run printed; `runs/sft` is then here, with this folder's paths in its records."

    def copy(*settings):
        folder, out, err = trained(*settings)
        shutil.copytree(folder / "runs", "runs")
        for file in Path("runs/sft").glob("*.json"):
            file.write_text(file.read_text().replace(str(folder), str(here)))
        marker = json.loads(Path("runs/sft/complete.json").read_text())
        mark_checkpoint("runs/sft", marker["step"], [Path("runs/sft", name) for name in marker["files"]])
        return out, err

    return copy


SHORT = ("sft.max_steps=1",)
HOT = (  # its model speaks in another way than its base
    "sft.max_steps=6",
    "sft.effective_batch=4",
    "sft.learning_rate=0.02",
    "data.eval=last:4",
    "model.bits=32",
)
SPLIT = ("sft.max_steps=1", "data.eval=0.2", "lora.r=4", "model.bits=32", "sft.seed=5")
FULL = ("model.method=full", "sft.max_steps=2", "sft.learning_rate=1e-2", "data.eval=0.2")


def refused(capsys, *argv):
    "What `ft` said on stderr when it refused."
    with pytest.raises(SystemExit) as e:
        main(list(argv))
    assert e.value.code == 2
    return capsys.readouterr().err


def test_the_projects_settings_are_those_that_init_writes(here, capsys):
    main(["init"])
    assert (here / "settings.ini").read_text() == SETTINGS_INI == (ROOT / "settings.ini").read_text()
    assert "already exists" in refused(capsys, "init")


@pytest.mark.parametrize("before", [None, "0"])
def test_a_quiet_command_switches_bars_off_and_leaves_the_environment_as_it_was(monkeypatch, before):
    during = []
    monkeypatch.setattr(commands, "_function", lambda args: lambda args: during.append(os.environ.get("TQDM_DISABLE")))
    if before is not None:
        monkeypatch.setenv("TQDM_DISABLE", before)
    else:
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)  # nothing is imported while it is away
    main(["merge", "none", "--quiet"])
    assert during == ["1"] and os.environ.get("TQDM_DISABLE") == before


def test_the_objects_of_the_libraries_are_no_garbage_when_a_command_begins_and_ends():
    program = "import atexit, gc; atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10**5))\n"
    program += "from ft_notebooks.cli.commands import main; main()"
    run = [sys.executable, "-c", program, "clean", "nowhere"]
    assert subprocess.run(run, capture_output=True, text=True).stdout.splitlines()[-1] == "True True"


MESSAGES = '{"messages": [%s]}'
USER, ASSISTANT = '{"role": "user", "content": "hi"}', '{"role": "assistant", "content": "yo"}'
GOOD = MESSAGES % f"{USER}, {ASSISTANT}"


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", f"{GOOD}\n{{oops\n", ["a.jsonl:2", "JSON"]),
        ("a.jsonl", f'{GOOD}\n{{"question": "x"}}\n', ["a.jsonl:2", "question", "instruction"]),
        ("a.jsonl", "", ["a.jsonl: no rows"]),
        ("a.jsonl", MESSAGES % f'{USER}, {{"role": "assistant"}}', ["a.jsonl:1", "content"]),
        ("a.jsonl", MESSAGES % f'{USER}, {{"role": "gpt", "content": "yo"}}', ["a.jsonl:1", "gpt", "assistant"]),
        ("a.jsonl", MESSAGES % USER, ["a.jsonl:1", "assistant"]),
        ("a.jsonl", MESSAGES % f"{USER}, {ASSISTANT}, {USER}", ["a.jsonl:1", "user"]),
        ("a.jsonl", GOOD.encode() + b"\n\xff\xfe\n", ["a.jsonl:2", "UTF-8"]),
        ("a.txt", "question,answer", ["a.txt", ".jsonl"]),
        ("a.json", f"[\n{GOOD},\n{{}}\n]", ["a.json: row 1"]),
    ],
)
def test_bad_data_is_refused_by_file_and_line_before_a_model_is_looked_for(
    here, capsys, monkeypatch, name, content, said
):
    monkeypatch.setattr(
        "ft_notebooks.cli.training.model_settings", lambda settings: pytest.fail("a model was looked for")
    )
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    text = refused(capsys, "sft", name)
    assert all(part in text for part in said) and "Traceback" not in text


@pytest.mark.parametrize("target", ["empty", "nowhere.jsonl"])
def test_an_empty_folder_and_a_missing_file_are_refused(here, capsys, target):
    Path("empty").mkdir()
    assert target in refused(capsys, "sft", target)


@pytest.mark.whole
@pytest.mark.parametrize(
    "setting, said",
    [
        ("sft.learnin_rate=1", "did you mean 'learning_rate'?"),
        ("sft.learning_rate=fast", "learning_rate must be a number, got 'fast'"),
        ("sft.resume_from_checkpoint=true", "the same command resumes from the last complete checkpoint"),
        ("data.eval=last:24", "write last:N with N from 1 to 23"),
        ("data.eval=", "data.eval is empty"),
        ("data.eval=notes.jsonl", "every row is held out"),
        ("sft.max_steps=0", "max_steps must be more than 0"),
        ("sft.eval_strategy=bogus", "[sft] bogus is not a valid"),
        ("sft.save_strategy=no", "needs checkpoints to resume from"),
        ("sft.save_only_model=true", "needs checkpoints to resume from"),
        ("data.eval=1.5", "data.eval=1.5: write a share between 0 and 1"),
        ("data.eval=nowhere.jsonl", "nowhere.jsonl"),
        ("sft.max_length=50", "at max_length=50"),
        ("sft.per_device_train_batch_size=3", "not effective_batch=16"),
        ("model.name=nowhere/at/all", "there is no such folder"),
        ("lora.target_modules=q_prj", "the nearest is 'q_proj'"),
        ("lora.modules_to_save=lm_haed,", "the nearest is 'lm_head'"),
        ("lora.r=0", "r must be a whole number of at least 1, got 0"),
        ("model.bits=3", "bits must be 4, 8, 16 or 32, got 3"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(here, capsys, setting, said):
    assert said in refused(capsys, "sft", "notes.jsonl", *quick(setting))
    assert not list(Path("runs").rglob("checkpoint-*"))


@pytest.mark.parametrize(
    "setting",
    [
        "sft.max_length=50",
        "sft.max_steps=0",
        "data.eval=1.5",
        "data.eval=last:24",
        "lora.r=0",
        "lora.target_modules=q_prj",
        "model.bits=3",
    ],
)
def test_what_can_be_refused_without_a_model_is_refused_before_one_is_loaded(here, capsys, monkeypatch, setting):
    monkeypatch.setattr("ft_notebooks.training.stage.load_model", lambda *args: pytest.fail("a model was loaded"))
    refused(capsys, "sft", "notes.jsonl", *quick(setting))


def test_a_folder_that_holds_something_else_is_left_alone(here, capsys, monkeypatch):
    monkeypatch.setattr("ft_notebooks.training.stage.load_model", lambda *args: pytest.fail("a model was loaded"))
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    said = refused(capsys, "sft", "notes.jsonl", "--output", "mine", *quick())
    assert "mine is not empty and holds no run.json" in said
    assert [p.name for p in Path("mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "setting, said",
    [
        ("model.name=", "--set model.name=: model.name is empty; write a text, or remove the key"),
        ("data.eval= ", "data.eval is empty; write a text, or none, or remove the key"),
        ("data.prompt=", "prompt is empty"),
        ("sft.lr_scheduler_type=", "lr_scheduler_type is empty"),
        ("lora.target_modules=", "target_modules is empty"),
        ("sft.seed=99999999999999999999", "seed=99999999999999999999 .* usual is 0 to 4294967295"),
        ("sft.seed=-1", "usual is 0 to 4294967295"),
        ("sft.data_seed=4294967296", "usual is 0 to 4294967295"),
        ("sft.push_to_hub=true", "hub_model_id must name the repository as owner/name, got ''"),
    ],
)
def test_a_setting_that_no_run_can_use_is_refused_before_a_row_is_read(here, capsys, monkeypatch, setting, said):
    monkeypatch.setattr("ft_notebooks.sft.stage.read_chats", lambda *args: pytest.fail("rows were read"))
    assert re.search(said, refused(capsys, "sft", "notes.jsonl", *quick(setting)))


def test_a_model_that_speaks_is_no_run_and_an_unfinished_run_says_so(here, capsys):
    assert "no such folder" in refused(capsys, "eval", "runs/sft", "notes.jsonl")
    Path("half").mkdir()
    Path("half/run.json").write_text('{"command": "sft"}')
    assert "has not finished; if nothing trains it now, run its ft sft command again" in refused(capsys, "chat", "half")
    assert "tiny has no run.json, the record of its run, so the rows that it held out" in refused(
        capsys, "eval", "tiny"
    )


def sft(run, bits):
    settings = [
        "model.name=tiny",
        f"model.bits={bits}",
        "sft.bf16=false",
        "sft.max_steps=4",
        "sft.save_steps=2",
        "sft.seed=3",
        "lora.lora_dropout=0.1",
        "sft.effective_batch=4",
    ]
    return ["sft", "notes.jsonl", "--output", run, *(part for setting in settings for part in ("--set", setting))]


@pytest.mark.whole
def test_a_run_killed_in_the_middle_ends_with_the_weights_of_one_that_was_not(here, capsys):
    assert killed_at(3, lambda: main(sft("killed", bits=4))) == -signal.SIGKILL
    assert Path("killed/checkpoint-2").exists() and not Path("killed/metrics.json").exists()
    main(sft("killed", bits=4))
    assert "goes on from killed/checkpoint-2" in capsys.readouterr().out
    main(sft("whole", bits=4))
    files = [Path(run, "adapter_model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert files[0] == files[1]
    assert Path("killed/checkpoint-4/trainer_state.json").is_file()


@pytest.fixture
def stopped(here, capsys, monkeypatch):
    "Run `ft sft`, with signals raised at the end of a step; what it says, its exit code, and the steps that it took."
    train, seen = ft_notebooks.sft.trainer.sft_trainer, []

    class Impatient(TrainerCallback):
        def __init__(self, step, signals):
            self.step, self.signals = step, signals

        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)
            for number in self.signals if state.global_step == self.step else ():
                signal.raise_signal(number)

    settings = quick("sft.max_steps=8", "sft.save_steps=2", "sft.save_total_limit=4", "sft.effective_batch=2")

    def run(step, *signals):
        def impatient(*args, callbacks, **more):
            return train(*args, callbacks=[*callbacks, Impatient(step, signals)], **more)

        seen.clear()
        monkeypatch.setattr(ft_notebooks.sft.stage, "sft_trainer", impatient)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
        try:
            with pytest.raises(SystemExit) as e:
                main(["sft", "notes.jsonl", *settings])
        finally:
            signal.signal(signal.SIGINT, before)
        return capsys.readouterr().err, e.value.code, list(seen)

    return run


@pytest.mark.whole
def test_a_run_that_gets_a_signal_saves_first_and_names_the_step_that_it_will_go_on_from(stopped):
    said, code, steps = stopped(1, signal.SIGINT)
    assert "stopped; SIGINT: started again, the run goes on from step 1, runs/sft/checkpoint-1" in said and (
        code,
        steps,
    ) == (
        130,
        [1],
    )
    said, code, steps = stopped(5, signal.SIGTERM)
    assert "goes on from step 5, runs/sft/checkpoint-5" in said and (code, steps) == (143, [2, 3, 4, 5])
    Path("runs/sft/checkpoint-5/optimizer.pt").unlink()  # a newest checkpoint that is torn is not the one
    said, code, steps = stopped(6, signal.SIGINT)
    assert "goes on from step 6" in said and steps == [5, 6] and Path("runs/sft/torn-checkpoint-5").is_dir()


@pytest.mark.whole
def test_a_second_signal_ends_the_run_at_once(stopped):
    said, code, steps = stopped(3, signal.SIGINT, signal.SIGINT)
    assert "stopped; SIGINT: started again, the run goes on from step 2, runs/sft/checkpoint-2" in said and (
        code,
        steps,
    ) == (
        130,
        [1, 2, 3],
    )


def test_what_the_machine_refuses_is_one_line_too(here, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert refused(capsys, "init") == "ft init: no space left on device\n"


def test_a_command_that_is_interrupted_elsewhere_ends_without_a_traceback(here, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("ft_notebooks.course.demo_task.run_folder", interrupted)
    with pytest.raises(SystemExit) as e:
        main(["demo"])
    assert e.value.code == 130 and "ft demo: stopped" in capsys.readouterr().err


@pytest.mark.parametrize("code", [None, 0])
def test_a_command_that_is_left_before_its_end_has_not_succeeded(here, capsys, monkeypatch, code):
    def leaves(*args):
        raise SystemExit(code)

    monkeypatch.setattr("ft_notebooks.course.demo_task.run_folder", leaves)
    with pytest.raises(SystemExit) as e:
        main(["demo"])
    assert e.value.code == 1 and "ft demo: unexpected SystemExit" in capsys.readouterr().err


def test_control_codes_of_rows_and_names_reach_the_terminal_as_symbols(monkeypatch, capsys):
    monkeypatch.setattr(commands, "_function", lambda args: lambda args: "done\x1b[2J\n\x9b31m")
    with show_phases():
        phase("reading a\x1b]0;b")
    say("system: \x1b[8mhidden\x07\nbe brief")
    main(["init"])
    said = capsys.readouterr()
    assert said.out == "system: ␛[8mhidden␇\nbe brief\ndone␛[2J\n\\u009b31m\n"
    assert said.err == "reading a␛]0;b ...\n"
    prompt = {"prompt": [{"role": "user", "content": "hi"}], "expected": "\x1b[2J"}
    assert stage_class("grpo")().show(tiny_tokenizer(), prompt).endswith("expected: ␛[2J")
    assert str(Finding("code", "note", "a\x1b", "b\x1b", "", "", "")).count("␛") == 2


def weights(run):
    return Path(run, "adapter_model.safetensors").read_bytes()


def handed_over(monkeypatch, *argv):
    "What `ft sft` gives to the trainer; it is not trained."
    given = []

    def trainer(model, tok, rows, held_rows, **settings):
        given.append((model, tok, rows, held_rows, settings))
        raise ValueError("that is enough")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ft_notebooks.sft.stage, "sft_trainer", trainer)
        main(["sft", *argv])
    return given[0]


def texts(tok, rows):
    "Without their case and white space."
    return {"".join(tok.decode(row["input_ids"]).casefold().split()) for row in rows}


@pytest.mark.whole
def test_the_seed_decides_the_rows_held_out_the_adapter_and_the_order(here, monkeypatch):
    found = []
    for seed in (1, 1, 2):
        argv = quick("model.bits=32", "data.eval=0.2", f"sft.seed={seed}")
        model, tok, _, held, settings = handed_over(monkeypatch, "notes.jsonl", *argv)
        first = {name: p for name, p in model.named_parameters() if "lora_A" in name}
        base = load_model("tiny", 32)
        expected = add_adapter(base, lora_config(base), seed)
        assert all(torch.equal(p, expected.get_parameter(name)) for name, p in first.items()) and first
        assert settings["seed"] == seed
        found.append(texts(tok, held))
    assert found[0] == found[1] != found[2]


def test_settings_reach_the_trainer_and_the_adapter(here, monkeypatch):
    argv = quick("sft.learning_rate=3e-3", "sft.effective_batch=4", "lora.r=2", "lora.lora_dropout=0.25")
    model, _, rows, held, settings = handed_over(monkeypatch, "notes.jsonl", "--output", "mine", *argv)
    assert [type(one).__name__ for one in settings.pop("callbacks")] == ["PlanCallback"]
    assert settings == {
        "output_dir": Path("mine"),
        "seed": 0,
        "bf16": False,
        "learning_rate": 3e-3,
        "effective_batch": 4,
        "disable_tqdm": False,
        "any_world_size": False,
    }
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4, 0.25)
    assert len(rows) == 24 and held is None


def test_a_row_is_cut_where_max_length_says(here, monkeypatch):
    long = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x" * 900}]
    rows = [json.dumps({"messages": m}) for m in [*appointments(199)["messages"], long]]
    Path("long.jsonl").write_text("\n".join(rows))
    _, _, rows, _, settings = handed_over(monkeypatch, "long.jsonl", *quick("sft.max_length=500"))
    assert max(len(row["input_ids"]) for row in rows) == settings["max_length"] == 500


@pytest.mark.parametrize("rule", ["last:5", "0.25", "0.5", "held.jsonl"])
def test_what_is_held_out_never_reaches_the_trainer_as_a_row_to_train_on(here, monkeypatch, rule):
    lines = Path("notes.jsonl").read_text().splitlines()
    near = [lines[i].replace("event", "EVENT").replace(" at ", "  AT ") for i in range(0, 24, 3)]
    Path("twice.jsonl").write_text("\n".join(lines + near))
    Path("held.jsonl").write_text("\n".join([lines[1], near[0], near[4]]))
    _, tok, *parts, _ = handed_over(monkeypatch, "twice.jsonl", *quick(f"data.eval={rule}"))
    train, held = (texts(tok, rows) for rows in parts)
    assert train and held and not train & held
    assert rule == "held.jsonl" or len(train | held) == 24  # nothing else is lost


def test_what_is_nearly_held_out_is_not_trained_on_either(here, monkeypatch):
    words = [f"word{i}" for i in range(60)]
    for file, changed in (("own.jsonl", "word30"), ("held.jsonl", "another")):
        said = " ".join(changed if word == "word30" else word for word in words)
        row = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": "yo"}]}
        Path(file).write_text(Path("notes.jsonl").read_text() * (file == "own.jsonl") + json.dumps(row))
    _, tok, train, held, _ = handed_over(monkeypatch, "own.jsonl", *quick("data.eval=held.jsonl"))
    assert len(train) == 24 and len(held) == 1 and not any("word29" in text for text in texts(tok, train))


def test_a_row_of_the_training_file_that_is_held_out_is_said_to_be_left_out(here, capsys, monkeypatch):
    lines = Path("notes.jsonl").read_text().splitlines()
    Path("held.jsonl").write_text("\n".join(lines[:3]))
    _, _, rows, held, _ = handed_over(monkeypatch, "notes.jsonl", *quick("data.eval=held.jsonl"))
    assert (len(rows), len(held)) == (21, 3)
    out = capsys.readouterr().out
    assert "3 rows are duplicates or near-duplicates of held-out rows" in out
    assert "21 conversations to train on, 3 held out" in out


@pytest.mark.whole
def test_nothing_need_be_held_out_and_that_is_said(copied, capsys):
    out, _ = copied(*SHORT)
    main(["sft", "notes.jsonl", *quick(*SHORT, "data.eval=None", "sft.seed=0")])
    again = capsys.readouterr().out
    assert "runs/sft is finished" in again  # it is the same run; a seed that is not given is zero
    assert json.loads(Path("runs/sft/run.json").read_text())["sft.seed"] == 0
    for text in (out, again):
        assert "24 conversations to train on, none held out, so nothing will be evaluated" in text
    assert "perplexity" not in out
    assert "held out no rows" in refused(capsys, "eval", "runs/sft")
    Path("runs/sft/run.json").unlink()
    assert "runs/sft has no run.json, the record of its run" in refused(capsys, "eval", "runs/sft")


@pytest.mark.whole
def test_a_row_that_cannot_be_encoded_is_named_by_its_line_in_its_file(here, capsys):
    tok = tiny_tokenizer()
    end = "('' if 'supper' in message['content'] else '<|im_end|>') + '"
    tok.chat_template = tok.chat_template.replace("'<|im_end|>", end)
    tok.save_pretrained("tiny")
    lines = Path("notes.jsonl").read_text().splitlines()
    bad = json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "supper"}]})
    Path("bad.jsonl").write_text("\n".join([*lines[:9], "", *lines[9:17], bad, *lines[17:]]))
    for rule in ("0.5", "last:3", "none"):
        said = refused(capsys, "sft", "bad.jsonl", *quick(f"data.eval={rule}"))
        assert "bad.jsonl:19: message 2: the chat template ends the answer" in said
    Path("held.jsonl").write_text("\n".join([lines[0], bad]))
    said = refused(capsys, "sft", "notes.jsonl", *quick("data.eval=held.jsonl"))
    assert "held.jsonl:2:" in said
    assert "bad.jsonl:19:" in refused(capsys, "eval", "tiny", "bad.jsonl")
    assert not Path("runs").exists()


@pytest.mark.whole
def test_a_run_is_known_by_its_settings_and_by_what_its_rows_say(copied, capsys):
    copied(*SPLIT)
    argv = quick(*SPLIT)
    before = weights("runs/sft")
    Path("notes.jsonl").rename("renamed.jsonl")
    main(["sft", "renamed.jsonl", *argv, "--set", "data.eval=0.20", "--set", "evaluation.batch_size=2"])
    assert "runs/sft is finished; nothing is changed" in capsys.readouterr().out
    for setting, said in [
        ("sft.learning_rate=1e-3", "a different run: sft.learning_rate was not set, is 0.001. "),
        ("lora.r=8", "a different run: lora.r was 4, is 8. "),
        ("data.eval=0.5", "data.held_out was '5 rows, "),
    ]:
        assert said in refused(capsys, "sft", "renamed.jsonl", *argv, "--set", setting)
    lines = Path("renamed.jsonl").read_text().splitlines()
    Path("renamed.jsonl").write_text("\n".join([lines[1], lines[0], *lines[2:]]))  # the order is part of a run
    assert "data.trained was" in refused(capsys, "sft", "renamed.jsonl", *argv)
    assert weights("runs/sft") == before


def test_settings_of_an_adapter_are_refused_where_there_is_none(here, capsys, monkeypatch):
    monkeypatch.setattr("ft_notebooks.sft.stage.read_chats", lambda source: pytest.fail("data were read first"))
    Path("settings.ini").write_text("[lora]\nr = 8\nlora_dropout = 0.1\n")
    said = refused(capsys, "sft", "notes.jsonl", *quick("model.method=full"))
    assert "[lora] sets r, lora_dropout, but model.method=full" in said and "remove the keys from [lora]" in said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b'{"command": "sft"}'])
@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
def test_a_damaged_file_of_a_run_is_named_with_the_cure(here, capsys, file, content):
    Path("run").mkdir()
    Path("run/run.json").write_text('{"command": "sft", "model.name": "tiny", "model.bits": 32}')
    Path("run/metrics.json").write_text('{"data": {}, "system": null, "history": []}')
    Path("run", file).write_bytes(content)
    for command in (["eval", "run", "notes.jsonl"], ["chat", "run"]):
        said = refused(capsys, *command)
        assert f"run/{file} is damaged (" in said and "choose another folder and train again" in said
    if file == "run.json" and b"sft" not in content:
        assert "run/run.json is damaged (" in refused(capsys, "sft", "notes.jsonl", "--output", "run", *quick())


def test_a_row_is_shown_with_its_trained_tokens_marked():
    tok = tiny_tokenizer()
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "naïve\x1b[1m"}]
    shown = SFTStage().show(tok, encode_chat(tok, [*chat, *chat]))
    turns = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n«naïve␛[1m<|im_end|>»\n"
    assert shown == turns * 2 + "\n«trained», the rest is only read"


def test_a_run_says_what_is_trained_without_an_escape_sequence_where_nobody_looks(trained):
    _, out, _ = trained(*SHORT)
    assert "\x1b" not in out and f"«{appointments(24)[0]['messages'][2]['content']}<|im_end|>»" in out


def test_the_settings_come_from_the_file_here_or_the_one_named_and_the_command_line_is_stronger(
    here, capsys, monkeypatch
):
    Path("settings.ini").write_text("[sft]\nmax_steps = 1\nlearning_rate = 1\n")
    Path("other.ini").write_text("[sft]\nmax_steps = 3\n")

    def read(*argv):
        return console.command_settings(parser().parse_args(["sft", "x", *argv]))["sft"]

    assert read() == {"max_steps": 1, "learning_rate": 1.0}
    argv = ["--settings", "other.ini", "--set", "sft.max_steps=5", "--set", "sft.seed=2"]
    assert read(*argv) == {"max_steps": 5, "seed": 2}
    assert capsys.readouterr().out == "settings: settings.ini\nsettings: other.ini\n"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    read()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype, bits", [(torch.bfloat16, 16), (torch.float16, 16), (torch.float32, 32)])
def test_the_bits_of_a_weight_follow_from_the_method_and_the_machine(monkeypatch, dtype, bits):
    monkeypatch.setattr("ft_notebooks.runs.model_choice.hardware", lambda: SimpleNamespace(dtype=dtype))
    assert (
        model_choice.model_bits(None),
        model_choice.model_bits(None, "full"),
        model_choice.model_bits(16, "full"),
        model_choice.model_bits(32),
    ) == (bits, 32, 16, 32)


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"ft_notebooks {ft_notebooks.__version__}\n"


def test_every_command_is_documented_and_has_its_own_defaults():
    defaults = {
        ("init",): {},
        ("sft", "D"): {"data": "D", "output": "runs/sft", "settings": None, "set": [], "tuned": None},
        ("tune", "D"): {"data": "D", "output": "runs/tune", "settings": None, "set": []},
        ("dpo", "D"): {"data": "D", "output": "runs/dpo", "settings": None, "set": []},
        ("grpo", "D"): {
            "data": "D",
            "output": "runs/grpo",
            "settings": None,
            "set": [],
            "reward": None,
            "environment": None,
        },
        ("eval", "R"): {
            "run": "R",
            "data": None,
            "output": None,
            "settings": None,
            "set": [],
            "score": None,
            "general": False,
            "tasks": None,
            "include": None,
            "limit": None,
            "chat": False,
        },
        ("merge", "R"): {"run": "R", "output": None, "settings": None, "set": []},
        ("chat", "R"): {"run": "R", "system": None, "settings": None, "set": []},
        ("demo",): {"output": "runs/demo", "seed": 0, "rl": False},
    }
    for argv, expected in defaults.items():
        found = vars(parser().parse_args(argv))
        assert found.pop("command") == argv[0] and found.pop("quiet") is False
        assert found == expected
    assert list(inspect.signature(main).parameters) == ["argv", "callbacks"]


@pytest.mark.whole
def test_the_rows_kept_aside_are_found_again_or_refused(copied, here, capsys, monkeypatch):
    copied(*SPLIT)
    monkeypatch.chdir(here.parent)  # the run knows where its rows were
    main(["eval", str(here / "runs/sft"), "--set", "evaluation.max_new_tokens=3"])
    monkeypatch.chdir(here)
    held = record.held_out(read_chats("notes.jsonl"), "0.2", 5)[1]
    text = Path("runs/sft/eval/report.html").read_text()
    assert all(messages[2]["content"].split('"')[3] in text for messages in held["messages"])
    lines = Path("notes.jsonl").read_text().splitlines()
    Path("notes.jsonl").write_text("\n".join(lines[5:] + lines[:5]))
    assert "has changed since runs/sft was trained" in refused(capsys, "eval", "runs/sft")
    Path("notes.jsonl").unlink()
    said = refused(capsys, "eval", "runs/sft")
    assert "no such file" in said and "ft eval runs/sft DATA" in said


def test_data_are_read_before_a_model_is_loaded_to_evaluate_it(here, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "load_folder", lambda *args: pytest.fail("a model was loaded"))
    assert "no such file" in refused(capsys, "eval", "tiny", "nowhere.jsonl")


@pytest.fixture
def hot(copied):
    copied(*HOT)
    return "runs/sft"


@pytest.mark.whole
def test_the_base_is_measured_before_training_and_the_model_after(hot):
    tok, held = tiny_tokenizer(), read_chats("notes.jsonl").select(range(20, 24))
    metrics = json.loads(Path(hot, "metrics.json").read_text())
    base, tuned = perplexity(tiny_model(), tok, held), perplexity(load_adapter(hot, 32), tok, held)
    assert metrics["perplexity_before"] == pytest.approx(base, rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(tuned, rel=1e-4) and tuned < 0.8 * base
    assert metrics["account"]["rows"] == 20


def test_an_adapter_of_a_script_is_loaded_evaluated_and_merged_in_the_bits_of_the_run(hot, capsys, monkeypatch):
    run, load, loaded = Path("copy"), model_choice.load_folder, []
    shutil.copytree(hot, run)
    (run / "run.json").unlink()  # which `ft` writes
    assert {load_adapter(folder).get_base_model().dtype for folder in (run, run / "checkpoint-6")} == {torch.float32}
    for place in ("cli.chat_and_merge", "cli.evaluation"):
        named = f"ft_notebooks.{place}.load_folder"
        monkeypatch.setattr(named, lambda folder, bits: loaded.append(bits) or load(folder, bits))
    main(["eval", "copy", "notes.jsonl", "--set", "evaluation.max_new_tokens=3"])
    typed(monkeypatch, "hi")
    main(["chat", "copy"])
    assert loaded == [32] * 3
    main(["merge", "copy"])
    assert json.loads(Path("copy/merged/config.json").read_text())["dtype"] == "float32"
    assert model_choice.model_bits(None, folder="copy/merged") == model_choice.model_bits(None)  # it is no adapter
    assert model_choice.model_settings({"model": {"name": "copy"}, "lora": {}})["bits"] == 32
    assert "was trained on a base in 32 bits, not 4" in refused(capsys, "merge", "copy", "--set", "model.bits=4")


@pytest.mark.whole
def test_a_run_shows_one_bar_with_the_loss_and_leaves_a_curve_and_its_tokenizer(copied):
    out, err = copied(*HOT)
    assert err.count("| 0/6 [") == 1 and "loss=" in err and "{'loss'" not in out + err
    assert "\r" not in err and err.count("6/6") == 1  # no terminal: a line a minute
    assert Path("runs/sft/loss.png").read_bytes().startswith(b"\x89PNG") and Path("runs/sft/tokenizer.json").is_file()


def test_a_table_shows_each_stage_with_its_interval_and_a_dash_for_what_it_was_not_asked():
    def scores(**values):
        return Evaluation({k: {"value": v, "low": v - 0.1, "high": v + 0.2, "n": 9} for k, v in values.items()}, [])

    table = score_table({"base": scores(exact_match=0.25), "sft": scores(exact_match=0.5, form=0.75)})
    assert [line.split() for line in table.split("\n")] == [
        ["base", "sft"],
        ["exact_match", "0.25", "[0.15,", "0.45]", "0.50", "[0.40,", "0.70]"],
        ["form", "–", "0.75", "[0.65,", "0.95]"],
    ]
    assert len({len(line) for line in table.split("\n")}) == 1


@pytest.mark.whole
def test_a_plain_model_has_no_base_beside_it(here):
    main(["eval", "tiny", "notes.jsonl", "--set", "evaluation.max_new_tokens=3"])
    assert list(json.loads(Path("tiny/eval/report.json").read_text())) == ["model"]


def test_the_settings_of_an_evaluation_reach_it(here, capsys, monkeypatch):
    given = []

    def evaluation(model, tok, dataset, scorers, for_answers, **options):
        given.append((list(scorers), options, options.pop("file")))
        raise ValueError("that is enough")

    monkeypatch.setattr("ft_notebooks.cli.evaluation.evaluate", evaluation)
    refused(capsys, "eval", "tiny", "notes.jsonl")
    Path("mine.py").write_text("def polite(generated, expected, example): return 'please' in generated")
    settings = ["evaluation.batch_size=2", "evaluation.max_new_tokens=9", "evaluation.scorers=token_f1,mine.py:polite"]
    refused(capsys, "eval", "tiny", "notes.jsonl", *[part for s in settings for part in ("--set", s)])
    (one, plain, file), (two, set_, other) = given
    assert (one, plain) == (["exact_match"], {"max_new_tokens": 128, "thoughts": "keep"})
    assert (two, set_) == (["token_f1", "polite"], {"max_new_tokens": 9, "batch_size": 2, "thoughts": "keep"})
    assert file.parent == other.parent == Path("tiny/eval") and file != other  # the answers of another question
    assert "did you mean" in refused(capsys, "eval", "tiny", "notes.jsonl", "--set", "evaluation.scorers=token_f2")


def test_an_evaluation_is_of_base_and_adapter_goes_on_with_its_answers_and_tells_which_rows_were_trained_on(
    hot, capsys, monkeypatch
):
    command = ["eval", hot, "notes.jsonl", "--set", "evaluation.max_new_tokens=3"]
    main(command)
    [file] = Path("runs/sft/eval").glob("sft-*.answers.jsonl")
    answers = file.read_text()
    seen = json.loads(Path("runs/sft/eval/contamination.json").read_text())
    assert seen["sft"]["rows"] == 20 and len(seen["sft"]["seen"]) == 20
    report, rows = json.loads(Path("runs/sft/eval/report.json").read_text()), read_chats("notes.jsonl")
    assert list(report) == ["base", "sft"] and report["sft"]["exact_match"]["n"] == len(rows)
    assert "against" in report["sft"]["exact_match"] and "exact_match" in capsys.readouterr().out
    values = [perplexity(model, tiny_tokenizer(), rows) for model in (tiny_model(), load_adapter(hot, 32))]
    assert [report[stage]["perplexity"]["value"] for stage in report] == pytest.approx(values, rel=1e-4)
    monkeypatch.setattr("transformers.GenerationMixin.generate", lambda *a, **k: pytest.fail("it has the answers"))
    main(command)
    assert file.read_text() == answers


@pytest.mark.parametrize("more", [["notes.jsonl", "--tasks", "x"], ["--limit", "3"], ["--chat"], ["--include", "."]])
def test_tasks_and_rows_of_ones_own_are_not_mixed(here, capsys, more):
    assert "leave DATA out" in refused(capsys, "eval", "tiny", *more)


def test_a_system_message_is_remembered_only_if_all_rows_share_it():
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    rows = [[{"role": "system", "content": text}, *turns] for text in ("a", "a", "b")]
    shared = [
        record.shared_system(Dataset.from_dict({"messages": chats}))
        for chats in (rows[:2], rows, [rows[0], turns], [turns])
    ]
    assert shared == ["a", None, None, None]


def typed(monkeypatch, *lines):
    lines = iter(lines)

    def read(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_chat_speaks_with_the_adapter_and_the_system_message_of_its_data(hot, capsys, monkeypatch):
    tok, model = tiny_tokenizer(), load_adapter(hot, 32)
    system = {"role": "system", "content": appointments(1)[0]["messages"][0]["content"]}
    first, again = {"role": "user", "content": "hi"}, {"role": "user", "content": "again"}
    one = generate(model, tok, [[system, first]], 8, progress=False)[0]
    two = generate(model, tok, [[system, first, {"role": "assistant", "content": one}, again]], 8, progress=False)[0]
    anew = generate(model, tok, [[system, again]], 8, progress=False)[0]
    with model.disable_adapter():
        assert generate(model, tok, [[system, first]], 8, progress=False)[0] != one
    capsys.readouterr()
    typed(monkeypatch, "hi", "again", "", "again")
    main(["chat", hot, "--set", "evaluation.max_new_tokens=8"])
    out = capsys.readouterr().out
    start = f"system: {system['content']}\nType a message; an empty line starts a new conversation, Ctrl-D ends.\n"
    assert out == start + f"{one}\n{two}\n{anew}\n"


def test_a_message_that_cannot_be_answered_is_taken_back(here, capsys, monkeypatch):
    tok, model = tiny_tokenizer(), load_model("tiny", 32)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    typed(monkeypatch, "x" * 3000, "hi")
    main(["chat", "tiny", "--system", "Be brief.", "--set", "evaluation.max_new_tokens=3", "--set", "model.bits=32"])
    out = capsys.readouterr().out
    assert "system: Be brief." in out and "longer than the model's context" in out
    assert out.endswith(f"\n{generate(model, tok, [chat], 3, progress=False)[0]}\n")


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_weights_that_are_trained_themselves_are_of_32_bits(here, capsys, monkeypatch, bits):
    monkeypatch.setattr("ft_notebooks.sft.stage.read_chats", lambda source: pytest.fail("data were read first"))
    said = refused(capsys, "sft", "notes.jsonl", *quick("model.method=full", f"model.bits={bits}"))
    assert f"[model] bits={bits} with method=full" in said and "remove bits, or set method to lora" in said


@pytest.fixture
def warm(copied):
    "A run on four bits that has learnt something; no pair of tokens is nearly a tie any more."
    taught = "sft.max_steps=16", "sft.learning_rate=0.01", "sft.effective_batch=4", "data.eval=last:4"
    copied(*taught, "model.bits=4")


@pytest.mark.whole
def test_an_adapter_is_float32_on_a_base_of_four_bits(warm):
    from safetensors.torch import load_file

    tensors = load_file("runs/sft/adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    moved = [t for name, t in tensors.items() if "lora_B" in name]
    assert all(t.abs().max() > 0 for t in moved) and len(moved) == 14


def test_a_run_is_merged_in_its_own_width_and_plain_transformers_says_the_same(warm, capsys):
    capsys.readouterr()
    main(["merge", "runs/sft"])
    out = capsys.readouterr().out
    assert "runs/sft: merging its adapter into its base in 4 bits" in out and "KL per token 0.00" in out
    assert out.splitlines()[-1].startswith(
        "The model is in runs/sft/merged. Next: ft eval runs/sft/merged DATA, or ft chat"
    )
    merged = Path("runs/sft/merged")
    assert not list(merged.parent.glob(".merged*"))
    config = json.loads((merged / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == str(load_model("tiny", 4).config.dtype)[6:]
    assert {p.suffix for p in merged.iterdir()} == {".json", ".safetensors", ".jinja"}
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == tiny_tokenizer().eos_token_id
    asked = [messages[:2] for messages in appointments(24)["messages"][:3]]
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=config["dtype"])
    said = generate(plain, AutoTokenizer.from_pretrained(merged), asked, 24, progress=False)
    assert said == generate(load_adapter("runs/sft", 4), tiny_tokenizer(), asked, 24, progress=False)


@pytest.mark.whole
def test_what_has_no_adapter_has_nothing_to_merge(copied, capsys):
    copied(*FULL)
    said = refused(capsys, "merge", "runs/sft")
    assert "runs/sft trained every weight, so there is nothing to merge: runs/sft is the model" in said
    assert "tiny holds no adapter, so there is nothing to merge" in refused(capsys, "merge", "tiny")
    assert "there is no such folder" in refused(capsys, "merge", "nowhere")
    assert not Path("tiny/merged").exists() and not Path("runs/sft/merged").exists()


def test_nothing_is_merged_into_another_base_or_over_another_folder(hot, capsys, monkeypatch):
    assert "was trained on a base in 32 bits, not 4" in refused(capsys, "merge", hot, "--set", "model.bits=4")
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("x")
    monkeypatch.setattr("ft_notebooks.lora.adapter.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    assert "full is there already and is not empty" in refused(capsys, "merge", hot, "--output", "full")
    assert [p.name for p in Path("full").iterdir()] == ["thesis.txt"]


def test_a_merge_that_says_other_words_is_an_error_and_leaves_nothing(hot, capsys, monkeypatch):
    monkeypatch.setattr("ft_notebooks.lora.merging.merge_adapter", lambda model: tiny_model(seed=1))
    assert "the merged model's logits differ from the adapter's" in refused(capsys, "merge", hot)
    assert not Path(hot, "merged").exists() and not list(Path(hot).glob(".merged*"))


def test_a_merge_needs_neither_the_data_nor_a_run(hot, capsys):
    Path("notes.jsonl").unlink()
    main(["merge", hot, "--output", "one"])
    for file in ("run.json", "metrics.json"):
        Path(hot, file).unlink()
    main(["merge", hot, "--output", "two", "--set", "model.bits=32"])
    files = [Path(folder, "model.safetensors").read_bytes() for folder in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.whole
def test_full_fine_tuning_saves_a_model_that_eval_and_plain_transformers_load(copied):
    copied(*FULL)
    assert json.loads(Path("runs/sft/run.json").read_text())["model.bits"] == 32
    tuned = AutoModelForCausalLM.from_pretrained("runs/sft")
    assert tuned.num_parameters() == tiny_model().num_parameters()
    main(["eval", "runs/sft", "notes.jsonl", "--set", "evaluation.max_new_tokens=3"])
    report = json.loads(Path("runs/sft/eval/report.json").read_text())
    assert list(report) == ["base", "sft"] and report["sft"]["perplexity"]["n"] == 24
    found = [report[stage]["perplexity"]["value"] for stage in report]
    values = [perplexity(model, tiny_tokenizer(), read_chats("notes.jsonl")) for model in (tiny_model(), tuned)]
    assert found == pytest.approx(values, rel=1e-4) and values[1] < 0.9 * values[0]


HALF = ("model.bits=16", "sft.bf16=true", "sft.max_steps=2", "sft.effective_batch=4", "data.eval=last:4")


def test_a_run_and_its_evaluation_print_one_perplexity_where_training_is_in_bfloat16(copied):
    copied(*HALF)
    main(["eval", "runs/sft", "--set", "evaluation.max_new_tokens=2"])
    metrics, report = (json.loads(Path("runs/sft", name).read_text()) for name in ("metrics.json", "eval/report.json"))
    printed = metrics["perplexity_before"], metrics["perplexity"]
    assert [report[stage]["perplexity"]["value"] for stage in ("base", "sft")] == pytest.approx(printed, rel=1e-9)


def test_a_base_is_evaluated_in_the_bits_of_the_model_beside_it(copied, monkeypatch):
    copied(*FULL)
    load, bits = model_choice.load_folder, []
    named = "ft_notebooks.cli.evaluation.load_folder"
    monkeypatch.setattr(named, lambda folder, b: bits.append(b) or load(folder, b))
    main(["eval", "runs/sft", "--set", "evaluation.max_new_tokens=3", "--set", "model.bits=16"])
    assert bits == [16, 16]


def test_the_demo_goes_through_its_stages_and_is_then_left_alone(here, capsys, monkeypatch):
    monkeypatch.setattr("ft_notebooks.checkpointing.finished_runs.smollm2", lambda: here / "tiny")
    quick = {"learning_rate": 1e-2, "max_steps": 3, "save_steps": 2, "bf16": False, "effective_batch": 4}
    monkeypatch.setattr(demo_task, "DEMO", quick)
    monkeypatch.setattr(demo_task, "DEMO_DPO", {**DEMO_DPO, **quick, "learning_rate": 1e-3})
    scored = []
    monkeypatch.setattr("ft_notebooks.cli.model_export.ask_exported", lambda run, rows: f"{run} is asked")

    def words(n, *seed, **more):  # 128, 100, 96 and 50 notes become 4 each
        return appointments(min(n, 4), *seed, **more)

    monkeypatch.setattr(demo_task, "appointments", words)
    monkeypatch.setattr(
        demo_task, "_demo_scores", lambda model, tok: scored.append(_demo_scores(model, tok)) or scored[-1]
    )
    main(["demo", "--seed", "3"])
    test, bits = words(100, part="test"), model_choice.model_bits(None)
    found = [s.scores["perplexity"]["value"] for s in scored]
    models = load_model("tiny", bits), load_adapter("runs/demo/sft", bits), load_adapter("runs/demo/dpo", bits)
    assert found == pytest.approx([perplexity(model, tiny_tokenizer(), test) for model in models], rel=1e-2)
    assert found[1] < 0.8 * found[0] and found[2] != found[1]
    asked = [*test["messages"], *words(50, part="test", new_phrases=True)["messages"]]
    assert all([row["prompt"] for row in s.rows] == [messages[:2] for messages in asked] for s in scored)
    report = json.loads(Path("runs/demo/report.json").read_text())
    assert list(report) == ["base", "sft", "dpo"]
    assert {"exact_match", "preferred_form", "exact_match_new_phrases"} <= set(report["sft"])
    assert [report[stage]["perplexity"]["value"] for stage in report] == found
    run, then = (json.loads(Path("runs/demo", stage, "run.json").read_text()) for stage in ("sft", "dpo"))
    assert run["sft.seed"] == then["dpo.seed"] == 3 and run["data.trained"] == data_fingerprint(words(128, seed=3))
    assert then["model.name"] == str(here / "runs/demo/sft") and then["data.trained"] == data_fingerprint(
        demo_pairs(96, 103)
    )
    printed = capsys.readouterr().out
    assert "The report is runs/demo/report.html" in printed
    assert "runs/demo/dpo is asked" in printed
    main(["demo", "--seed", "3"])
    assert "runs/demo is finished; nothing is changed" in capsys.readouterr().out and len(scored) == 3
    assert "sft.seed was 3, is 4" in refused(capsys, "demo", "--seed", "4")
    typed(monkeypatch)
    main(["chat", "runs/demo"])  # the demo's folder stands for the run in it
    assert "system: Answer with one line of JSON" in capsys.readouterr().out
    steps = {"rewards": ["length"], "max_completion_length": 90, "max_steps": 1, "generations": 2, "bf16": False}
    monkeypatch.setattr(demo_task, "DEMO_GRPO", steps)
    monkeypatch.setitem(demo_task._START, "grpo", "sft/checkpoint-2")
    main(["demo", "--rl", "--seed", "3"])
    assert list(json.loads(Path("runs/demo/rl/report.json").read_text())) == ["base", "half of sft", "grpo"]
    assert "after half of its steps" in (said := capsys.readouterr().out) and "runs/demo/rl/report.html" in said


def test_an_export_is_uploaded_only_where_the_user_asks_for_it_and_is_logged_in(copied, capsys, monkeypatch):
    copied(*FULL)
    on_few_texts(monkeypatch)
    hub = Mock()
    hub.create_repo.return_value.repo_id = "me/model"
    monkeypatch.setattr("ft_notebooks.cli.model_export.HfApi", lambda: hub)
    words = ["export", "runs/sft", "--type", "f32", "--set", "evaluation.max_new_tokens=4", "--output"]
    assert model_export._pushed(Path("one"), None) == "To upload it: hf upload OWNER/NAME one --private"
    assert not hub.mock_calls
    main([*words, "two", "--push", "me/model"])
    assert "Uploaded" in capsys.readouterr().out
    hub.create_repo.assert_called_once_with("me/model", private=True, exist_ok=True)
    hub.upload_folder.assert_called_once_with(repo_id="me/model", folder_path=Path("two"))
    hub.whoami.side_effect = OSError("no token")
    said = refused(capsys, *words, "three", "--push", "me/model")
    assert "no token Log in with hf auth login" in said and not Path("three").exists()


def test_a_broken_line_in_a_file_of_pairs_is_named_and_not_its_good_rows(here):
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    Path("pairs.jsonl").write_text(f"{good}\n{good}\n{{oops\n")
    with pytest.raises(ValueError, match=r"^pairs.jsonl:3: not JSON at column 2") as e:
        evaluation._rows("pairs.jsonl", {})
    assert "pairs.jsonl:1" not in str(e.value)


def test_the_table_of_scores_has_lines_of_equal_length_also_under_long_names():
    scores = {name: {"value": 0.5, "low": None, "high": None} for name in ("acc", "a_task_with_a_long_name: acc_norm")}
    lines = score_table({"base": SimpleNamespace(scores=scores)}).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[2].startswith("a_task_with_a_long_name: acc_norm  ")
