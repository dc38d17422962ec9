"What tells the class or the option besides the content is named; files in order and files without classes are silent."

import numpy as np

from ft_notebooks.course.example_task import appointments
from ft_notebooks.instruments.labels import answer_classes, class_marks, option_marks, strange_labels
from ft_notebooks.instruments.texts import Texts

WORDS = {
    "billing": ["invoice", "refund", "card", "fee", "price"],
    "delivery": ["parcel", "courier", "address", "late", "box"],
    "repair": ["broken", "crack", "noise", "screw", "leak"],
}
THINGS = ["lamp", "chair", "kettle", "jacket", "phone", "clock", "desk"]
CITIES = ["Paris", "Lyon", "Berlin", "Madrid", "Rome", "Oslo", "Vienna", "Prague"]


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def tickets(n=300, seed=0):
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        team = str(draw.choice(list(WORDS)))
        first, second = draw.choice(WORDS[team], 2, replace=False)
        pairs.append((f"About the {first} and {second} of my {draw.choice(THINGS)}, {draw.choice(CITIES)}", team))
    return pairs


def both(texts):
    return class_marks(texts) + strange_labels(texts)


def found_in(pairs, instrument=both):
    return instrument(Texts([chat(*pair) for pair in pairs]))


def exchanged(pairs, rows):
    teams = list(WORDS)
    other = dict(zip(teams, teams[1:] + teams[:1]))
    return [(asked, other[team] if i in rows else team) for i, (asked, team) in enumerate(pairs)]


def test_classes_are_few_answers_of_several_rows():
    assert answer_classes(Texts([chat(*pair) for pair in tickets()]))[0] == sorted(WORDS)
    assert answer_classes(Texts(list(appointments(300, seed=0)["messages"])))[0] == []
    assert both(Texts(list(appointments(300, seed=0)["messages"]))) == []


def test_labels_unlike_those_of_like_prompts_are_named():
    count = 18
    bad = set(np.random.default_rng(0).choice(300, count, replace=False).tolist())
    [found] = found_in(exchanged(tickets(), bad))
    assert found.code == "label-unlike-others" and found.level == "note"
    assert len(set(found.rows) & bad) > 0.8 * len(found.rows) and len(set(found.rows) & bad) > 0.6 * count


def test_labels_that_are_a_matter_of_taste_are_not_named():
    draw = np.random.default_rng(0)
    urgency = ["calm", "whenever", "soon", "now", "asap", "fire"]
    pairs = []
    for _ in range(400):
        place = draw.integers(6)
        felt = "urgent" if place + draw.normal(0, 1.5) > 2.5 else "normal"
        pairs.append((f"My {draw.choice(THINGS)} in {draw.choice(CITIES)} {urgency[place]}", felt))
    assert found_in(pairs) == []


def test_a_block_with_other_classes_is_named_and_of_two_halves_the_second():
    for first in (150, 220):
        found = found_in(exchanged(tickets(), set(range(first, 300))))
        [block] = [finding for finding in found if finding.code == "labels-exchanged"]
        assert block.level == "warning" and len([row for row in block.rows if row >= first]) > 0.9 * len(block.rows)


def test_labels_drawn_by_lot_hold_no_exchanged_block():
    draw = np.random.default_rng(0)
    for _ in range(4):
        pairs = [(asked, str(draw.choice(list(WORDS)))) for asked, _ in tickets()]
        assert "labels-exchanged" not in [finding.code for finding in found_in(pairs)]


def test_a_class_that_the_prompt_names_is_a_warning():
    pairs = [(f"mails/{team}/{i * 13 % 97}.txt", team) for i, team in enumerate("ABCDE"[i * 7 % 5] for i in range(300))]
    [found] = class_marks(Texts([chat(*pair) for pair in pairs]))
    assert found.code == "class-in-prompt" and found.level == "warning" and len(found.rows) == 300


def test_marks_drawn_without_a_look_at_the_class_are_none():
    draw = np.random.default_rng(0)
    assert found_in([(f"{asked} #{draw.integers(1000, 9999)}", team) for asked, team in tickets()]) == []


def test_a_class_of_one_part_of_the_file_is_named():
    pairs = sorted(tickets(), key=lambda pair: pair[1] == "repair")
    [found] = found_in(pairs)
    assert found.code == "class-in-one-part" and {pairs[row][1] for row in found.rows} == {"repair"}


def trains(n=200, seed=0, first=0.0, wrong=0.0):
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        listed = draw.choice(CITIES, 4, replace=False).tolist()
        place = 0 if draw.random() < first else int(draw.integers(4))
        letter = (place + (draw.random() < wrong)) % 4
        lines = "\n".join(f"{mark}) {city}" for mark, city in zip("ABCD", listed))
        pairs.append((f"Which is train {draw.integers(100)}?\n{lines}", f"{'ABCD'[letter]}) {listed[place]}"))
    return pairs


def test_the_place_of_the_right_option_and_a_letter_for_another_text_are_warnings():
    [place] = found_in(trains(first=0.5), option_marks)
    assert place.code == "option-by-place" and place.level == "warning"
    [letter] = found_in(trains(wrong=0.1), option_marks)
    assert letter.code == "letter-and-text" and letter.level == "warning"
    pairs = trains(wrong=0.1)
    for row in letter.rows:
        mark, city = pairs[row][1].split(") ")
        assert f"{mark}) {city}" not in pairs[row][0]


def test_options_in_a_line_and_answers_of_a_letter_alone_are_read():
    draw = np.random.default_rng(0)
    pairs = []
    for _ in range(60):
        one, two, three = draw.choice(CITIES, 3, replace=False)
        pairs.append((f"Where to? (a) {one} (b) {two} (c) {three}", "b"))
    [found] = found_in(pairs, option_marks)
    assert found.code == "option-by-place" and len(found.rows) == 60


def test_options_that_are_the_same_in_every_row_may_be_unequal():
    pairs = [("Is it so?\nA) yes\nB) no", "A) yes")] * 50 + [("Is it so?\nA) yes\nB) no", "B) no")] * 10
    assert found_in(pairs, option_marks) == []


def test_files_in_order_are_silent():
    assert not any(found_in(tickets(150, seed)) for seed in range(2))  # chance of a failure: 4 ALPHA
    assert not any(found_in(trains(100, seed), option_marks) for seed in range(4))


def test_any_file_is_read():
    strange = ["", " ", "\x00", "é" * 3_000, "A) ", "(A) x (B) y", "A. " * 3_000, "1. a\n" * 3_000]
    chats = [chat(text, text) for text in strange]
    for rows in (chats, chats[:1], [], chats * 20, chats[:1] * 100):
        both(Texts(rows))
        option_marks(Texts(rows))
