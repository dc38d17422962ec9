"""A leg that turns red says which sentence became false; what GitHub runs is run here, with a `gh` that writes down.

What cannot run here: GitHub's runners, Docker, `gh` itself, and installs from git.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import planted
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = {file.name: yaml.safe_load(file.read_text()) for file in (ROOT / ".github/workflows").glob("*.yml")}
STEPS = [
    (name, step) for name, flow in WORKFLOWS.items() for job in flow["jobs"].values() for step in job.get("steps", [])
]
UNEVEN = {
    "id": "uneven",
    "notebook": "nbs/package/distributed/uneven_batches.ipynb",
    "cell": 8,
    "sentence": "In the last round the second process gets rows 0 and 1 again, while the first computes 8 and 9.",
    "section": "Uneven last batches across processes",
    "kind": "library",
}
RED = """<testsuites><testsuite>
<testcase classname="tests.test_notebooks" name="test_runs[uneven]"><properties>
<property name="notebook" value="nbs/package/distributed/uneven_batches.ipynb" /><property name="cell" value="8" />
<property name="error" value="Traceback&#10;  File &quot;&lt;ipython-input-6-6357&gt;&quot;, line 6, in f&#10;    \
assert for_two == 3&#10;  File &quot;accelerate.py&quot;, line 2, in f&#10;    raise&#10;ValueError: no&#10;rows" />
</properties><failure message="Failed: ..." /></testcase>
<testcase classname="tests.core.test_files" name="test_a"><failure message="x">def test_a():
&gt;       assert 1 == 2
E       assert 1 == 2

test_files.py:3: AssertionError</failure></testcase>
<testcase classname="tests.core.test_files" name="test_b" /></testsuite></testsuites>"""


def script(name, *words, env=None, cwd=ROOT):
    run = subprocess.run(["bash", name, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def issue_text(*words):
    command = [sys.executable, ROOT / "tools" / "broken_claims.py", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def programs(tmp_path):
    "Adds a program that writes down its words, and prints what it is told to."
    (tmp_path / "bin").mkdir()

    def add(name, says=""):
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >>"{tmp_path}/called"\n{says}\n')
        file.chmod(0o755)

    add.env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    add.called = lambda: (tmp_path / "called").read_text().splitlines()
    return add


@pytest.fixture
def red(tmp_path):
    "The report of a red leg, and the claims"
    (tmp_path / "reports/newest-3.13").mkdir(parents=True)
    (tmp_path / "reports/newest-3.13/tests.xml").write_text(RED)
    (tmp_path / "reports/newest-3.13/freeze.txt").write_text(
        "trl @ git+https://a/trl@12345\nPyYAML==6.1\ntorch==2.14+cpu\n"
    )
    (tmp_path / "reports/newest-3.13/outcome").write_text("1\n")
    (tmp_path / "green.txt").write_text("# bash .ci/green\npyyaml==6.1\ntorch==2.13.0\ntrl==1.16.0\ngone==1\n")
    (tmp_path / "claims.json").write_text(json.dumps([UNEVEN, {**UNEVEN, "cell": 12}]))
    return tmp_path


@pytest.mark.whole
@pytest.mark.parametrize(
    "library",
    ["accelerate"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("datasets", "peft")]
    + [pytest.param(name, marks=[pytest.mark.slow, pytest.mark.smol]) for name in ("transformers", "trl")],
)
def test_a_changed_default_of_a_library_gives_an_issue_with_the_sentence_that_it_makes_false(library, tmp_path):
    [row] = re.findall(rf"^\| {library}: .*", (ROOT / ".ci/README.md").read_text(), flags=re.M)
    page, quoted = (part.strip() for part in row.strip("|").split("|")[1:])
    notebook = planted.NOTICED[getattr(planted, library)]
    lesson = notebook[:2].isdigit()
    test = f"tests/test_{'lesson_runs' if lesson else 'notebooks'}.py::test_runs[{notebook}]"
    env = {**os.environ, "FT_PLANT": library, "NB_FLAGS": "smol" if library in ("transformers", "trl") else ""}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--junitxml"]
    run = subprocess.run([*command, tmp_path / "now.xml", test], cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 1 and "1 failed" in run.stdout, run.stdout + run.stderr
    said = issue_text(tmp_path / "now.xml")
    assert quoted.strip('"') in said and f"nbs/{notebook}.ipynb" in said, said
    assert re.search(r"\nAssertionError|\n\w+Error: ", said) and (lesson or notebook in page)


def test_the_issue_has_sentences_other_tests_and_the_versions_that_changed(red):
    newest = red / "reports/newest-3.13"
    words = ["--claims", red / "claims.json", "--versions", red / "green.txt", newest / "freeze.txt"]
    said = issue_text(newest / "tests.xml", *words)
    assert said.count(f"\n> {UNEVEN['sentence']}\n\n`nbs/") == 1 and "assert for_two == 3\nValueError: no\n" in said
    assert said.count(f"\n> {UNEVEN['sentence']} A single process would") == 1  # the text around the cell
    assert "sentences behind it that were not checked: 1." in said
    assert "- `tests.core.test_files::test_a`: `test_files.py:3: AssertionError`" in said and "test_b" not in said
    assert said.endswith("| torch | 2.13.0 | 2.14 |\n| trl | 1.16.0 | 12345 |\n") and "yaml" not in said
    (newest / "tests.xml").write_text("<testsuites />")
    assert "the leg ended before or beside the tests" in issue_text(newest / "tests.xml")


@pytest.mark.whole
def test_a_red_leg_opens_one_issue_writes_it_anew_and_a_green_one_closes_it(red, programs):
    words = [red / "reports", red / "green"]
    programs("gh")
    script(".ci/issue", *words, env=programs.env)
    assert [line.split(" --body")[0] for line in programs.called()][1:] == [
        "gh issue create --title The leg newest-3.13 is red"
    ]
    programs("gh", 'if [ "$2" = list ]; then echo 7; elif [ "$2" = edit ]; then cat "$5"; fi')
    said = script(".ci/issue", *words, env=programs.env)
    assert programs.called()[-1].startswith("gh issue edit 7 --body-file ") and "tests.core.test_files::test_a" in said
    (red / "reports/newest-3.13/outcome").write_text("0\n")
    script(".ci/issue", *words, env=programs.env)
    assert programs.called()[-1].startswith("gh issue close 7 ")
    assert "torch==2.14" in (red / "green/newest-3.13.txt").read_text()  # what the next red run is compared with


@pytest.mark.whole
def test_versions_that_moved_become_one_pull_request(tmp_path, programs):
    def git(*words, cwd=tmp_path / "clone"):
        return subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout

    git("init", "-q", "--bare", "origin", cwd=tmp_path)
    git("clone", "-q", "origin", "clone", cwd=tmp_path)
    (tmp_path / "clone/.ci").mkdir()
    for name in ("propose", "green.txt"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / "clone/.ci")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    programs("gh")
    (tmp_path / "green.txt").write_text("torch==3.0\n")
    (tmp_path / "proofs.json").write_text("{}")
    script(".ci/propose", tmp_path, env=programs.env, cwd=tmp_path / "clone")
    assert programs.called()[-1].startswith("gh pr create --head green-versions ")
    names = git("show", "--format=", "--name-only", "green-versions", cwd=tmp_path / "origin").split()
    assert names == [".ci/green.txt", "docs/proofs.json"]
    assert git("show", "green-versions:.ci/green.txt", cwd=tmp_path / "origin") == "torch==3.0\n"
    programs("gh", "echo 7")  # there is one already
    (tmp_path / "proofs.json").write_text('{"a": 1}')
    script(".ci/propose", tmp_path, env=programs.env, cwd=tmp_path / "clone")
    assert programs.called()[-1].startswith("gh pr list ")


@pytest.mark.whole
@pytest.mark.parametrize("leg, code", [("main", 0), ("green", 0), ("green", 1)])
def test_a_leg_leaves_its_report_whether_or_not_its_tests_pass(leg, code, tmp_path, programs):
    (tmp_path / ".ci").mkdir()
    for name in (".ci/run", ".ci/green.txt", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    programs(
        "python", f'[ "$1" != tools/proofs.py ] || (mkdir "{tmp_path}/docs" && touch "{tmp_path}/docs/proofs.json")'
    )
    programs("pip", 'if [ "$1" = freeze ]; then echo "torch==9; $PIP_CONSTRAINT"; fi')
    programs("pytest", f"exit {code}")
    env = {**programs.env, "LEG": leg, "VENV": str(tmp_path)}
    run = subprocess.run(["bash", tmp_path / ".ci/run"], env=env, capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert (tmp_path / ".nb/report/outcome").read_text() == f"{code}\n"
    assert "pytest -q --junitxml=.nb/report/tests.xml" in programs.called()
    install = next(line for line in programs.called() if line.startswith("pip install"))
    assert ("transformers @ git+https://github.com/huggingface/transformers" in install) == (leg == "main")
    proposed = {"green.txt", "proofs.json"} if (leg, code) == ("green", 0) else set()
    assert {file.name for file in (tmp_path / ".nb/report").iterdir()} == {"freeze.txt", "outcome"} | proposed
    assert ("green.txt" in (tmp_path / ".nb/report/freeze.txt").read_text()) == (leg == "green")


@pytest.mark.whole
def test_inside_colab_s_image_nothing_is_installed_but_by_the_page_s_own_cell(tmp_path, programs):
    (tmp_path / ".ci").mkdir()
    for name in (".ci/run", ".ci/colab"):
        shutil.copy(ROOT / name, tmp_path / name)
    commit = "git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm first"
    subprocess.run(["bash", "-c", commit], cwd=tmp_path, check=True)
    programs("python", 'if [ "$3" = freeze ]; then echo torch==9; fi')
    programs("ft", "exit 3")
    env = {**programs.env, "LEG": "colab-image"}
    run = subprocess.run(["bash", tmp_path / ".ci/run"], env=env, capture_output=True, text=True)
    assert run.returncode == 3, run.stderr
    install = "python ../../.ci/cells.py ../../nbs/colab.ipynb --install"
    assert [line for line in programs.called() if "import" not in line] == [
        install,
        install,
        "python -m pip freeze",
        "ft gpu --device cpu --output .nb/colab/check",
    ]
    assert (tmp_path / ".nb/report/outcome").read_text() == "3\n"
    assert (tmp_path / ".nb/report/freeze.txt").read_text() == "torch==9\n"


@pytest.mark.whole
def test_a_cell_that_fails_as_on_colab_is_in_the_report(tmp_path):
    cells = [{"cell_type": "markdown", "source": ["text"]}, {"cell_type": "code", "source": ["assert 2 == 3"]}]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    command = [sys.executable, ROOT / ".ci/cells.py", tmp_path / "a.ipynb", "--report", tmp_path / "a.xml"]
    assert subprocess.run(command, capture_output=True, env={**os.environ, "IPYTHONDIR": str(tmp_path)}).returncode == 1
    claims = [{**UNEVEN, "notebook": str(tmp_path / "a.ipynb"), "cell": 1}]
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    said = issue_text(tmp_path / "a.xml", "--claims", tmp_path / "claims.json")
    assert f"> {UNEVEN['sentence']}\n" in said and "assert 2 == 3\nAssertionError" in said


def test_what_the_link_checker_reads_holds_the_links_of_notebooks(tmp_path):
    subprocess.run([sys.executable, ROOT / ".ci/links.py", tmp_path], check=True)
    texts = {file.name: file.read_text() for file in tmp_path.glob("*.md")}
    assert sum("https://arxiv.org/" in text for text in texts.values()) > 5
    for name in texts:  # what the report of a broken link says
        assert re.fullmatch(r".+\.md\.md|nbs_\w+\.ipynb, cell \d+\.md", name), name


def test_each_time_of_the_schedule_starts_its_legs():
    flow = WORKFLOWS["ci.yml"]
    daily, weekly = (one["cron"] for one in flow[True]["schedule"])  # YAML 1.1 reads `on` as true
    assert daily.endswith(" * * *") and weekly.endswith(" * * 1")
    when = {name: job.get("if", "") for name, job in flow["jobs"].items()}
    assert when["run"] == f"github.event.schedule != '{weekly}'"  # each push, and daily
    assert when["main"] == f"github.event.schedule == '{daily}'"
    assert {when[name] for name in ("green", "colab-image", "links")} == {f"github.event.schedule == '{weekly}'"}
    assert when["issue"] == "always() && github.event_name == 'schedule'"
    assert {*flow["jobs"]["issue"]["needs"]} == flow["jobs"].keys() - {"issue", "propose"}


def test_a_workflow_runs_scripts_of_the_repository_that_tests_run_too():
    ours = ("ci.yml", "leg.yml")
    plain = [step["run"] for name, step in STEPS if name in ours and "run" in step]
    scripts = {word for run in plain for word in re.findall(r"\.ci/[\w.]+", run)}
    assert scripts == {".ci/run", ".ci/green", ".ci/propose", ".ci/issue", ".ci/links.py"}
    assert all((ROOT / name).exists() for name in scripts)
    for run in plain:  # their expressions stand in `env`, so the shell sees what stands here
        assert "${{" not in run
        subprocess.run(["bash", "-n", "-c", run], check=True)


def test_only_the_job_of_issues_may_write_issues_and_only_that_of_versions_may_write_files():
    jobs = {name: job.get("permissions", {}) for name, job in WORKFLOWS["ci.yml"]["jobs"].items()}
    assert WORKFLOWS["ci.yml"]["permissions"] == WORKFLOWS["leg.yml"]["permissions"] == {"contents": "read"}
    writing = {name: sorted(key for key, value in given.items() if value == "write") for name, given in jobs.items()}
    assert {name: keys for name, keys in writing.items() if keys} == {
        "issue": ["issues"],
        "propose": ["contents", "pull-requests"],
    }
