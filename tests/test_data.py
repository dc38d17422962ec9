import json
import os
import random
import re
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict

from ft_notebooks import data
from ft_notebooks.data import appointments, read_chats, split

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
READ = [CHAT["messages"], [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to(name, content):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return to


def refused(source):
    with pytest.raises(ValueError) as failure:
        read_chats(source)
    assert type(failure.value) is ValueError  # ours, and not a decoder's or pydantic's
    return str(failure.value)


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# --- what is read


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", f"{json.dumps(CHAT)}\r\n\r\n  \n{json.dumps(ALPACA)}"),
        ("a.jsonl", b"\xef\xbb\xbf" + f"{json.dumps(CHAT)}\n{json.dumps(ALPACA)}\n".encode()),
        ("A.JSONL", f"\n\n {json.dumps(CHAT)} \n{json.dumps(ALPACA)}\n\n"),
        ("a.json", json.dumps([CHAT, ALPACA])),
        ("a.json", b"\xef\xbb\xbf\r\n" + json.dumps([CHAT, ALPACA], indent=4).replace("\n", "\r\n").encode()),
    ],
    ids=["windows", "mark", "blanks", "one line", "pretty with mark"],
)
def test_both_formats_are_read_row_by_row_however_the_file_is_written(write, name, content):
    assert list(read_chats(write(name, content))["messages"]) == READ


def test_a_line_separator_inside_a_text_does_not_end_the_row(write):
    row = chat(("user", "one\u2028two\u2029three\x85four\x0bfive"), ("assistant", "yes"))
    file = write("a.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert read_chats(file)[0] == row


def test_texts_are_kept_to_the_letter():
    row = chat(("system", "  be brief \n"), ("user", "naïve 🙂 \x00"), ("assistant", "\tyes "))
    assert read_chats([row])[0] == row


def test_list_dataset_and_file_give_the_same_dataset(write):
    file = read_chats(write("a.jsonl", json.dumps(CHAT)))
    for other in (read_chats([CHAT]), read_chats(Dataset.from_list([CHAT])), read_chats(file.with_format("numpy"))):
        assert other[:] == file[:] and other.features == file.features


def test_other_columns_are_ignored_and_nulls_count_as_absent():
    rows = [{**CHAT, "id": 1, "tools": [], "text": None}, {**ALPACA, "text": "as published", "messages": None}]
    assert list(read_chats(rows)["messages"]) == READ
    assert list(read_chats(Dataset.from_list([{**ALPACA, "messages": None}, CHAT]))["messages"])[:1] == READ[1:]


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_input_leaves_the_instruction_alone(empty):
    assert read_chats([{**ALPACA, "input": empty}])[0]["messages"][0]["content"] == "Add."


def test_a_row_of_another_width_does_not_change_its_neighbours():
    long = chat(*[("user", "q"), ("assistant", "a")] * 3)
    assert list(read_chats([CHAT, long, ALPACA])["messages"]) == [CHAT["messages"], long["messages"], READ[1]]


# --- what is refused: the whole sentence, so that a change of words is seen


ROWS = {
    "the row is 7; it must be an object": 7,
    "the row has the keys ['prompt', 'response']; it must be {\"messages\"": {"prompt": "a", "response": "b"},
    "the row has the keys []": {},
    '"messages" and "instruction" in one row are ambiguous; keep the one': {**CHAT, **ALPACA},
    '"messages" and "text" in one row are ambiguous; keep the one': {**CHAT, "text": "Hi Hello"},
    "\"tools\" ([{'name': 'f'}]) would be lost; write it into": {**CHAT, "tools": [{"name": "f"}]},
    "\"system\" ('Be brief.') would be lost": {**ALPACA, "system": "Be brief."},
    "\"history\" ([['a', 'b']]) would be lost": {**ALPACA, "history": [["a", "b"]]},
    "\"messages\" is 'Hi'; it must be a list of messages": {"messages": "Hi"},
    '"messages" is empty; give it at least one "assistant" message': {"messages": []},
    "message 2 is 'Hello'; every message needs \"role\" and \"content\"": {"messages": [CHAT["messages"][0], "Hello"]},
    'message 2 has no "content"; every message needs "role" and "content"': chat(("user", "a"), ("assistant", None)),
    'message 1 has no "role"': {"messages": [{"content": "Hi"}]},
    'message 1 has the role \'bot\'; the roles are "system", "user" and "assistant"': chat(("bot", "a")),
    'message 1 has the role \'human\'; the roles are "system", "user" and "assistant"; write "user"': chat(
        ("human", "a")
    ),
    'message 1 has the role \'gpt\'; the roles are "system", "user" and "assistant"; write "assistant"': chat(
        ("gpt", "a")
    ),
    "message 1 has the role ['user']": chat((["user"], "a")),
    'message 2 has a blank "content"; write its text or': chat(("user", "a"), ("assistant", "\n\u3000")),
    'message 1 has the "content" [{\'type\': \'text\'}]; it must be a text': chat(("user", [{"type": "text"}])),
    'message 1 has half a surrogate pair in its "content" \'\\ud83d\'': chat(("user", "\ud83d")),
    'the row has half a surrogate pair in its "input" \'1 \\ud83d\'': {**ALPACA, "input": "1 \ud83d"},
    "message 1 has \"weight\" (0), which would be lost": {"messages": [{"role": "user", "content": "a", "weight": 0}]},
    "message 2 is the system's; only the first message may be": chat(
        ("user", "a"), ("system", "b"), ("assistant", "c")
    ),  # fmt: skip
    "no message is the assistant's, so there is nothing to learn": chat(("system", "a"), ("user", "b")),
    "the last message is the user's; end with the assistant's": chat(("user", "a"), ("assistant", "b"), ("user", "c")),
    'the row has no "output"; an alpaca row needs "instruction" and "output"': {"instruction": "Add.", "output": None},
    'the row has a blank "instruction"': {**ALPACA, "instruction": ""},
    'the row has a blank "output"': {**ALPACA, "output": "\n"},
    'the row has the "output" 3; it must be a text': {**ALPACA, "output": 3},
    "the row has the \"input\" ['1']; it must be a text": {**ALPACA, "input": ["1"]},
}


@pytest.mark.parametrize("words, row", [(words, row) for words, row in ROWS.items()], ids=range(len(ROWS)))
def test_a_broken_row_is_named_by_its_place_in_a_file_and_in_a_list(write, words, row):
    assert f"train.jsonl:3: {words}" in refused(write("train.jsonl", f"{json.dumps(CHAT)}\n\n{json.dumps(row)}\n"))
    assert f"row 1 (counted from 0): {words}" in refused([CHAT, row])
    text = json.dumps([CHAT, row], indent=2)
    line = 1 + text[: text.index("\n  }") + 4].count("\n") + 1  # the line after the first row's end
    assert f"train.json:{line}: {words}" in refused(write("train.json", text))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", json.dumps(CHAT) + "\n{'a': 1}\n", "a.jsonl:2: not JSON at column 2: Expecting property name"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', "a.jsonl:1: not JSON at column 10: Extra data; write the row with"),
        ("a.jsonl", '{"instruction": "a",\n"output": "b"}', "a.jsonl:1: not JSON at column 21: Expecting property"),
        ("a.jsonl", json.dumps([CHAT]), "a.jsonl:1: not read: an array, as in a .json file; rename the file"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not read: an array"),
        ("a.jsonl", '{"a":' * 100_000, "a.jsonl:1: not read: "),
        ("a.jsonl", '{"instruction": "a", "output": "b", "output": "c"}', '1: not read: the key "output" occurs twice'),
        ("a.jsonl", '{"n": ' + "9" * 5000 + "}", "a.jsonl:1: not read: "),
        ("a.json", "[" * 100_000, "a.json:1: not read: "),
        ("a.json", '\n\n[{"a": 1},\n {"a" 2}]', "a.json:4: not JSON at column 7: Expecting ':' delimiter"),
        ("a.json", f"[{json.dumps(CHAT)},\n]", "a.json:2: not JSON at column 1: Expecting value"),
        ("a.json", f"[{json.dumps(CHAT)}\n\n {json.dumps(CHAT)}]", "a.json:3: not JSON at column 2: Expecting ','"),
        ("a.json", f"[{json.dumps(CHAT)}", "a.json:1: not JSON at column"),
        ("a.json", f"[{json.dumps(CHAT)}]\n]", "a.json:2: not JSON at column 1: Extra data"),
        ("a.json", "not json", "a.json:1: not JSON at column 1: Expecting value"),
        ("a.json", json.dumps({"data": [CHAT], "n": 1}), 'not an array of rows; save what is under "data" as a file'),
        ("a.json", json.dumps({"n": 1}), "a.json:1: not read: an object with the keys ['n'], not an array of rows"),
        ("a.json", json.dumps(CHAT), "a.json:1: not read: a row by itself, not an array of rows; put it between"),
        ("a.json", f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}", "more than one value, as in JSON Lines; rename the file"),
        ("a.json", '"Hi"', "a.json:1: not read: 'Hi' is not an array of rows"),
        ("a.json", "", "a.json: no rows; a row is"),
        ("a.json", " \n ", "a.json: no rows; a row is"),
        ("a.json", "[ \n]", "a.json: no rows; a row is"),
        ("a.jsonl", "", "a.jsonl: no rows; a row is"),
        ("a.jsonl", b"\xef\xbb\xbf\n\r\n", "a.jsonl: no rows; a row is"),
        ("a.jsonl", b"{}\n{}\n\xe9", "a.jsonl:3: the byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a.jsonl", b"\xef\xbb\xbf{}\n\xe9", "a.jsonl:2: the byte 0xe9"),
        ("a.jsonl", json.dumps(CHAT).encode("utf-16"), "a.jsonl:1: the byte 0xff is not UTF-8"),
        ("a.csv", "messages\n", "a.csv: .csv; only .json and .jsonl are read, so convert the file"),
        ("a.jsonl.gz", b"\x1f\x8b", "a.jsonl.gz: .gz; only .json and .jsonl are read"),
        ("rows", "[]", "rows: no suffix; only .json and .jsonl are read"),
    ],
)
def test_a_broken_file_is_refused_with_the_place_and_the_cure(write, name, content, words):
    assert words in refused(write(name, content))


def test_what_is_no_file_is_refused_with_what_there_is(write, tmp_path):
    write("train.jsonl", "")
    write("notes.txt", "")
    assert refused("trian.jsonl") == "trian.jsonl: no such file; there is train.jsonl"
    assert refused("train") == "train: no such file; there is train.jsonl"
    assert refused("elsewhere/train.jsonl") == "elsewhere/train.jsonl: no such file; check the path"
    assert refused("elsewhere/") == "elsewhere/: no such file; check the path"
    assert refused(tmp_path) == f"{tmp_path}: a folder, not a file; there is train.jsonl"
    assert "no such file" in refused(json.dumps(CHAT) * 1000)
    assert "no such file" in refused("a/" * 5000 + "b.jsonl")
    assert "no such file" in refused("a\0.jsonl")


@pytest.mark.parametrize("source", [None, 3, b"a.jsonl", CHAT, (CHAT,), DatasetDict(train=Dataset.from_list([CHAT]))])
def test_other_sources_are_refused_by_their_type(source):
    assert f"cannot read a {type(source).__name__}; pass a path, a list" in refused(source)


@pytest.mark.parametrize("source", [[], Dataset.from_list([])])
def test_no_rows_is_an_error(source):
    assert f"the {type(source).__name__}: no rows" in refused(source)


def test_all_defects_are_counted_and_twenty_are_shown(write):
    lines = refused(write("a.jsonl", "\n".join([json.dumps(CHAT), "7"] * 30))).splitlines()
    assert len(lines) == 21 and lines[-1] == "30 defects in all, the first 20 are shown"
    assert [line.split(": ")[0] for line in lines[:20]] == [f"a.jsonl:{n}" for n in range(2, 42, 2)]
    assert refused(write("a.jsonl", "7\n7")).splitlines()[-1] == "2 defects in all"
    assert "defects" not in refused(write("a.jsonl", "7"))


def test_a_long_value_is_shortened():
    assert len(refused([chat(("x" * 10_000, "a"))])) < 200
    assert len(refused([{"k" * 10_000 + str(i): i for i in range(1000)}])) < 400
    assert len(refused([{"messages": [{"role": "user", "content": "a", "k" * 10_000: 1}]}])) < 400


def test_an_edited_file_is_read_anew_also_by_another_process(write):
    code = "from ft_notebooks.data import read_chats; print(read_chats('a.jsonl')[0]['messages'][1]['content'])"
    for answer in ("first", "second"):
        write("a.jsonl", json.dumps({**ALPACA, "output": answer}))
        assert read_chats("a.jsonl")[0]["messages"][1]["content"] == answer
    write("a.jsonl", json.dumps({**ALPACA, "output": "third"}))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "third"
    assert read_chats("a.jsonl").cache_files == []


def mutated(text, rng):
    "`text` with one stretch dropped, doubled, or replaced by what JSON, UTF-8 or the schema cares about."
    raw = bytearray(text.encode())
    i = rng.randrange(len(raw))
    j = i + rng.choice((0, 1, 1, 1, 3, 40))
    tokens = b'" { } [ ] , : \\ 7 null x \\ud800 \\u2028 \\n \xe9 \xc3\xa9 \xe2\x80\xa8 \x00 \xef\xbb\xbf'.split(b" ")
    raw[i:j] = rng.choice([b"", bytes(raw[i:j] * 2), b"\n", b" ", *tokens])
    return bytes(raw)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_mutated_file_is_read_as_json_reads_it_or_refused_by_us(write, name):
    rng, rows, read = random.Random(0), [CHAT, ALPACA, chat(("system", "s"), ("user", "u"), ("assistant", "a"))], 0
    text = json.dumps(rows, indent=1) if name == "a.json" else "\n".join(map(json.dumps, rows))
    for _ in range(150):
        content = mutated(text, rng)
        try:
            found = list(read_chats(write(name, content))["messages"])
        except ValueError as e:
            assert type(e) is ValueError and str(e).startswith(name)
            continue
        plain = content.decode("utf-8-sig")
        given = json.loads(plain) if name == "a.json" else [json.loads(x) for x in plain.split("\n") if x.strip()]
        question = [row.get("instruction") for row in given]
        assert len(found) == len(given)
        for row, instruction, messages in zip(given, question, found):
            if instruction is None:
                assert messages == [{k: m[k] for k in ("role", "content")} for m in row["messages"]]
            else:
                assert messages[0]["content"].startswith(instruction) and messages[1]["content"] == row["output"]
        read += 1
    assert read > 5  # the mutations are not all fatal


# --- split


def normal(messages):
    return str([(m["role"], m["content"].lower().split()) for m in messages])


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_keeps_duplicates_together_and_loses_nothing(share, seed):
    rng = random.Random(seed)
    texts = [rng.choice(("Hello there", "hello  there", "HELLO\nTHERE")) + f" {rng.randrange(60)}" for _ in range(200)]
    dataset = read_chats([chat(("user", f"{text} {i:03d}"[:-4]), ("assistant", "ok")) for i, text in enumerate(texts)])
    sides = split(dataset, share, seed)
    train, test = ({normal(row) for row in sides[side]["messages"]} for side in ("train", "test"))
    assert list(sides) == ["train", "test"] and not train & test
    both = [str(row) for side in sides.values() for row in side["messages"]]
    assert sorted(both) == sorted(str(row) for row in dataset["messages"])
    largest = max(len([row for row in dataset["messages"] if normal(row) == key]) for key in train | test)
    assert share * 200 - largest <= len(sides["test"]) <= share * 200


def test_split_keeps_the_order_of_the_file_on_each_side():
    dataset = read_chats([chat(("user", f"{i:03d}"), ("assistant", "ok")) for i in range(100)])
    for side in split(dataset, 0.3, seed=5).values():
        asked = [row[0]["content"] for row in side["messages"]]
        assert asked == sorted(asked)


def test_conversations_that_differ_in_a_role_or_an_answer_are_not_duplicates():
    rows = [chat(("user", "a"), ("assistant", "b")), chat(("user", "a"), ("assistant", "c"))]
    assert [len(side) for side in split(read_chats(rows), 0.5).values()] == [1, 1]
    rows = [chat((role, "a"), ("user", "x"), ("assistant", "b")) for role in ("user", "system")]
    assert [len(side) for side in split(read_chats(rows), 0.5).values()] == [1, 1]


def test_an_answer_to_nobody_is_refused():
    for turns in ([("assistant", "b")], [("system", "a"), ("assistant", "b")], [("user", "a"), ("assistant", "b"), ("assistant", "c")]):
        with pytest.raises(ValueError, match=f"message {len(turns)} is the assistant's but answers nobody"):
            read_chats([chat(*turns)])


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), True])
def test_split_refuses_a_share_outside_zero_and_one(share):
    with pytest.raises(ValueError, match="share must be between 0 and 1, got"):
        split(read_chats([CHAT, ALPACA]), share)


def test_split_refuses_to_leave_a_side_empty():
    with pytest.raises(ValueError, match="3 rows, 1 of them different, give 0 to the test; change the share"):
        split(read_chats([CHAT] * 3), 0.5)
    with pytest.raises(ValueError, match="give 2 to the test"):
        split(read_chats([CHAT, ALPACA]), 0.9)


# --- appointments


def test_appointments_do_not_depend_on_the_process():
    code = "from ft_notebooks.data import appointments; print(appointments(20, seed=3)[:])"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.strip() == str(appointments(20, seed=3)[:])


def test_appointments_disturb_nobody_elses_random_numbers():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    appointments(10, seed=7)
    assert random.random() == expected


def test_appointments_are_what_read_chats_reads():
    notes = appointments(30, part="validation", new_phrases=True)
    again = read_chats(notes)
    assert again[:] == notes[:] and again.features == notes.features


def test_the_parts_are_as_large_as_promised_and_their_words_differ():
    sizes = {part: (len(data._ACTIVITIES[part].split("|")), len(data._NAMES[part].split("|"))) for part in data._NAMES}
    assert sizes["train"] >= (24, 24) and sizes["validation"] >= (10, 10) and sizes["test"] >= (10, 10)
    assert [len(data._PHRASES[part]) for part in ("train", "validation", "test")] == [16, 6, 6]
    for lists in (data._ACTIVITIES, data._NAMES):
        every = [entry for part in lists.values() for entry in part.split("|")]
        assert len(every) == len(set(every))
    assert all(
        re.findall(r"{(\w+)}", phrase).count(key) == 1
        for part in data._PHRASES.values() for phrase in part for key in ("event", "day", "time")
    )  # fmt: skip


def test_all_the_notes_that_there_are_can_be_had_and_all_differ(monkeypatch):
    monkeypatch.setattr(data, "_TIMES", ("09:00",))
    monkeypatch.setattr(data, "_DAYS", ("Monday", "Sunday"))
    monkeypatch.setattr(data, "_NAMES", {part: "Ann|Bo|Cy" for part in data._NAMES})
    for part, new, total in (("train", False, 108 * 3 * 2 * 16), ("test", True, 30 * 3 * 2 * 6)):
        notes = {row[1]["content"] for row in appointments(total, part=part, new_phrases=new)["messages"]}
        assert len(notes) == total
        with pytest.raises(ValueError, match=f"between 1 and {total}, the number of different notes, got {total + 1}"):
            appointments(total + 1, part=part, new_phrases=new)


@pytest.mark.parametrize(
    "args, words",
    [
        (dict(n=0), "n must be between 1 and"),
        (dict(n=1, part="dev"), r"part must be one of \['train', 'validation', 'test'\], got 'dev'"),
        (dict(n=1, new_phrases=True), 'needs part="validation" or part="test"'),
    ],
)
def test_appointments_refuse_what_cannot_be(args, words):
    with pytest.raises(ValueError, match=words):
        appointments(**args)
