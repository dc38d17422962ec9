"Files that are not what their name says, folders whose rows are not all for training, and columns that would be lost."

import gzip
import io
import json
import zipfile
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from ft_notebooks.core.arguments import ArgumentError
from ft_notebooks.data.deduplication import overlap, split
from ft_notebooks.data.read import read_chats, read_preferences
from ft_notebooks.data.repetition import count_repetition
from ft_notebooks.rlhf.rewards import read_prompts

ROWS = [{"prompt": "Hi", "completion": "Hello"}, {"prompt": "Bye", "completion": "See you"}]
LINES = "\n".join(map(json.dumps, ROWS))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def zipped():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("xl/workbook.xml", LINES)
    return archive.getvalue()


def refused(source, read=read_chats):
    with pytest.raises(ValueError) as e:
        read(source)
    return str(e.value)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(LINES.encode(), mtime=0), "compressed by gzip; unpack it with gunzip"),
        (zipped(), "a zip archive, as Excel's files are; unpack it"),
        (POINTER, "a pointer of Git LFS, without the rows; fetch the file with git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page; download the file itself"),
        (LINES.encode("utf-16"), "text in UTF-16; save it as UTF-8"),
    ],
    ids=["gzip", "zip", "lfs", "html", "utf16"],
)
def test_a_file_that_is_not_what_its_name_says_is_named_with_the_cure(name, content, said):
    Path(name).write_bytes(content)
    assert refused(name).startswith(f"{name}: the file is {said}")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_text_of_another_encoding_is_said_once(name, encoding):
    Path(name).write_bytes(LINES.encode(encoding))
    assert "so it is not text in UTF-8; write it again" in refused(name)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train.jsonl", "test.jsonl"], "test.jsonl is for evaluation by its name; name the file to read, such as"),
        (["a.jsonl", "a_valid.csv"], "a_valid.csv is for evaluation by its name"),
        (["a.jsonl", "old/b.jsonl"], "old/b.jsonl is in a sub-folder"),
        (["data/x/train.jsonl"], "the folder holds data/x/train.jsonl, and data/x/train.jsonl is in a sub-folder"),
        (["a.jsonl", "b.jsonl.gz"], "b.jsonl.gz is not read"),
        (["a.xlsx"], "a.xlsx is not read"),
    ],
)
def test_a_folder_whose_files_are_not_all_rows_to_train_on_is_refused_with_their_names(names, said):
    for name in names:
        Path("rows", name).parent.mkdir(parents=True, exist_ok=True)
        Path("rows", name).write_text(LINES)
    error = refused("rows")
    assert said in error and all(name in error for name in names)


@pytest.mark.parametrize("names", [["latest.jsonl", "contest.jsonl"], ["test-1.jsonl", "test-2.jsonl"]])
def test_a_folder_of_one_purpose_is_read_beside_other_and_hidden_files(names):
    for name in [*names, "README.md", ".git/a.jsonl"]:
        Path("rows", name).parent.mkdir(parents=True, exist_ok=True)
        Path("rows", name).write_text(LINES)
    assert len(read_chats("rows")) == 4


def test_the_line_of_excel_before_the_header_is_no_row():
    Path("a.csv").write_text("sep=,\nprompt,completion\nHi,Hello\n")
    assert read_chats("a.csv")["messages"][0][1]["content"] == "Hello"


def test_parquet_with_a_column_twice_or_a_text_that_is_not_utf_8_is_refused_with_its_place():
    columns = [pa.array(["a"])] * 3
    pq.write_table(pa.Table.from_arrays(columns, ["prompt", "completion", "completion"]), "twice.parquet")
    assert 'twice.parquet: not read: two columns are called "completion"; rename one' in refused("twice.parquet")
    offsets, text = pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, text])
    pq.write_table(pa.table({"prompt": ["a"], "completion": broken}), "broken.parquet")
    assert "broken.parquet: row 0 (counted from 0) or later: the byte 0xff is not UTF-8" in refused("broken.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "list", "Dataset"])
@pytest.mark.parametrize("name", ["System", "system ", " SYSTEM"])
def test_a_column_that_differs_by_case_or_spaces_is_not_lost(kind, name):
    rows = [{"prompt": "Hi", "completion": "Hello", name: "Be brief."}]
    frame = pandas.DataFrame(rows)
    Path("a.jsonl").write_text(json.dumps(rows[0]))
    frame.to_csv("a.csv", index=False)
    frame.to_parquet("a.parquet")
    source = {"list": rows, "Dataset": Dataset.from_list(rows)}.get(kind, f"a.{kind}")
    assert f'the key {json.dumps(name)} is not read; write "system"' in refused(source)


def test_columns_that_only_differ_are_named_and_may_be_named():
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert 'the key "Messages" is not read; write "messages"' in refused([{"Messages": chat}])
    assert len(read_chats([{"Prompt": "Hi", "Answer": "Hello"}], prompt="Prompt", completion="Answer")) == 1
    assert len(read_chats([{"messages": chat, "Text": "Hi Hello"}])) == 1
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b", "System": "Be brief."}
    assert 'the key "System" is not read' in refused([pair], read_preferences)


def test_single_messages_and_numbers_are_refused_with_their_cure():
    for row in ({"id": 1, "role": "user", "content": "Hi"}, {"from": "human", "value": "Hi"}):
        assert refused([row]).endswith('write all messages of a conversation as the list "messages" of one row')
    Path("a.jsonl").write_text('{"prompt": "Hi", "completion": 1e999}')
    assert refused("a.jsonl") == 'a.jsonl:1: the row has the "completion" inf; it must be a text'
    call = {"name": "f", "arguments": {"x": float("inf")}}
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}]
    assert "message 2 holds inf" in refused([{"messages": chat}])


def test_rows_of_another_stage_name_its_command():
    prompt = {"prompt": [{"role": "user", "content": "Hi"}], "expected": "Hello"}
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    for row, read, command in (
        (prompt, read_chats, "ft grpo"),
        (prompt, read_preferences, "ft grpo"),
        (pair, read_chats, "ft dpo and ft reward"),
        ({"question": "Hi", "answer": "Hello"}, read_preferences, "ft sft"),
        ({"prompt": "Hi", "completion": "Hello"}, read_preferences, "ft sft"),
    ):
        assert f"which {command} train" in refused([row], read)


@pytest.mark.parametrize("wrong", [pandas.DataFrame(ROWS), (row for row in ROWS), tuple(ROWS), {1}, None, 3])
def test_what_is_no_rows_is_refused_with_what_is_accepted(wrong):
    for read in (read_chats, read_preferences):
        assert "pass a path, a list of rows" in refused(wrong, read)
    for read in (lambda rows: split(rows, 0.5), lambda rows: overlap(rows, rows), count_repetition):
        assert "pass what read_chats or read_preferences returned" in refused(wrong, read)
    with pytest.raises(ArgumentError, match="must be a datasets.Dataset, a path or a list of rows"):
        read_prompts(wrong)
    assert len(read_prompts(ROWS)) == 2
