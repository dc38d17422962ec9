"""Reading by Arrow gives the rows and the defects of reading row by row, on random files of every kind."""

import csv
import io
import json
import random

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ft_notebooks.data import readers
from ft_notebooks.data.formats import as_chat, as_preference
from ft_notebooks.data.read import read_chats, read_preferences
from ft_notebooks.data.readers import read_rows

TEXTS = [
    "Hi",
    " lead",
    "é",
    "漢字",
    "\n\nx",
    "[1, 2]",
    "2024-01-01",
    "7",
    "x" * 50,
    'say "a", b',
    "a\r\nb",
    "\u2028z",
    "🙂",
]
LISTED = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
ODD = ["", " ", "\u3000", "\u00a0\n", None, 3, True, [], {}, LISTED, "\x85", "\x1c"]
OTHERS = ["system", "tools", "text", "history", "messages", "prompt", "id", "meta", "instruction"]
NAMES = {"user": ["human", "user"], "assistant": ["gpt", "bing", "assistant"], "system": ["system"]}


def some_text(rng, share):
    return rng.choice(ODD) if rng.random() < share else rng.choice(TEXTS)


def some_messages(rng, share, role="role", content="content"):
    turns = [("user", some_text(rng, share)), ("assistant", some_text(rng, share))] * rng.choice([1, 1, 2])
    turns = [("system", some_text(rng, share)), *turns] if rng.random() < 0.2 else turns
    if rng.random() < share:
        rng.choice([turns.pop, turns.reverse, lambda: turns.append(("tool", "x")), lambda: turns.append(turns[0])])()
    messages = [
        {role: rng.choice(NAMES[who]) if role == "from" and who in NAMES else who, content: text} for who, text in turns
    ]
    if messages and rng.random() < share:
        rng.choice(messages)[rng.choice(["weight", "name", "thinking"])] = rng.choice([None, 1, "x"])
    if messages and rng.random() < share:
        rng.choice(messages).pop(rng.choice([role, content]))
    return rng.choice([None, [], "x", [None], [7], json.dumps(messages)]) if rng.random() < share / 3 else messages


def some_row(rng, share, layout):
    texts = {
        "pc": ["prompt", "completion"],
        "alpaca": ["instruction", "input", "output"],
        "pair": ["prompt", "chosen", "rejected"],
    }
    if layout == "messages":
        row = {"messages": some_messages(rng, share)}
    elif layout == "turns":
        row = {"conversations": some_messages(rng, share, *rng.choice([("from", "value"), ("role", "content")]))}
    elif layout == "two":
        row = {"prompt": some_text(rng, 0), "chosen": some_messages(rng, share), "rejected": some_messages(rng, share)}
    else:
        row = {key: some_text(rng, share) for key in texts[layout]}
    if rng.random() < share:
        row[rng.choice(OTHERS)] = rng.choice([None, "", "S", [], 1, {"a": 1}, [{"name": "f"}], 1.5, "2024-01-01"])
    return row


def damaged(rng, line):
    return rng.choice([
        line[:-1], line + line, f"{line} {line}", f" {line}  ", f"{line}\r", "", "  ", "\u00a0", "7", "null", "[]", "{",
        f'{line[:-1]}, "a": 1, "a": 2}}', '{"a":' * 1200 + "1" + "}" * 1200, line.replace(": ", ":\n", 1),
        f'{line[:-1]}, "n": NaN}}', f'{line[:-1]}, "n": 1e999}}', f'{line[:-1]}, "s": "\\ud83d"}}',
    ])  # fmt: skip


def write_jsonl(rng, share, rows, path):
    lines = []
    for row in rows:
        line = json.dumps(row, ensure_ascii=rng.random() < 0.5)
        line = (damaged(rng, line) if rng.random() < share else line).encode()
        lines.append(line.replace(b"e", b"\xe9", 1) if rng.random() < share / 4 else line)
    path.write_bytes(
        rng.choice([b"", b"\xef\xbb\xbf"])
        + rng.choice([b"\n", b"\r\n", b"\n\n"]).join(lines)
        + rng.choice([b"", b"\n"])
    )


def write_csv(rng, share, rows, path):
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    kinds = {"quoting": rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), "lineterminator": rng.choice(["\n", "\r\n"])}
    cells = [[value if isinstance(value, str) else json.dumps(value) for value in map(row.get, names)] for row in rows]
    csv.writer(text, **kinds).writerows(
        [names, *[["" if cell == "null" else cell for cell in record] for record in cells]]
    )
    content = text.getvalue()
    if rng.random() < share * 5:
        k = rng.randrange(len(content))
        content = content[:k] + rng.choice(['"', ",", "\r", "\n\n", "\0", ' "x" ', '"']) + content[k:]
    raw = content.encode()
    if rng.random() < share:
        raw = raw[: len(raw) // 2] + b"\xe9" + raw[len(raw) // 2 :]
    path.write_bytes(rng.choice([b"", b"\xef\xbb\xbf"]) + raw)


def write_parquet(rng, share, rows, path):
    keys = list(dict.fromkeys(key for row in rows for key in row))
    try:
        pq.write_table(
            pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows]), path, row_group_size=100
        )
    except (pa.ArrowException, TypeError):  # no column holds such rows
        pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"]}), path)


KINDS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}


def found(read, source):
    try:
        rows = read(source)
        return rows[:], str(rows.features)
    except ValueError as e:
        return str(e)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.01, 0.1])
@pytest.mark.parametrize("seed", range(6))
def test_rows_and_defects_are_those_of_reading_row_by_row(tmp_path, monkeypatch, kind, share, seed):
    rng = random.Random(f"{kind} {share} {seed}")
    monkeypatch.setattr(readers, "_BLOCK", rng.choice([500, 5000, 2**20]))
    path = tmp_path / f"a{kind}"
    for layouts in (
        ["messages"],
        ["turns"],
        ["pc"],
        ["alpaca"],
        ["pair"],
        ["two"],
        ["messages", "pc", "alpaca", "turns"],
    ):
        KINDS[kind](
            rng, share, [some_row(rng, share, rng.choice(layouts)) for _ in range(rng.choice([1, 3, 200]))], path
        )
        for read, as_row in ((read_chats, as_chat), (read_preferences, as_preference)):
            said = found(read, path)
            expected = [(place, *as_row(row)) for place, row in read_rows(path)]
            defects = [f"{place}: {defect}" for place, _, wrong in expected for defect in wrong]
            if isinstance(said, str):
                assert defects and said.startswith(defects[0])
                assert len(defects) == 1 or f"{len(defects)} defects in all" in said
            else:
                assert not defects
                rows = [
                    {key: value for key, value in zip(said[0], cells) if value is not None}
                    for cells in zip(*said[0].values())
                ]
                assert list(map(json.dumps, rows)) == [
                    json.dumps({key: row[key] for key in rows[i]}) for i, (_, row, _) in enumerate(expected)
                ]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_the_fingerprint_is_that_of_the_content(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng = random.Random(kind)
    rows = [{"prompt": f"{n} {'x' * rng.randrange(300)}", "completion": f"{n}\n"} for n in range(2345)]
    for name, last in (("a", "same"), ("b", "same"), ("c", "different")):
        rows[-1]["completion"] = last
        KINDS[kind](random.Random(0), 0, rows, tmp_path / f"{name}{kind}")
    for limit in (0, 2**26):
        monkeypatch.setattr("ft_notebooks.data.read._IN_MEMORY", limit)
        first, same, other = (read_chats(tmp_path / f"{name}{kind}") for name in "abc")
        assert first._fingerprint == same._fingerprint != other._fingerprint
        assert bool(first.cache_files) == (limit == 0)


def test_only_the_block_that_differs_is_read_row_by_row(tmp_path):
    lines = [json.dumps({"prompt": f"{n}", "completion": "x" * 500}) for n in range(20_000)]
    lines[7000] = lines[7000][:-1] + ', "prompt": "again"}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    batches = list(readers.read_batches(tmp_path / "a.jsonl"))
    assert [batch.table() is None for batch in batches].count(True) == 1 < len(batches)
    with pytest.raises(ValueError, match='a.jsonl:7001: not read: the key "prompt" occurs twice'):
        read_chats(tmp_path / "a.jsonl")
