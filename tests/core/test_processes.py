"Edges of `ft_notebooks.core.processes`, with the answers of the other processes given."

from datetime import timedelta
from types import SimpleNamespace

import pytest

from ft_notebooks.core import processes
from ft_notebooks.core.errors import Everywhere
from ft_notebooks.core.processes import together


@pytest.fixture
def gathered(monkeypatch):
    "Two processes, of which the other one has no error; what this one gives to the exchange."
    sent = []
    monkeypatch.setattr(processes, "_is_connected", lambda: True)
    monkeypatch.setattr(processes, "from_all", lambda fact: sent.append(fact) or [fact, ("other", None)])
    return sent


@pytest.mark.parametrize("error, text", [(ValueError(), "ValueError"), (OSError(), "OSError"), (ValueError("x"), "x")])
def test_an_error_without_a_text_is_raised_in_all_processes_too(gathered, error, text):
    with pytest.raises(Everywhere, match=f"^process 0 on .*: {text}$"), together():
        raise error
    assert [found for _, found in gathered] == [text]


def test_an_error_of_another_kind_stays_itself_and_the_others_learn_its_kind(gathered):
    with pytest.raises(KeyError, match="answer"), together():
        raise KeyError("answer")
    assert [found for _, found in gathered] == ["KeyError: 'answer'"]


def test_without_an_error_nothing_is_raised(gathered):
    with together():
        pass
    assert [found for _, found in gathered] == [""]


@pytest.mark.parametrize("can_be_changed, timeout", [(True, timedelta(minutes=10)), (False, timedelta(days=1))])
def test_rows_may_take_hours_to_prepare_whether_or_not_a_timeout_can_be_changed_later(
    monkeypatch, can_be_changed, timeout
):
    given, changed = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "hardware", lambda: SimpleNamespace(device="cpu"))
    monkeypatch.setattr(processes, "PartialState", lambda **how: given.append(how) or SimpleNamespace(num_processes=2))
    monkeypatch.setattr(processes, "set_timeout", lambda timeout=None: changed.append(timeout) or can_be_changed)
    processes.join_processes()
    assert given == [{"cpu": True, "timeout": timeout}] and changed == [None, timedelta(days=1)]
