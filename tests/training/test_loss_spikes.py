"Edges of `ft_notebooks.training.loss_spikes`."

import datasets
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ft_notebooks.course.example_task import appointments
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.training import loss_spikes

datasets.disable_progress_bars()
ROWS = encode_chats(tiny_tokenizer(), appointments(16))[0]


def test_left_padding_is_taken_off():
    batch = {"input_ids": torch.tensor([[0, 0, 5, 6]]), "labels": torch.tensor([[-100, -100, -100, 6]])}
    ((ids, labels),) = loss_spikes._rows(batch | {"attention_mask": torch.tensor([[0, 0, 1, 1]])})
    assert ids.tolist() == [5, 6] and labels.tolist() == [-100, 6]


def test_a_batch_without_a_mask_is_taken_as_it_is():
    ((ids, labels),) = loss_spikes._rows({"input_ids": torch.tensor([[5, 6]])})
    assert ids.tolist() == labels.tolist() == [5, 6]


def test_labels_count_where_a_batch_has_a_mask_of_completions_too():
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, -100, 7]])}
    ((_, labels),) = loss_spikes._rows(batch | {"completion_mask": torch.tensor([[0, 1, 1]])})
    assert labels.tolist() == [-100, -100, 7]
    ((_, labels),) = loss_spikes._rows({"input_ids": batch["input_ids"], "labels": None})
    assert labels.tolist() == [5, 6, 7]


def test_preferences_are_trained_on_their_completions():
    pair = {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]}
    batch = DataCollatorForPreference(pad_token_id=0)([pair])
    found = [(ids.tolist(), labels.tolist()) for ids, labels in loss_spikes._rows(batch)]
    assert found == [([5, 6, 7, 8], [-100, -100, 7, 8]), ([5, 6, 9], [-100, -100, 9])]


def test_a_row_is_found_behind_a_shuffle_and_not_in_columns_of_another_kind():
    shuffled = ROWS.shuffle(seed=0)
    assert all(loss_spikes._place(shuffled, shuffled[i]["input_ids"]) == i for i in (0, 7, 15))
    assert (
        loss_spikes._place(datasets.Dataset.from_dict({"text": ["a"]}), [1]) is None
        and loss_spikes._place(None, [1]) is None
    )
