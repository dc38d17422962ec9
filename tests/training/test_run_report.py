"Edges of `ft_notebooks.training.run_report`: random state, modes, other processes."

import pytest
import torch
from small_runs import CHATS, adapted, arguments, lines, trainer, weights
from transformers import TrainerCallback, TrainerControl, TrainerState

from ft_notebooks.checkpointing.metrics_log import entries_text
from ft_notebooks.inference.generation import generate
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.training import run_report as module
from ft_notebooks.training.run_report import SamplesCallback


class Noisy(TrainerCallback):
    "A model that draws random numbers in evaluation mode too"

    def on_init_end(self, args, state, control, model, **kwargs):
        def draw(module, args):
            torch.rand(1)

        model.get_base_model().register_forward_pre_hook(draw)  # which `generate` calls too


@pytest.mark.whole
def test_listening_moves_no_random_state_even_where_a_forward_draws_from_it(tmp_path):
    runs = []
    for callbacks in ([], [SamplesCallback(tiny_tokenizer(), CHATS, 4)]):
        run = trainer(tmp_path / str(len(runs)), Noisy(), *callbacks, model=adapted(), save_strategy="no")
        run.train()
        runs.append(run)
    assert torch.equal(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("training", [True, False])
def test_listening_leaves_the_mode_and_the_settings_as_they_were(tmp_path, training):
    model = tiny_model().train(training)
    before = model.config.to_dict(), model.generation_config.to_dict(), torch.get_rng_state()
    samples, state = SamplesCallback(tiny_tokenizer(), CHATS, 2), TrainerState()
    samples.on_train_begin(arguments(tmp_path), state, TrainerControl(), model=model)
    assert all(module.training == training for module in model.modules())
    assert before[:2] == (model.config.to_dict(), model.generation_config.to_dict())
    assert torch.equal(before[2], torch.get_rng_state()) and all(p.grad is None for p in model.parameters())


@pytest.mark.whole
def test_the_last_sample_is_of_the_model_that_is_left(tmp_path):
    tok, settings = (
        tiny_tokenizer(),
        {"max_steps": 30, "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True},
    )
    run = trainer(tmp_path, SamplesCallback(tok, CHATS, 4), learning_rate=1e-2, **settings | {"max_steps": 30})
    run.train()
    best = run.state.best_global_step
    heard = lines(tmp_path / "samples.jsonl")
    assert 0 < best < 28 and [line["step"] for line in heard] == [
        n for n in (0, 4, 8, 12, 16, 20, 24, 28, 30) for _ in CHATS
    ]
    answers = generate(run.model, tok, [chat[:-1] for chat in CHATS], 4, progress=False)
    assert answers == [line["answer"] for line in heard if line["step"] == best]


def test_a_run_without_evaluation_is_heard_at_its_start_and_end_with_or_without_an_expected_answer(tmp_path):
    chats = [CHATS[0][:1], CHATS[1]]
    trainer(
        tmp_path, SamplesCallback(tiny_tokenizer(), chats, 2), eval_strategy="no", save_strategy="no", max_steps=2
    ).train()
    found = [(line["step"], line["prompt"], line["expected"]) for line in lines(tmp_path / "samples.jsonl")]
    assert found == [(n, *pair) for n in (0, 2) for pair in (("hello", None), ("bye", "yes"))]


def test_samples_of_a_run_that_died_before_its_first_checkpoint_are_not_kept(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 0, "prompt": "old", "answer": "", "expected": null}\n{"st')
    trainer(
        tmp_path, SamplesCallback(tiny_tokenizer(), CHATS, 2), eval_strategy="no", save_strategy="no", max_steps=1
    ).train()
    assert "old" not in (tmp_path / "samples.jsonl").read_text()


def listened(folder, state, **settings):  # the steps in the file after a callback has seen a run begin and end
    samples, args = SamplesCallback(tiny_tokenizer(), CHATS, 2), arguments(folder, **settings)
    for event in (samples.on_train_begin, samples.on_train_end):
        event(args, state, TrainerControl(), model=tiny_model())
    return [line["step"] for line in lines(folder / "samples.jsonl")]


def test_a_resume_drops_what_was_heard_after_its_checkpoint_and_hears_its_own_end(tmp_path):
    old = [{"step": n, "prompt": "p", "answer": "old", "expected": None} for n in (0, 4, 8)]
    (tmp_path / "samples.jsonl").write_text(entries_text(old))
    assert listened(tmp_path, TrainerState(global_step=5)) == [0, 4, 5, 5]


def test_a_run_stopped_between_evaluations_with_its_best_model_loaded_claims_no_other_step(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 4, "prompt": "p", "answer": "", "expected": null}\n')
    state = TrainerState(global_step=5, best_global_step=4, best_model_checkpoint="checkpoint-4")
    assert listened(tmp_path, state, load_best_model_at_end=True) == [4]


@pytest.mark.parametrize("first", [True, False])
def test_every_process_generates_and_the_first_writes(tmp_path, monkeypatch, first):
    heard = []

    def said(model, tok, prompts, max_new_tokens, **kwargs):  # sharded weights need every process
        heard.append([prompt[-1]["content"] for prompt in prompts])
        return ["yes"] * len(prompts)

    monkeypatch.setattr(module, "generate", said)
    state, control = TrainerState(is_world_process_zero=first), TrainerControl()
    samples, args = SamplesCallback(tiny_tokenizer(), CHATS, 2), arguments(tmp_path)
    samples.on_evaluate(args, state, control, model=tiny_model())  # before and after a run it is silent
    samples.on_train_begin(args, state, control, model=tiny_model())
    for step in (4, 4, 8):
        state.global_step = step
        samples.on_evaluate(args, state, control, model=tiny_model())
    samples.on_train_end(args, state, control, model=tiny_model())
    samples.on_evaluate(args, state, control, model=tiny_model())
    assert heard == [["hello", "bye"]] * 3  # at steps 0, 4 and 8, once each
    assert (tmp_path / "samples.jsonl").exists() == first
    assert [line["step"] for line in lines(tmp_path / "samples.jsonl")] == [0, 0, 4, 4, 8, 8] if first else True
