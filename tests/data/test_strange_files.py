"Files as people make them by accident: each is read as it was meant, or refused with the place and the cure."

import json

import pytest
from datasets import Dataset

from ft_notebooks.data.formats import as_chat
from ft_notebooks.data.read import read_chats
from ft_notebooks.rlhf.prompt_rows import read_prompt_rows

ROW = {"prompt": "Hi", "completion": "Hello!"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


def refused(source, **columns):
    with pytest.raises(ValueError) as e:
        read_chats(source, **columns)
    return str(e.value)


@pytest.mark.parametrize("label", [True, False, 0, 1, "true", "False"])
@pytest.mark.parametrize("row", [ROW, {"messages": TURNS}, {"instruction": "Hi", "output": "Hello!"}])
def test_rows_for_kto_are_refused(tmp_path, row, label):
    rows = [{**row, "label": label}] * 3
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for source in (file, tmp_path / "a.parquet", rows, Dataset.from_list(rows)):
        said = refused(source)
        assert "KTO" in said and "keep the rows whose label is true, and remove the column" in said


def test_rows_for_kto_are_refused_under_other_names_and_for_reinforcement_learning():
    assert "KTO" in refused([{"q": "Hi", "a": "Hello!", "label": False}], prompt="q", completion="a")
    with pytest.raises(ValueError, match="KTO"):
        read_prompt_rows([{**ROW, "label": False}])


@pytest.mark.parametrize("label", ["greeting", None, 3, ""])
def test_another_label_is_no_rows_for_kto(label):
    assert read_chats([{**ROW, "label": label}])["messages"][:] == [TURNS]


def test_a_label_may_be_the_answer():
    assert read_chats([{"text": "Hi", "label": "1"}], prompt="text", completion="label")["messages"][0][1] == {
        "role": "assistant",
        "content": "1",
    }


@pytest.mark.parametrize("again", ["prompt,completion", '"prompt","completion"', "\ufeffprompt,completion"])
@pytest.mark.parametrize("quote", ['"', ""])
def test_a_second_header_of_a_csv_is_refused_with_its_line(tmp_path, again, quote):
    file = tmp_path / "a.csv"
    file.write_text(f"prompt,completion\n{quote}Hi{quote},Hello!\n{again}\nHow,Well\n")
    assert f"{file}:3: not read: the header stands here again, as where files were joined; remove the line" in refused(
        file
    )


def test_a_name_of_a_column_may_stand_in_a_cell(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\nprompt,Yes\nNo,completion\n")
    assert len(read_chats(tmp_path / "a.csv")) == 2


@pytest.mark.parametrize("quote", ['"', ""])
@pytest.mark.parametrize("header", ["prompt,completion,,", ",prompt,completion,"])
def test_empty_columns_and_lines_of_commas_are_skipped(tmp_path, header, quote):
    cells = f"Hi,{quote}Hello!{quote}"
    row = f"{cells},," if header.startswith("p") else f",{cells},"
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n,,,\n,,,,,\n{row}\n,,,\n")
    assert read_chats(tmp_path / "a.csv")["messages"][:] == [TURNS, TURNS]


@pytest.mark.parametrize("quote", ['"', ""])
def test_a_text_in_a_column_without_a_name_is_not_lost(tmp_path, quote):
    (tmp_path / "a.csv").write_text(f"prompt,completion,\nHi,Hello!,\nHi,{quote}Hello{quote}, friend\n")
    assert "a.csv:3: not read: a cell stands in a column without a name; name it in the header, or" in refused(
        tmp_path / "a.csv"
    )
    (tmp_path / "b.csv").write_text(f",prompt,completion\n0,Hi,{quote}Hello!{quote}\n")  # as pandas writes it
    assert read_chats(tmp_path / "b.csv")["messages"][:] == [TURNS]


def test_a_csv_of_commas_alone_has_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\n,\n,\n")
    assert "no rows" in refused(tmp_path / "a.csv")


@pytest.mark.parametrize("text", ["\u200b\u200b", "\x00\x07", "\ufeff \u00a0\u2060", " \u200d\n"])
def test_a_text_without_a_visible_character_is_blank(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(json.dumps({**ROW, "completion": text}))
    assert "blank" in refused(tmp_path / "a.jsonl") and "blank" in refused([{**ROW, "prompt": text}])
    row = {"instruction": "Hi", "input": text, "output": "Hello!"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row))
    assert read_chats(tmp_path / "b.jsonl")["messages"][:] == [TURNS]


@pytest.mark.parametrize("text", ["\U0001f469\u200d\U0001f680", "\u0645\u200c", ".", "\x1b[0m"])
def test_a_visible_character_is_enough(text):
    assert read_chats([{**ROW, "completion": text}])["messages"][0][1]["content"] == text


@pytest.mark.parametrize(
    "row",
    [
        {"Timestamp": "Monday", "Email Address": "a@b.c", "How was it?": "Good"},
        {"topic": "weather", "body": "rain"},
    ],
)
def test_columns_of_unknown_meaning_are_listed_and_not_guessed(row):
    [said] = as_chat(row)[1]
    assert "--set data.prompt=COLUMN --set data.completion=COLUMN" in said
    assert said.endswith("; the columns are " + ", ".join(map(repr, row)))


@pytest.mark.parametrize("names", [("user", "text"), ("author", "content"), ("sender", "message")])
def test_a_message_of_a_chat_is_no_row(names):
    assert (
        "; the row is one message: write all messages"
        in as_chat({"type": "message", **dict.fromkeys(names, "a")})[1][0]
    )


def test_a_file_is_to_be_renamed_where_an_ending_was_added(tmp_path):
    for name in ("rows.jsonl.txt", "rows.csv.bak"):
        (tmp_path / name).write_text("{}")
        assert refused(tmp_path / name).endswith(f"; rename it to {name[:-4]}")


@pytest.mark.parametrize("indent", [2, None])
def test_objects_over_several_lines_are_one_error(tmp_path, indent):
    text = json.dumps(ROW, indent=2) if indent else '{"prompt": "Hi",\n "completion": "Hello!"}'
    (tmp_path / "a.jsonl").write_text("\n".join([text] * 5))
    said = refused(tmp_path / "a.jsonl")
    assert said == (
        f"{tmp_path / 'a.jsonl'}:1: not read: an object is spread over several lines; write one object per line, or "
        "rename the file to .json, with [ ] around all objects and commas between them"
    )


def test_a_mark_of_utf8_may_begin_each_joined_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(2 * ("\ufeff" + json.dumps(ROW) + "\n").encode())
    assert read_chats(tmp_path / "a.jsonl")["messages"][:] == [TURNS, TURNS]


@pytest.mark.parametrize("depth", [60, 900])
def test_a_column_that_nests_too_deeply_is_refused_with_its_place(depth):
    nested = json.loads("[" * depth + "]" * depth)
    with pytest.raises(ValueError, match=r"row 1 \(counted from 0\): \"x\" holds \[\["):
        read_prompt_rows([{"prompt": TURNS[:1], "x": x} for x in ([[1]], nested)])


@pytest.mark.parametrize("depth", [60, 3000])
def test_a_value_that_nests_too_deeply_is_refused_with_its_place(tmp_path, depth):
    nested = "[" * depth + "]" * depth
    call = f'[{{"type": "function", "function": {{"name": "f", "arguments": {{"a": {nested}}}}}}}]'
    line = (
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "tool_calls": '
        f"{call}}}]}}"
    )
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n" + line)
    assert f"{tmp_path / 'a.jsonl'}:2: " in refused(tmp_path / "a.jsonl")
