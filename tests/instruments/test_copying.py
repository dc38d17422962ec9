"Copying by slots: planted faults are found, data in order stay silent, and chance alone says nothing"

import json
import random
import re

import pytest

from ft_notebooks.course.example_task import appointments
from ft_notebooks.instruments.copying import copied_values
from ft_notebooks.instruments.texts import Texts
from ft_notebooks.instruments.values import answer_values

N = 300
NAMES = "Ana Beatriz Chloé Dora Émile Fatma Gül Hélène José Łukasz Márta Zoë".split()
FAMILIES = "Ångström Novák Öztürk Dupont García Rossi Müller Weber Krüger".split()


def chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def drawn_invoice(draw):
    name = f"{draw.choice(NAMES)} {draw.choice(FAMILIES)}"
    code = f"{draw.choice('ABC')}{draw.choice('XYZ')}-{draw.randint(10000, 99999)}"
    day = f"{draw.randint(2019, 2026)}-{draw.randint(1, 12):02d}-{draw.randint(13, 28)}"
    return name, code, f"{draw.randint(1, 9)},{draw.randint(100, 999)}.{draw.randint(11, 99)}", day


def invoices(n=N, seed=0):
    draw = random.Random(seed)
    chats = []
    for _ in range(n):
        name, code, amount, day = drawn_invoice(draw)
        answer = f"Dear {name}, we wait for ${amount} since {day}. Please quote {code}."
        chats.append(chat(f"Remind the customer {name} of {code}: ${amount} was due on {day}", answer))
    return chats


def as_json(chats):
    "The same rows, answered in JSON."
    found = []
    for prompt, _ in chats:
        name, code = re.search(r"customer (.+) of (\S+):", prompt["content"]).groups()
        amount, day = re.search(r"(\$\S+) was due on (\S+)", prompt["content"]).groups()
        found.append(
            chat(
                prompt["content"],
                json.dumps({"who": name, "code": code, "sum": amount, "due": day}, ensure_ascii=False),
            )
        )
    return found


def planted(chats, change, share, seed=1):
    "The rows with some answers changed, and the numbers of those."
    able = [i for i, chat in enumerate(chats) if change(chat[-1]["content"]) != chat[-1]["content"]]
    bad = set(random.Random(seed).sample(able, round(share * len(able))))
    changed = [
        [*chat[:-1], {**chat[-1], "content": change(chat[-1]["content"])}] if i in bad else chat
        for i, chat in enumerate(chats)
    ]
    return Texts(changed), bad


DAY = r"(\d{4})-(\d\d)-(\d\d)"
DRAW = random.Random(2)
CHANGES = {
    "days exchanged with months": lambda text: re.sub(DAY, r"\1-\3-\2", text),
    "a year early": lambda text: re.sub(DAY, lambda m: f"{int(m[1]) - 1}-{m[2]}-{m[3]}", text),
    "other marks": lambda text: re.sub(r"(\d),(\d{3})\.(\d\d)", r"\1.\2,\3", text),
    "without accents": lambda text: text.translate(str.maketrans("éÉüÜłŁáöÖëíÅèçó", "eEuUlLaoOeiAeco")),
    "cut code": lambda text: re.sub(r"([A-Z]{2}-\d{4})\d", r"\1", text),
    "letters for digits": lambda text: re.sub(r"(?<=-\d)\d(?=\d{3}\b)", "O", text),
    "another code": lambda text: re.sub(r"[A-Z]{2}-\d{5}", f"QQ-{DRAW.randint(10000, 99999)}", text),
}


@pytest.mark.parametrize("share", [0.5, 0.05])
@pytest.mark.parametrize("form", [invoices, lambda: as_json(invoices())], ids=["prose", "json"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_some_values_is_found_and_its_rows_are_named(name, form, share):
    texts, bad = planted(form(), CHANGES[name], share)
    found = copied_values(texts)
    rows = set(found[0].rows)
    assert len(rows & bad) >= max(0.6 * len(rows), 0.5 * len(bad))
    assert found[0].chance < 0.002 and set(found[0].marks) == rows and not set(found[0].usual) & bad


def test_a_change_of_all_values_is_a_question():
    for name in ("a year early", "cut code"):
        texts, _ = planted(invoices(), CHANGES[name], 1)
        assert [anomaly.level for anomaly in copied_values(texts)] == ["question"], name


def berlin(i):
    return chat(f"{i % 12 + 8}:{i % 4}5 in London is in Berlin?", f"It is {i % 12 + 9}:{i % 4}5 in Berlin.")


def test_a_task_that_is_the_change_is_asked_for_and_never_a_warning():
    (anomaly,) = copied_values(Texts([berlin(i) for i in range(N)]))
    assert anomaly.level == "question" and "+60 minutes" in anomaly.message


def second_task(chats):
    found = planted(chats, CHANGES["a year early"], 0.1)[0].chats
    return [
        chat
        if same[-1] == chat[-1]
        else [{"role": "user", "content": same[0]["content"] + ", one year before"}, chat[-1]]
        for chat, same in zip(found, chats, strict=True)
    ]


def duration(i):
    length = (30, 45, 60)[i % 3]
    end = 540 + 5 * (i % 90) + length
    start = end - length
    prompt = f"Tea from {start // 60}:{start % 60:02d} for {length} minutes"
    return chat(prompt, json.dumps({"start": f"{start // 60}:{start % 60:02d}", "end": f"{end // 60}:{end % 60:02d}"}))


BENIGN = {
    "appointments": lambda: list(appointments(N)["messages"]),
    "prose": invoices,
    "json": lambda: as_json(invoices()),
    "a second task that the prompt announces": lambda: second_task(invoices()),
    "durations": lambda: [duration(i) for i in range(N)],
    "sums": lambda: [chat(f"What is {i} + {i % 7 + 2}?", f"{i} + {i % 7 + 2} = {i + i % 7 + 2}") for i in range(N)],
    "names restored": lambda: [chat(one[0]["content"].lower(), one[1]["content"]) for one in invoices()],
    "no values": lambda: [chat(f"Is word {i} rare?", "yes" if i % 3 else "no") for i in range(N)],
}


@pytest.mark.parametrize("name", BENIGN)
def test_rows_in_order_say_nothing(name):
    assert not [anomaly for anomaly in copied_values(Texts(BENIGN[name]())) if anomaly.level != "question"]


def test_values_that_have_nothing_to_do_with_the_prompt_are_no_change_of_it():
    "Times are drawn for prompts and answers alike, so that any alarm about a change is false."
    said = 0
    for seed in range(30):
        draw = random.Random(seed)
        times = [f"{draw.randint(8, 20)}:{draw.choice(range(10, 60, 5))}" for _ in range(200)]
        chats = [chat(f"Tea at {one}", f"Cake at {other}") for one, other in zip(times[::2], times[1::2], strict=True)]
        said += any(anomaly.code.startswith("values-changed") for anomaly in copied_values(Texts(chats)))
    assert said == 0


ODD = {
    "no rows": [],
    "one row": [chat("a", "b")],
    "equal rows": [chat("tea at 10:00", "tea at 11:00")] * 5,
    "empty texts": [chat("", "")] * 50,
    "odd letters": [chat("\x00😀 ١٢:٣٤", "😀é²³ ٣٤:٥٦")] * 50,
    "no such day": [chat("99.99.9999 99:99", f"0/0/0 {i}") for i in range(50)],
    "deep brackets": [chat("x", "[" * 3000)] * 50,
    "long": [chat("tea at 10:00 " * 1500, f"cake {i} " * 3000) for i in range(20)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_raise_nothing(name):
    copied_values(Texts(ODD[name]))


def test_rows_are_named_by_their_numbers_in_the_file_and_twice_the_same():
    texts, bad = planted(invoices(), CHANGES["another code"], 0.1)
    moved = Texts(texts.chats, [1000 + i for i in range(N)])
    (anomaly,) = copied_values(moved)
    assert set(anomaly.rows) <= {1000 + i for i in bad}
    assert copied_values(moved) == [anomaly]


@pytest.mark.parametrize("due", [" 2024-02-06", "2024-02-06 ", "€15:10", "15:10€", " AB-12 "])
def test_a_space_or_mark_beside_a_value_is_no_part_of_it(due):
    chats = [chat(f"Invoice AB-1{i} of 2024-01-1{i} at 14:1{i}", json.dumps({"due": due})) for i in range(10)]
    assert {value.text for value in answer_values(Texts(chats))} == {due.strip(" €")}
    copied_values(Texts(chats))


def test_a_name_with_another_case_or_end_is_that_of_the_prompt():
    things = "Apple Pencil Candle Button Ticket Marble".split()
    chats = []
    for i in range(N):
        asked, other = things[i % 6], NAMES[i % 12]
        said = (asked, asked + "s", asked)[i % 3]
        question = f"Then {other} and Bob bought {asked.lower() if i % 5 == 0 else asked} number {i}. How many?"
        chats.append(chat(question, f"We count the {said} here."))
    assert copied_values(Texts(chats)) == []


def trips(bad, seed=0, n=N):
    "Requests with two cities in either order, of which `bad` answers have the cities in each other's place."
    draw = random.Random(seed)
    chats = []
    for i in range(n):
        here, there = draw.sample(["Oslo", "Rome", "Paris", "Lima", "Cairo", "Tokyo", "Quito"], 2)
        asked = draw.choice(["From {0} to {1}, please.", "A train to {1} from {0}!", "Is {0} far from {1}?"])
        places = {"from": there, "to": here} if i in bad else {"from": here, "to": there}
        chats.append(chat(asked.format(here, there), json.dumps(places)))
    return Texts(chats)


def test_values_in_each_others_place_are_a_warning():
    bad = set(range(0, N, 4))
    [found] = [one for one in copied_values(trips(bad)) if one.code == "values-exchanged"]
    assert found.level == "warning" and set(found.rows) <= bad and len(found.rows) > 0.5 * len(bad)
    assert "`from` and `to`" in found.message


@pytest.mark.parametrize("seed", range(5))
def test_values_in_their_place_and_two_values_without_a_law_say_nothing(seed):
    even = set(random.Random(seed).sample(range(N), N // 2))
    assert copied_values(trips(set(), seed)) == copied_values(trips(even, seed)) == []
