"KTO on rated answers: whole runs, kills, several processes, weights, and the failures that TRL does not see."

import contextlib
import io

import datasets
import pytest
import torch
from datasets import Dataset
from ranks_of import ranks
from small_runs import ROUNDED, DiesAt, forked, only_rounded
from trl import unpair_preference_dataset

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.data.rated_encoding import encode_rated
from ft_notebooks.data.read import read_rated
from ft_notebooks.dpo.kto_training import kto_trainer
from ft_notebooks.dpo.loss import summed_logps
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config

pytestmark = pytest.mark.whole

TOK = tiny_tokenizer()
NAMES = ["Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal", "Ida", "Joe", "Kim", "Leo", "Mia"]
SINGLES = [
    {"prompt": f"I am {name}", "completion": f"hello {name}" if i % 2 else "go away, you", "label": i % 2 > 0}
    for i, name in enumerate(NAMES)
]
FIXED = {"bf16": False, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def rows():
    return encode_rated(TOK, read_rated(SINGLES))[0]


def made(model, rows, folder, held=None, **given):
    fields = FIXED | {"effective_batch": 4, "max_steps": 4, "save_steps": 1} | given
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trainer = kto_trainer(model, TOK, rows, held, output_dir=str(folder), **fields)
    trainer.said = said.getvalue()
    return trainer


def adapted():
    return add_adapter(tiny_model(), lora_config(tiny_model(), r=4))


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_a_killed_run_goes_on_to_the_same_weights(rows, tmp_path):
    (whole := made(adapted(), rows, tmp_path / "whole", save_steps=2)).train()
    dies = {"save_steps": 2, "callbacks": [DiesAt(3)]}
    assert forked(lambda: made(adapted(), rows, tmp_path / "parts", **dies).train()) == 9
    parts = made(adapted(), rows, tmp_path / "parts", save_steps=2)
    parts.train(last_good_checkpoint(tmp_path / "parts"))
    assert parts.state.global_step == 4 and weights(parts).keys() == weights(whole).keys()
    assert all(torch.equal(p, weights(whole)[name]) for name, p in weights(parts).items())
    logged = [[entry.get("kl") for entry in run.state.log_history] for run in (parts, whole)]
    assert logged[0] == logged[1]


def learned(rows, folder, micro=2):
    "Two epochs of 13 rows in steps of 8: the last step of each has 5."
    size = {"effective_batch": 8, "per_device_train_batch_size": micro, "per_device_eval_batch_size": 2}
    rest = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "no"}
    trainer = made(tiny_model(), rows, folder, rows.select(range(5)), **size, **rest)
    trainer.train()
    found = trainer.evaluate()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "loss": torch.tensor([entry["loss"] for entry in log]),
        "kl": torch.tensor([entry["kl"] for entry in log]),
        "weights": torch.cat([p.flatten() for p in weights(trainer).values()]),
        "eval": torch.tensor([found["eval_loss"], found["eval_kl"]]),
    }


def test_two_processes_and_other_micro_batches_learn_what_one_does(rows, tmp_path):
    one = learned(rows, tmp_path / "one")
    several = ranks(2, lambda rank: learned(rows, tmp_path / "two"), tmp_path / "ranks")
    assert torch.equal(several[0]["weights"], several[1]["weights"])
    for other in (several[0], learned(rows, tmp_path / "single", micro=1)):
        far = {name: (other[name] - value).abs() for name, value in one.items()}
        assert len(one["loss"]) == 4 and max(far["loss"].max(), far["eval"].max(), far["kl"].max()) < 10 * ROUNDED
        assert only_rounded(far["weights"], 4 * 2e-3)


def test_an_adapter_that_was_trained_before_is_its_own_reference(rows, tmp_path):
    model = adapted()
    draw = torch.Generator().manual_seed(1)
    for p in filter(lambda p: p.requires_grad, model.parameters()):
        p.data += 0.02 * torch.randn(p.shape, generator=draw)
    trainer = made(model, rows, tmp_path / "after", max_steps=1, effective_batch=13)
    assert torch.allclose(torch.tensor(trainer.train_dataset["ref_logps"][:]), summed_logps(model, rows), atol=1e-3)
    trainer.train()
    first = trainer.state.log_history[0]
    assert abs(first["loss"] - 0.5) < 1e-5 and abs(first["rewards/chosen"]) < 1e-4


@pytest.mark.parametrize(
    ("good", "weight", "advised"), [(2, 1.0, "desirable_weight=6"), (2, 6.0, None), (7, 1.0, None)]
)
def test_unequal_labels_get_the_weight_that_makes_them_count_alike(tmp_path, good, weight, advised):
    singles = [{**row, "label": i < good} for i, row in enumerate([*SINGLES, {**SINGLES[0], "prompt": "I am Ned"}])]
    said = made(tiny_model(), singles, tmp_path, desirable_weight=weight).said
    assert f"{good} good and {14 - good} bad answers" in said and "KTO" not in said
    assert (f"set {advised}" in said) if advised else ("usual is" not in said)


def test_weights_scale_the_gradient_of_their_label(rows, tmp_path):
    def gradient(**given):
        trainer = made(tiny_model(), rows, tmp_path / str(len(given)), max_steps=1, effective_batch=13, **given)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(13)])
        trainer.kl = 0.0
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch).backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])

    plain, good, bad = gradient(), gradient(desirable_weight=3.0), gradient(undesirable_weight=2.0, beta=0.1)
    # with g and b the gradients of the labels: plain = g + b, good = 3g + b, bad = g + 2b
    g, b = (good - plain) / 2, bad - plain
    assert torch.allclose(g + b, plain, atol=1e-5) and g.norm() > 1e-2 < b.norm()


# what goes wrong without an error


def test_trl_trains_all_good_answers_of_taken_apart_pairs_before_all_bad_ones(tmp_path):
    pairs = [{"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in SINGLES]
    assert unpair_preference_dataset(Dataset.from_list(pairs))["label"][:] == [True] * 13 + [False] * 13
    labels = []

    trainer = made(tiny_model(), pairs, tmp_path, max_steps=-1, num_train_epochs=1, save_strategy="no")
    for batch in trainer.get_train_dataloader():
        labels.extend(batch["label"].tolist())
    assert sorted(labels) == [False] * 13 + [True] * 13 and 3 < sum(labels[:13]) < 10


def test_the_text_false_is_no_and_one_label_alone_is_refused(tmp_path):
    texts = [{**row, "label": str(row["label"]).lower()} for row in SINGLES]
    assert read_rated(texts)["label"][:] == [row["label"] for row in SINGLES]
    misread = [{**row, "label": bool(row["label"])} for row in texts]  # "false" is a text that is not empty
    with pytest.raises(ValueError, match="train_dataset: all 13 answers are good, and none is bad"):
        made(tiny_model(), misread, tmp_path)


def test_a_row_is_compared_with_no_answer_to_its_own_prompt(tmp_path):
    pairs = [{"prompt": row["prompt"], "chosen": f"yes {i}", "rejected": f"no {i}"} for i, row in enumerate(SINGLES)]
    data = made(tiny_model(), pairs, tmp_path).train_dataset
    own = {}
    for row in data:
        own.setdefault(str(row["prompt_ids"]), []).append(row["completion_ids"])
    assert all(row["KL_completion_ids"] not in own[str(row["prompt_ids"])] for row in data)
    assert sorted(data["KL_completion_ids"][:]) == sorted(data["completion_ids"][:])
