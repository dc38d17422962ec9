"`ft kto`: from rated answers or pairs in a file to a run; what is refused, and what `ft doctor` finds."

import json
import random
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ft_notebooks.cli.commands import main
from ft_notebooks.course.demo_task import demo_pairs
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole

SETTINGS = ("kto.bf16=false", "model.bits=32", "kto.effective_batch=4", "kto.learning_rate=1e-3", "model.name=tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kto")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    tiny_model().save_pretrained(folder / "tiny")
    pairs = demo_pairs(16, 0).to_list()
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    rated = []
    for pair in pairs:
        rated.append({"prompt": pair["prompt"], "completion": pair["chosen"], "thumbs": "up", "stars": 5})
        rated.append({"prompt": pair["prompt"], "completion": pair["rejected"], "thumbs": "down", "stars": 2})
    (folder / "rated.jsonl").write_text("\n".join(map(json.dumps, rated)))
    return folder


@pytest.fixture
def here(files, monkeypatch):
    monkeypatch.chdir(files)
    return files


def kto(output, *more, data="rated.jsonl"):
    settings = (*SETTINGS, *more)
    main(["kto", data, "--output", output, *(part for setting in settings for part in ("--set", setting))])


def refused(capsys, *argv, **given):
    with pytest.raises(SystemExit) as e:
        kto(*argv, **given)
    assert e.value.code == 2
    return capsys.readouterr().err


def test_rated_answers_and_the_pairs_that_they_came_from_train_the_same_model(here, capsys):
    settings = ("kto.max_steps=2", "data.eval=0.25")
    kto("rated", *settings)
    said = capsys.readouterr().out
    assert "16 of 32 rows count as good" in said and "rated answers to train on, 8 held out" in said
    assert said.index("«{") < said.index("That answer is rated good, this one bad:") < said.index("KL term of all 4")
    assert "reward accuracy" in said and "(4 good, 4 bad)" in said
    kto("apart", *settings, data="pairs.jsonl")
    assert "16 pairs taken apart: 32 rated answers" in capsys.readouterr().out
    one, two = (load_file(Path(run, "adapter_model.safetensors")) for run in ("rated", "apart"))
    assert all((one[name] == two[name]).all() for name in one)
    metrics = json.loads(Path("rated/metrics.json").read_text())
    assert metrics["reward_accuracy"]["n"] == 8 and "logps" not in metrics
    main(["eval", "rated", "--set", "evaluation.max_new_tokens=3"])
    report = json.loads(Path("rated/eval/report.json").read_text())
    assert list(report) == ["base", "kto"] and report["kto"]["exact_match"]["n"] == 4  # the good answers


ROW = {"prompt": "Hi", "completion": "Hello"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW, ["bad.jsonl:2", "the row has no label", "--set data.label=COLUMN"]),
        ({**ROW, "label": "maybe"}, ["bad.jsonl:2", "the \"label\" is 'maybe'", "good or bad"]),
        ({**ROW, "rating": 4}, ["bad.jsonl:2", 'the "rating" is 4', "rating_at_least=4"]),
        ({"prompt": "Hi", "label": True}, ["bad.jsonl:2"]),
        ({**ROW, "completion": " ", "label": True}, ["bad.jsonl:2", 'blank "completion"']),
    ],
)
def test_a_row_that_is_not_rated_is_refused_by_its_line(here, capsys, row, said):
    Path("bad.jsonl").write_text("\n".join(map(json.dumps, [{**ROW, "label": True}, row])))
    error = refused(capsys, "bad", data="bad.jsonl")
    assert all(part in error for part in said), error


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("kto.sync_ref_model=true", "the reference is the model at the start of training"),
        ("kto.precompute_ref_log_probs=false", "the reference is computed once, before step 1"),
        ("kto.loss_type=ipo", "loss_type='ipo' is no loss of trl.KTOTrainer"),
        ("kto.desirable_wight=2", "did you mean 'desirable_weight'"),
        ("kto.desirable_weight=0", "desirable_weight"),
        ("kto.beta=0", "beta=0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(here, capsys, setting, said):
    assert said in refused(capsys, "never", setting)


# what `ft doctor` finds, and what it does not


def findings(file, capsys, *more, quick=("--quick",)):
    with pytest.raises(SystemExit) as e:
        main(["doctor", str(file), *quick, "--json", "--set", "model.name=tiny", "--set", "model.bits=32", *more])
        raise SystemExit(0)
    found = json.loads(capsys.readouterr().out)["findings"]
    return {one["code"]: one for one in found if one["level"] != "note"}, e.value.code


def opinions(n=80, seed=0):
    "Answers of which the good ones name the colour that was asked for; lengths and words do not tell them apart."
    draw = random.Random(seed)
    colours = ["red", "blue", "green", "white", "black", "brown"]
    found = []
    for i in range(n):
        asked, other = draw.sample(colours, 2)
        good = i % 2 == 0
        end = draw.choice(["today", "this week", "as we agreed on the phone", "with a matching lid"])
        said = f"We send box {draw.randrange(900)} in {asked if good else other} {end}."
        found.append({"prompt": f"Order {i}: a box in {asked}, please.", "completion": said, "label": good})
    draw.shuffle(found)
    return found


def write(rows):
    Path("seen.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "seen.jsonl"


def scored(rows, swapped=False):
    draw = random.Random(2)
    return [{**row, "label": row["label"] != swapped, "score": row["label"] + draw.random()} for row in rows]


PLANTED = {
    "all thumbs exchanged, beside scores": (lambda rows: scored(rows, swapped=True), "labels-contradict-ratings"),
    "one label alone": (lambda rows: [{**row, "label": "true"} for row in rows], "rows-not-encoded"),
    "longer answers are good": (
        lambda rows: [{**r, "completion": r["completion"] + " Thank you so much, dear." * r["label"]} for r in rows],
        "label-feature",
    ),
    "one answer with both labels": (
        lambda rows: rows + [{**row, "label": not row["label"]} for row in rows[:9]],
        "labels-contradict",
    ),
}
BENIGN = {
    "answers that differ in what they say": lambda rows: rows,
    "labels that agree with scores": scored,
    "labels as texts": lambda rows: [{**row, "label": "false" if not row["label"] else "true"} for row in rows],
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_silent_failure_of_rated_answers_is_found(here, capsys, name):
    plant, code = PLANTED[name]
    found, exit_code = findings(write(plant(opinions())), capsys)
    assert code in found, sorted(found)


@pytest.mark.parametrize("name", BENIGN)
def test_rated_answers_in_order_are_let_alone(here, capsys, name):
    found, exit_code = findings(write(BENIGN[name](opinions())), capsys)
    own = {"labels-contradict-ratings", "rows-not-encoded", "label-feature", "labels-contradict", "could-not-look"}
    assert not own & found.keys(), found


def test_the_doctor_looks_at_rated_answers_with_the_model_too(here, capsys):
    usual = ("--set", "kto.effective_batch=8", "--set", "kto.learning_rate=1e-3", "--set", "data.eval=0.1")
    found, exit_code = findings(write(opinions()), capsys, *usual, quick=())
    assert exit_code == 1 and set(found) == {"model-mismatched"}  # the tiny model was never trained
