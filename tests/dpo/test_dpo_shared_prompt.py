"Prompts of pairs computed once in trl.DPOTrainer: whole trainings, and that nothing of it stays."

import types

import datasets
import pytest
import torch
import trl.trainer.utils
from architectures import RIGHT, model_of
from torch.testing import assert_close
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ft_notebooks.core.seams import attention_of, is_hooked
from ft_notebooks.dpo.shared_prompt import SharedPrompt
from ft_notebooks.kernels.shared_prompt import SharedForward, pair_groups
from ft_notebooks.kernels.shared_rows import shared_row
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import lora_config

TOK = tiny_tokenizer()
WORDS = [
    ("hello there", "good day", "go away"),
    ("a longer question than that", "yes", "yesterday I saw it"),
    ("x", "the same", "the same"),
    ("what is this?", "an answer of words", "an answer of letters"),
    ("", "a", "b"),
    ("say it", "it", "it, and more"),
]
ROWS = datasets.Dataset.from_list(
    [
        {
            "prompt": [{"role": "user", "content": p}],
            "chosen": [{"role": "assistant", "content": c}],
            "rejected": [{"role": "assistant", "content": r}],
        }
        for p, c, r in WORDS
    ]
)


class Shared(DPOTrainer):
    off: tuple[str, ...] = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.prompts = SharedPrompt(self, self.off)

    def train(self, *args, **kwargs):
        with self.prompts.used():
            return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        return self.prompts.loss(super().compute_loss, model, inputs, *args, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


# the trainer


def trainer_of(kind, folder, model=None, ref_model=None, adapter=True, batch=2, **fields):
    model = model or tiny_model()
    fields = {
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "gradient_checkpointing": False,
        "logging_steps": 1,
    } | fields
    args = DPOConfig(
        str(folder),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=1e-2,
        **fields,
    )
    adapter = lora_config(model, r=4) if adapter else None
    return kind(
        model, ref_model, args, train_dataset=ROWS, eval_dataset=ROWS, processing_class=TOK, peft_config=adapter
    )


def batch_of(trainer):
    return trainer.data_collator(list(trainer.train_dataset))


def history(trainer):
    times = ("runtime", "per_second", "flos")
    return [{k: v for k, v in log.items() if not k.endswith(times)} for log in trainer.state.log_history]


RUNS = {
    "accumulated": {"batch": 1, "gradient_accumulation_steps": 3, "gradient_checkpointing": True},
    "full, computed before": {"adapter": False, "precompute_ref_log_probs": True},
    "smoothed, anchored": {"loss_type": ["robust", "sft"], "loss_weights": [1.0, 0.5], "label_smoothing": 0.1},
}


@pytest.mark.numbers
@pytest.mark.whole
@pytest.mark.parametrize("how", RUNS)
def test_a_training_with_evaluations_has_the_history_and_the_weights_of_trls(how, tmp_path):
    fields = {"num_train_epochs": 2, "eval_strategy": "epoch", "adam_epsilon": 1e-3} | RUNS[how]
    plain, shared = (trainer_of(kind, tmp_path, **fields) for kind in (DPOTrainer, Shared))
    for trainer in (plain, shared):
        trainer.train()
    assert shared.prompts.not_shared is None
    logs = list(zip(history(plain), history(shared), strict=True))
    assert len(logs) > 4 and any("eval_rewards/margins" in log for log, _ in logs)
    assert max(abs(log.get("rewards/margins", 0)) for log, _ in logs) > 1e-3  # it moved
    for log, other in logs:
        assert log.keys() == other.keys()
        if (
            abs(log.get("rewards/margins", 1)) < 1e-5
        ):  # before the first step rounding alone says which reward is larger
            other["rewards/accuracies"] = log["rewards/accuracies"]
        assert other == pytest.approx(log, rel=2e-4, abs=2e-4)
    for (name, p), q in zip(plain.model.named_parameters(), shared.model.parameters()):
        assert_close(q, p, atol=2e-4, rtol=1e-3, msg=name)


@pytest.mark.numbers
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "mixtral"])
def test_the_loss_and_the_gradient_are_trls_for_other_architectures(kind, tmp_path):
    found = []
    for trainer_kind in (DPOTrainer, Shared):
        models = [model_of(kind, RIGHT[kind]) for _ in range(2)]
        with torch.no_grad():
            for p in models[0].parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        trainer = trainer_of(trainer_kind, tmp_path, *models, adapter=False)
        loss = trainer.compute_loss(trainer.model, batch_of(trainer))
        loss.backward()
        found.append(
            (loss.detach(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
        )
    assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


@pytest.mark.numbers
def test_a_prompt_of_one_token_and_answers_of_different_length_lose_nothing(tmp_path):
    "The first place of the row is then scored itself, and padding must not be taken for it."
    pairs = [
        {"prompt_ids": [5], "chosen_ids": [6, 7, 8, 9], "rejected_ids": [8]},
        {"prompt_ids": [], "chosen_ids": [4, 5], "rejected_ids": [7]},
    ]
    batch, found = DataCollatorForPreference(pad_token_id=TOK.pad_token_id)(pairs), []
    for kind in (DPOTrainer, Shared):
        trainer = trainer_of(kind, tmp_path, ref_model=tiny_model(seed=1), adapter=False, loss_type=["sigmoid", "sft"])
        loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        trainer.log({"loss": loss.item()})
        found.append(trainer.state.log_history[-1])
    assert found[1] == pytest.approx(found[0], abs=1e-5, rel=1e-6)


def positions(trainer, batch):
    seen = []
    hook = trainer.model.get_input_embeddings().register_forward_hook(
        lambda layer, given, out: seen.append(given[0].shape)
    )
    trainer.compute_loss(trainer.model, batch)
    hook.remove()
    return seen


def test_each_of_policy_and_reference_computes_the_one_row(tmp_path):
    trainer = trainer_of(Shared, tmp_path)
    batch = batch_of(trainer)
    half = len(batch["input_ids"]) // 2
    groups = [[i, half + i] for i in range(half)]
    row = shared_row(batch["input_ids"], batch["attention_mask"], groups).input_ids.shape
    assert trainer.prompts.not_shared is None
    assert positions(trainer, batch) == [row, row] and row[1] < batch["input_ids"].numel() / 2


@pytest.mark.whole
def test_texts_longer_than_a_window_and_texts_padded_on_the_left_are_computed_as_trl_does(tmp_path):
    batch = batch_of(trainer_of(Shared, tmp_path))
    for window, long in ((batch["input_ids"].shape[1], False), (batch["input_ids"].shape[1] - 1, True)):
        trainer = trainer_of(Shared, tmp_path, model_of("mistral", {"sliding_window": window}))
        assert trainer.prompts.not_shared is None
        assert (positions(trainer, batch)[0] == batch["input_ids"].shape) == long
    trainer = trainer_of(Shared, tmp_path)
    left = {name: x.flip(1) for name, x in batch.items()}
    assert trainer.prompts.not_shared is None and positions(trainer, left)[0] == batch["input_ids"].shape


@pytest.mark.numbers
def test_a_loss_over_routers_is_trls(tmp_path):
    kinds = {}
    for kind in (DPOTrainer, Shared):
        models = [model_of("mixtral", {"num_local_experts": 4, "output_router_logits": True}) for _ in range(2)]
        kinds[kind] = trainer_of(kind, tmp_path, *models, adapter=False)
    losses = [trainer.compute_loss(trainer.model, batch_of(trainer)).item() for trainer in kinds.values()]
    assert "experts" in kinds[Shared].prompts.not_shared and losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_nothing_of_it_stays_even_if_a_step_fails(tmp_path):
    trainer = trainer_of(Shared, tmp_path)
    base = trainer.model.get_base_model()
    before = base.forward, attention_of(base), trainer.precompute_ref_logps
    trainer.compute_loss(trainer.model, batch_of(trainer))
    with pytest.raises(IndexError):
        trainer.compute_loss(trainer.model, {name: x + 10**6 for name, x in batch_of(trainer).items()})
    assert before == (base.forward, attention_of(base), trainer.precompute_ref_logps)
    assert not any("forward" in vars(module) for module in base.modules() if module is not base)
    assert not is_hooked(base.get_output_embeddings())


def test_a_block_inside_another_changes_nothing_and_trls_functions_are_never_replaced(tmp_path):
    trainer, seen = trainer_of(Shared, tmp_path), []
    base, own = trainer.model.get_base_model(), dict(vars(trl.trainer.utils))
    forward = base.forward
    hook = base.get_input_embeddings().register_forward_hook(
        lambda *args: seen.append((attention_of(base), base.forward == forward, dict(vars(trl.trainer.utils)) == own))
    )
    with trainer.prompts.used():
        fused = [module for module in base.modules() if "forward" in vars(module)]
        trainer.compute_loss(trainer.model, batch_of(trainer))
        assert attention_of(base) == "shared" and fused == [m for m in base.modules() if "forward" in vars(m)]
    hook.remove()
    assert seen == [("shared", True, True)] * 2 and attention_of(base) == "sdpa"


@pytest.mark.numbers
@pytest.mark.parametrize("adapter", [True, False])
def test_a_step_with_checkpointing_outside_of_a_training_is_trls(tmp_path, adapter):
    "Its backward pass computes layers again, by the attention that the model then has"
    gradients = []
    for kind in (DPOTrainer, Shared):
        models = {} if adapter else {"ref_model": tiny_model(seed=1)}
        trainer = trainer_of(kind, tmp_path, adapter=adapter, gradient_checkpointing=True, **models)
        trainer.current_gradient_accumulation_steps = 1
        with torch.no_grad():
            for name, p in trainer.model.named_parameters():
                p.add_(0.02 * (p.requires_grad and ".ref." not in name))
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.training_step(trainer.model.train(), batch_of(trainer))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    assert gradients[0].any()


@pytest.mark.numbers
def test_a_field_that_it_does_not_give_is_trls(tmp_path):
    trainer = trainer_of(Shared, tmp_path)
    batch = batch_of(trainer)
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    model = trainer.model.eval()
    with trainer.prompts.used():
        mine, theirs = (
            m(**batch, labels=labels, fused_lm_head=True) for m in (SharedForward(model, pair_groups), model)
        )
        for name in ("loss", "log_probs", "entropy", "is_top1", "label_mask"):
            assert_close(getattr(mine, name), getattr(theirs, name), atol=2e-5, rtol=1e-4)
        assert "mean_logits" not in dict(mine.items())
        assert_close(mine.mean_logits, theirs.mean_logits, atol=1e-5, rtol=1e-4)


def test_the_reference_of_a_batch_is_read_where_it_is_given_and_refused_where_it_is_lost(tmp_path):
    trainer = trainer_of(Shared, tmp_path, adapter=False, precompute_ref_log_probs=True)
    batch = batch_of(trainer)
    kept = {name: batch.pop(name) for name in ("ref_chosen_logps", "ref_rejected_logps")}
    assert trainer.prompts.reference({**batch, **kept}) == kept
    trainer.model.eval()
    for name, now in trainer.prompts.reference(batch).items():  # before step 1 the model is its own reference
        assert_close(now, kept[name], atol=1e-4, rtol=1e-5)
    with pytest.raises(ValueError, match="the reference, this model before step 1, no longer exists; pass these"):
        trainer.compute_loss(trainer.model.train(), batch)
    trainer.state.global_step = 1
    with pytest.raises(ValueError, match="no longer exists"):
        trainer.compute_loss(trainer.model.eval(), batch)


@pytest.mark.parametrize("name", ["compute_ref_log_probs", "precompute_ref_logps", "ref_model", "use_weighting"])
def test_a_trl_without_a_name_that_is_needed_is_refused_when_the_trainer_is_made(tmp_path, name):
    trainer = trainer_of(DPOTrainer, tmp_path)
    there = {key: value for key, value in vars(trainer).items() if key != name}
    kind = type("Other", (), {"compute_ref_log_probs": 1} if name != "compute_ref_log_probs" else {})
    other = kind()
    vars(other).update(there)
    with pytest.raises(
        RuntimeError,
        match=rf"trl [\d.]+ and transformers [\d.]+ have no DPOTrainer.{name}, by which .*pip install 'trl==1.16",
    ):
        SharedPrompt(other)


def test_a_head_of_trl_that_takes_no_shifted_labels_leaves_prompts_unshared(tmp_path):
    trainer = trainer_of(DPOTrainer, tmp_path)
    base = trainer.model.get_base_model()
    inner = base.forward

    def forward(self, *args, fused_lm_head=False, labels=None, **kwargs):
        return inner(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)

    base.forward = types.MethodType(forward, base)
    assert SharedPrompt(trainer).not_shared == "the model's head in this TRL version has no shift_labels argument"


@pytest.mark.numbers
def test_outputs_are_those_that_trl_returns(tmp_path):
    plain, shared = (trainer_of(kind, tmp_path) for kind in (DPOTrainer, Shared))
    outputs = [t.compute_loss(t.model, batch_of(t), return_outputs=True)[1].logits for t in (plain, shared)]
    real = batch_of(plain)["attention_mask"].bool()
    assert_close(outputs[1][real], outputs[0][real], atol=1e-5, rtol=1e-4)


def test_levers_can_be_left_out_and_the_reason_is_said(tmp_path):
    kind = type("Off", (Shared,), {"off": ("share", "lora", "head")})
    trainer = trainer_of(kind, tmp_path)
    assert trainer.prompts.not_shared == "switched off by off="
    assert positions(trainer, batch_of(trainer))[0] == batch_of(trainer)["input_ids"].shape
