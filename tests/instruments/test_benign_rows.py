"Rows that only look like a fault raise nothing, or a question; strange white space costs no time."

import os
import random
import subprocess
import sys

from ft_notebooks.instruments.labels import option_marks
from ft_notebooks.instruments.leftovers import heaps
from ft_notebooks.instruments.numbers_and_dates import misread_values
from ft_notebooks.instruments.pair_features import deciding_feature
from ft_notebooks.instruments.pairs import Pairs, contradictory_pairs
from ft_notebooks.instruments.repetition import repeated_text
from ft_notebooks.instruments.texts import Texts
from ft_notebooks.instruments.turns import exchanged_roles, turn_order

WORDS = "house tree river bread letter music garden window story road bridge market".split()


def said(*texts):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


def pair(prompt, chosen, rejected):
    return {"prompt": said(prompt), "chosen": said("", chosen)[1:], "rejected": said("", rejected)[1:]}


def sentence(draw, count):
    return " ".join(draw.choice(WORDS) for _ in range(count)).capitalize() + "."


def test_thanks_of_the_assistant_do_not_tell_the_order_of_turns():
    draw = random.Random(3)
    talks = []
    for i in range(120):
        opens = f"My {draw.choice(WORDS)} is late since {draw.choice(['Monday', 'Friday'])}."
        thanks = "Thank you for contacting Acme support. What is your number?"
        talks.append(said(opens, thanks, f"{i + 10000}", f"I see case {i + 10000}."))
    assert turn_order(Texts(talks)) == []


def test_much_white_space_costs_no_time():
    space = " " * 20_000
    rows = [said(f"A. x{space}y B. z", f"A. x{space}y") for _ in range(30)]
    lines = [pair("p", "x" + "\n" * 20_000 + "y", "z") for _ in range(30)]
    assert option_marks(Texts(rows)) is not None and deciding_feature(Pairs(lines)) is not None


def test_only_pairs_on_a_ring_contradict_each_other():
    rings = [("A", "B"), ("B", "A"), ("B", "C"), ("C", "D"), ("D", "C")]
    (found,) = contradictory_pairs(Pairs([pair("p", *one) for one in rings]))
    assert found.rows == [0, 1, 3, 4]
    ring = [("A", "B"), ("B", "C"), ("C", "A"), ("E", "E")]
    assert contradictory_pairs(Pairs([pair("p", *one) for one in ring]))[0].rows == [0, 1, 2]
    assert contradictory_pairs(Pairs([pair(f"p{i}", *one) for i, one in enumerate(rings)])) == []


def test_answers_in_one_case_are_not_one_text():
    draw = random.Random(4)
    texts = [[sentence(draw, 8), sentence(draw, 8)] for _ in range(200)]
    for change in (str.upper, lambda text: f"{text} {text}".lower()):
        (found,) = deciding_feature(Pairs([pair(f"p{i}", change(a), f"{b} {b}") for i, (a, b) in enumerate(texts)]))
        assert (found.level, "one text" in found.causes[0]) == ("question", False)


def test_translation_both_ways_is_a_question():
    draw = random.Random(5)
    german = "das Haus ist alt|der Hund schläft im Garten|wir fahren nach Rom und zu dir|die Suppe ist nicht zu heiß"
    english = "the house is old|the dog sleeps in the garden|we go to Rome and to you|the soup is not too hot"
    lines = list(zip(german.split("|"), english.split("|")))
    rows = []
    for i in range(240):
        two = draw.sample(lines, 2)
        sides = [f"{', '.join(one[k] for one in two)} ({i})" for k in (0, 1)]
        rows.append(said(*sides[:: 1 if draw.random() < 0.75 else -1]))
    (found,) = exchanged_roles(Texts(rows))
    assert (found.code, found.level) == ("roles-exchanged", "question")


def test_runs_of_one_class_are_not_filled_down():
    draw = random.Random(6)
    labels = ["left", "right", "up", "down"]
    rows = [said(f"{sentence(draw, 6)} {i}", labels[draw.randrange(4)]) for i in range(300)]
    rows[40:52] = [said(f"{sentence(draw, 6)} {i}", "left") for i in range(12)]
    assert repeated_text(Texts(rows)) == []


SCORES = """
from ft_notebooks.instruments.pairs import Pairs, contradicted_scores
from ft_notebooks.instruments.pair_features import deciding_feature
names = "score rating grade quality reward".split()
columns = {f"{side}_{name}": k for name in names for k, side in enumerate(["chosen", "rejected"])}
row = lambda i: dict(zip(["prompt", "chosen", "rejected"], [[{"role": "user", "content": f"{text} {i}"}] for text in
    ["p", "amber coral ivory cobalt", "q r s t"]])) | columns
pairs = Pairs([row(i) for i in range(60)])
print([found.message for found in contradicted_scores(pairs) + deciding_feature(pairs)])
"""


def test_another_order_of_sets_gives_the_same_report(capsys):
    exec(SCORES, {})
    here = capsys.readouterr().out
    other = os.environ | {"PYTHONHASHSEED": "0" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    done = subprocess.run([sys.executable, "-c", SCORES], env=other, capture_output=True, text=True, check=True)
    assert here == done.stdout != ""


def test_german_dates_do_not_tell_the_decimal_mark():
    rows = [said(f"Am {n % 28 + 1:02}.03. kamen 1.{n:03} Besucher.", f'{{"besucher": {1000 + n}}}') for n in range(100)]
    assert misread_values(Texts(rows)) == []


def test_a_unit_of_its_own_in_all_rows_is_no_misreading():
    rows = [said(f"It costs ${n}.73 today.", f'{{"amount_cents": {100 * n + 73}}}') for n in range(10, 110)]
    assert misread_values(Texts(rows)) == []


def test_dates_that_the_prompt_announces_are_not_exchanged():
    draw, rows = random.Random(0), []
    for n in range(300):
        day, month, american = draw.randint(1, 28), draw.randint(1, 12), n % 11 == 0
        written = f"{month:02}/{day:02}/2024" if american else f"{day:02}/{month:02}/2024"
        place = "Chicago, USA" if american else "Leeds, UK"
        rows.append(said(f"Invoice {n} from {place}: {written}", f'{{"date": "2024-{month:02}-{day:02}"}}'))
    assert misread_values(Texts(rows)) == []


def test_long_answers_of_a_kind_that_the_prompt_announces_are_not_cut():
    draw, rows = random.Random(0), []
    for n in range(100):
        if n % 4:
            rows.append(said(f"Tell of {draw.choice(WORDS)} {n}", sentence(draw, draw.randint(4, 12))))
        else:
            names = ", ".join(draw.sample(WORDS, 11))
            rows.append(said(f"Write an SQL query on table {n}", f"SELECT {names} FROM table_{n} WHERE id > {n}"))
    assert heaps(Texts(rows)) == []
