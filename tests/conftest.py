"What all tests share: no network, and the real model only where it already is"

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forks
import processors
import pytest
import tqdm  # noqa: F401  # else `ft ... --quiet` in a test would switch off the bars of all tests after it
import wheels

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run two at a time
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub, which reads it once
STARTED_IN = Path.cwd()
NOT_UNIT = ("whole", "smol", "slow")


def pytest_configure(config):
    gc.disable()  # until all is collected, which takes a third less
    forks.renew_threads()
    processors.without_vnni()


def pytest_xdist_auto_num_workers(config):
    "For `-n auto`: one file, or what -k names, is quicker without a second process to start."
    files = [Path(argument.partition("::")[0]) for argument in config.args]
    return 0 if config.option.keyword or all(file.suffix == ".py" for file in files) else 2


def pytest_collection_modifyitems(items):
    "The notebooks come first, since they take longest; and `unit` marks what has no mark that says it takes long."
    first = ["test_lesson_runs.py", "test_notebooks.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))
    for item in items:
        if not any(item.get_closest_marker(name) for name in NOT_UNIT):
            item.add_marker("unit")


@pytest.fixture(scope="session")
def real_model() -> Path | None:
    "The folder that `smollm2()` returns without a download, or None"
    from ft_notebooks.loading.example_models import smollm2

    cache = os.environ.get("FT_NOTEBOOKS_CACHE") or Path.home() / ".cache" / "ft_notebooks"
    return smollm2() if Path(cache, "SmolLM2-135M-Instruct").expanduser().is_dir() else None


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> list[Path]:
    "What a commit would hold, whether or not this is a git checkout: all but the ignored"
    root, empty = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", "--bare", empty], check=True)
    git = ["git", f"--git-dir={empty}", f"--work-tree={root}", "ls-files", "-z", "--others", "--exclude-standard"]
    return [root / name for name in subprocess.check_output(git, cwd=root, text=True).split("\0")[:-1]]


@pytest.fixture(scope="session")
def built(files, tmp_path_factory) -> Path:
    "The folder with sdist and wheel"
    to = tmp_path_factory.mktemp("dist")
    wheels.build(files, tmp_path_factory.mktemp("source"), to)
    return to


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory) -> wheels.Installed:
    [wheel] = built.glob("*.whl")
    return wheels.Installed(wheel, tmp_path_factory.mktemp("venv"))


@pytest.fixture(autouse=True)
def _skip_without_the_real_model(request):
    "No test downloads it."
    if request.node.get_closest_marker("smol") and not request.getfixturevalue("real_model"):
        pytest.skip(
            'needs the real model: python -c "from ft_notebooks.loading.example_models import smollm2; smollm2()"'
        )


@pytest.fixture(autouse=True)
def _skip_what_is_slow(request):
    "Minutes that `.ci/run` spends only where LEG is set."
    if request.node.get_closest_marker("slow") and "slow" not in os.environ.get("NB_FLAGS", "").split():
        pytest.skip('takes long, and proves on the real model what is proved on the tiny one: NB_FLAGS="smol slow"')


@pytest.fixture(autouse=True)
def _works_in_an_empty_folder(tmp_path, monkeypatch):
    "What lies in the folder that pytest was started in, such as `runs/demo` of `ft demo`, changes no test."
    if Path.cwd() == STARTED_IN:  # else the tests of a module share a folder of theirs
        monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_no_garbage():
    "A trainer begins with `gc.collect()`, which would look at half a million objects of the libraries, each time."
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _nothing_waits_for_the_disk():
    "A power cut is tested by the order of the calls; a kill, unlike a power cut, loses nothing that was written."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _pictures_are_empty(request):
    "To draw the losses of a run takes longer than the run; tests/cli, test_report.py and notebooks test the figures."
    from matplotlib.figure import Figure

    save = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name not in ("test_lesson_runs.py", "test_notebooks.py", "test_report.py"):
            patch.setattr(Figure, "savefig", lambda self, *args, **kwargs: save(Figure(), *args, **kwargs))
        if request.path.parent.name in ("training", "checkpointing", "sft", "dpo", "rlhf"):
            import ft_notebooks.training.run as run

            patch.setattr(run, "save_figure", lambda file, draw: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _runs_need_no_memory(request):
    """To simulate a step takes longer than to train the tiny model for one, and says that it fits.

    The estimate, and the batch that a run takes by it, the tests of `loading`, of the batch plan and of memory that
    runs out test, and each notebook and each process that a test starts.
    """
    estimating = {"test_batch_plan.py", "test_out_of_memory.py"}
    estimating |= {"test_lesson_runs.py", "test_notebooks.py", "test_solutions.py"}
    with pytest.MonkeyPatch.context() as patch:
        is_trained = "torch" in sys.modules and request.path.parent.name != "loading"
        if is_trained and request.path.name not in estimating:
            name = "ft_notebooks.loading.training_memory._estimate"
            patch.setattr(name, lambda *args, **kwargs: SimpleNamespace(total=0))
        yield
