"""The sdist and the wheel hold what they should and nothing else, and the wheel works without git and a compiler.

Both are built from what a commit would hold, beside files that git ignores. The build takes the setuptools of this
environment: in one of its own it would download it.
"""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import ft_notebooks
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parents[1]
NAME = f"ft_notebooks-{ft_notebooks.__version__}"
MADE = {"PKG-INFO", "setup.cfg"}  # by setuptools, beside the .egg-info
NOT_NEEDED = {".gitattributes", ".pre-commit-config.yaml", "benchmarks/faults/faults.json"}  # by a build or a test
IGNORED = [  # what lies in a folder that somebody works in
    "build/lib/old.py",
    "ft_notebooks/__pycache__/x.cpython-311.pyc",
    "nbs/.ipynb_checkpoints/00-checkpoint.ipynb",
    "nbs/runs/course/adapter_model.safetensors",
    "nbs/solutions/runs/sft/manifest.json",
    "benchmarks/course/runs/rates/log.json",
    "tests/__pycache__/conftest.cpython-311.pyc",
    "tests/.hypothesis/examples",
    ".nb/00_first_fine_tune.py",
    ".venv/bin/python",
    ".pytest_cache/README.md",
    "runs/demo/manifest.json",
    "gpu_check/table.md",
]
MOST_BYTES = {"whl": 1_200_000, "tar.gz": 20_000_000}


@pytest.fixture(scope="module")
def built(files, tmp_path_factory) -> Path:
    "The folder with both; the wheel is made from the sdist."
    source, to = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for file in [*files, *map(ROOT.joinpath, IGNORED)]:
        copy = source / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy) if file in files else copy.write_text("ignored")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", to, source]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert sorted(file.name for file in to.iterdir()) == [f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"]
    return to


@pytest.fixture
def names(files) -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_the_wheel_holds_the_package_and_its_data(built, names):
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        held = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    expected = {name for name in names if name.startswith("ft_notebooks/")}
    assert len(expected) > 250 and held == expected, f"package-data of pyproject.toml: {sorted(held ^ expected)}"


def test_the_sdist_holds_what_a_build_and_the_tests_need(built, names):
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        held = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    held = {name for name in held if not name.startswith("ft_notebooks.egg-info/")} - MADE
    records = {name for name in names if name.startswith("benchmarks/faults/blind/") and name.endswith(".json")}
    expected = names - NOT_NEEDED - records
    assert len(expected) > 700 and held == expected, f"MANIFEST.in: {sorted(held ^ expected)}"


def test_both_are_small(built):
    for ending, most in MOST_BYTES.items():
        [file] = built.glob(f"*.{ending}")
        assert file.stat().st_size < most, f"{file.name} has {file.stat().st_size:,} bytes: what is new in it?"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs a command of an environment that has the wheel, in an empty folder, without git and without a compiler.

    The libraries are those of this environment: its folder is read after that of the wheel, without its `.pth` files,
    so that an editable install is not seen.
    """
    place, folder = tmp_path_factory.mktemp("venv"), tmp_path_factory.mktemp("empty")
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    [wheel] = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    [packages] = place.glob("lib/python*/site-packages")
    libraries = [path for path in [*site.getsitepackages(), site.getusersitepackages()] if Path(path).is_dir()]
    (packages / "libraries.pth").write_text("\n".join(libraries))
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE") if name in os.environ}
    env = {**kept, "PATH": str(place / "bin"), "HOME": str(folder)}

    def run(*words, code=0):
        done = subprocess.run(
            [place / "bin" / words[0], *words[1:]], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    run.place, run.folder, run.path = place, folder, env["PATH"]
    return run


def test_the_installed_package_is_the_wheel_s_and_there_is_neither_git_nor_a_compiler(installed):
    assert not [tool for tool in ("git", "gcc", "cc", "c++", "clang") if shutil.which(tool, path=installed.path)]
    where = installed("python", "-c", "import ft_notebooks; print(ft_notebooks.__file__)")
    assert Path(where.strip()).is_relative_to(installed.place)
    assert installed("ft", "--version").split()[-1] == ft_notebooks.__version__
    assert installed("ft", "--help").startswith("usage: ft COMMAND")


def test_the_doctor_of_the_wheel_looks_at_three_rows_and_a_model(installed):
    tiny_tokenizer().save_pretrained(installed.folder / "tiny")
    tiny_model().save_pretrained(installed.folder / "tiny")
    appointments(3).to_json(installed.folder / "rows.jsonl")
    said = installed("ft", "doctor", "rows.jsonl", "--set", "model.name=tiny", "--json", code=1)
    found = {one["code"]: one["level"] for one in json.loads(said)["findings"]}
    assert (found["rows-few"], found["model-mismatched"]) == ("note", "warning") and "error" not in found.values()
