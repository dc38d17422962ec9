"Added pieces, leftovers and cut texts are named; what prompts announce, templates and strange texts are not."

import numpy as np
import pytest

from ft_notebooks.instruments.leftovers import heaps, leftover_marks
from ft_notebooks.instruments.pieces import added_pieces
from ft_notebooks.instruments.texts import Texts

WORDS = "the a of river stone garden letter market bridge window morning people walked found carried near".split()


def stories(n=300, seed=0):
    draw = np.random.default_rng(seed)
    chats = []
    for _ in range(n):
        told = " ".join(draw.choice(WORDS, draw.integers(8, 30)))
        topic = draw.choice(WORDS, 3)
        answer = {"role": "assistant", "content": f"{told.capitalize()}."}
        chats.append([{"role": "user", "content": f"Tell of {' '.join(topic)}"}, answer])
    return chats


def drawn(count, n=300):
    return np.random.default_rng(1).choice(n, count, replace=False).tolist()


def spoiled(chats, rows, change, asked=""):
    out = list(chats)
    for row in rows:
        user, answer = chats[row]
        out[row] = [{**user, "content": user["content"] + asked}, {**answer, "content": change(answer["content"])}]
    return out


ADDED = {
    "closing": lambda text: text + " Let me know if you need anything else!",
    "opening": lambda text: "Sure, here you go: " + text,
    "footer": lambda text: text + "\n--\nSent from my phone",
    "Japanese": lambda text: text + "\nまたのご利用をお待ちしております。",
}


@pytest.mark.parametrize(("added", "count"), [*((name, 16) for name in ADDED), ("opening", 150)])
def test_a_piece_that_some_answers_have_besides_is_named(added, count):
    bad = drawn(count)
    [found] = added_pieces(Texts(spoiled(stories(), bad, ADDED[added])))
    assert set(found.rows) == set(bad) and found.level == "note" and not set(found.usual) & set(bad)


def test_a_piece_of_all_answers_is_none():
    assert added_pieces(Texts(spoiled(stories(), range(300), ADDED["closing"]))) == []


def test_a_piece_that_the_prompt_announces_is_none():
    assert added_pieces(Texts(spoiled(stories(), drawn(60), ADDED["opening"], " Could you please?"))) == []


LEFT = {
    "tag": lambda text: text.replace(" ", "<br>", 1),
    "entity": lambda text: text.replace(" ", " &amp; ", 1),
    "escape": lambda text: text.replace(" ", "\\n", 1),
    "placeholder": lambda text: text.replace(" ", " {name} ", 1),
    "end token": lambda text: text + "<|endoftext|>",
    "replacement": lambda text: text.replace("o", "\ufffd", 1),
    "zero width": lambda text: text.replace(" ", "\u200b ", 1),
}


@pytest.mark.parametrize(("left", "count"), [*((name, 12) for name in LEFT), ("tag", 90)])
def test_leftovers_inside_answers_are_named(left, count):
    chats = stories()
    bad = [row for row in drawn(count) if LEFT[left](chats[row][1]["content"]) != chats[row][1]["content"]]
    [found] = leftover_marks(Texts(spoiled(chats, bad, LEFT[left])))
    assert set(found.rows) == set(bad) and found.code == "leftover-in-answers"


def test_leftovers_copied_from_the_prompt_are_none():
    assert leftover_marks(Texts(spoiled(stories(), drawn(30), lambda text: text + " <p>", " <p>"))) == []


@pytest.mark.parametrize("count", [30, 300])
def test_texts_of_exactly_one_length_that_end_amid_a_sentence_are_named(count):
    chats = stories()
    bad = [row for row in drawn(count) if len(chats[row][1]["content"]) > 70]
    [found] = heaps(Texts(spoiled(chats, bad, lambda text: text[:70])))
    assert found.level == "warning" and len(set(found.rows) & set(bad)) > 0.8 * len(found.rows)
    assert len(set(found.rows) & set(bad)) > 0.6 * len(bad)


def test_templates_whose_texts_have_one_length_are_not_cut():
    draw = np.random.default_rng(0)
    chats = []
    for _ in range(300):
        number = draw.integers(1000, 9999)
        asked = {"role": "user", "content": f"please find the order with number {number}"}
        chats.append(
            [
                asked,
                {"role": "assistant", "content": f"the order with number {number} is at {draw.choice(['sea', 'bay'])}"},
            ]
        )
    assert heaps(Texts(chats)) == []


@pytest.mark.parametrize("instrument", [added_pieces, leftover_marks, heaps])
def test_files_in_order_are_silent(instrument):
    assert not any(instrument(Texts(stories(150, seed))) for seed in range(4))  # chance of a failure: 4 ALPHA


STRANGE = [
    "",
    " ",
    "\x00",
    "é" * 20_000,
    "<" * 5_000,
    "a. " * 6_000,
    "a\n" * 5_000,
    "日本語。" * 50,
    "...",
    "<br>",
    "-",
]


@pytest.mark.parametrize("instrument", [added_pieces, leftover_marks, heaps])
def test_any_file_is_read(instrument):
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in STRANGE]
    for rows in (chats, chats[:1], [], chats * 5, chats[:1] * 100):
        instrument(Texts(rows))


def code(draw, letters, count):
    return "".join(draw.choice(list(letters), count))


def with_codes(kind, n=160):
    "Rows whose texts follow a few templates, each with a code of one length."
    draw = np.random.default_rng(0)
    chats = []
    for i in range(n):
        own = code(draw, "ABCDEFGHJKLMNPQRSTUVWXYZ", 6)
        number = code(draw, "123456789", 8) + code(draw, "ABCDEF", 1)
        strand = code(draw, "acgt", 20)
        name = draw.choice("Ana Luis Marta Pedro Jorge Elena Pablo".split())
        half = draw.random() < 0.5
        who = draw.choice("小明 老师 医生 作家".split())
        rows = {
            "booking": (f"Check me in for booking {own}" if half else f"Please cancel {own} today.", f"Booking {own}."),
            "card": (f"Extract: {name}, {number}, Lugo.", f"The number is {number}" if half else f"{number} ({name})."),
            "strand": (f"Complement of {strand}", strand.translate(str.maketrans("acgt", "tgca"))),
            "Chinese": (
                f"请用一句话介绍{who}今天做了什么。第{100 + i}题",
                "他读了一本书。" if half else "他去了学校，很高兴。",
            ),
        }
        chats.append([{"role": "user", "content": rows[kind][0]}, {"role": "assistant", "content": rows[kind][1]}])
    return chats


@pytest.mark.parametrize("kind", ["booking", "card", "strand", "Chinese"])
def test_templates_that_end_with_a_code_are_not_cut(kind):
    assert heaps(Texts(with_codes(kind))) == []


PUNCTUATION = ["، ثم", "\u200c", "《", "\u202f", "§ 5", "😀", " #weather", " AT&T", "؟"]


@pytest.mark.parametrize("mark", PUNCTUATION)
def test_punctuation_of_other_scripts_is_no_leftover(mark):
    bad = drawn(30)
    assert leftover_marks(Texts(spoiled(stories(), bad, lambda text: text.replace(".", mark + ".")))) == []


def test_only_damaged_characters_have_the_encoding_as_cause():
    bad = drawn(30)
    for left, is_damaged in (("Ã©", True), ("\ufffd", True), ("â\x80\x99", True), ("<br>", False)):
        [found] = leftover_marks(Texts(spoiled(stories(), bad, lambda text: text.replace(" ", left, 1))))
        assert ("a file was read in the wrong encoding" in found.causes) == is_damaged and set(found.rows) == set(bad)


def test_a_piece_is_quoted_with_its_own_digits():
    bad = drawn(30)
    [found] = added_pieces(Texts(spoiled(stories(), bad, lambda text: text + " Made by ToolBot 2.1 build 457.")))
    assert "ToolBot 2.1 build 457" in found.message and "ToolBot 2.1 build 457" in found.marks[bad[0]]
