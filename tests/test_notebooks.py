"""Every notebook runs: `nbdev_test` on each of the selected ones, up to two at a time, reported as one pytest test
each.

Where they are forked, `!ft ...` is forked too; as a program of its own `ft` runs in tests/test_encodings.py.

`pytest -k tokenizer` runs that notebook only. NB_FLAGS="smol gpu" says which flagged cells run; without it the cells
flagged `smol` run where the real model is in the cache.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = sorted(  # but the solutions, which tests/test_solutions.py runs
    p
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if p.parent.name != "solutions" and not any(part[0] in "_." for part in p.relative_to(ROOT).parts)
)
RUN_EACH = """
import atexit, gc, os, shlex, sys, traceback
flags, folder, *notebooks = sys.argv[1:]
sys.path.append("tests")
import estimates
from forks import renew_threads
from model_cards import compile_once
from processors import without_vnni
renew_threads()
lessons = [i for i, name in enumerate(notebooks) if os.path.basename(os.path.dirname(name)) == "nbs"]
# elsewhere, or with an open GPU, it cannot be forked
if sys.platform == "linux" and not os.path.exists("/dev/nvidiactl"):
    import IPython, datasets, execnb.shell, matplotlib.pyplot, pydantic
    import ft_notebooks.cli.commands, ft_notebooks.dpo.trainer, ft_notebooks.evaluation.runner, ft_notebooks.sft.trainer
    from ft_notebooks import add_adapter, load_model, lora_config, smollm2, tiny_model
    from ft_notebooks.core.device import hardware
    from ft_notebooks.loading.training_memory import step_memory
    estimates.share()
    model = tiny_model()
    for trained in (model, add_adapter(tiny_model(), lora_config(model))):  # imports as much again, and is kept
        step_memory(trained, {"use_cpu": True})(1000)
    if lessons and "smol" in flags.split():  # what a step of theirs takes is estimated once for all of them, too
        model = load_model(smollm2())
        estimate = step_memory(add_adapter(model, lora_config(model, r=16)), {"bf16": hardware().bf16})
        estimate(100), estimate(1000)
        del estimate
    del model, trained
    gc.collect()
    gc.freeze()

    from IPython.core.interactiveshell import InteractiveShell
    started = InteractiveShell.system

    def system(shell, command):  # `!ft ...` runs in a copy of this process, which need not import the libraries again
        words = shlex.split(command)
        if words[0] != "ft":
            return started(shell, command)
        sys.stdout.flush()
        read, write = os.pipe()
        if not (pid := os.fork()):
            os.dup2(write, 1), os.dup2(write, 2)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
            try:
                ft_notebooks.cli.commands.main(words[1:])
            except SystemExit as e:
                os._exit(e.code or 0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(write)
        with open(read) as said:
            print(said.read(), end="")
        shell.user_ns["_exit_code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    InteractiveShell.system = system
compile_once(), without_vnni()
from nbdev.test import nbdev_test

def forked(function, *args):  # a process that ends without freeing each object, which would copy all its memory first
    if pid := os.fork():
        return pid
    code = 0
    try:
        function(*args)
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # temporary folders are removed
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)

def test(number):
    with open(f"{folder}/{number}.log", "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    nbdev_test(notebooks[number], do_print=True, flags=flags, n_workers=0)

def run(numbers):  # the notebooks with these numbers, one after the other, each in a process of its own
    if numbers != lessons:
        os.nice(19)  # takes what the lessons, which last longest, and pytest's other process leave
    for number in numbers:
        code = os.waitstatus_to_exitcode(os.waitpid(forked(test, number), 0)[1])
        with open(f"{folder}/{number}.code", "w") as file:
            file.write(str(code))

# the lessons one after the other, in their order, since each goes on with what the one before it has trained
waiting = [lessons] * bool(lessons) + [[i] for i in range(len(notebooks)) if i not in lessons]
running = set()
while waiting or running:
    while waiting and len(running) < 2:
        running.add(forked(run, waiting.pop(0)))
    running.discard(os.wait()[0])
"""  # a process for each notebook, forked from one that has imported the libraries: quick, and all its memory goes back


def needs_the_real_model(nb):  # each lesson does
    return nb.parent.name == "nbs" and nb.name[0].isdigit()


@pytest.fixture(scope="session")
def results(request, real_model, tmp_path_factory):
    "Notebook -> the exit code of its `nbdev_test`, and what that printed"
    chosen = [i.callspec.params["nb"] for i in request.session.items if getattr(i, "originalname", "") == "test_runs"]
    chosen = [nb for nb in chosen if real_model or not needs_the_real_model(nb)]
    flags = os.environ.get("NB_FLAGS", "smol" if real_model else "")
    env = {"IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    env.pop("TQDM_DISABLE", None)  # some of them prove what a bar writes
    folder = tmp_path_factory.mktemp("notebooks")
    run = subprocess.run(
        [sys.executable, "-c", RUN_EACH, flags, folder, *chosen], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = {}
    for i, nb in enumerate(chosen):  # a process that was killed has left no code
        code, log = folder / f"{i}.code", folder / f"{i}.log"
        said = log.read_text(errors="replace") if log.is_file() else ""
        found[nb] = (code.read_text() if code.is_file() else "a signal", said)
    return found


def test_there_are_notebooks():
    assert NBS


@pytest.mark.parametrize("nb", NBS, ids=lambda nb: str(nb.relative_to(ROOT / "nbs").with_suffix("")))
def test_runs(nb, results):
    if nb not in results:
        pytest.skip("needs the real model")
    code, said = results[nb]
    if code != "0" or "Success." not in said:
        pytest.fail(f"nbdev_test ended with {code}\n{said[:8000]}", pytrace=False)
    if f"- Completed {nb}" not in said:
        pytest.skip("the notebook says skip_exec")
