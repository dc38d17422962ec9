"The rows of GRPO keep every value, or are refused by their place."

import json

import pytest
from datasets import Dataset

from ft_notebooks.rlhf.prompt_rows import as_prompts, read_prompt_rows
from ft_notebooks.rlhf.rewards import read_prompts
from ft_notebooks.rlhf.rl_settings import read_rl_rows

ASKED = [{"role": "user", "content": "Count."}]
BESIDE = [
    [{}, {"level": 3}],
    [{"facts": {"a": 1}}, {"facts": {"b": [1, None]}}],
    [{"x": 1}, {"x": 1.5}],
    [{"x": 1}, {"x": "1"}, {"x": [1]}, {"x": True}, {"x": {}}],
    [{"x": {"n": -0.47}}, {"x": "2026-11-29T00:00:00"}],
]


def by_ft(rows, folder):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_prompts(as_prompts(read_prompt_rows(folder / "rows.jsonl")))


def by_python(rows, folder):
    return read_prompts(read_rl_rows(rows))


@pytest.mark.parametrize("read", [by_ft, by_python])
@pytest.mark.parametrize("beside", BESIDE)
def test_a_reward_reads_each_value_of_its_row_as_it_was_given(tmp_path, read, beside):
    found = read([{"prompt": ASKED, **row} for row in beside], tmp_path)
    names = {name for row in beside for name in row}
    assert repr([{name: row[name] for name in names} for row in found]) == repr(
        [{name: row.get(name) for name in names} for row in beside]
    )


@pytest.mark.parametrize("read", [by_ft, by_python])
@pytest.mark.parametrize("wrong", [{"expected": {"a": 1}}, {"expected": ["4"]}, {"expected": True}, {"x": 10**30}])
def test_a_value_that_cannot_be_kept_is_named_with_its_row(tmp_path, read, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f'(rows.jsonl:2|row 1 .*): "{name}" (is|holds)'):
        read([{"prompt": ASKED}, {"prompt": ASKED, **wrong}], tmp_path)


@pytest.mark.parametrize("read", [by_ft, by_python])
def test_a_number_is_an_answer_as_text(tmp_path, read):
    found = read([{"prompt": ASKED, "expected": value} for value in (4, 0, None)], tmp_path)
    assert found["expected"][:] == ["4", "0", ""]


def test_an_answer_that_is_a_tool_call_is_refused():
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    chat = {"messages": [*ASKED, {"role": "assistant", "tool_calls": [call]}]}
    for read in (lambda: read_prompts(read_rl_rows([chat])), lambda: as_prompts(read_rl_rows([chat]))):
        with pytest.raises(ValueError, match='"expected" is'):
            read()


def test_prompts_of_messages_with_fields_that_would_be_lost_are_refused(tmp_path):
    named = [{"role": "user", "content": "Count.", "name": "Ann"}]
    for read in (by_ft, by_python):
        with pytest.raises(ValueError, match='"name".*, which would be lost'):
            read([{"prompt": named}], tmp_path)
    assert read_prompts(Dataset.from_list([{"prompt": ASKED}]))["row"][:] == [0]


def test_the_rows_of_a_caller_stay_as_they_are():
    rows = [{"prompt": list(ASKED), "expected": "2", "level": 1}]
    first = read_prompt_rows(rows)
    assert rows == [{"prompt": ASKED, "expected": "2", "level": 1}]
    assert read_prompt_rows(rows)[:] == first[:]
