"What `ft doctor` prints about rows, the page, and the files that it writes."

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.doctor import unusual_rows
from ft_notebooks.doctor.context import Context
from ft_notebooks.doctor.diagnosis import examine

LATE = [7, 19, 23, 31, 40, 52]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rows = appointments(60, seed=0).to_list()
    for i in LATE:
        answer = rows[i]["messages"][-1]
        hour, minute = map(int, answer["content"][-7:-2].split(":"))
        answer["content"] = f'{answer["content"][:-7]}{hour:02d}:{(minute + 25) % 60:02d}"}}'
    file = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def warnings(written):
    "Of the findings that `--json` prints."
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(written.parent), pytest.raises(SystemExit) as end:
        main(["doctor", "notes.jsonl", "--quick", "--json"])
    assert end.value.code == 1
    return [one for one in json.loads(out.getvalue())["findings"] if one["level"] == "warning"]


@pytest.fixture
def notes(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(written, tmp_path))


def doctor(capsys, *words):
    "What the command prints, and its exit code."
    code = 0
    try:
        main(["doctor", "notes.jsonl", "--quick", *words])
    except SystemExit as e:
        code = e.code
    return capsys.readouterr(), code


@pytest.mark.whole
def test_a_finding_about_rows_names_them_shows_them_and_says_how_to_see_more(notes, warnings, capsys):
    found = [one for one in warnings if "rows" in one]
    assert sorted(found[0]["rows"]) == LATE
    text, _ = doctor(capsys)
    assert "Probably wrong" in text.out and "as usual, row" in text.out and "Not looked at: the model" in text.out
    assert f"ft doctor notes.jsonl --quick --show {found[0]['code']}" in text.out


@pytest.mark.whole
def test_rows_are_shown_in_full_or_left_out_of_a_new_file(notes, warnings, capsys):
    text, code = doctor(capsys, "--show", "7, 3")
    assert code == 0 and text.out.index("row 7 ") < text.out.index("row 3 ") and "notes.jsonl:8" in text.out
    doctor(capsys, "--show", warnings[0]["code"], "--drop", "clean.jsonl")
    rows = notes.read_text(encoding="utf-8").splitlines()
    kept = [json.loads(row) for i, row in enumerate(rows) if i not in LATE]
    clean = notes.with_name("clean.jsonl")
    assert [json.loads(line) for line in clean.read_text(encoding="utf-8").splitlines()] == kept
    before = clean.read_bytes()
    text, code = doctor(capsys, "--show", "1", "--drop", "clean.jsonl")
    assert code == 2 and "is there already" in text.err and clean.read_bytes() == before
    for words, said in ((["--show", "no-such-code"], "no finding"), (["--drop", "x"], "say which rows")):
        text, code = doctor(capsys, *words)
        assert code == 2 and said in text.err
    everything = ",".join(map(str, range(60)))
    text, code = doctor(capsys, "--show", everything, "--drop", "none.jsonl")
    assert code == 2 and "nothing would be left" in text.err and not notes.with_name("none.jsonl").exists()
    assert notes.read_text(encoding="utf-8").splitlines() == rows


@pytest.mark.whole
def test_what_is_meant_so_is_said_no_more(notes, warnings, capsys):
    codes = {one["code"] for one in warnings}
    out, code = doctor(capsys, "--json", "--set", f"data.intended={','.join(codes)}")
    assert code == 0 and not codes & {one["code"] for one in json.loads(out.out)["findings"]}


@pytest.mark.whole
def test_the_page_escapes_what_rows_hold(notes, capsys):
    rows = notes.read_text(encoding="utf-8").replace(
        "Answer with one line", "<script>alert(1)</script> Answer with one line"
    )
    notes.write_text(rows.replace("with ", "<img src=x onerror=alert(1)> "), encoding="utf-8")
    doctor(capsys, "--html", "page.html")
    page = notes.with_name("page.html").read_text(encoding="utf-8")
    assert "<h2>" in page and "<script" not in page and "<img" not in page and "&lt;img" in page


def test_each_code_of_an_instrument_may_be_called_intended():
    folder = Path(unusual_rows.__file__).parents[1] / "instruments"
    written = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py") if "pair" not in file.name)
    behind = r"(?:code=|Anomaly\(\s*|_Property\(\s*|_(?:wrong_in_some|misread)\(\s*texts,\s*)"
    made = set(re.findall(rf'{behind}"([a-z-]+)"', written))
    assert len(made) > 25
    assert {code for code in made if not code.startswith("reward")} - {"answers-missing"} <= {*unusual_rows.CODES}


def test_an_unknown_code_that_is_intended_names_the_nearest():
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    with pytest.raises(ValueError, match="'all-escape'; the nearest is 'all-escapes'"):
        examine(Context("sft", {"data": {"intended": "all-escape"}}, {"whole": lambda: rows}, rows))
