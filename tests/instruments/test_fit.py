"The fit of answers and prompts: misplaced answers are found, data in order stay silent, and chance alone says nothing"

import random

import pytest

from ft_notebooks.course.example_task import appointments
from ft_notebooks.instruments.fit import SizeFit, WordFit, displaced, fit_of_answers, mixed_with_neighbours
from ft_notebooks.instruments.texts import Texts

N = 300
THINGS = "lamp chair printer bicycle kettle sofa camera heater drill tent mixer router blender toaster scooter".split()
PLACES = "attic garage office kitchen cellar garden balcony hallway library workshop station market museum".split()
DOINGS = "paint carry sell repair clean move wrap weigh store ship inspect label rent return test count".split()


def chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def drawn(draw):
    return *draw.sample(THINGS, 2), draw.choice(PLACES), *draw.sample(DOINGS, 2)


def errands(n=N, seed=0):
    draw = random.Random(seed)
    chats = []
    for _ in range(n):
        thing, other, place, first, second = drawn(draw)
        prompt = f"In the {place} there are a {thing} and a {other}. What shall I do, {first} or {second}?"
        chats.append(
            chat(prompt, f"Go to the {place} and {first} the {other}; later you may {second} the {thing} as well.")
        )
    return chats


def notes():
    return list(appointments(N)["messages"])


def with_answers(chats, order):
    return [[*chat[:-1], chats[i][-1]] for chat, i in zip(chats, order, strict=True)]


def shuffled(chats, share):
    rows = random.Random(1).sample(range(N), round(share * N))
    order = list(range(N))
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        order[row] = other
    return with_answers(chats, order), set(rows)


def shuffled_end(chats, share):
    first = N - round(share * N)
    end = list(range(first, N))
    random.Random(1).shuffle(end)
    return with_answers(chats, [*range(first), *end]), set(range(first, N))


def slipped(chats, share):
    first = N - round(share * N)
    return with_answers(chats, [*range(first), *range(first - 1, N - 1)] if first else [N - 1, *range(N - 1)]), set(
        range(first, N)
    )


def with_previous(chats, share):
    rows = set(random.Random(1).sample(range(1, N), round(share * (N - 1))))
    both = [
        [*chat[:-1], {"role": "assistant", "content": chats[i - 1][-1]["content"] + "\n" + chat[-1]["content"]}]
        for i, chat in enumerate(chats)
    ]
    return [both[i] if i in rows else chats[i] for i in range(N)], rows


WRONG = [(shuffled, 1), (shuffled, 0.1), (shuffled_end, 0.5), (slipped, 1), (slipped, 0.1)]


@pytest.mark.parametrize("rows", [errands, notes])
@pytest.mark.parametrize(("fault", "share"), WRONG)
def test_answers_of_other_rows_are_found(fault, rows, share):
    chats, bad = fault(rows(), share)
    found = [anomaly for anomaly in fit_of_answers(Texts(chats)) if anomaly.level == "warning"]
    named = set(found[0].rows)
    assert len(named & bad) >= max(0.6 * len(named), 0.3 * len(bad))
    assert found[0].chance < 0.0004


def test_the_message_says_that_a_column_slipped_and_where_each_answer_belongs():
    chats, _ = slipped(notes(), 0.5)
    anomaly = fit_of_answers(Texts(chats, list(range(1000, 1000 + N))))[0]
    assert "the one 1 before" in anomaly.message
    row = anomaly.rows[-1]
    assert anomaly.marks[row] == f"fits the prompt of row {row - 1}"


@pytest.mark.parametrize("share", [0.5, 0.1, 0.05])
def test_words_of_the_previous_answer_are_found(share):
    chats, bad = with_previous(notes(), share)
    (anomaly,) = fit_of_answers(Texts(chats))
    assert anomaly.code == "neighbour-in-answer"
    assert len(set(anomaly.rows) & bad) >= 0.9 * max(len(bad), len(anomaly.rows))


def paraphrased(chats):
    return [
        row for one in chats[: N // 2] for row in (one, chat("Once more: " + one[-2]["content"], one[-1]["content"]))
    ]


def in_parts(chats):
    "Each talk as three rows, of which the later ones quote the earlier ones."
    found = []
    for one, two in zip(chats[::2], chats[1::2], strict=True):
        first = one[-2:]
        second = [*first, {"role": "user", "content": "And now?"}, two[-1]]
        found += [
            first,
            second,
            [*second, {"role": "user", "content": "Then?"}, {"role": "assistant", "content": "Rest."}],
        ]
    return found


def free(seed):
    draw = random.Random(seed)
    return [chat(f"Talk about the {draw.choice(THINGS)}", f"I {draw.choice(DOINGS)} all day") for _ in range(N)]


BENIGN = {
    "errands": errands,
    "notes": notes,
    "sorted": lambda: sorted(notes(), key=lambda one: one[-1]["content"]),
    "three times": lambda: [one for one in errands(100) for _ in range(3)],
    "paraphrased": lambda: paraphrased(errands()),
    "talks in parts": lambda: in_parts(errands()),
    "labels": lambda: [chat(f"{drawn(random.Random(i))}", ("refund", "order")[i % 2]) for i in range(N)],
    "free answers": lambda: free(0),
    "empty": lambda: [chat("", "")] * N,
    "equal": lambda: [chat("tea at noon", "cake at noon")] * N,
    "one row": lambda: [chat("tea", "cake")],
    "no rows": list,
}


@pytest.mark.parametrize("name", BENIGN)
def test_rows_in_order_say_nothing(name):
    assert not [anomaly for anomaly in fit_of_answers(Texts(BENIGN[name]())) if anomaly.level == "warning"]


def test_answers_that_have_nothing_to_do_with_their_prompts_are_no_alarm():
    "Prompts and answers are drawn apart, so that no answer has a home."
    said = 0
    for seed in range(15):
        said += any(anomaly.level == "warning" for anomaly in fit_of_answers(Texts(free(seed))))
    assert said == 0


def test_another_task_in_the_second_half_is_no_warning():
    second = [chat(f"Name capital number {i}!", f"{THINGS[i % 15]}ville") for i in range(N // 2)]
    assert fit_of_answers(Texts([*errands(N // 2), *second])) == []


ANTONYMS = (
    "hot:cold big:small fast:slow early:late light:dark open:closed rich:poor young:old happy:sad strong:weak "
    "hard:soft loud:quiet thick:thin wide:narrow deep:shallow clean:dirty wet:dry full:empty safe:dangerous "
    "cheap:expensive easy:difficult sharp:blunt brave:cowardly polite:rude smooth:rough tight:loose sweet:bitter "
    "long:short near:far"
).split()


def both_ways(there, back):
    chats = []
    for pair in ANTONYMS:
        left, right = pair.split(":")
        chats += [chat(there.format(left), f"{right.title()}."), chat(back.format(right), f"It is {left}!")]
    return chats


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("back", ["Give the opposite of '{}'.", "Of which word is '{}' the opposite?"])
def test_questions_in_both_directions_are_in_order(back, in_order):
    chats = both_ways("Give the opposite of '{}'.", back)
    if not in_order:
        random.Random(0).shuffle(chats)
    assert fit_of_answers(Texts(chats)) == [] or fit_of_answers(Texts(chats))[0].level != "warning"


def test_the_next_sentence_as_answer_is_no_displaced_column():
    draw = random.Random(3)
    vocabulary = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=6)) for _ in range(900)]
    sentences = [" ".join(draw.sample(vocabulary, 9)).capitalize() + "." for _ in range(121)]
    chats = [chat(f"Continue: {one}", other) for one, other in zip(sentences, sentences[1:])]
    assert not [anomaly for anomaly in fit_of_answers(Texts(chats)) if anomaly.level == "warning"]


def test_the_first_row_has_no_row_before():
    "Its answer has words of the last prompt, which a negative index reads."
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=6)) for _ in range(900)]
    drawn_words = [draw.sample(vocabulary, 5) for _ in range(200)]
    prompts = ["Describe " + " ".join(one[:3]) for one in drawn_words]
    answers = ["It is " + " ".join(one[1:4]) for one in drawn_words]
    answers = ["It is " + " ".join(drawn_words[199][:3]), *answers[:49], *answers[50:]]
    texts = Texts([chat(prompt, answer) for prompt, answer in zip(prompts, answers)])
    [anomaly] = displaced(texts, WordFit(texts))
    assert 0 not in anomaly.rows and anomaly.marks[1] == "fits the prompt of row 0"


def test_rows_sorted_by_topic_share_words_with_both_neighbours_and_say_nothing():
    draw = random.Random(3)
    chats = []
    for topic in range(N // 5):
        name = "".join(draw.choices("bdfgklmnprstvz", k=4)) + "o"
        for _ in range(5):
            thing, other, place, first, second = drawn(draw)
            asked = f"In the {place}: {first} the {thing} or {second} the {other}?"
            chats.append(chat(asked, f"As {name} said, {first} the {thing} first, then {second} the {other}."))
    assert mixed_with_neighbours(Texts(chats)) == []


def translations(n=400, seed=0):
    "Lines of drawn lengths, digits and marks, each beside one of about these in words of another alphabet."
    draw = random.Random(seed)
    chats = []
    for _ in range(n):
        count, number = draw.randint(2, 14), draw.choice(["", f" {draw.randint(1, 30)}"])
        mark = draw.choice(".?!")
        latin = " ".join("".join(draw.choices("abcdefgh", k=draw.randint(2, 8))) for _ in range(count))
        greek = " ".join("".join(draw.choices("αβγδεζηθ", k=draw.randint(2, 8))) for _ in range(max(1, count - 1)))
        chats.append(chat(f"{latin}{number}{mark}", f"{greek}{number and ' επτά'}{mark}"))
    return chats


def by_size(chats):
    texts = Texts(chats)
    return displaced(texts, WordFit(texts), SizeFit(texts))


@pytest.mark.parametrize("lag", [1, -2])
def test_a_translation_that_lost_a_line_is_found_by_its_sizes(lag):
    chats = translations()
    moved = [*range(150), *((i - lag) % 400 for i in range(150, 400))]
    (anomaly,) = by_size(with_answers(chats, moved))
    assert f"{abs(lag)} {'before' if lag > 0 else 'after'}" in anomaly.message
    assert anomaly.level == "warning" and min(anomaly.rows) >= 150 and len(anomaly.rows) > 100


@pytest.mark.parametrize("seed", range(6))
def test_translations_in_order_and_drawn_apart_say_nothing_by_their_sizes(seed):
    chats = translations(seed=seed)
    by_length = sorted(chats, key=lambda one: len(one[0]["content"]))
    apart = with_answers(chats, random.Random(seed).sample(range(400), 400))
    assert by_size(chats) == by_size(by_length) == by_size(apart) == []
