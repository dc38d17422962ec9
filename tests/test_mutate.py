"""A mutant of a proved function is killed, in the notebook and in the package; one of another function survives."""

import json
import subprocess
import sys

import pytest
from notebook_runs import ROOT

pytestmark = [pytest.mark.whole, pytest.mark.skipif(sys.platform != "linux", reason="mutants run in forks")]
PYPROJECT = """
[project]
name = "ft_notebooks"
version = "0"
[tool.nbdev]
nbs_path = "nbs"
lib_path = "ft_notebooks"
"""
SMALLER = "#| export\ndef smaller(a, b):\n    return a < b  # never equal"
LARGER = "#| export\ndef larger(a, b):\n    return a > b"
PROOF = "from ft_notebooks.sizes import order\nassert order.{0}(*{1}) is True and order.{0}(2, 2) is False"


def written(root, *cells):
    "A repository of one notebook, exported."
    cells = ["#| default_exp sizes.order", *cells]
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    every = [{"id": f"c{i}", "source": text.splitlines(keepends=True)} | code for i, text in enumerate(cells)]
    notebook = root / "nbs" / "package" / "sizes" / "order.ipynb"
    notebook.parent.mkdir(parents=True, exist_ok=True)
    notebook.write_text(json.dumps({"cells": every, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    (root / "pyproject.toml").write_text(PYPROJECT)
    module = root / "ft_notebooks" / "sizes" / "order.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(f'"""Made by nbdev."""\n\n{SMALLER}\n\n\n{LARGER}\n')
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    return notebook, module


def mutate(root):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import mutate; mutate.main()"
    command = [sys.executable, "-c", code, "--packages", "sizes", "--sample", "4"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((root / "docs" / "mutation.json").read_text())
    return record["packages"]["sizes"], done.stdout.count("larger return a > b")


def test_what_no_cell_proves_survives_until_one_does(tmp_path):
    files = written(tmp_path, SMALLER, LARGER, PROOF.format("smaller", (1, 2)))
    before = [file.read_text() for file in files]
    found, _ = mutate(tmp_path)
    assert [file.read_text() for file in files] == before
    assert {(m["line"], m["function"], m["change"], m["outcome"]) for m in found["mutants"]} == {
        (5, "smaller", "a < b -> a <= b", "killed"),
        (5, "smaller", "return a < b -> return None", "killed"),
        (10, "larger", "a > b -> a >= b", "survived"),
        (10, "larger", "return a > b -> return None", "survived"),
    }
    assert (found["tried"], found["killed"]) == (4, 2)

    written(tmp_path, SMALLER, LARGER, PROOF.format("smaller", (1, 2)), PROOF.format("larger", (2, 1)))
    found, _ = mutate(tmp_path)
    assert found["killed"] == 4 and [m.get("before") for m in found["mutants"]].count("survived") == 2


def test_a_notebook_that_fails_as_it_is_kills_nothing_and_a_note_ends_the_runs(tmp_path):
    written(tmp_path, SMALLER, LARGER, "assert smaller(2, 1)")
    found, ran = mutate(tmp_path)
    assert {m["outcome"] for m in found["mutants"]} == {"fails without a change"} and found["killed"] == 0 and ran
    record = tmp_path / "docs" / "mutation.json"
    for one in found["mutants"]:
        one["note"] = "never called"
    record.write_text(json.dumps({"packages": {"sizes": found}}))
    assert mutate(tmp_path) == (found, 0)
