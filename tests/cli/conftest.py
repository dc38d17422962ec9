"What several tests of `ft` start from."

import pytest

from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with the tiny model and twelve notes."
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("tiny")
    tiny_model().save_pretrained("tiny")
    appointments(12).to_json("notes.jsonl")
