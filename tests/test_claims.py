"""The ledger finds each proof and its sentence, and a figure that nothing shows."""

import json
import subprocess
import sys

import pytest
from notebook_runs import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import claims
import proofs

HEAD = {"metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def notebook(folder, *sources):
    "A saved notebook: texts that begin with # or a capital are Markdown, the others code."
    cells = []
    for i, source in enumerate(sources):
        cell = {"id": f"c{i}", "metadata": {}, "source": source.splitlines(keepends=True)}
        if source.startswith("#|") or source[0].islower():
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        else:
            cell |= {"cell_type": "markdown"}
        cells.append(cell)
    file = folder / "a.ipynb"
    file.write_text(json.dumps({"cells": cells, **HEAD}))
    return file


@pytest.fixture(autouse=True)
def _notebooks_lie_here(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "ROOT", tmp_path)


@pytest.mark.parametrize(
    "code, kind",
    [
        ("assert rows == 3", "assertion"),
        ("from trl import SFTTrainer\nassert loss == SFTTrainer(model).loss", "library"),
        ("with expect_fail(ValueError):\n    read([])", "error"),
        ("runs = measured('rates')", "measurement"),
        ("print(rows)", None),
    ],
)
def test_what_makes_a_cell_a_proof(tmp_path, code, kind):
    found = claims.claims(notebook(tmp_path, "# Rows\n\nThe file is there. Three rows of it are read:", code))
    assert [one["kind"] for one in found] == [kind] * bool(kind)
    if kind:
        records = found[0].pop("records", [])
        assert records == ["ft_notebooks/course/measurements/rates.json"] * (kind == "measurement")
        assert found[0] | {"kind": ""} == {
            "id": "a#c1", "notebook": "a.ipynb", "cell": 1, "section": "Rows", "sentence": "Three rows of it are read.",
            "kind": "",
        }  # fmt: skip


def test_a_folded_cell_proves_the_sentence_behind_it_unless_another_is_nearer():
    said = ["We read the file.", "Its padding is 0.", "The end token stays."]
    assert claims.nearest("assert ids[-1] == 2", said, said[2]) == said[2]
    assert claims.nearest("assert padding == 0", said, said[2]) == said[1]
    said = ["It cuts after 1,024 tokens.", "A high length costs nothing."]
    assert claims.nearest("assert high_length == 1024", said, said[1]) == said[0]


def test_a_sentence_of_the_ledger_can_be_read_alone():
    said = claims.sentences(
        "[Hu et al.](u) (2021) did it. The rank of it is *small*, see [lesson 7](u):\n\nWhy is that?"
    )
    assert [claims.plain(one) for one in claims.alone(said)] == [
        "Hu et al. (2021) did it.", "The rank of it is small, see lesson 7.",
    ]  # fmt: skip
    assert claims.alone(["The loss falls in each step of it.", "It stays at 0."]) == [
        "The loss falls in each step of it.", "The loss falls in each step of it. It stays at 0.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sentence, found",
    [
        ("It is right in 37 of 40.", ["37"]),
        ("It is right in 38 of 40.", []),  # in the output
        ("It is right in 95% of them.", []),  # 0.95 in the output
        ("It needs 1.4 seconds more.", ["1.4"]),
        ("With `max_length=512` it stops, see lesson 17.", []),
        ("TRL 1.16 does it.", []),
        ("Two of three, or 12.", []),  # counts up to twelve are words
    ],
)
def test_a_figure_that_no_cell_shows(tmp_path, sentence, found):
    file = notebook(tmp_path, "# Title\n\n" + sentence, "assert score == 0.95 and len(rows) == 40\nprint(38)")
    assert [one["figures"] for one in claims.unproved(file)] == ([found] if found else [])
    if found:
        assert claims.unproved(file)[0]["kind"] == "not asserted"


def test_a_figure_with_its_source_is_cited(tmp_path):
    file = notebook(tmp_path, "# Title\n\n[Hu et al.](https://arxiv.org/abs/2106.09685) found 93.4 of 100.", "x = 1")
    assert [one["kind"] for one in claims.unproved(file)] == ["cited"]


def test_a_section_without_a_proof_and_a_cell_that_waits_for_a_gpu(tmp_path):
    file = notebook(
        tmp_path, "# Title", "## Why it works\n\nIt just does so.", "## Speed\n\nIt is fast there.", "#| gpu\nrun()"
    )
    kinds = {one["sentence"]: one["kind"] for one in claims.without_proof(file)}
    assert kinds == {"It just does so.": "explained", "It is fast there.": "not run yet"}


def test_what_guides_say_is_in_the_ledger_with_what_is_true(tmp_path):
    table = "| claim | what is true |\n|---|---|\n| alpha is 2r | it depends |"
    found = claims.corrected(notebook(tmp_path, f"# Title\n\n## What guides say\n\n{table}\n\nMore."))
    assert [(one["sentence"], one["verdict"]) for one in found] == [("alpha is 2r", "it depends |".rstrip(" |"))]


def test_a_claim_of_the_ledger_has_its_last_green_run_and_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "PROOFS", tmp_path / "proofs.json")
    (tmp_path / "nbs").mkdir()
    cells = "# Title", "Eight are right.", 'runs = measured("rates")', "The card is fast.", "#| gpu\nrun()"
    found = claims.found_in(notebook(tmp_path / "nbs", *cells))
    assert [one["proof"] for one in claims.with_proofs(found)] == [None, None]  # no run is on record
    run = {"python": "3.11.7", "device": "CPU", "versions": {"torch": "2.13.0"}}
    one = {"a": {"run": "2026-11-30", "seconds": 3}}
    (tmp_path / "proofs.json").write_text(json.dumps({"runs": {"2026-11-30": run}, "notebooks": one}))
    measured, waiting = claims.with_proofs(found)
    assert measured["proof"] == {"run": "2026-11-30", "seconds": 3, **run}
    assert measured["records"] == ["ft_notebooks/course/measurements/rates.json"]
    assert (waiting["kind"], waiting["proof"]) == ("not run yet", None)


def test_what_a_measurement_is_read_from_has_command_seeds_machine_and_versions():
    assert len(claims.MEASUREMENTS) > 30
    lacks = {  # what is no figure that a seed or a machine changes
        "families.json": {"command", "seeds", "machine"},  # what works with which family, read by benchmarks/families
        "questions.json": {"seeds", "machine", "versions"},  # answers to people's questions, counted by readers
        "what_fits.json": {"seeds", "machine"},  # bytes by arithmetic
    }
    for file in claims.MEASUREMENTS:
        needed = {"command", "seeds", "machine", "versions"} - lacks.get(file.name, set())
        assert needed <= json.loads(file.read_text()).keys(), file.name


def test_the_ledger_has_the_claims_of_guides_and_the_share_of_broken_functions_that_was_noticed(monkeypatch):
    monkeypatch.setattr(claims, "ROOT", ROOT)
    guides = [one for book in claims.notebooks() for one in claims.corrected(book)]
    assert len(guides) >= 90 and all(one["verdict"] for one in guides)
    packages = json.loads((ROOT / "docs" / "mutation.json").read_text())["packages"]
    assert {"data", "sft", "dpo", "rlhf", "evaluation", "export"} <= packages.keys()
    mutants = [(name, one) for name, package in packages.items() for one in package["mutants"]]
    assert [(name, one) for name, one in mutants if one["outcome"] != "killed" and not one.get("note")] == []


def test_a_new_section_without_a_proof_is_named_with_notebook_cell_and_sentence(tmp_path, monkeypatch, capsys):
    file = notebook(tmp_path, "# Title", "## Why it works\n\nIt just does so.", "x = 1")
    monkeypatch.setattr(sys, "argv", ["claims.py", "--check", str(file)])
    claims.main()
    monkeypatch.setattr(claims, "EXPLAINED", 0)
    with pytest.raises(SystemExit, match="1 sections prove nothing, at most 0"):
        claims.main()
    assert "a.ipynb, cell 1, Why it works: no cell proves\n  It just does so.\n" in capsys.readouterr().out


def test_each_figure_of_the_course_is_shown_or_has_a_source():
    command = [sys.executable, ROOT / "tools" / "claims.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_a_test_that_passed_gives_a_notebook_a_new_date(tmp_path):
    report = tmp_path / "report.xml"
    cases = [
        '<testcase name="test_runs[10_sft]" time="12.34"/>',
        '<testcase name="test_runs[11_choosing_settings]" time="1"><failure message="x"/></testcase>',
        '<testcase name="test_runs[12_dpo]" time="0"><skipped/></testcase>',
        '<testcase name="test_other" time="3"/>',
        '<testcase name="test_runs[a/b]" time="1"><properties><property name="flags" value="smol slow"/></properties>'
        "</testcase>",
    ]
    suite = f'<testsuite timestamp="2026-11-30T20:00:00">{"".join(cases)}</testsuite>'
    report.write_text(f"<testsuites>{suite}</testsuites>")
    assert proofs.passed(report) == {
        "10_sft": {"run": "2026-11-30", "seconds": 12.3},
        "a/b": {"run": "2026-11-30", "seconds": 1.0, "slow": True},
    }
