"The sdist and the wheel hold what they should and nothing else, and the wheel works without git and a compiler."

import json
import shutil
import tarfile
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
MOST_BYTES = {"whl": 1_200_000, "tar.gz": 20_000_000}


@pytest.fixture
def names(files) -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_the_wheel_holds_the_package_and_its_data(built, names):
    assert sorted(file.name for file in built.iterdir()) == [f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"]
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


def test_the_wheel_answers_without_git_and_without_a_compiler(installed, tmp_path):
    assert not [tool for tool in ("git", "gcc", "cc", "c++", "clang") if shutil.which(tool, path=str(installed.bin))]
    where = installed.run(tmp_path, "python", "-c", "import ft_notebooks; print(ft_notebooks.__file__)")
    assert Path(where.strip()).is_relative_to(installed.place)
    assert installed.run(tmp_path, "ft", "--version").split()[-1] == ft_notebooks.__version__
    assert installed.run(tmp_path, "ft", "--help").startswith("usage: ft COMMAND")


def test_the_doctor_of_the_wheel_looks_at_three_rows_and_a_model(installed, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    tiny_model().save_pretrained(tmp_path / "tiny")
    appointments(3).to_json(tmp_path / "rows.jsonl")
    said = installed.run(tmp_path, "ft", "doctor", "rows.jsonl", "--set", "model.name=tiny", "--json", code=1)
    found = {one["code"]: one["level"] for one in json.loads(said)["findings"]}
    assert (found["rows-few"], found["model-mismatched"]) == ("note", "warning") and "error" not in found.values()
