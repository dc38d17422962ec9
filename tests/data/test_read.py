import itertools
import json
import os
import pickle
import signal
import time
import tracemalloc

import datasets
import pytest
from datasets import Dataset, DatasetDict, Json, List, Value
from small_runs import forked, several

from ft_notebooks.data import read, readers
from ft_notebooks.data.deduplication import split
from ft_notebooks.data.read import read_chats, read_preferences

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
    "\"messages\" is 'Hi'; it must be a list of messages": {"messages": "Hi"},
    '"messages" is empty; give it at least one "assistant" message': {"messages": []},
    'message 2 is \'Hello\'; every message needs "role" and "content"': {"messages": [CHAT["messages"][0], "Hello"]},
    'message 2 has no "content"; every message needs "role" and "content"': chat(("user", "a"), ("assistant", None)),
    'message 1 has no "role"': {"messages": [{"content": "Hi"}]},
    'message 1 has the role \'bot\'; the roles are "system", "user", "assistant" and "tool"': chat(("bot", "a")),
    'message 1 has the role \'human\'; the roles are "system", "user", "assistant" and "tool"; write "user"': chat(
        ("human", "a")
    ),
    'message 1 has the role \'gpt\'; the roles are "system", "user", "assistant" and "tool"; write "assistant"': chat(
        ("gpt", "a")
    ),
    "message 1 has the role ['user']": chat((["user"], "a")),
    'message 2 has a blank "content"; write its text or': chat(("user", "a"), ("assistant", "\n\u3000")),
    "message 1 has the \"content\" [{'type': 'text'}]; it must be a text": chat(("user", [{"type": "text"}])),
    "message 1 has half a surrogate pair in its \"content\" '\\ud83d'": chat(("user", "\ud83d")),
    "the row has half a surrogate pair in its \"input\" '1 \\ud83d'": {**ALPACA, "input": "1 \ud83d"},
    'message 1 has "weight" (0), which would be lost': {"messages": [{"role": "user", "content": "a", "weight": 0}]},
    "message 2 is a system message; only the first message may be one": chat(
        ("user", "a"), ("system", "b"), ("assistant", "c")
    ),  # fmt: skip
    "no message is the assistant's, so there is nothing to train on": chat(("system", "a"), ("user", "b")),
    "the last message is the user's; add the assistant's answer": chat(
        ("user", "a"), ("assistant", "b"), ("user", "c")
    ),
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
    for indent in (None, 2):
        said = refused(write("train.json", json.dumps([CHAT, row], indent=indent)))
        assert f"train.json: row 1 (counted from 0): {words}" in said


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", json.dumps(CHAT) + "\n{'a': 1}\n", "a.jsonl:2: not JSON at column 2: Expecting property name"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', "a.jsonl:1: not JSON at column 10: Extra data; write the row with"),
        (
            "a.jsonl",
            '{"instruction": "a",\n"output": "b"}',
            "a.jsonl:1: not read: an object is spread over several lines; write",
        ),
        (
            "a.jsonl",
            json.dumps([CHAT]),
            "a.jsonl:1: not read: the file holds an array, as a .json file does; rename it",
        ),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not read: the file holds an array"),
        ("a.jsonl", '{"a":' * 100_000, "a.jsonl:1: not read: "),
        ("a.jsonl", '{"instruction": "a", "output": "b", "output": "c"}', '1: not read: the key "output" occurs twice'),
        ("a.jsonl", '{"n": ' + "9" * 5000 + "}", "a.jsonl:1: not read: "),
        ("a.json", "[" * 100_000, "a.json: row 0 (counted from 0): not read: "),
        ("a.json", f'[{json.dumps(CHAT)}, {{"a": 1, "a": 2}}]', "a.json: row 1 (counted from 0): not read: the key "),
        (
            "a.json",
            '\n\n[{"a": 1},\n {"a" 2}]',
            "a.json: row 1 (counted from 0): not read: Expecting ':' delimiter before '2}]'",
        ),
        ("a.json", f"[{json.dumps(CHAT)},\n]", "a.json: row 1 (counted from 0): not read: Expecting value before ']'"),
        (
            "a.json",
            f"[{json.dumps(CHAT)}\n\n {json.dumps(CHAT)}]",
            "a.json: row 1 (counted from 0): not read: expected , or ] in the array before ",
        ),
        (
            "a.json",
            f"[{json.dumps(CHAT)}",
            "a.json: row 1 (counted from 0): not read: expected , or ] in the array before ''",
        ),
        (
            "a.json",
            f"[{json.dumps(CHAT)}]\n]",
            "a.json: row 1 (counted from 0): not read: unexpected text after the array: ']'",
        ),
        ("a.json", "not json", "the file begins with 'not json', and is not an array of rows, [{...}, {...}]"),
        ("a.json", json.dumps({"data": [CHAT], "n": 1}), "save rows under a key as a separate file"),
        ("a.json", json.dumps({"n": 1}), "the file begins with '{\"n\": 1}', and is not an array of rows"),
        ("a.json", json.dumps(CHAT), "and is not an array of rows, [{...}, {...}]; rename"),
        ("a.json", f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}", "rename JSON Lines to .jsonl"),
        ("a.json", '"Hi"', "the file begins with '\"Hi\"', and is not an array of rows"),
        ("a.json", "", "a.json: no rows; a row is"),
        ("a.json", " \n ", "a.json: no rows; a row is"),
        ("a.json", "[ \n]", "a.json: no rows; a row is"),
        ("a.jsonl", "", "a.jsonl: no rows; a row is"),
        ("a.jsonl", b"\xef\xbb\xbf\n\r\n", "a.jsonl: no rows; a row is"),
        ("a.jsonl", b"{}\n{}\n\xe9", "a.jsonl:3: the byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("a.jsonl", b"\xef\xbb\xbf{}\n\xe9", "a.jsonl:2: the byte 0xe9"),
        ("a.jsonl", json.dumps(CHAT).encode("utf-16"), "a.jsonl: the file is text in UTF-16; save it as UTF-8"),
        ("a.csv", "messages\n", "a.csv: no rows; a row is"),
        ("a.csv", "", "a.csv: no rows; a row is"),
        (
            "a.csv",
            "instruction;output\na;b\n",
            "a.csv:1: not read: its columns are separated by ';', not by commas; save the file",
        ),
        ("a.csv", "instruction,output\na,\n", 'a.csv:2: the row has no "output"; an alpaca row needs'),
        ("a.parquet", b"PAR1", "a.parquet: row 0 (counted from 0): not read: "),
        (
            "a.jsonl.gz",
            b"\x1f\x8b",
            "a.jsonl.gz: the file is compressed by gzip; unpack it with gunzip",
        ),
        ("rows", "[]", "rows: no suffix; only .json, .jsonl, .csv and .parquet are read, so convert the file"),
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
    assert "no such file" in refused(json.dumps(CHAT) * 1000)
    assert "no such file" in refused("a/" * 5000 + "b.jsonl")
    assert "no such file" in refused("a\0.jsonl")


@pytest.mark.parametrize("source", [None, 3, b"a.jsonl", CHAT, (CHAT,), DatasetDict(train=Dataset.from_list([CHAT]))])
def test_other_sources_are_refused_by_their_type(source):
    assert f"cannot read a {type(source).__name__}; pass a path, a list" in refused(source)


@pytest.mark.parametrize("source", [[], Dataset.from_list([])])
def test_no_rows_is_an_error(source):
    assert f"the {type(source).__name__}: no rows" in refused(source)


def test_all_defects_are_counted_and_twenty_are_listed(write):
    lines = refused(write("a.jsonl", "\n".join(f"{json.dumps(CHAT)}\n{n}" for n in range(30)))).splitlines()
    assert len(lines) == 21 and lines[-1] == "30 defects in all, of which 10 others are not listed"
    assert [line.split(": ")[0] for line in lines[:20]] == [f"a.jsonl:{n}" for n in range(2, 42, 2)]
    assert refused(write("a.jsonl", "7\n8")).splitlines()[-1] == "2 defects in all"
    assert "defects" not in refused(write("a.jsonl", "7"))


def test_equal_defects_are_listed_once_with_their_count_and_first_places(write):
    last = json.dumps({"instruction": "Add.", "output": 3})
    said = refused(write("a.jsonl", "\n".join([*[json.dumps(CHAT), "7"] * 30, last, last])))
    first, second, total = said.splitlines()
    assert first.startswith("a.jsonl:2: the row is 7; it must be an object, ")
    assert first.endswith(" (30 times: also at a.jsonl:4, a.jsonl:6, a.jsonl:8, ...)")
    assert second == 'a.jsonl:61: the row has the "output" 3; it must be a text (2 times: also at a.jsonl:62)'
    assert total == "32 defects in all"


def test_a_long_value_is_shortened():
    assert len(refused([chat(("x" * 10_000, "a"))])) < 200
    assert len(refused([{"k" * 10_000 + str(i): i for i in range(1000)}])) < 500
    assert len(refused([{"messages": [{"role": "user", "content": "a", "k" * 10_000: 1}]}])) < 400


def test_an_edited_file_is_read_anew(write):
    for answer in ("first", "second"):
        write("a.jsonl", json.dumps({**ALPACA, "output": answer}))
        read = read_chats("a.jsonl")
        assert read[0]["messages"][1]["content"] == answer and read.cache_files == []


# --- what a table could change


def find(**arguments):
    call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
    return {"messages": [{"role": "user", "content": "Find."}, {"role": "assistant", "tool_calls": [call]}]}


RICH = [
    find(),
    find(a=1, b={"c": [0.1, {"d": None}]}),
    find(b="1", price=-0.47, big=2**63, tiny=1e-300, t=True, text="0.47 é🙂\u2028\\"),
    {"messages": [*CHAT["messages"], {"role": "user", "content": "Why?"}, {**CHAT["messages"][1], "thinking": "0.47"}]},
    {**CHAT, "tools": [{"name": "find", "parameters": {"default": 0.47, "enum": ["a", None]}}]},
]


def exactly(rows):
    "JSON with the order of the keys and the type of every number."
    return [json.dumps({key: row[key] for key in row if row[key] is not None}) for row in rows]


@pytest.mark.parametrize("rows", [RICH, RICH[:3], [CHAT] * 501 + RICH], ids=["all", "no tools", "late"])
@pytest.mark.parametrize("limit", [0, 2**26], ids=["on disk", "in memory"])
def test_a_row_with_tools_is_kept_to_the_letter_from_every_kind_of_source(write, monkeypatch, tmp_path, rows, limit):
    monkeypatch.setattr(read, "_IN_MEMORY", limit)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = read_chats(rows)
    assert exactly(table) == exactly(rows)
    assert table.column_names == (["messages", "tools"] if "tools" in rows[-1] else ["messages"])
    table.to_parquet(tmp_path / "a.parquet")
    again = [
        table,
        write("a.jsonl", "\n".join(map(json.dumps, rows))),
        write("a.json", json.dumps(rows)),
        tmp_path / "a.parquet",
    ]
    assert all(exactly(read_chats(source)) == exactly(rows) for source in again)
    assert exactly(table.select(range(len(rows) - 1, -1, -1))) == exactly(rows[::-1])
    assert exactly(table.map(lambda row: {"n": 1}).remove_columns("n")) == exactly(rows)


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.whole
@pytest.mark.parametrize(
    "value", [float("nan"), 2**64, -(2**63) - 1, 10**5000, "\ud83d", {1, 2}, b"a", deep(1100)], ids=range(8)
)
def test_what_a_column_of_json_would_change_is_refused(value):
    said = refused([CHAT, find(a=[1, {"b": value}])])
    assert said.startswith("row 1 (counted from 0): message 2 holds ") and "which a column of JSON cannot keep" in said
    assert "tool 1 holds" in refused([{**CHAT, "tools": [{"name": "f", "default": value}]}])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_fingerprint_is_that_of_the_content(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"prompt": f"{n} {'x' * (n % 300)}", "completion": f"{n}\n"} for n in range(1100)]
    for name, last in (("a", "same"), ("b", "same"), ("c", "different")):
        rows[-1]["completion"] = last
        write = {"jsonl": "to_json", "csv": "to_csv", "parquet": "to_parquet"}[kind]
        getattr(Dataset.from_list(rows), write)(tmp_path / f"{name}.{kind}")
    for limit in (0, 2**26):
        monkeypatch.setattr(read, "_IN_MEMORY", limit)
        first, same, other = (read_chats(tmp_path / f"{name}.{kind}") for name in "abc")
        assert first._fingerprint == same._fingerprint != other._fingerprint
        assert bool(first.cache_files) == (limit == 0)


def test_the_place_of_a_row_takes_a_file_name_that_the_locale_cannot_read(tmp_path):
    file = tmp_path / "chats-\udcc3\udca9.jsonl"  # as Python gives the name where the encoding is ASCII
    file.write_text(json.dumps(chat(("user", "Hi"), ("assistant", "Hello"))))
    assert read_chats(str(file), places=True)["place"][0].endswith("chats-é.jsonl:1")


@pytest.mark.parametrize("tools", [None, [{"name": "f"}]])
def test_rows_keep_their_file_and_line_where_places_are_asked_for(tmp_path, tools):
    chat = {"prompt": "Hi", "completion": "Hello"} | ({"tools": tools} if tools else {})
    (tmp_path / "a.jsonl").write_text("\n\n".join([json.dumps(chat)] * 2))
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "a", "rejected": "b"}))
    kept = read_chats(tmp_path / "a.jsonl", places=True)
    assert kept["place"] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]
    assert kept.remove_columns("place")[:] == read_chats(tmp_path / "a.jsonl")[:]
    assert read_preferences(tmp_path / "p.jsonl", places=True)["place"] == [f"{tmp_path}/p.jsonl:1"]


def test_plain_chats_are_columns_of_text_whatever_else_their_rows_hold():
    read = read_chats([{**CHAT, "id": {"a": 1}}, CHAT])
    assert read.features == {"messages": List({"role": Value("string"), "content": Value("string")})}
    odd = {**CHAT, "tools": [{"name": "f", "content": "as a message has"}]}
    assert exactly(read_chats([odd])) == exactly([odd]) and exactly(read_chats(RICH[3:4])) == exactly(RICH[3:4])
    assert read_chats([CHAT, find()]).features == {"messages": List(Json())}
    assert read_preferences([{"prompt": "a", "chosen": "b", "rejected": "c"}]).features == dict.fromkeys(
        ("prompt", "chosen", "rejected"), read.features["messages"]
    )


def test_preferences_with_tools_are_kept_to_the_letter(write):
    pair = {
        "prompt": find(price=-0.47)["messages"][:1],
        "chosen": find(price=-0.47)["messages"][1:],
        "rejected": CHAT["messages"][1:],
    }
    rows = [pair, {**pair, "tools": RICH[-1]["tools"]}]
    for source in (rows, read_preferences(rows), write("a.json", json.dumps(rows))):
        assert exactly(read_preferences(source)) == exactly(rows)


@pytest.mark.parametrize(
    "read, row", [(read_chats, CHAT), (read_preferences, {"prompt": "a", "chosen": "b", "rejected": "c"})]
)
def test_a_split_and_a_revision_on_the_hub_are_passed_on(monkeypatch, read, row):
    asked = []
    monkeypatch.setattr(
        readers, "load_dataset", lambda name, **where: asked.append((name, where)) or Dataset.from_list([row])
    )
    assert read("owner/name", split="test", revision="v1")[:] == read([row])[:]
    assert len(read("owner/name")) == 1
    assert asked == [
        ("owner/name", {"split": "test", "revision": "v1"}),
        ("owner/name", {"split": "train", "revision": None}),
    ]


# --- where tables are kept


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(read, "_IN_MEMORY", 1000)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "ft_notebooks"


def test_a_large_table_is_on_disk_under_its_digest_and_the_same_rows_take_one_place(write, on_disk):
    rows = [chat(("user", f"{n}"), ("assistant", "ok")) for n in range(3000)]
    first = read_chats(rows)
    second = read_chats(list(rows))
    assert first[:] == second[:] == {"messages": [row["messages"] for row in rows]}
    assert first.cache_files == second.cache_files and first._fingerprint == second._fingerprint
    (table,) = on_disk.glob("*/*")
    assert [{"filename": str(table)}] == first.cache_files
    other = read_chats(rows[:-1])
    assert other._fingerprint != first._fingerprint and len(other) == 2999 and len(first) == 3000
    assert len(pickle.loads(pickle.dumps(first))) == 3000


def test_a_file_edited_between_two_readings_gives_a_new_table_and_new_results_of_map(write, on_disk):
    def answers(row):
        return {"answer": row["messages"][1]["content"]}

    for answer in ("first", "other"):  # of one length, and within one tick of a coarse clock
        write("a.jsonl", "\n".join([json.dumps(chat(("user", "a" * 100), ("assistant", answer)))] * 1000))
        os.utime("a.jsonl", (0, 0))
        read = read_chats("a.jsonl")
        assert read.cache_files and set(read.map(answers)["answer"]) == {answer}


def test_a_refused_or_broken_off_reading_leaves_nothing(on_disk):
    rows = [chat(("user", "a" * 1000), ("assistant", "b"))] * 2000
    assert "row 2000" in refused([*rows, 7])
    with pytest.raises(KeyboardInterrupt):
        read_chats(BrokenOff(rows))
    assert list(on_disk.iterdir()) == []


class BrokenOff(list):
    def __iter__(self):
        yield from super().__iter__()
        raise KeyboardInterrupt


def test_what_a_killed_reading_left_is_never_believed_and_removed_after_an_hour(on_disk):
    on_disk.mkdir(parents=True)
    for name, age in (("part-old", 4000), ("part-new", 60)):
        (on_disk / name).write_bytes(b"half")
        os.utime(on_disk / name, (time.time() - age,) * 2)
    rows = [chat(("user", "a" * 1000), ("assistant", "b"))] * 2000
    whole = read_chats(rows)
    assert [path.name for path in on_disk.glob("part-*")] == ["part-new"]
    with open(whole.cache_files[0]["filename"], "r+b") as file:  # as a machine that lost its power leaves it
        file.truncate(100)
    assert read_chats(rows)[1999] == rows[0]


class Killed(list):
    def __iter__(self):
        yield from [{"prompt": "a" * 1000, "completion": "b"}] * 3000
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.whole
def test_a_reading_killed_in_the_middle_leaves_a_part_and_no_table(on_disk):
    assert forked(lambda: read_chats(Killed())) == -signal.SIGKILL
    assert [path.name[:5] for path in on_disk.iterdir()] == ["part-"]


@pytest.mark.whole
def test_several_processes_may_read_the_same_at_once(on_disk):
    def readings():
        for _ in range(3):
            found = read_chats([{"prompt": f"{n}", "completion": "b"} for n in range(2000)])
            assert [row[0]["content"] for row in found["messages"]] == [f"{n}" for n in range(2000)]
        return "read"

    assert several(readings, readings) == ["read", "read"]
    assert len(list(on_disk.iterdir())) == 1


@pytest.mark.whole
def test_a_million_defects_need_no_more_room_than_twenty():
    tracemalloc.start()
    said = refused(Same(7, 10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said.endswith("10000 defects in all") and peak < 2**20


class Same(list):
    "A list that is long without being large."

    def __init__(self, row, n):
        self.row, self.n = row, n

    def __iter__(self):
        return itertools.repeat(self.row, self.n)


# --- split


def test_an_answer_to_nobody_is_refused():
    for turns in (
        [("assistant", "b")],
        [("system", "a"), ("assistant", "b")],
        [("user", "a"), ("assistant", "b"), ("assistant", "c")],
    ):
        with pytest.raises(
            ValueError, match=f"message {len(turns)} is the assistant's and follows neither a user nor a tool message"
        ):
            read_chats([chat(*turns)])


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), True])
def test_split_refuses_a_share_outside_zero_and_one(share):
    with pytest.raises(ValueError, match="share must be between 0 and 1, got"):
        split(read_chats([CHAT, ALPACA]), share)


def test_a_part_that_another_process_renames_in_the_meantime_is_left_alone(on_disk):
    on_disk.mkdir(parents=True, exist_ok=True)
    (on_disk / "part-renamed").symlink_to("gone")  # it is listed, and is no longer there
    assert len(read_chats([{"prompt": f"{n}", "completion": "b"} for n in range(2000)])) == 2000


@pytest.mark.parametrize(
    "read, named",
    [
        (read_chats, {"prompt": "c", "completion": "c"}),
        (read_chats, {"prompt": "completion"}),
        (read_preferences, {"prompt": "a", "chosen": "a"}),
        (read_preferences, {"prompt": "p", "chosen": "a", "rejected": "a"}),
        (read_preferences, {"rejected": "chosen"}),
    ],
)
def test_one_column_is_not_read_as_two_parts_of_a_row(read, named):
    with pytest.raises(ValueError, match="^the column '[a-z]+' is named both as '[a-z]+' and as '[a-z]+'; name a"):
        read([{"a": "x", "c": "y", "p": "z", "chosen": "x", "completion": "y"}], **named)
