"One small run, its base and its merged model, for all tests of an export in a process"

import pytest
from small_exports import on_few_texts

from ft_notebooks.course.example_task import appointments
from ft_notebooks.export.run_export import run_model
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.loading.quantized_loading import load_model
from ft_notebooks.lora.adapter import add_adapter, lora_config, merge_adapter
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.run import fit


@pytest.fixture(autouse=True)
def _checked_on_few_texts(monkeypatch):
    on_few_texts(monkeypatch)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    "A finished run of an adapter that changes the answers; `base`, next to it, is its base. Tests change neither."
    folder, tok = tmp_path_factory.mktemp("export"), tiny_tokenizer()
    tiny_model().save_pretrained(folder / "base")
    tok.save_pretrained(folder / "base")
    model = load_model(folder / "base", 32)
    model = add_adapter(model, lora_config(model, init_lora_weights=False))
    fit(sft_trainer(model, tok, appointments(8), output_dir=folder / "run", max_steps=2, effective_batch=4))
    return folder / "run"


@pytest.fixture(scope="session")
def tiny_merged(tiny_run):
    "The run's model without an adapter, as an export merges it, and its tokenizer. Tests do not change it."
    folder = tiny_run.parent / "merged"
    merge_adapter(run_model(tiny_run)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
