"AGENTS.md: its commands run as they stand, and its tables say what the code does."

import json
import re
import shlex
from pathlib import Path

import pytest
from small_exports import on_few_texts

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.doctor.diagnosis import COULD_NOT
from ft_notebooks.doctor.findings import LEVELS, Finding
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole

PAGE = (Path(__file__).resolve().parents[1] / "AGENTS.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()]
COMMANDS = [line for line in COMMANDS if line.startswith("ft ")]
SETTINGS = "[model]\nname = tiny\n[data]\neval = 0.1\n[sft]\nmax_steps = 4\neffective_batch = 4\nbf16 = false\n"


def table(heading):
    "The first column of the table with this heading, with what stands beside it."
    rows = PAGE.partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return dict(re.fullmatch(r"\| `?(\w[\w, ]*)`? \| (.+) \|", row).groups() for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Rows of which twelve have an answer that is an hour late."
    folder = tmp_path_factory.mktemp("agent")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    rows = appointments(100).to_list()
    for row in rows[:96:8]:
        answer = json.loads(row["messages"][-1]["content"])
        hour, _, minute = answer["time"].partition(":")
        row["messages"][-1]["content"] = json.dumps({**answer, "time": f"{(int(hour) + 1) % 24:02}:{minute}"})
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "settings.ini").write_text(SETTINGS)
    return folder


@pytest.fixture
def ft(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    on_few_texts(monkeypatch)

    def run(line):
        "What the command prints to stdout, and its exit code."
        try:
            main(shlex.split(line)[1:])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return capsys.readouterr().out, code

    return run


def test_each_command_runs_and_prints_what_the_page_says(ft):
    assert [line.split()[1] for line in COMMANDS] == ["doctor", "doctor", "sft", "check", "eval", *["doctor"] * 3]
    said = {line: ft(line) for line in COMMANDS}
    for line, (out, code) in said.items():
        if "doctor" not in line or "--json" not in line:
            assert code == 0, (line, out)
            continue
        printed = json.loads(out)
        assert set(printed) == {"findings", "seconds"}
        levels = {one["level"] for one in printed["findings"]}
        assert code == (1 if levels & {"error", "warning"} else 0)
    links = json.loads(said["ft check runs/sft --json"][0])["links"]
    assert [set(link) for link in links] == [{"name", "state", "said"}] * len(links)
    assert {link["state"] for link in links} <= {"right", "unknown"} and len(links) == 8
    whole, of_finding, dropped = (out for line, (out, _) in said.items() if "--show" in line)
    assert "row 3" in whole and "row 17" in whole and "row 8" in of_finding and "88 of 100 rows" in dropped


def test_what_is_wrong_ends_with_the_code_of_the_page(ft):
    codes = table("code")
    assert codes["2"].startswith(f"a check could not look (`{COULD_NOT}`), or what you typed is wrong: then stdout")
    assert ft("ft doctor") == ("", 2) and ft("ft check runs/none --json") == ("", 2)
    out, code = ft("ft doctor none.jsonl --quick --json")
    assert (code, json.loads(out)["findings"][0]["level"]) == (1, "error")


def test_the_fields_are_those_of_a_finding():
    finding = Finding("a", "note", "b", "c", "d", "e", "f", rows=(1,))
    assert [*table("field")] == [*finding.as_json()]


def test_each_level_has_a_line():
    assert [*table("level")] == [*reversed(LEVELS)]


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 100
