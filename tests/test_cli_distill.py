"`ft distill`: from prompts and a teacher to a run; what is refused, and what `ft doctor` finds."

import json
import shutil
from pathlib import Path

import pytest

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.whole

SETTINGS = {
    "distill.bf16": "false", "model.bits": 32, "distill.effective_batch": 4, "distill.learning_rate": 1e-3,
    "model.name": "tiny", "distill.max_completion_length": 96, "distill.max_steps": 2, "data.eval": "last:4",
}  # fmt: skip


def saved(folder, model, tok=None):
    (tok or tiny_tokenizer()).save_pretrained(folder)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    saved(folder / "tiny", tiny_model())
    saved(folder / "large", tiny_model(seed=1))
    rows = appointments(20).to_list()
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    short = [[*row["messages"][:-1], {"role": "assistant", "content": "Noted."}] for row in rows]
    (folder / "short.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in short))
    asked = [{"prompt": row["messages"][:-1]} for row in rows]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder


@pytest.fixture
def here(files, monkeypatch):
    monkeypatch.chdir(files)
    return files


SHORT = {"data": "short.jsonl", "distill__max_completion_length": 12, "data__eval": "none"}


def words(settings):
    return [part for key, value in (SETTINGS | settings).items() for part in ("--set", f"{key}={value}")]


def distill(output, *more, data="chats.jsonl", **settings):
    given = {key.replace("__", "."): value for key, value in settings.items()}
    teacher = () if "--teacher" in more else ("--teacher", "large")
    main(["distill", data, "--output", output, *teacher, *more, *words(given)])


def sft(output, settings):
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    main(["sft", "chats.jsonl", "--output", output, *given])


def refused(capsys, *more, **given):
    shutil.rmtree("never", ignore_errors=True)
    with pytest.raises(SystemExit) as e:
        distill("never", *more, **given)
    assert e.value.code == 2
    return capsys.readouterr().err


def test_a_run_shows_what_is_asked_and_measures_the_held_out_prompts_beside_the_teacher(here, capsys):
    distill("run")
    said = capsys.readouterr().out
    assert "chats.jsonl: 16 prompts to train on, 4 held out" in said
    assert "<|im_start|>assistant" in said and "expected: {" in said and "the student answers every row" in said
    assert said.index("before step 1, 4 greedy answers") < said.index("mean before and after")
    assert "nats_from_teacher: " in said and "by the teacher itself" in said
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert [*metrics["scores"]] == ["exact_match", "nats_from_teacher"] and metrics["teacher"]["exact_match"]["n"] == 4
    assert metrics["scores"]["nats_from_teacher"]["value"] < metrics["scores_before"]["nats_from_teacher"]["value"]
    known = json.loads(Path("run/run.json").read_text())
    assert known["distill.teacher"] == "large" and len(known["teacher.model"]) == 16
    distill("run")
    assert "is finished; nothing is changed" in capsys.readouterr().out


def test_another_teacher_under_the_same_name_is_another_run(here, capsys):
    saved(here / "teacher", tiny_model(seed=2))
    distill("other", "--teacher", "teacher", **SHORT)
    tiny_model(seed=3).save_pretrained("teacher")
    with pytest.raises(SystemExit):
        distill("other", "--teacher", "teacher", **SHORT)
    assert "teacher.model was" in capsys.readouterr().err


def test_a_run_is_a_teacher_and_prompts_alone_teach(here, capsys):
    quick = {"sft.bf16": "false", "sft.max_steps": 2, "sft.effective_batch": 4, "data.eval": "none", "lora.r": 4}
    sft("sft", {"model.name": "large", "model.bits": 32} | quick)
    capsys.readouterr()
    distill("by_run", "--teacher", "sft", data="asked.jsonl", distill__max_completion_length=12)
    metrics = json.loads(Path("by_run/metrics.json").read_text())
    assert [*metrics["scores"]] == ["nats_from_teacher"] and "teacher" not in metrics


@pytest.mark.parametrize(
    ("more", "settings", "said"),
    [
        (("--teacher", "nowhere"), {}, "nowhere"),
        (("--teacher", "tiny"), {}, "teacher and student say the same of 4 answers"),
        ((), {"data": "asked.jsonl", "distill__lmbda": 0.5}, "has no answer, and lmbda=0.5"),
        ((), {"distill__lmbda": 3}, "lmbda"),
        ((), {"distill__beta": 7}, "beta"),
        ((), {"distill__max_completion_length": 4}, "max_completion_length=4 would cut answers"),
        ((), {"distill__disable_dropout": "false"}, "dropout is off"),
        ((), {"distill__use_vllm": "true"}, "has its own seed"),
        ((), {"distill__teacher_model_name_or_path": "x"}, "set distill.teacher"),
        ((), {"distill__lmda": 0.5}, "did you mean 'lmbda'"),
    ],
)
def test_what_cannot_be_is_refused(here, capsys, more, settings, said):
    assert said in refused(capsys, *more, **settings)


def test_no_teacher_is_told_before_a_row_is_read(here, capsys):
    with pytest.raises(SystemExit):
        main(["distill", "no such file.jsonl", "--output", "never"])
    assert "no teacher; name a run" in capsys.readouterr().err


# what `ft doctor` finds, and what it does not


def findings(capsys, data="chats.jsonl", teacher="large", **settings):
    given = {key.replace("__", "."): value for key, value in settings.items()}
    with pytest.raises(SystemExit) as e:
        main(["doctor", data, "--stage", "distill", "--teacher", teacher, "--json", *words(given)])
        raise SystemExit(0)
    assert e.value.code in (0, 1)
    found = json.loads(capsys.readouterr().out)["findings"]
    return {one["code"]: one for one in found if one["level"] != "note"}


def test_a_teacher_whose_ids_are_other_tokens_is_found(here, capsys):
    saved(here / "turned", tiny_model(seed=1))
    file = here / "turned" / "tokenizer.json"
    known = json.loads(file.read_text())
    vocab = known["model"]["vocab"]
    a, b = ([token for token, i in vocab.items() if i == id][0] for id in (70, 71))
    vocab[a], vocab[b] = vocab[b], vocab[a]
    file.write_text(json.dumps(known))
    found = findings(capsys, teacher="turned")["teacher-refused"]
    assert "id 70 is" in found["message"] and found["level"] == "error"


def test_a_teacher_with_another_template_is_found(here, capsys):
    tok = tiny_tokenizer()
    tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    saved(here / "strange", tiny_model(seed=1), tok)
    assert "the student's template writes" in findings(capsys, teacher="strange")["teacher-refused"]["message"]


def test_a_teacher_to_whom_the_answers_of_the_rows_are_less_likely_is_found(here, capsys):
    quick = {"sft.bf16": "false", "sft.max_steps": 12, "sft.effective_batch": 8, "data.eval": "none"}
    quick |= {"model.name": "tiny", "model.bits": 32, "model.method": "full", "sft.learning_rate": 3e-3}
    sft("skilled", quick)
    capsys.readouterr()
    found = findings(capsys, teacher="large", model__name="skilled")["teacher-worse"]
    assert found["level"] == "warning" and "nats a token" in found["message"]
    assert not {"teacher-worse", "teacher-refused"} & findings(capsys, teacher="skilled").keys()


def test_an_untrained_teacher_of_the_same_tokens_and_prompts_alone_are_let_alone(here, capsys):
    found = findings(capsys, "asked.jsonl")
    assert not {"teacher-worse", "teacher-refused", "could-not-look"} & found.keys()
