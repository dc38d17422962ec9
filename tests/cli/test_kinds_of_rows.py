"Tool calls, labels as answers and a mixture: killed and resumed, in two processes, and what the doctor says of calls."

import json
import signal
from pathlib import Path

import pytest
import torch
from ranks_of import ft_sft, learned, make_inputs, ranks
from small_runs import ROUNDED, killed_at, only_rounded

from ft_notebooks.cli.commands import main
from ft_notebooks.course.example_task import appointments

TEXT = {"type": "string"}
OFFERED = "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools|tojson + '<|im_end|>\n' }}{% endif %}"
CALLED = "(message['content'] or '') + (message['tool_calls'][0]['function']|tojson if message['tool_calls'] else '')"


def tool(name="add_event"):
    wanted = {"type": "object", "properties": {"event": TEXT, "day": TEXT, "time": TEXT}, "required": ["event"]}
    return {"type": "function", "function": {"name": name, "description": "Adds it.", "parameters": wanted}}


def calls(n=22):
    "Each answer is a call with the values of its note."
    found = []
    for chat in appointments(n)["messages"]:
        known = {"name": "add_event", "arguments": json.loads(chat[-1]["content"])}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": known}]}
        found.append({"messages": [*chat[:-1], call], "tools": [tool()]})
    return found


def labels():
    "Each answer is the day of its note, one of seven labels."
    found = []
    for chat in appointments(22)["messages"]:
        day = json.loads(chat[-1]["content"])["day"]
        asked = [{"role": "system", "content": "Name the day."}, chat[1]]
        found.append({"messages": [*asked, {"role": "assistant", "content": day}]})
    return found


def write(name, rows):
    Path(name).write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A model whose template writes tools and calls, and a file of each kind of rows."
    monkeypatch.chdir(tmp_path)
    make_inputs()
    file = Path("tiny/chat_template.jinja")
    file.write_text(OFFERED + file.read_text().replace("message['content']", f"({CALLED})"))
    write("calls.jsonl", calls())
    write("labels.jsonl", labels())
    write("earlier.jsonl", appointments(5, seed=1))


KINDS = {
    "calls": ("calls.jsonl",),
    "labels": ("labels.jsonl",),
    "mixture": ("notes.jsonl", 'data.mix={"earlier.jsonl": 0.3}', "data.mix_by=tokens"),
}


def run(output, kind):
    data, *more = KINDS[kind]
    ft_sft(output, "sft.num_train_epochs=1", *more, data=data)


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_as_another_one_and_two_processes_learn_what_one_does(here, kind):
    run("whole", kind)
    assert killed_at(3, lambda: run("killed", kind)) == -signal.SIGKILL
    assert Path("killed/checkpoint-2").is_dir() and not Path("killed/metrics.json").exists()
    run("killed", kind)
    ranks(2, lambda rank: run("two", kind), Path("ranks"))
    whole, killed, two = map(learned, ("whole", "killed", "two"))
    assert all(torch.equal(killed[name], value) for name, value in whole.items())
    losses = whole.pop("losses")
    assert (two["losses"] - losses).abs().max() < ROUNDED and len(losses) >= 4
    far = torch.cat([(two[name] - value).abs().flatten() for name, value in whole.items()])
    assert only_rounded(far, len(losses) * 2 * 5e-4)


# what goes wrong with calls without an error


def codes(capsys, rows):
    "The codes of what the doctor warns of."
    write("planted.jsonl", rows)
    with pytest.raises(SystemExit):
        main(["doctor", "planted.jsonl", "--quick", "--json", "--set", "model.name=tiny", "--set", "model.bits=32"])
        raise SystemExit(0)
    found = json.loads(capsys.readouterr().out)["findings"]
    return {one["code"] for one in found if one["level"] in ("warning", "error")}


def call_of(row):
    return row["messages"][-1]["tool_calls"][0]["function"]


def each_third(change):
    rows = calls(48)
    for row in rows[::3]:
        change(row)
    return rows


PLANTED = {
    "a tool that is not offered": (lambda row: call_of(row).update(name="create_event"), "calls-unknown"),
    "an offered tool that was renamed": (lambda row: row.update(tools=[tool("create_event")]), "calls-unknown"),
    "an argument that is no text": (lambda row: call_of(row)["arguments"].update(time=900), "calls-misfit"),
    "an argument that is missing": (lambda row: call_of(row)["arguments"].pop("event"), "calls-misfit"),
}
BENIGN = {
    "calls as they are": lambda row: None,
    "arguments as JSON texts": lambda row: call_of(row).update(arguments=json.dumps(call_of(row)["arguments"])),
    "a second tool that nobody calls": lambda row: row["tools"].append(tool("drop_event")),
    "an optional argument left out": lambda row: call_of(row)["arguments"].pop("time"),
}


@pytest.mark.whole
@pytest.mark.parametrize("name", PLANTED)
def test_a_silent_failure_of_calls_is_found(here, capsys, name):
    plant, code = PLANTED[name]
    assert codes(capsys, each_third(plant)) == {code}


@pytest.mark.whole
@pytest.mark.parametrize("name", BENIGN)
def test_calls_in_order_are_let_alone(here, capsys, name):
    assert codes(capsys, each_third(BENIGN[name])) == set()


@pytest.mark.whole
def test_a_template_that_drops_calls_is_found(here, capsys):
    file = Path("tiny/chat_template.jinja")
    file.write_text(file.read_text().replace(CALLED, "message['content'] or ''"))
    assert codes(capsys, calls(48)) == {"rows-not-encoded"}
