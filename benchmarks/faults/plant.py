"What a fault is, and the pieces that plants are made of"

from collections.abc import Callable
from dataclasses import dataclass

from good import Case

GROUPS = ("data", "model folder", "settings and machine", "library use", "reinforcement learning")


@dataclass(frozen=True)
class Fault:
    "One change of the good run, and what a right diagnosis of it says."

    name: str
    group: str
    plant: Callable[[Case], object]
    cause: str  # a pattern that is found in the code or the text of a finding that names the right cause
    stage: str = "sft"
    holdout: bool = False  # another instance of a property that an earlier fault breaks
    least: str = "warning"  # the lowest level that counts: a note is enough where the user alone can decide
    start: str = ""  # "adapter": the good run goes on from an adapter; "tools": its rows call a tool
    unknowable: str = ""  # why no tool can know it, and what is said instead


@dataclass(frozen=True)
class Benign:
    "A change after which the run is as good as before: nothing above a note may be said."

    name: str
    plant: Callable[[Case], object]
    stage: str = "sft"
    start: str = ""
    parts: int = 1  # how many parts it changes, where that is not one


def on_rows(change) -> Callable[[Case], None]:
    "Other rows: `change(rows)` returns them, or changes them in place."
    return lambda case: case.rows(change)


def on_each(change) -> Callable[[Case], None]:
    "`change(row, i)` in place."

    def changed(rows):
        for i, row in enumerate(rows):
            change(row, i)

    return on_rows(changed)


def on_answers(change) -> Callable[[Case], None]:
    "`change(text, i)` returns the text of each answer of row i."

    def each(row, i):
        for message in row["messages"]:
            if message["role"] == "assistant":
                message["content"] = change(message["content"], i)

    return on_each(each)


def on_questions(change) -> Callable[[Case], None]:
    def each(row, i):
        for message in row["messages"]:
            if message["role"] == "user":
                message["content"] = change(message["content"], i)

    return on_each(each)


def setting(**settings) -> Callable[[Case], None]:
    return lambda case: case.set(**settings)


def config(**fields) -> Callable[[Case], None]:
    return lambda case: case.config(**fields)


def template(old: str, new: str) -> Callable[[Case], None]:
    "Another text in the template."

    def change(text):
        assert old in text, text
        return text.replace(old, new)

    return lambda case: case.template(change)


def tokenizer(**parts) -> Callable[[Case], None]:
    return lambda case: case.tokenizer(lambda found: found.update(parts))


def content(filter: str) -> Callable[[Case], None]:
    "A template that writes the content through a filter."
    return template("message['content']", f"(message['content'] | {filter})")
