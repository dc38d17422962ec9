"Rows in order of several kinds: n of them, by a seed"

import json
import random

from ft_notebooks.course.demo_task import demo_pairs
from ft_notebooks.course.example_task import appointments

THINGS = "lamp kettle chair mirror camera bottle ladder carpet basket candle".split()
PLACES = "Paris Oslo Rome Vienna Lisbon Prague Dublin Athens Cairo Lima".split()
NAMES = "Omar Ruth Lena Marco Aisha Peter Yuki Carlos Ines Jonas".split()


def said(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def notes(n, seed):
    return list(appointments(n, seed=seed)["messages"])


def drawn(row):
    "A kind of which each row is made by its own draw."
    return lambda n, seed: [row(random.Random(1_000_000 * seed + i)) for i in range(n)]


@drawn
def orders(draw):
    thing, place, name, number = draw.choice(THINGS), draw.choice(PLACES), draw.choice(NAMES), draw.randrange(10_000)
    asked = draw.choice(["Where is {0} {3}, please?", "{2} waits for {0} {3}.", "When does {0} {3} come?"])
    told = draw.choice(["The {0} {3} has left {1}.", "{2} gets {3} from {1}.", "In {1} we pack the {0} for {2}."])
    return said(*(text.format(thing, place, name, number) for text in (asked, told)))


@drawn
def talks(draw):
    thing, other, name = draw.choice(THINGS), draw.choice(THINGS), draw.choice(NAMES)
    turns = (
        [f"Hi, my {thing} came broken.", f"Hello, where is my {thing}?"],
        [f"I am sorry about the {thing}. What is your name?", "I found it. Could you tell me your name?"],
        [f"It's {name}.", f"{name}, and please add a {other}."],
        [f"Thank you, {name}. A new {thing} is on its way.", f"Done, {name}: the {thing} is sent today."],
        ["Thanks, bye!", f"Great, and the {other}?"],
        ["You are welcome.", f"The {other} is included."],
    )
    return said(*map(draw.choice, turns))


@drawn
def options(draw):
    listed = draw.sample(PLACES, 4)
    place = draw.randrange(4)
    lines = "\n".join(f"{letter}) {city}" for letter, city in zip("ABCD", listed))
    return said(f"Where does train {draw.randrange(100)} end?\n{lines}", f"{'ABCD'[place]}) {listed[place]}")


TEAMS = {"billing": "invoice refund card fee price".split(), "delivery": "parcel courier address late box".split()}


@drawn
def tickets(draw):
    team = draw.choice(list(TEAMS))
    first, second = draw.sample(TEAMS[team], 2)
    return said(f"About the {first} and {second} of my {draw.choice(THINGS)} {draw.randrange(100)}", team)


@drawn
def notices(draw):
    words = ["".join(draw.choices("aeioubdkmnrst", k=draw.randrange(2, 9))) for _ in range(draw.randrange(8, 25))]
    return said(f"Text {draw.randrange(10_000)}", " ".join(words) + ".")


@drawn
def functions(draw):
    name, number = f"{draw.choice(['sort', 'count', 'find'])}_{draw.choice(THINGS)}", draw.randrange(100)
    return said(f"Write {name}, plus {number}.", f"def {name}(x):\n    return x + {number}")


@drawn
def lines(draw):
    "A line and its translation, which shares no word with it."
    lengths = [draw.randrange(2, 9) for _ in range(draw.randrange(2, 15))]
    mark = draw.choice(".?!")
    latin, greek = (
        " ".join("".join(draw.choices(letters, k=k)) for k in lengths) for letters in ("abcdefg", "αβγδεζη")
    )
    return said(latin + mark, greek + mark)


@drawn
def trips(draw):
    here, there = draw.sample(PLACES, 2)
    asked = draw.choice(["From {0} to {1}, please.", "A train to {1} from {0}!", "I go to {1}, from {0}."])
    return said(asked.format(here, there), json.dumps({"from": here, "to": there}))


def judged(n, seed):
    "Pairs of the right answer and one with another time, with scores."
    rows = []
    for i, chat in enumerate(notes(n, seed)):
        known = json.loads(chat[-1]["content"])
        wrong = json.dumps(known | {"time": f"{(7 * i + seed) % 24:02d}:{35 * i % 60:02d}"})
        scores = {"chosen_score": 6 + i % 4, "rejected_score": 1 + i % 5}
        rows.append({"prompt": chat[:-1], "chosen": chat[-1:], "rejected": said("", wrong)[1:], **scores})
    return rows


def ordered(n, seed):
    return demo_pairs(n, seed).to_list()


CHATS = (notes, orders, talks, options, tickets, notices, functions, lines, trips)
PAIRS = (judged,)
