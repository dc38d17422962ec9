"What a release relies on: the workflows, the tag, one version everywhere, and the container to develop in."

import json
import re
import subprocess
import tomllib
from datetime import date
from pathlib import Path

import pytest
import yaml

import ft_notebooks

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
PUBLISHES = ("release.yml", "publish")  # the only job that may sign what is released
PAGES = ("site.yml", "publish")  # its token names the deployment to GitHub Pages


def jobs():
    for file in WORKFLOWS:
        for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items():
            yield file.name, name, job


def test_there_are_workflows():
    assert {"ci.yml", "release.yml"} <= {file.name for file in WORKFLOWS}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_an_action_is_pinned_by_its_commit_with_the_version_beside_it(file):
    used = re.findall(r"^ *(?:- )?uses: *(.+)$", file.read_text(encoding="utf-8"), flags=re.M)
    pinned = r"\./\S+|[\w.-]+/[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+"
    assert used and [one for one in used if not re.fullmatch(pinned, one)] == []


def test_an_action_has_the_same_commit_in_all_workflows():
    text = "\n".join(file.read_text(encoding="utf-8") for file in WORKFLOWS)
    used = set(re.findall(r"uses: *([\w./-]+)@(.+)", text))
    assert len({action for action, _ in used}) == len(used), sorted(used)


def test_a_workflow_may_only_read_and_a_job_that_writes_says_so():
    for file in WORKFLOWS:
        whole = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert set(whole["permissions"].values()) <= {"read"}, file.name  # KeyError: none are given, which gives all
    signing = [(file, name) for file, name, job in jobs() if "id-token" in job.get("permissions", {})]
    assert signing == [PUBLISHES, PAGES]


def test_the_legs_of_the_workflows_are_those_of_ci_run():
    told = re.search(r"set LEG=(.+), or leave it out", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))[1]
    known = {"", *re.split(", | or ", told)}
    used = set()
    for _, _, job in jobs():
        matrix = job.get("strategy", {}).get("matrix", {})
        used |= {*matrix.get("leg", ()), *(one["leg"] for one in matrix.get("include", ()) if "leg" in one)}
    assert {"", "lowest"} <= used <= known


def test_what_is_published_was_built_from_a_tag_that_is_the_version():
    steps = {name: job["steps"] for file, name, job in jobs() if file == "release.yml"}
    assert [*steps] == ["build", "wheel", "publish"]
    runs = [step.get("run", "") for step in steps["build"]]
    assert runs.index('bash .ci/tag "$GITHUB_REF_NAME"') < next(n for n, run in enumerate(runs) if "-m build" in run)
    assert [step["uses"].partition("@")[0] for step in steps["publish"]][1:] == [
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]


def test_the_wheel_is_tried_on_three_pythons_before_it_is_published():
    tried, published = (job for file, name, job in jobs() if file == "release.yml" and name != "build")
    pythons = tried["strategy"]["matrix"]["python"]
    assert len(pythons) == 3 and PROJECT["requires-python"] == f">={pythons[0]}" and "wheel" in published["needs"]
    runs = [step["run"] for step in tried["steps"] if "run" in step]
    assert "--only-binary=:all: dist/*.whl" in runs[0] and runs[1].endswith(' PATH="$RUNNER_TEMP/try/bin" ft demo')


@pytest.mark.whole
def test_a_tag_that_differs_from_the_version_is_refused():
    version = ft_notebooks.__version__
    tag = ["bash", ROOT / ".ci" / "tag"]
    assert subprocess.run([*tag, f"v{version}"]).returncode == 0
    refused = subprocess.run([*tag, f"v{version}.1"], capture_output=True, text=True)
    told = f"the tag is v{version}.1 and the version {version}: change __version__ in ft_notebooks/__init__.py"
    assert refused.returncode == 1 and refused.stderr.startswith(told)


def test_package_changelog_and_citation_name_one_version_and_one_day():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, day = re.search(r"^## (\d\S*) \((\S+)\)$", log, flags=re.M).groups()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (newest, cited["version"]) == (ft_notebooks.__version__,) * 2
    assert date.fromisoformat(day) == cited["date-released"]
    entry = log.partition(f"## {newest} ")[2].partition("\n## ")[0]
    assert len(entry.splitlines()) <= 40


def test_the_citation_has_the_keys_that_its_schema_asks_for():
    "github.com/citation-file-format: the required keys of 1.2.0, and those of an author that is a group."
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    allowed = (
        "abstract authors cff-version date-released keywords license message repository-code title type url version"
    )
    assert cited.keys() <= {*allowed.split()}
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert cited["authors"] and all(author.keys() == {"name"} for author in cited["authors"])


def test_the_container_installs_the_lab_and_opens_lesson_0():
    "Keys of containers.dev's reference for a container that is made from an image."
    made = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert made.keys() <= {"name", "image", "postCreateCommand", "containerEnv", "customizations", "hostRequirements"}
    assert re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:[\w.-]+", made["image"])
    assert ".[lab]" in made["postCreateCommand"]
    [lesson] = made["customizations"]["codespaces"]["openFiles"]
    assert (ROOT / lesson).is_file() and lesson.startswith("nbs/00_")


def test_security_names_commands_and_switches_that_are_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for file in re.findall(r"`((?:tests|nbs|ft_notebooks)/[\w/.]+)`|\]\((\S+)\)", text):
        assert (ROOT / "".join(file)).exists(), file
    assert f"| {ft_notebooks.__version__.rpartition('.')[0]}." in text
