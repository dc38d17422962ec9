"Edges of `ft_notebooks.generation`."

import pytest

from ft_notebooks.generation import generate
from ft_notebooks.models import tiny_model, tiny_tokenizer

ASK = [[{"role": "user", "content": text}] for text in ("a", "a longer question", "b")]


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        generate(tiny_model(), tiny_tokenizer(), ASK, max_new_tokens=1, batch_size=0)


def test_no_conversations_give_no_answers():
    assert generate(tiny_model(), tiny_tokenizer(), [], max_new_tokens=3) == []


def test_a_second_stop_token_of_the_generation_config_ends_an_answer():
    tok, model = tiny_tokenizer(), tiny_model()
    free = generate(model, tok, ASK, max_new_tokens=12)
    stop = tok(free[0][3]).input_ids[0]
    model.generation_config.eos_token_id = [tok.eos_token_id, stop]
    cut = generate(model, tok, ASK, max_new_tokens=12)
    assert all(b == a.split(tok.decode([stop]))[0] + tok.decode([stop]) for a, b in zip(free, cut) if tok.decode([stop]) in a)
    assert len(cut[0]) < len(free[0])


def test_a_models_own_sampling_settings_do_not_make_it_random():
    tok, model = tiny_tokenizer(), tiny_model()
    expected = generate(model, tok, ASK, max_new_tokens=8)
    model.generation_config.update(do_sample=True, temperature=2.0, top_k=5)
    assert generate(model, tok, ASK, max_new_tokens=8) == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_even_after_an_error(training, monkeypatch):
    model = tiny_model().train(training)
    generate(model, tiny_tokenizer(), ASK, max_new_tokens=1)
    assert model.training is training
    monkeypatch.setattr(model, "generate", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(model, tiny_tokenizer(), ASK, max_new_tokens=1)
    assert model.training is training
