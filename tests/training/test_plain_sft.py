"Edges of `check_prompts_untrained`: which plain trainers train the user's words, and which do not."

import pytest
from datasets import Dataset
from small_runs import QUIET, TOK, trainer
from trl import SFTConfig, SFTTrainer

from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.training.preflight import check_prompts_untrained
from ft_notebooks.training.run import fit

CHATS = appointments(8)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def plain(folder, rows=CHATS, tok=TOK, **fields):
    args = SFTConfig(
        str(folder), **QUIET | {"max_steps": 1, "per_device_train_batch_size": 4, "save_steps": 1} | fields
    )
    return SFTTrainer(tiny_model(), args, train_dataset=rows, processing_class=tok)


@pytest.mark.parametrize(
    "fields", [{}, {"padding_free": True, "max_length": None}, {"remove_unused_columns": False, "padding_free": False}]
)
def test_a_plain_trainer_of_chats_trains_the_users_words_and_is_refused_before_a_file_is_written(tmp_path, fields):
    made = plain(tmp_path / "run", **fields)
    with pytest.raises(ValueError, match="would train the user's words .* assistant_only_loss=True .* column 'text'"):
        fit(made)
    assert not [*tmp_path.rglob("*.safetensors")]


def test_rows_in_the_format_of_other_tools_are_checked_too(tmp_path):
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = [
        {"conversations": [{"from": roles[m["role"]], "value": m["content"]} for m in chat]}
        for chat in CHATS["messages"]
    ]
    with pytest.raises(ValueError, match="would train the user's words"):
        fit(plain(tmp_path, Dataset.from_list(rows)))


def test_a_trainer_of_answers_alone_is_not_refused(tmp_path):
    tok = tiny_tokenizer()
    tok.chat_template = MARKED
    check_prompts_untrained(plain(tmp_path, tok=tok, assistant_only_loss=True))
    pairs = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS["messages"]]
    check_prompts_untrained(plain(tmp_path, Dataset.from_list(pairs)))
    check_prompts_untrained(
        sft_trainer(tiny_model(), TOK, CHATS, output_dir=str(tmp_path), effective_batch=4, bf16=False)
    )


def test_text_and_other_trainers_are_not_concerned(tmp_path):
    texts = [{"text": TOK.apply_chat_template(chat, tokenize=False)} for chat in CHATS["messages"]]
    check_prompts_untrained(plain(tmp_path, Dataset.from_list(texts)))
    check_prompts_untrained(plain(tmp_path, Dataset.from_list(texts).to_iterable_dataset()))
    check_prompts_untrained(trainer(tmp_path))


def test_an_answer_that_repeats_the_question_is_not_taken_for_a_trained_question(tmp_path):
    tok = tiny_tokenizer()
    tok.chat_template = MARKED
    rows = [{"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "I say it"}]}] * 4
    check_prompts_untrained(plain(tmp_path, Dataset.from_list(rows), tok=tok, assistant_only_loss=True))
