"""The perplexity of `ft eval` is the one that training has printed."""

from functools import partial

import pytest
import torch

from ft_notebooks.cli.evaluation import _evaluate
from ft_notebooks.course.example_task import appointments
from ft_notebooks.evaluation.likelihood import perplexity
from ft_notebooks.evaluation.runner import evaluate
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.runs.model_choice import load_folder, load_generator
from ft_notebooks.sft.stage import SFTStage

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("bits", [16, 32])
def test_the_perplexity_of_an_evaluation_is_that_of_the_trained_adapter_and_not_of_the_rounded_merge(tmp_path, bits):
    tok, chats = tiny_tokenizer(), appointments(4)
    tiny_model().save_pretrained(tmp_path / "base")
    model = load_folder(tmp_path / "base", bits)
    trained = add_adapter(model, lora_config(model, r=4))
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(len(name)))
    trained.save_pretrained(tmp_path / "sft")
    said = SFTStage().measure(trained, tok, SFTStage().encode(tok, chats)[0])["perplexity"]  # as `ft sft` prints it
    merged = perplexity(load_generator(tmp_path / "sft", bits), tok, chats)
    assert bits == 32 or merged != said  # in 16 bits, the merge rounds
    models = {"base": str(tmp_path / "base"), "sft": str(tmp_path / "sft")}
    measure = partial(evaluate, tok=tok, dataset=chats, scorers={}, max_new_tokens=2)
    found = _evaluate(models, bits, tmp_path / "eval", "notes", measure, ())
    assert found["sft"].scores["perplexity"]["value"] == said
