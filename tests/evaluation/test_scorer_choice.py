"""The scorer that is chosen where none is given, by kinds of expected answers."""

import sys

import pytest
from datasets import Dataset

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.read import read_chats
from ft_notebooks.evaluation.metrics import find_scorers
from ft_notebooks.evaluation.runner import evaluate
from ft_notebooks.evaluation.scorer_choice import scorer_for
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer


def asked(*answers):
    return read_chats(
        [
            {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": answer}]}
            for i, answer in enumerate(answers)
        ]
    )


OPEN = (
    "The sun heats water until it rises as vapour.",
    "Although it was raining, they went for a walk in the park.",
    "A synonym for happy is content.",
    "He goes to the park every day.",
    "The chef cooks the meal.",
)
CASES = {
    "the built-in task": (appointments(20), "exact_match"),
    "labels": (asked(*["positive review", "negative review", "neither, as far as one can tell"] * 8), "exact_match"),
    "short answers": (asked("Paris", "blue whale", "Friday at noon", "Marie Curie"), "exact_match"),
    "numbers": (asked("72", "-3", "$1,250.50", "3/4", "50%", "12.5"), "number_match"),
    "grade school mathematics": (asked("He has 3 and buys 4.\n3 + 4 = 7\n#### 7", "#### 1,200"), "number_match"),
    "hours": (asked("09:15", "18:00", "07:45"), "exact_match"),
    "dates": (asked("2026-01-05", "5/1/2026", "3.4.2025"), "exact_match"),
    "several numbers": (asked("1, 4, 9", "2, 3, 5"), "exact_match"),
    "JSON that is no object": (asked("[1, 2]", "[3]"), "exact_match"),
    "one open answer": (asked(OPEN[0]), "chrf"),
    "open answers": (asked(*OPEN), "chrf"),
    "open answers, of which one is a number": (asked(*OPEN, "#### 7"), "chrf"),
    "open answers without spaces": (asked("今日はとても天気がいいので行きましょう", "電車は九時に出ます"), "chrf"),
    "short answers without spaces": (asked("東京", "北京", "大阪"), "exact_match"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_expected_answers_choose_the_scorer_which_can_score_all_of_them(case):
    rows, wanted = CASES[case]
    name, why = scorer_for(rows)
    assert name == wanted and why.strip() and "\n" not in why
    scorer = find_scorers(name)[name]
    assert all(scorer(chat[-1]["content"], chat[-1]["content"], {}) == pytest.approx(1) for chat in rows["messages"])


def test_a_scorer_that_is_not_installed_is_not_chosen_but_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    name, why = scorer_for(asked(*OPEN))
    assert name == "token_f1" and "pip install 'ft-notebooks[eval]'" in why
    assert scorer_for(appointments(3))[0] == "exact_match"


@pytest.mark.parametrize(
    "rows", [Dataset.from_list([{"messages": [{"role": "user", "content": "hi"}]}]), appointments(2).select([])]
)
def test_rows_without_an_expected_answer_are_refused(rows):
    with pytest.raises(ValueError, match="no assistant turn|an evaluation needs chats"):
        scorer_for(rows)


def test_evaluate_without_scorers_says_what_it_chose_and_a_given_scorer_wins(capsys):
    model, tok = tiny_model(), tiny_tokenizer()
    found = evaluate(model, tok, asked(*OPEN[:2]), max_new_tokens=2, likelihood=False)
    assert list(found.scores) == ["chrf"] and capsys.readouterr().out.startswith("scored by chrf, since ")
    for given in ("exact_match", ["exact_match"]):
        found = evaluate(model, tok, asked(*OPEN[:2]), given, max_new_tokens=2, likelihood=False)
        assert list(found.scores) == ["exact_match"] and not capsys.readouterr().out
    assert evaluate(model, tok, asked(*OPEN[:2]), [], max_new_tokens=2, likelihood=False).scores == {}
