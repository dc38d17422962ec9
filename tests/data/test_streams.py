"Streams of rows: read as a list of the same rows is, kept in a file, refused where they cannot be read again"

import random

import datasets
import pytest
from datasets import Dataset, IterableDataset

from ft_notebooks.data import read
from ft_notebooks.data.read import read_chats, read_preferences, read_questions, read_rated

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ROWS = {
    read_chats: [{"prompt": f"Q{n}", "completion": f"A{n}"} for n in range(1200)],
    read_questions: [{"prompt": f"Q{n}", "expected": f"A{n}"} for n in range(600)],
    read_preferences: [{"prompt": f"Q{n}", "chosen": "yes", "rejected": f"no {n}"} for n in range(600)],
    read_rated: [{"prompt": f"Q{n}", "completion": f"A{n}", "label": n % 3 > 0} for n in range(600)],
}


@pytest.mark.parametrize("reader", ROWS)
@pytest.mark.parametrize("columns", ["known", "unknown"])
def test_a_stream_is_read_as_a_list_of_its_rows(reader, columns, capsys):
    rows = ROWS[reader]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    stream = stream if columns == "known" else IterableDataset.from_generator(lambda: iter(rows))
    found, wanted = reader(stream), reader(rows)
    assert found[:] == wanted[:] and found.features == wanted.features
    assert f"the stream has {len(rows):,} rows, kept in memory: 0." in capsys.readouterr().out


def test_a_stream_of_more_than_texts_is_read_twice_and_loses_no_field():
    rows = [{"prompt": f"Q{n}", "completion": f"A{n}"} for n in range(700)]
    asked = {"role": "user", "content": "How warm is it?"}
    answers = [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "4"}]
    rows += [{"messages": [asked, *answers, {"role": "assistant", "content": "4 degrees."}]}]
    assert read_chats(IterableDataset.from_generator(lambda: iter(rows)))[:] == read_chats(rows)[:]


def test_a_large_stream_is_kept_on_disk_and_said_to_be(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(read, "_IN_MEMORY", 1000)
    rows = ROWS[read_chats]
    found = read_chats(Dataset.from_list(rows).to_iterable_dataset())
    [file] = found.cache_files
    assert found[:] == read_chats(rows)[:]
    assert f"kept in {file['filename']}: 0." in capsys.readouterr().out


def test_a_defect_of_a_stream_is_named_by_its_row():
    rows = [*ROWS[read_chats][:600], {"prompt": "", "completion": "A"}]
    with pytest.raises(ValueError, match=r"row 600 \(counted from 0\): "):
        read_chats(IterableDataset.from_generator(lambda: iter(rows)))


def test_a_stream_that_gives_other_rows_when_it_is_read_again_is_refused():
    once = iter(ROWS[read_chats][:20])
    for rows in (lambda: once, lambda: iter([{"prompt": str(random.random()), "completion": "A"}])):
        with pytest.raises(ValueError, match="begins with another row when it is read again"):
            read_chats(IterableDataset.from_generator(rows))


def test_a_stream_without_rows_is_an_error():
    with pytest.raises(ValueError, match="the stream"):
        read_chats(Dataset.from_list(ROWS[read_chats]).to_iterable_dataset().take(0))
