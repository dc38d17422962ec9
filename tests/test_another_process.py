"""What a process of its own proves: it has imported nothing yet, its strings have other hashes, its stdout, stderr and
stdin are not UTF-8, and a signal ends it.

One process for all of it, since most of its time goes into the imports: a quiet command, others on data that are not
ASCII, codes whose results must be those of this process, and a script that is stopped in its fourth
step.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import HANGS, forked
from test_encodings import ASCII
from transformers.trainer_callback import CallbackHandler

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["sft", "notes.jsonl", "--quiet"]
for setting in ("model.name=tiny", "sft.bf16=false", "sft.max_steps=1", "data.eval=last:4"):
    QUIET += ["--set", setting]

ANSWER = "naïve – 漢字 ✓"
TYPED = "déjà vu ?\n".encode() + b"\xff\xfe\n"  # the second is no text in any encoding
QUICK = ["model.name=tiny", "model.bits=32", "data.eval=last:4", "sft.bf16=false"]
QUICK = [part for setting in QUICK for part in ("--set", setting)]
COMMANDS = {
    "sft": ["sft", "chats-é.jsonl", *QUICK, "--set", "sft.max_steps=1", "--set", "sft.effective_batch=4"],
    "chat": ["chat", "runs/sft", "--set", "evaluation.max_new_tokens=3"],
}

NOTES = """
from ft_notebooks.course.example_task import appointments
print(appointments(20, seed=3)[:])
"""
READ = """
from ft_notebooks.data.read import read_chats
print(read_chats("a.jsonl")[0]["messages"][1]["content"])
"""
GROUPS = """
import random
from datasets import Dataset
from ft_notebooks.data.deduplication import overlap, split
rng = random.Random(3)
texts = [[f"w{rng.randrange(900)}" for _ in range(40)] for _ in range(100)]
texts += [t[:7] + ["new"] + t[8:] for t in texts[:60]]
rows = [[dict(role="user", content=" ".join(t)), dict(role="assistant", content="ok")] for t in texts]
d = Dataset.from_dict({"messages": rows})
sides = split(d, 0.3, 1)
print(sides["test"][:], sides["test"].info.description)
print(overlap(d.select(range(100)), d.select(range(100, 160))))
"""
ADAPTER = """
from peft import get_peft_model
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.loading.example_models import tiny_model
models = [add(tiny_model(), lora_config(tiny_model())) for add in (add_adapter, get_peft_model)]
print(*(sum(p.double().sum().item() for n, p in m.named_parameters() if "lora_A" in n) for m in models))
"""
SCRIPT = """
import os, signal, sys
from ft_notebooks import add_adapter, appointments, fit, lora_config, sft_trainer, tiny_model, tiny_tokenizer

from transformers.trainer_callback import CallbackHandler

begin = CallbackHandler.on_step_begin
def killed(self, args, state, control):
    if state.global_step == int(sys.argv[2]):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
    return begin(self, args, state, control)
CallbackHandler.on_step_begin = killed

model = add_adapter(tiny_model(), lora_config(tiny_model(), lora_dropout=0.1))
trainer = sft_trainer(model, tiny_tokenizer(), appointments(16), output_dir=sys.argv[1], max_steps=6, save_steps=2)
fit(trainer)
print("after the training")
"""
EACH = {"notes": NOTES, "read": READ, "groups": GROUPS, "adapter": ADAPTER}
END = "-- end of a part --\n"
RUN = f"""
import contextlib, io, json, os, sys
from ft_notebooks.cli.commands import main
assert sys.stdout.encoding != "utf-8"
with open("job.json", encoding="utf-8") as file:
    each, script, quiet, commands = json.load(file)
def end():
    for stream in (sys.stdout, sys.stderr):
        print({END!r}, end="", file=stream, flush=True)
main(quiet)  # first: what it leaves out is decided before the imports
end()
with contextlib.chdir("ascii"):
    for name, argv in commands.items():
        print("==" + name, flush=True)
        main([os.fsdecode(word.encode()) for word in argv])
end()
said = {{}}
for name, code in each.items():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(code, {{}})
    said[name] = text.getvalue()
print(json.dumps(said), {END!r}, sep="\\n", end="", flush=True)
exec(script, {{"__name__": "__main__"}})
"""


def rows_beyond_ascii(folder):
    system, asked = {"role": "system", "content": "Réponds en français."}, {"role": "user", "content": "Où es-tu ?"}
    answers = [{"role": "assistant", "content": f"{ANSWER} {i * i * 37}"} for i in range(24)]
    users = [{**asked, "content": f"{asked['content']} {'abcdefghijklmnopqrstuvwxyz'[i] * 9}"} for i in range(24)]
    chats = [{"messages": [system, user, answer]} for user, answer in zip(users, answers)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chats)
    (folder / "chats-é.jsonl").write_text(text, encoding="utf-8")


def here(name):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        exec(EACH[name], {})
    return text.getvalue()


def script(folder, step=-1):
    "The script in this process; it is killed before a step."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CallbackHandler, "on_step_begin", CallbackHandler.on_step_begin)  # which the script changes
        patch.setattr(sys, "argv", ["-c", str(folder), str(step), "SIGKILL"])
        exec(SCRIPT, {"__name__": "__main__"})


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """What each part printed there, in the folder. The file that is read is edited after it has been read here; the
    script goes on with the run of one that was killed here.
    """
    with contextlib.chdir(tmp_path_factory.mktemp("there")):
        for answer in ("first", "second", "third"):
            Path("a.jsonl").write_text(json.dumps({"instruction": "Say it.", "output": answer}))
            assert answer == "third" or here("read") == f"{answer}\n"
        tiny_tokenizer().save_pretrained("tiny")
        tiny_model().save_pretrained("tiny")
        appointments(24).to_json("notes.jsonl")
        shutil.copytree("tiny", "ascii/tiny")
        rows_beyond_ascii(Path("ascii"))
        with contextlib.redirect_stdout(None):
            script(Path("whole").resolve())  # here, so that what it imports and estimates is then there for the forks
        killed = forked(lambda: script(Path("run").resolve(), step=3)), Path("run/complete.json").exists()
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
        env = {**inherited, **ASCII, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", RUN, str(Path("run").resolve()), "4", "SIGTERM"]
        Path("job.json").write_text(json.dumps([EACH, SCRIPT, QUIET, COMMANDS]), encoding="utf-8")
        run = subprocess.run(command, input=TYPED, capture_output=True, env=env, timeout=HANGS)
        out, err = (said.decode("ascii").split(END) for said in (run.stdout, run.stderr))
        assert (len(out), len(err)) == (4, 3), err[-1]
        commands = {part.partition("\n")[0]: part for part in out[1].split("==")[1:]}
        yield SimpleNamespace(
            killed=killed,
            code=run.returncode,
            quiet=(out[0], err[0]),
            commands=commands,
            **json.loads(out[2]),
            script=(out[3], err[2]),
        )


def test_a_quiet_command_prints_what_comes_out_and_errors_alone(there, capfd):
    said, log = there.quiet
    assert said.strip() == "The run is in runs/sft. Next: ft eval runs/sft, or ft chat runs/sft", log
    assert "/1 [" not in log  # no bar
    main(["eval", "runs/sft", "--quiet", "--set", "evaluation.max_new_tokens=3"])
    said, log = capfd.readouterr()
    head, *_, last = said.strip().splitlines()
    assert head.split() == ["base", "sft"] and last == "The report is runs/sft/eval/report.html", log
    with pytest.raises(SystemExit) as e:
        main(["merge", "tiny", "--quiet"])
    said, log = capfd.readouterr()
    assert (e.value.code, said) == (2, "") and "tiny holds no adapter" in log


def test_the_notes_of_the_example_task(there):
    assert there.notes == here("notes")


def test_an_edited_file_is_read_anew(there):
    assert there.read == "third\n"


def test_the_groups_of_near_duplicates(there):
    assert there.groups == here("groups") and "60 are near-duplicates" in there.groups


def test_an_adapter_s_first_weights_but_not_those_of_the_bare_library(there):
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (ours, bare), (theirs, other) = here("adapter").split(), there.adapter.split()
    assert ours == theirs and bare != other


def test_a_script_that_is_killed_stopped_and_started_again_ends_with_the_same_weights(there, capfd):
    assert there.killed == (-signal.SIGKILL, False)
    # then in an interpreter of its own, which gets a signal: it saves first, and the lines after fit do not run
    (said, log), run = there.script, Path("run").resolve()
    assert f"goes on from {run / 'checkpoint-2'}" in said, log
    assert there.code not in (0, None) and "after the training" not in said
    assert f"Stopped: SIGTERM: started again, the run goes on from step 5, {run / 'checkpoint-5'}" in log
    assert not Path("run/complete.json").exists()
    capfd.readouterr()
    assert forked(lambda: script(run)) == 0
    assert capfd.readouterr().out.count("after the training\n") == 1
    one, other = (Path(name, "adapter_model.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == other


def test_what_the_encoding_has_no_character_for_is_shown_as_an_escape(there):
    said = there.commands
    assert "\\xabna\\xefve \\u2013 \\u6f22" in said["sft"] and "The run is in runs/sft" in said["sft"]


def test_what_is_typed_is_read_as_utf_8(there):
    said = there.commands
    assert "system: R\\xe9ponds en fran\\xe7ais." in said["chat"]
    assert said["chat"].count("> ") == 3 and "codec" not in said["chat"] and "surrogates" not in said["chat"]


def test_the_files_are_utf_8(there):
    checked = [
        p for p in Path("ascii/runs").rglob("*") if p.suffix in (".json", ".jsonl", ".md", ".html", ".jinja", ".ini")
    ]
    texts = {p: p.read_text(encoding="utf-8") for p in checked}
    assert len(checked) > 5 and any(ANSWER in text for text in texts.values())
