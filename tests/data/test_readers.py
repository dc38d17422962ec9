import csv
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Json, List

from ft_notebooks.data import readers, table_files
from ft_notebooks.data.json_files import short
from ft_notebooks.data.readers import read_rows

ROWS = [{"prompt": "Hi", "completion": "Hello"}, {"prompt": "Is it\nhere?", "completion": "NA"}]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to(name, content):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return to


def as_csv(rows, **kinds):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), **kinds)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(source):
    places, rows = zip(*read_rows(source))
    return list(places), list(rows)


def said(source):
    (*_, (place, error)) = read_rows(source)
    assert isinstance(error, Exception)
    return f"{place}: {error}"


# --- lines


@pytest.mark.parametrize("indent", [None, 0, 3])
def test_an_array_is_read_as_python_reads_it(write, indent):
    rows = [{"n": n, "text": "x" * n + '"\\\u2028é🙂' * 3, "x": [1.5e-7, -12, True, None, {}]} for n in range(40)]
    each = [json.dumps(row, indent=indent, ensure_ascii=bool(indent)) for row in (*rows, 12345678901, "end", False)]
    text = "\n[" + " ,\n\n".join(each) + "\t]\n"
    places, found = read(write("a.json", text))
    assert found == json.loads(text)
    assert places == [f"a.json: row {i} (counted from 0)" for i in range(len(each))]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_error_in_an_array_has_its_row_and_its_text(write, indent):
    text = json.dumps([{"a": "é" * 30}] * 5, indent=indent, ensure_ascii=False)
    broken = text[:-40] + text[-40:].replace(":", "=")
    (*_, (place, error)) = read_rows(write("a.json", broken))
    assert place == "a.json: row 4 (counted from 0)" and str(error).startswith("Expecting ':' delimiter before '=")


def test_a_byte_that_is_not_utf8_is_refused_also_far_into_an_array(write):
    text = json.dumps([{"a": "x" * 1000}] * 3000, indent=0).encode()
    at = len(text) - 500
    place, error = list(read_rows(write("a.json", text[:at] + b"\xe9" + text[at + 1 :])))[-1]
    assert isinstance(error, UnicodeDecodeError) and place == f"a.json:{text[:at].count(10) + 1}"


@pytest.mark.parametrize("name, before, after", [("a.json", "[", "]"), ("a.jsonl", "", "")])
def test_a_key_that_occurs_twice_is_refused_at_every_depth(write, name, before, after):
    for row in ('{"a": 1, "b": 2, "a": 1}', '{"x": [{"a": {"b": 1, "a": 2, "b": 3}}]}'):
        assert "occurs twice in one object; keep one" in said(write(name, before + row + after))


@pytest.mark.parametrize("tail", ["]", "\n{}", "x", ",[]"])
def test_what_stands_behind_an_array_is_refused(write, tail):
    assert "a.json: row 1 (counted from 0): unexpected text after the array" in said(write("a.json", "[{}]" + tail))


def test_a_long_object_is_not_read_to_say_that_it_is_no_array(write):
    assert 'the file begins with \'{"data": [{"' in said(
        write("a.json", json.dumps({"data": [{"a": "x" * 1000}] * 3000}))
    )


def test_a_line_that_is_not_utf8_stands_alone_and_the_others_are_read(write):
    found = list(read_rows(write("a.jsonl", b'{"n": 1}\n{"n": "\xe9"}\n{"n": 3}\n')))
    assert [type(row).__name__ for _, row in found] == ["dict", "UnicodeDecodeError", "dict"]


# --- CSV


@pytest.mark.parametrize("kinds", [{}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_is_read_as_text_however_it_is_quoted(write, kinds, mark):
    rows = [{"prompt": 'say "a, b"\r\nc', "completion": value} for value in ("NA", "007", "1e5", "True", " x ", "null")]
    places, found = read(write("a.csv", mark + as_csv(rows, **kinds).encode()))
    assert found == rows and places == [f"a.csv:{n}" for n in range(2, 14, 2)]


@pytest.mark.parametrize(
    "content, words",
    [
        ("a,b\n1,2,3\n", "a.csv:2: 3 cells for 2 columns; put quotes around a text that contains a comma"),
        ("a,b\n1\n", "a.csv:2: 1 cells for 2 columns"),
        ("a,b,a\n1,2,3\n", 'a.csv:1: two columns are called "a"; rename one'),
        ('a,b\n\n1,"2\n3,4\n', "a.csv:3: unexpected end of data, in the record that starts here"),
        ('a,b\n1,"2"3\n', "a.csv:2: ',' expected after '\"'"),
        ("a,b\r1,2\r", "a.csv:1: new-line character seen in unquoted field"),
        (b"a,b\n1,2\n1,\xe9\n", "a.csv:3: 'utf-8' codec can't decode"),
    ],
)
def test_broken_csv_is_refused_where_the_record_starts(write, content, words):
    assert words in said(write("a.csv", content))


def test_a_long_cell_is_read_and_an_endless_one_refused_and_the_limit_of_the_process_stays(write, monkeypatch):
    before = csv.field_size_limit()
    assert read(write("a.csv", f"a,b\n{'x' * 200_000},\n"))[1] == [{"a": "x" * 200_000}]
    monkeypatch.setattr(table_files, "_MAX_CELL", 1000)
    assert "a.csv:2: field larger than field limit (1000)" in said(write("a.csv", 'a\n"' + "x\n" * 1000))
    assert csv.field_size_limit() == before


# --- Parquet and datasets


def test_the_holes_of_arrow_are_left_out_at_every_depth_and_columns_of_json_are_kept():
    rows = [{"tools": [{"a": {"x": 1}, "l": [{"y": 1}]}]}, {"tools": [{"a": {"z": 2}, "l": [{"w": None}, {"y": 2}]}]}]
    kept = [rows[0], {"tools": [{"a": {"z": 2}, "l": [{}, {"y": 2}]}]}]
    assert read(Dataset.from_list(rows))[1] == kept
    exact = Dataset.from_list(rows, features=Features({"tools": List(Json())}))
    assert read(exact)[1] == rows


def test_parquet_gives_back_what_was_written(tmp_path):
    rows = [{"prompt": f"{n}", "completion": "é🙂\0\u2028"} for n in range(1234)]
    for kind, table in {
        "plain": Dataset.from_list(rows).data.table,
        "wide": pa.Table.from_pylist([{**r, "id": 1} for r in rows]),
    }.items():
        pq.write_table(table, tmp_path / f"{kind}.parquet", row_group_size=100)
        places, found = read(tmp_path / f"{kind}.parquet")
        assert found == rows and places[-1] == f"{tmp_path}/{kind}.parquet: row 1233 (counted from 0)"


def test_a_dataset_is_read_whatever_its_format_and_order():
    dataset = Dataset.from_list(ROWS).with_format("numpy").select([1, 0])
    assert read(dataset)[1] == ROWS[::-1]
    assert read(dataset.with_transform(lambda batch: {"other": [1] * len(batch["prompt"])}))[1] == ROWS[::-1]


def test_columns_that_say_nothing_are_named(tmp_path):
    Dataset.from_list([{"question": "a", "image": b"b"}]).to_parquet(tmp_path / "a.parquet")
    assert [list(row) for row in read(tmp_path / "a.parquet")[1]] == [["question", "image"]]
    assert [list(row) for row in read(Dataset.from_list([{"question": "a"}]))[1]] == [["question"]]


@pytest.mark.parametrize("cut", [0, 3, 4, 100, -1, -8, -300])
def test_a_truncated_parquet_is_refused(tmp_path, cut):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:cut])
    assert "the file is damaged or not Parquet; write it again" in said(tmp_path / "a.parquet")


# --- where rows come from


def test_a_folder_is_read_in_the_order_of_names_without_hidden_and_other_files(write, tmp_path):
    write("data/b.JSONL", json.dumps(ROWS[0]))
    write("data/a.csv", as_csv(ROWS[1:]))
    for other in (".hidden.json", "LICENSE.txt", "README.md", "sub/c.json"):
        write(f"data/{other}", "no") if "/" not in other else (tmp_path / "data/sub").mkdir()
    assert read("data") == (["data/a.csv:2", "data/b.JSONL:1"], ROWS[::-1])
    write("data/c.json", "[]")
    assert isinstance(read("data")[1][-1], EOFError)  # an empty part is no silent loss


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(ValueError, match="a folder without a .json, .jsonl, .csv or .parquet file; name a folder"):
        list(read_rows(tmp_path))
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved: a folder of Dataset.save_to_disk; pass datasets.load_from_disk"):
        list(read_rows(tmp_path / "saved"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said(write, tmp_path):
    os.chmod(tmp_path / write("a.jsonl", "{}"), 0)
    assert "a.jsonl: Permission denied; check the file and its permissions" in said("a.jsonl")


def test_a_disk_that_fails_is_said_with_the_file(write, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")
        yield

    monkeypatch.setattr(readers, "jsonl_rows", fails)
    assert said(write("a.jsonl", "{}")) == "a.jsonl: Input/output error; check the file and its permissions"


def test_a_name_of_the_hub_is_asked_for_there_and_a_path_never(write, monkeypatch):
    asked = []
    monkeypatch.setattr(
        readers, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or Dataset.from_list(ROWS)
    )
    assert [row for _, row in read_rows("owner/name", split="test", revision="v1")] == ROWS
    assert asked.pop() == (("owner/name",), {"split": "test", "revision": "v1"})
    write("data/train.jsonl", json.dumps(ROWS[0]))
    os.mkdir("data/name")
    for path in (
        "data/trian.jsonl",
        "other/train.csv",
        "data/other",
        "data/name",
        "train",
        "a/b/c",
        "~/x",
        "/no/such/x",
        "./x",
    ):
        with pytest.raises(ValueError, match="no such file|a folder without"):
            list(read_rows(path))
    assert len(list(read_rows("data/train.jsonl"))) == 1
    with pytest.raises(ValueError, match="no such file"):
        list(read_rows(type("P", (), {"__fspath__": lambda self: "owner/name"})()))
    assert asked == []


def test_what_the_hub_says_is_said_with_the_cure(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(readers, "load_dataset", unreachable)
    with pytest.raises(
        ValueError,
        match=r"^owner/name: no such local path, and reading from the hub failed \(ConnectionError: no network\); ",
    ):
        list(read_rows("owner/name"))


@pytest.mark.parametrize(
    "value",
    [10**5000, "x" * 10**6, {"k" * 9999: [1] * 9999}, [[[[[[[[1]]]]]]]]],
    ids=["digits", "letters", "keys", "nested"],
)
def test_a_value_in_an_error_is_short(value):
    assert 0 < len(short(value)) < 300


def test_a_record_of_csv_stands_at_its_line(tmp_path):
    path, lines = tmp_path / "a.csv", {}
    with open(path, "w", newline="") as file:
        write = csv.writer(file).writerow
        write(["prompt", "completion"])
        for n in range(400):
            file.flush()
            lines[n] = path.read_bytes().count(b"\n") + 1
            write([f"question {n}", ["one line", "two\nlines", 'three\n"quoted"\nlines'][n % 3]])
    found = list(readers.read_rows(path))
    with open(path, newline="") as file:
        assert [row for _, row in found] == list(csv.DictReader(file))
    assert [place for place, _ in found] == [f"{path}:{lines[n]}" for n in range(400)]


def test_lines_before_the_names_of_a_csv_are_passed_over_and_counted(write):
    rows = [{"x": f"{n}", "y": "long " * 10} for n in range(50)]
    places, found = read(write("a.csv", "\n \r\n" + as_csv(rows, lineterminator="\n")))
    assert found == rows and places == [f"a.csv:{n}" for n in range(4, 54)]


def test_a_map_is_read_as_a_dict_and_a_broken_text_in_json_has_its_row(write):
    maps = pa.array([[("a", 1), ("b", None)], None], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"messages": maps}), "a.parquet")
    assert read("a.parquet")[1] == [{"messages": {"a": 1, "b": None}}, {"messages": None}]
    twice = pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"messages": twice}), "twice.parquet")
    assert "row 0 (counted from 0) or later" in said("twice.parquet")
    nested = pa.array([[{"arguments": [("a", 1), ("a", 2)]}]], pa.list_(pa.struct({"arguments": twice.type})))
    pq.write_table(pa.table({"messages": nested}), "nested.parquet")
    assert "nested.parquet: row 0 (counted from 0) or later" in said("nested.parquet")
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "{oops"]))
    assert "row 1 (counted from 0): a column of type JSON holds a text that is not JSON" in said(
        Dataset(pa.table({"messages": texts}))
    )


def test_a_parquet_file_that_is_gone_or_closed_to_us_is_not_called_damaged(write, monkeypatch):
    def gone(path):
        raise FileNotFoundError(2, "No such file or directory", path)

    pq.write_table(pa.table({"prompt": ["a"]}), "a.parquet")
    monkeypatch.setattr(table_files.pq, "ParquetFile", gone)
    assert said("a.parquet") == "a.parquet: No such file or directory; check the file and its permissions"
