"Faults and benign variations of tool calls, mixtures, rated answers and documents"

# ruff: noqa: E501 (the table has a line for each)

import json

from good import Case, documents
from plant import Benign, Fault, on_each, on_rows, setting, template

from ft_notebooks.course.example_task import appointments

# Rows that call a tool

TEXT = "(message['content'] or '')"
CALL = "'CALL ' + (message['tool_calls'][0]['function']|tojson)"
CONTENT = f"({TEXT} + ({CALL} if message['tool_calls'] else ''))"


def tool(name: str = "add_event", time: str = "time") -> dict:
    text = {"type": "string"}
    wanted = {"type": "object", "properties": {"event": text, "day": text, time: text}, "required": ["event"]}
    return {"type": "function", "function": {"name": name, "description": "Adds an event.", "parameters": wanted}}


def call_tools(case: Case) -> None:
    "Each answer is a call with the values of the note; the template writes tools and calls."

    def change(rows):
        found = []
        for row in rows:
            known = {"name": "add_event", "arguments": json.loads(row["messages"][2]["content"])}
            call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": known}]}
            found.append({"messages": [*row["messages"][:2], call], "tools": [tool()]})
        return found

    def written(text):
        assert "message['content']" in text, text
        offered = "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools|tojson + '<|im_end|>\n' }}{% endif %}"
        return offered + text.replace("message['content']", CONTENT)

    case.rows(change)
    case.template(written)


def on_calls(change):
    "`change(function, i)` in place, of the call of row i."
    return on_each(lambda row, i: change(row["messages"][2]["tool_calls"][0]["function"], i))


def another_name(call, i):
    if i % 3 == 0:
        call["name"] = "create_event"


def offered_otherwise(row, i):
    if i % 3 == 0:
        row["tools"] = [tool("create_event")]


def a_number(call, i):
    if i % 3 == 0:
        call["arguments"]["time"] = 100 * i


def as_text(call, i):
    call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)


# Rows that are mixed in


def mix(rows: int, share: float, **more):
    "Notes in a file of their own, and their share."

    def plant(case: Case):
        notes = [{"messages": messages} for messages in appointments(rows, seed=71)["messages"]]
        text = "\n".join(json.dumps(note) for note in notes)
        (case.folder.parent / "earlier.jsonl").write_text(text, encoding="utf-8")
        case.set(data__mix=json.dumps({"../earlier.jsonl": share}), **more)

    return plant


def replay(rows: int, share: float):
    def plant(case: Case):
        mix(rows, share)(case)
        case.set(data__mix=None, data__replay="../earlier.jsonl", data__replay_share=share)

    return plant


# Rated answers


def scored(wrong: float):
    "A score beside each label, which contradicts that share of them."

    def each(row, i):
        is_good = row["label"] != (i % 100 < 100 * wrong)
        row["score"] = 3.0 * is_good + i % 3

    return on_each(each)


def politer(row, i):
    row["completion"] += " Thank you so much, dear." * row["label"]


def both_labels(rows):
    return rows + [{**row, "label": not row["label"]} for row in rows[:20]]


def label_as_text(row, i):
    row["label"] = "true" if row["label"] else "false"


# Documents


def joined(case: Case):
    case.write([{"text": "<|endoftext|>".join(row["text"] for row in documents())}])


def menu(row, i):
    row["text"] = (
        "Home | Products | About us | Contact | Imprint\nAll rights reserved by the authors of this page.\n"
        + row["text"][:300]
    )


def html(row, i):
    row["text"] = f"<div class='a'><p>{row['text'][:60]}</p><a href='/next'>next</a></div>"


def licence(row, i):
    row["text"] += "\n\nLicence: CC BY 4.0"


def with_code(row, i):
    row["text"] = f"# {i}\n\n```python\nfor i in range(9):\n    print(i)\n```\n\n{row['text']}\n\nEine \u00dcbung. <br>"


CALLS = r"calls-unknown|call a tool"
MISFIT = r"calls-misfit|arguments"
OFTEN = r"each is read about"
ALIKE = r"documents-alike|every|most documents|stands? in"
FAULTS = [
    Fault("calls of a tool that is not offered", "data", on_calls(another_name), CALLS, start="tools"),
    Fault("offered tools that were renamed", "data", on_each(offered_otherwise), CALLS, start="tools", holdout=True),
    Fault("arguments that are no texts", "data", on_calls(a_number), MISFIT, start="tools"),
    Fault("a template that drops the calls", "data", template(CONTENT, TEXT), r"tool_calls|tool call|calls a tool", start="tools"),
    Fault("mixture: two rows for four fifths of the rows", "data", mix(2, 0.9), OFTEN),
    Fault("mixture: two rows for four fifths of the tokens", "data", mix(2, 0.9, data__mix_by="tokens"), OFTEN, holdout=True),
    Fault("pretraining: four chats of replay for most of the tokens", "data", replay(4, 0.98), OFTEN, stage="pretrain"),
    Fault("pretraining: documents run together", "data", joined, r"documents-joined", stage="pretrain"),
    Fault("pretraining: the same menu in every document", "data", on_each(menu), ALIKE, stage="pretrain"),
    Fault("pretraining: pages with their tags", "data", on_each(html), ALIKE, stage="pretrain", holdout=True),
    Fault("KTO: labels that contradict all scores", "data", scored(1.0), r"labels-contradict-ratings", stage="kto"),
    Fault("KTO: the good answers are longer", "data", on_each(politer), r"label-feature", stage="kto", least="note"),
    Fault("KTO: answers with both labels", "data", on_rows(both_labels), r"labels-contradict\b", stage="kto"),
    Fault("KTO: a rate of 1", "data", setting(kto__learning_rate=1), r"learning.rate|worse", stage="kto", holdout=True),
]  # fmt: skip
BENIGN = [
    *(Benign(f"{stage}: the good run", lambda case: None, stage, parts=0) for stage in ("kto", "pretrain")),
    Benign("rows that call a tool", lambda case: None, start="tools", parts=0),
    Benign("the arguments of calls as texts", on_calls(as_text), start="tools"),
    Benign("mixture: a fifth of the rows", mix(8, 0.2)),
    Benign("mixture: a fifth of the tokens", mix(8, 0.2, data__mix_by="tokens")),
    Benign("pretraining: a quarter of replay", replay(24, 0.25), "pretrain"),
    Benign("pretraining: a licence below each document", on_each(licence), "pretrain"),
    Benign("pretraining: code and a foreign word", on_each(with_code), "pretrain"),
    Benign("KTO: scores that agree with the labels", scored(0.0), "kto"),
    Benign("KTO: labels as texts", on_each(label_as_text), "kto"),
]  # fmt: skip
