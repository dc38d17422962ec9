"""Where a release renames what the package hangs on, a run keeps its guarantees or does not begin, and says why.

Each test is a run of `guarantees.py` with one name renamed (`renamed.py`). Three of them, drawn with a seed, stand for
all where slow tests run; `ALL_RENAMES=1` runs every one. `PYTHONPATH=. python tests/seams/test_renames.py
--table [NAME...]` prints what becomes of a run as a table.
"""

import functools
import importlib
import importlib.metadata
import inspect
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STACK = ("transformers", "trl", "peft", "accelerate", "torch")
HANGS = 900  # seconds after which a process hangs
SEED = 17
DRAWN = 3
ALONE = "the library itself does not run"

# private or undocumented names that the package's guarantees once hung on
ONCE = {
    "transformers": """_get_grad_norm _save_checkpoint _save _determine_best_metric _get_train_sampler _prepare_inputs
        find_packed_sequence_indices _can_set_attn_implementation _attn_implementation _commit_hash _name_or_path
        _get_output_dir rotate_checkpoints _supports_logits_to_keep""",
    "trl": """_prepare_dataset _precompute_ref_logps _metrics _total_train_tokens _ChunkedLogProbFunction
        _CHUNKED_LOGPROB_CHUNK_SIZE _use_triton""",
}
WORDS = {"train"}  # methods of trainers whose names are also common words, or methods of torch

# ---- the names


def library_of(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def overridden(cls: type) -> set[tuple[str, str]]:
    "The libraries' methods that the package overrides in a class or in one behind it, each with the nearest library."
    own = [part for part in cls.__mro__ if library_of(part) == "ft_notebooks"]
    theirs = [part for part in cls.__mro__ if library_of(part) in STACK]
    names = {name for part in own for name, value in vars(part).items() if callable(value) and name[:2] != "__"}
    nearest = {name: next((part for part in theirs if name in vars(part)), None) for name in names}
    return {(library_of(part), name) for name, part in nearest.items() if part is not None}


def subclasses(cls: type) -> list[type]:
    return [part for child in cls.__subclasses__() for part in (child, *subclasses(child))]


@functools.cache
def trainers() -> list[type]:
    from ft_notebooks.dpo.trainer import _DPOTrainer
    from ft_notebooks.sft.trainer import _SFTTrainer

    return [_SFTTrainer, _DPOTrainer]


@functools.cache
def callbacks() -> list[type]:
    "The package's own."
    from transformers import TrainerCallback

    for file in (ROOT / "ft_notebooks").rglob("*.py"):
        if "TrainerCallback" in file.read_text(encoding="utf-8"):
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    return [cls for cls in subclasses(TrainerCallback) if library_of(cls) == "ft_notebooks"]


@functools.cache
def names() -> list[tuple[str, str]]:
    "Library and name: each private name that the package uses, or used, and each method and event that it overrides."
    from ft_notebooks.core import seams

    used = [(library, name) for name, (library, *_) in seams.SEAMS.items()]
    used += [(library, name) for library, _, name in seams.ESTIMATE_SEAMS.values()]
    found = {(library, name) for library, text in ONCE.items() for name in text.split()}
    # but for bitsandbytes', which these runs do not import
    found |= {(library, name) for library, name in used if library in STACK}
    found |= set().union(*map(overridden, [*trainers(), *callbacks()]))
    return sorted({name: (library, name) for library, name in sorted(found)}.values())  # each is renamed in all of them


def chosen() -> list[tuple[str, str]]:
    return names() if os.environ.get("ALL_RENAMES") else sorted(random.Random(SEED).sample(names(), DRAWN))


# ---- what becomes of a run


def run(library: str, name: str, *arguments: str) -> dict:
    "What `guarantees.py` says with the name renamed; without a name, as the libraries are."
    options = ["--torch"] * (library == "torch") + ["--trainers"] * (name in WORDS)
    script = [HERE / "guarantees.py", *arguments]
    command = [sys.executable, *([HERE / "renamed.py", *options, name] if name else []), *script]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=HANGS)
    assert ended.returncode == 0, f"{' '.join(map(str, command))}: {ended.stderr[-3000:]}"
    return json.loads(ended.stdout.splitlines()[-1])


@functools.cache
def alone(library: str, name: str) -> dict:
    "The plain trainers of TRL under the same rename."
    return run(library, name, "--library")


def names_it(text: str, library: str, name: str) -> bool:
    "Whether an error names the library with its version, the name that is gone, and a release of it that has it."
    release, cure = f"{library} {importlib.metadata.version(library)}", rf"pip install .*\b{library}=="
    return release in text and bool(re.search(rf"\b{name}\b", text)) and bool(re.search(cure, text))


def broken(said: dict, library: str, name: str) -> list[str]:
    "What is wrong with what `guarantees.py` says of one trainer; empty where it keeps its guarantees or tells why not."
    if error := said.get("refused"):
        when = f"after step {error['step']}" if error["step"] else "before step 1"
        fine = error["said"] and not error["step"] and names_it(error["text"], library, name)
        return [] if fine else [f"ended {when}: {error['where']}"]
    wrong = [f"{guarantee}: {problem}" for guarantee, problem in said["kept"].items() if problem]
    return wrong + silent(said, name)


def silent(said: dict, name: str) -> list[str]:
    "What a run goes without by a private name that the package uses stands in its plan, or in its manifest.json."
    from ft_notebooks.core.seams import SEAMS

    if name not in SEAMS or re.search(rf"\b{name}\b", said["plan"] + json.dumps(said["manifest"])):
        return []
    return [f"neither the plan nor manifest.json names {name}"]


def becomes(library: str, name: str, said: dict, kind: str) -> str:
    "In words, what becomes of one trainer's run."
    if wrong := broken(said[kind], library, name):
        return ALONE if alone(library, name)[kind].get("refused") else "; ".join(wrong)
    if error := said[kind].get("refused"):
        return f"refused: {error['text']}"
    return "kept"


# ---- the tests


@pytest.mark.parametrize("cls", trainers(), ids=lambda cls: cls.__name__)
def test_a_trainer_is_one_class_before_what_all_share_and_overrides_at_most_six_public_methods(cls):
    own = [part.__name__ for part in cls.__mro__ if library_of(part) == "ft_notebooks"]
    assert own == [cls.__name__, "ExactTrainer"]
    methods = sorted(name for _, name in overridden(cls))
    assert len(methods) <= 6 and not [name for name in methods if name.startswith("_")], methods


@pytest.mark.parametrize("cls", callbacks(), ids=lambda cls: cls.__name__)
def test_the_public_methods_of_a_callback_are_events_of_transformers(cls):
    from transformers import TrainerCallback

    methods = {name for name, value in vars(cls).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert methods <= vars(TrainerCallback).keys()
    source = Path(inspect.getsourcefile(cls)).read_text(encoding="utf-8")
    checked = re.search(rf"@overrides\(\w+\)\n(@.*\n)*class {cls.__name__}\(", source) is not None
    assert checked, "nothing compares it with the library when it is imported"


SLOW = "slow" in os.environ.get("NB_FLAGS", "").split() or os.environ.get("ALL_RENAMES")
of_all = pytest.mark.skipif(not os.environ.get("ALL_RENAMES"), reason="what checks the tests, with ALL_RENAMES=1")


@of_all
def test_without_a_rename_every_guarantee_is_kept():
    for kind, said in run("", "").items():
        assert not broken(said, "", ""), kind


@of_all
def test_a_name_that_is_nowhere_is_no_proof():
    with pytest.raises(AssertionError, match="_get_gradient_norm occurs in no module"):
        run("transformers", "_get_gradient_norm", "--library")


@pytest.mark.skipif(not SLOW, reason='takes a process each: NB_FLAGS="smol slow", as the daily legs have it')
@pytest.mark.parametrize(("library", "name"), chosen(), ids=lambda text: text)
def test_a_renamed_name_switches_no_guarantee_off_in_silence(library, name):
    said = run(library, name)
    found = {kind: becomes(library, name, said, kind) for kind in said}
    if all(answer == ALONE for answer in found.values()):
        pytest.skip(f"{ALONE} without {name}: {alone(library, name)['sft']['refused']['where']}")
    wrong = {kind: answer for kind, answer in found.items() if broken(said[kind], library, name) and answer != ALONE}
    assert not wrong


# ---- the table


def table(asked: list[str]) -> None:
    print("| name | library | SFT | DPO | seconds |", "|---|---|---|---|---|", sep="\n", flush=True)
    for library, name in names():
        if asked and name not in asked:
            continue
        began = time.monotonic()
        try:
            said = run(library, name)
            cells = [becomes(library, name, said, kind) for kind in ("sft", "dpo")]
        except AssertionError as error:
            cells = [str(error).strip().splitlines()[-1]] * 2
        cells = [re.sub(r"\s+", " ", cell).replace("|", "/")[:300] for cell in cells]
        print(f"| `{name}` | {library} | {' | '.join(cells)} | {time.monotonic() - began:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] != ["--table"]:
        sys.exit(__doc__)
    table(sys.argv[2:])
