"""Generated broken files: each is refused by us, or read as a slow and independent reading reads it."""

import csv
import io
import json
import math
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ft_notebooks.data.read import read_chats, read_preferences
from ft_notebooks.data.readers import COLUMNS

pytestmark = pytest.mark.whole

USER, ANSWER = {"role": "user", "content": "Hi é"}, {"role": "assistant", "content": 'Yes, "Ann"\nBob'}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": -0.47}}}]}
TEXTS = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": 'Say "a, b"', "input": "", "output": "a,\nb"},
    {"prompt": "Hi", "completion": "007", "id": "7"},
]
CHATS = [
    *TEXTS,
    {"messages": [USER, ANSWER]},
    {
        "messages": [
            {"role": "system", "content": "S"},
            USER,
            CALL,
            {"role": "tool", "name": "f", "content": ""},
            ANSWER,
        ]
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}], "tools": [{"name": "f"}]},
    {"prompt": [USER], "completion": [ANSWER]},
    {"instruction": "Add.", "output": "3", "history": [["Hi", "Yes"]], "system": "S"},
]
PAIR_TEXTS = [
    {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
    {"instruction": "Add.", "input": "1, 2", "output": "3", "chosen": "3", "rejected": "4\n"},
]
PAIRS = [
    *PAIR_TEXTS,
    {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No"}]},
    {"prompt": [USER], "chosen": [CALL], "rejected": [ANSWER]},
    {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Y"}, "rejected": ANSWER},
]
ODD = [
    None,
    "",
    " ",
    7,
    -0.47,
    True,
    math.nan,
    2**64,
    10**30,
    [],
    {},
    [[]],
    "\ud83d",
    "NA",
    "a\0b",
    "\ufeff",
    "user",
    {"role": "user"},
    [1] * 60,
]
BYTES = [
    b"",
    b"\0",
    b"\n",
    b"\r\n",
    b"\r",
    b'"',
    b"'",
    b",",
    b";",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\\",
    b"\\ud800",
    b"\xe9",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"NaN",
    b"null",
    b"-0.47",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b'"role":"user",',
    b"//",
    b"1e999",
    b" ",
]


def replaced(value, where, odd):
    "`value` with the part to which `where` leads replaced by `odd`, taken out, or put under a key of its own."
    if not isinstance(value, (dict, list)) or not value or not where:
        return odd
    i, *rest = where
    if isinstance(value, list):
        i %= len(value)
        return [*value[:i], replaced(value[i], rest, odd), *value[i + 1 :]]
    key = list(value)[i % len(value)]
    if i % 7 == 6:
        return {k: v for k, v in value.items() if k != key}
    if i % 7 == 5:
        return {**value, "extra" if i % 2 else "tools": odd}
    return {**value, key: replaced(value[key], rest, odd)}


def written(rows, kind, style):
    "The bytes of a valid file."
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        table = pa.Table.from_pylist([{"id": 0, **row} for row in rows])
        pq.write_table(table, sink, compression=("none", "snappy")[style % 2], use_dictionary=style % 3 > 0)
        return sink.getvalue().to_pybytes()
    if kind == "csv":
        text = io.StringIO(newline="")
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        names = list(dict.fromkeys(name for row in cells for name in row))
        writer = csv.DictWriter(text, names, quoting=(csv.QUOTE_MINIMAL, csv.QUOTE_ALL)[style % 2])
        writer.writeheader()
        writer.writerows(cells)
        text = text.getvalue()
    elif kind == "json":
        text = json.dumps(rows, indent=(None, 1)[style % 2], ensure_ascii=style % 3 > 0)
    else:
        text = "\n".join(json.dumps(row, ensure_ascii=style % 3 > 0) for row in rows) + "\n" * (style % 2)
    text = text.replace("\n", "\r\n") if style % 5 == 4 and kind != "csv" else text
    return b"\xef\xbb\xbf" * (style % 7 == 6) + text.encode(errors="surrogatepass")


@st.composite
def files(draw, kind):
    "A reader, the rows before anything was broken, and the bytes."
    chats = draw(st.booleans())
    pool = {(True, True): CHATS, (True, False): TEXTS, (False, True): PAIRS, (False, False): PAIR_TEXTS}
    texts = kind == "parquet" and draw(st.booleans())
    rows = draw(st.lists(st.sampled_from(pool[chats, not texts]), min_size=1, max_size=4))
    if kind == "parquet":  # Arrow cannot hold a text and a list in one column
        rows = [row for row in rows if {k: type(v) for k, v in rows[0].items()} == {k: type(v) for k, v in row.items()}]
    odd = rows
    if draw(st.integers(0, 2)) == 0:
        where = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
        odd = replaced(rows, where, draw(st.sampled_from(ODD)))
    try:
        raw = written(odd if isinstance(odd, list) else [odd], kind, draw(st.integers(0, 50)))
    except (pa.ArrowException, TypeError, AttributeError, UnicodeEncodeError, OverflowError, csv.Error):
        raw = written(rows, kind, 0)  # what the odd value is cannot be written in this kind
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(raw)))
        start = max(0, len(raw) - start) if kind == "parquet" and draw(st.booleans()) else start
        end = start + draw(st.sampled_from([0, 0, 1, 1, 2, 30, 10**6]))
        raw = raw[:start] + draw(st.sampled_from([*BYTES, raw[start:end] * 2])) + raw[end:]
    return chats, rows, raw


EXAMPLES = 90  # of each of the four kinds


# --- the slow reading


class Twice(Exception):
    pass


def once(pairs):
    if len(dict(pairs)) < len(pairs):
        raise Twice
    return dict(pairs)


def slow_rows(raw, kind):
    "The rows as the standard library or pyarrow reads them, or None."
    try:
        if kind == "parquet":
            file = pq.ParquetFile(io.BytesIO(raw))  # a column that says nothing may be broken
            return holes_out(
                file.read(columns=[name for name in file.schema_arrow.names if name in COLUMNS]).to_pylist()
            )
        text = raw.decode("utf-8-sig")
        if kind == "csv":
            found = list(csv.DictReader(io.StringIO(text.lstrip("\r\n"), newline="")))
            return [{k: v for k, v in row.items() if v} for row in found]
        if kind == "json":
            return json.loads(text, object_pairs_hook=once)
        return [json.loads(line, object_pairs_hook=once) for line in text.split("\n") if line.strip()]
    except (ValueError, Twice, RecursionError, pa.ArrowException, OSError, csv.Error, MemoryError):
        return None


def holes_out(value):
    if isinstance(value, dict):
        return {k: holes_out(v) for k, v in value.items() if v is not None}
    return [holes_out(v) for v in value] if isinstance(value, list) else value


def listed(value):
    return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value


def is_listed(text):
    return ('"role":' in text or '"from":' in text) and any(
        f'"{key}":' in text for key in ("content", "value", "tool_calls")
    )


def slow_turns(value, role):
    value = listed(value) if isinstance(value, str) and is_listed(value) else value
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    roles = {"human": "user", "gpt": "assistant"}
    found = []
    for m in [value] if isinstance(value, dict) else value:
        m = {k: v for k, v in m.items() if v is not None}
        if "from" in m and "role" not in m:
            m = {"role": roles.get(m["from"], m["from"]), "content": m["value"]}
        found.append(m)
    return found


def slow_asked(row):
    if row.get("instruction") is None:
        return slow_turns(row["prompt"] if row.get("prompt") is not None else row["conversations"], "user")
    past = [
        slow_turns(text, role)
        for pair in listed(row.get("history")) or []
        for text, role in zip(pair, ("user", "assistant"))
    ]
    extra = row.get("input") or ""
    question = row["instruction"] + ("\n\n" + extra if extra.strip() else "")
    return [m for turns in past for m in turns] + slow_turns(question, "user")


def slow_chat(row):
    key = next(key for key in ("messages", "conversations", "completion", "instruction") if row.get(key) is not None)
    if key in ("messages", "conversations"):
        messages = slow_turns(listed(row[key]), "")
    else:
        messages = slow_asked(row if key == "instruction" else {"prompt": row["prompt"]})
        messages = messages + slow_turns(row["output" if key == "instruction" else key], "assistant")
    return {"messages": with_system(row, messages), **tools(row)}


def slow_pair(row):
    chosen, rejected = slow_turns(row["chosen"], "assistant"), slow_turns(row["rejected"], "assistant")
    n = 0
    if chosen[0]["role"] != "assistant":
        while chosen[n] == rejected[n]:
            n += 1
        asked = chosen[:n]
    else:
        asked = slow_asked(row)
    return {"prompt": with_system(row, asked), "chosen": chosen[n:], "rejected": rejected[n:], **tools(row)}


def with_system(row, messages):
    system = row.get("system")
    return [{"role": "system", "content": system}, *messages] if system and system.strip() else messages


def tools(row):
    found = row.get("tools")
    found = json.loads(found) if isinstance(found, str) and found else found
    return {"tools": found} if found else {}


def spelled(rows):
    return [json.dumps({k: v for k, v in row.items() if v is not None}, sort_keys=True) for row in rows]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_a_broken_file_is_refused_by_us_or_read_as_it_stands(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    outcomes = Counter()

    @settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(files(kind))
    def check(case):
        chats, before, raw = case
        (tmp_path / f"a.{kind}").write_bytes(raw)
        rows = slow_rows(raw, kind)
        try:
            found = list((read_chats if chats else read_preferences)(f"a.{kind}"))
        except ValueError as e:
            assert type(e) is ValueError and all(
                line.startswith(f"a.{kind}") for line in str(e).split("\n") if " in all" not in line
            )
            whole = (
                isinstance(rows, list) and spelled(map(dict, rows)) == spelled(before)
                if kind != "csv" and are_dicts(rows)
                else False
            )
            assert not whole, "a whole file was refused"
            outcomes["refused"] += 1
            return
        assert rows is not None, "what nobody else can read was read"
        assert spelled(found) == spelled(map(slow_chat if chats else slow_pair, rows))
        outcomes["read"] += 1

    check()
    assert min(outcomes["refused"], outcomes["read"]) > EXAMPLES / 10, outcomes  # both happen


def are_dicts(rows):
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
