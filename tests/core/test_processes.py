"Edges of `ft_notebooks.core.processes`, with the answers of the other processes given."

import pytest

from ft_notebooks.core import processes
from ft_notebooks.core.processes import Everywhere, together


@pytest.fixture
def gathered(monkeypatch):
    "Two processes, of which the other one has no error; what this one gives to the exchange."
    sent = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "join_processes", lambda: None)
    monkeypatch.setattr(processes, "gather_object", lambda found: sent.extend(found) or [*found, ("other", None)])
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
    assert [found for _, found in gathered] == [None]
