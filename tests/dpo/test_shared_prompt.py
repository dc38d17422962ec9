"Pairs in one row: edges of the layout, architectures, whole trainings, and that nothing of it stays."

import random
import types
from types import SimpleNamespace

import datasets
import pytest
import torch
import torch.nn.attention.varlen
import trl.trainer.utils
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ft_notebooks.core.seams import attention_of, is_hooked
from ft_notebooks.dpo.shared_prompt import PairedForward, SharedPrompt, sharing_error, why_not_shared
from ft_notebooks.dpo.shared_rows import _blocks, _by_block, _flash, _has_flash, pair_attention, pair_row
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


# the row


def pair_mask(sizes):
    "The reference: each token attends to its own part and to its pair's common prefix, up to itself."
    part = torch.arange(sizes.numel()).repeat_interleave(sizes.flatten())
    pair, kind = part // 3, part % 3
    sees = (kind == 0) | (kind == kind[:, None])
    return (sees & (pair == pair[:, None])).tril()


def texts(seed):
    draw = random.Random(seed)

    def some(low, high):
        return [draw.randint(1, 3) for _ in range(draw.randint(low, high))]

    return [
        {"prompt_ids": some(0, 6), "chosen_ids": some(1, 5), "rejected_ids": some(1, 5)}
        for _ in range(draw.randint(1, 4))
    ]


@pytest.mark.parametrize(
    "cut", [{}, {"max_length": 5}, {"max_length": 5, "truncation_mode": "keep_end"}], ids=["whole", "start", "end"]
)
@pytest.mark.parametrize("seed", range(6))
def test_every_token_sees_its_own_text_up_to_itself_and_nothing_else(seed, cut):
    pairs = texts(seed)
    batch = DataCollatorForPreference(pad_token_id=0, **cut)(pairs)
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1).tolist()
    row = pair_row(ids, batch["attention_mask"])
    sees = pair_mask(row.sizes)
    for text, n, places in zip(ids.tolist(), lengths, row.place.tolist()):
        for t in range(n - 1):
            keys = sees[places[t]].nonzero().flatten()
            assert row.input_ids[0, keys].tolist() == text[: t + 1]
            assert row.position_ids[0, keys].tolist() == list(range(t + 1))
    assert row.input_ids.shape[1] == row.sizes.sum() == len(sees)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_has_no_beginning_twice(seed):
    batch = DataCollatorForPreference(pad_token_id=0)(texts(seed))
    ids, half = batch["input_ids"].tolist(), len(batch["input_ids"]) // 2
    lengths = batch["attention_mask"].sum(1).tolist()
    needed = 0
    for i in range(half):
        a, b = ids[i][: lengths[i]], ids[i + half][: lengths[i + half]]
        begins = {tuple(text[: t + 1]) for text in (a, b) for t in range(len(text) - 1)}
        alike = next((t for t, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        needed += len(begins) + (0 < alike < min(len(a), len(b)))  # the last common token, where both go on
    assert pair_row(batch["input_ids"], batch["attention_mask"]).input_ids.shape[1] == needed


def test_padding_on_the_left_is_refused():
    ids = torch.tensor([[0, 1, 2], [1, 2, 3]])
    with pytest.raises(ValueError, match="padded on the left"):
        pair_row(ids, (ids > 0).long())


# attention


def attended(sizes, dtype=torch.float32, heads=(4, 2), width=8):
    draw = torch.Generator().manual_seed(0)
    tokens = sum(map(sum, sizes))
    return [
        torch.randn(1, h, tokens, width, generator=draw, dtype=dtype, requires_grad=True) for h in (*heads, heads[1])
    ]


SIZES = [[[5, 3, 4]], [[0, 3, 4], [2, 0, 0]], [[130, 1, 129], [1, 1, 1]], [[3, 0, 2], [300, 2, 2]]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_by_block_is_attention_with_the_mask(sizes):
    query, key, value = attended(sizes)
    out, _ = pair_attention(torch.nn.Module(), query, key, value, torch.tensor(sizes)[None, None])
    wanted = scaled_dot_product_attention(query, key, value, pair_mask(torch.tensor(sizes)), enable_gqa=True).transpose(
        1, 2
    )
    slope = torch.randn_like(wanted)
    assert_close(out, wanted, atol=2e-6, rtol=1e-4)
    grads, expected = (torch.autograd.grad(x, (query, key, value), slope) for x in (out, wanted))
    assert_close(grads, expected, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_flash_attention_is_given_each_blocks_queries_and_keys(sizes, monkeypatch):
    "The kernel needs a GPU; here stands what it promises: causal, the last query with the last key."

    def varlen_attn(q, k, v, at_q, at_k, longest_q, longest_k, *, scale, window_size, enable_gqa):
        assert window_size == (-1, 0) and at_q.dtype == at_k.dtype == torch.int32
        assert longest_q == at_q.diff().max() and longest_k == at_k.diff().max()
        parts = []
        for a, b, c, d in zip(at_q, at_q[1:], at_k, at_k[1:]):
            mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(int(d - c - (b - a)))
            part = [x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d])]
            parts.append(scaled_dot_product_attention(*part, mask, scale=scale, enable_gqa=enable_gqa).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
    query, key, value = attended(sizes)
    wanted = scaled_dot_product_attention(query, key, value, pair_mask(torch.tensor(sizes)), enable_gqa=True).transpose(
        1, 2
    )
    assert_close(_flash(query, key, value, sizes, 8**-0.5), wanted, atol=2e-6, rtol=1e-4)
    assert_close(_by_block(query, key, value, sizes, 8**-0.5, 0.0), wanted, atol=2e-6, rtol=1e-4)


def test_blocks_hold_every_query_once_in_their_order():
    at = [
        i
        for queries, *_ in _blocks([[130, 1, 129], [0, 0, 3], [4, 0, 0]], 50)
        for i in range(queries.start, queries.stop)
    ]
    assert at == list(range(267))


def test_dropout_is_applied_and_unknown_attention_is_refused():
    sizes = torch.tensor([[5, 3, 4]])[None, None]
    query, key, value = attended(sizes[0, 0].tolist())
    plain, dropped = (pair_attention(torch.nn.Module(), query, key, value, sizes, dropout=p)[0] for p in (0.0, 0.5))
    assert (plain - dropped).abs().max() > 0.1
    for name, other in {"softcap": 30.0, "s_aux": torch.zeros(4), "is_causal": False}.items():
        with pytest.raises(ValueError, match="pair_attention does not support"):
            pair_attention(torch.nn.Module(), query, key, value, sizes, **{name: other})


# architectures

SMALL = {
    "vocab_size": len(TOK),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0}
RIGHT = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 128},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "phi3": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
}
WRONG = {
    "gemma2": ({"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 8}, "does not support softcap"),
    "gemma3_text": ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, "Gemma3"),
    "gpt_oss": ({"num_local_experts": 4, "layer_types": ["full_attention"] * 2}, "does not support s_aux"),
    "falcon_mamba": ({"state_size": 4}, "FalconMamba"),
    "bloom": ({"n_layer": 2, "n_head": 4}, "Bloom"),
}


def model_of(kind, fields, attention=None):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | {"bos_token_id": 1, "eos_token_id": 2} | fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize(
    ("capability", "dtype", "runs"),
    [
        ((7, 5), torch.float16, False),
        ((8, 0), torch.float16, True),
        ((8, 9), torch.bfloat16, True),
        ((9, 0), torch.float32, False),
    ],
)
def test_the_flash_kernel_is_taken_in_16_bits_on_a_card_that_has_it(capability, dtype, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _has_flash(SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)) == runs
    assert not _has_flash(SimpleNamespace(device=torch.device("cpu"), dtype=dtype))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", RIGHT)
def test_the_row_is_as_good_as_the_texts_alone(kind, attention):
    model = model_of(kind, RIGHT[kind], attention)
    assert why_not_shared(model) is None and sharing_error(model)[0] < 1e-4
    assert attention_of(model) == attention


def test_rounding_alone_turns_nothing_off():
    error, rounding = sharing_error(tiny_model().bfloat16())
    assert max(error, rounding) < 0.025  # 2·u·√(20·layers): u = 2⁻⁹, two layers, some 20 roundings in each
    assert why_not_shared(tiny_model().bfloat16()) is None


@pytest.mark.parametrize("kind", WRONG)
def test_an_architecture_that_would_be_wrong_is_found(kind):
    fields, reason = WRONG[kind]
    assert reason in (why_not_shared(model_of(kind, fields)) or "None"), why_not_shared(model_of(kind, fields))


def test_experts_that_are_balanced_over_all_tokens_are_left_as_they_are():
    model = model_of("mixtral", {"num_local_experts": 4, "output_router_logits": True})
    assert "balances its experts" in why_not_shared(model)


def test_the_measure_leaves_mode_weights_and_random_numbers_as_they_were():
    model, state = tiny_model().train(), torch.get_rng_state()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert why_not_shared(model) is None
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


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
    "adapter": {},
    "accumulated": {"batch": 1, "gradient_accumulation_steps": 3},
    "full, computed before": {"adapter": False, "precompute_ref_log_probs": True},
    "checkpointing": {"gradient_checkpointing": True},
    "smoothed, anchored": {"loss_type": ["robust", "sft"], "loss_weights": [1.0, 0.5], "label_smoothing": 0.1},
}


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
    row = pair_row(batch["input_ids"], batch["attention_mask"]).input_ids.shape
    assert trainer.prompts.not_shared is None
    assert positions(trainer, batch) == [row, row] and row[1] < batch["input_ids"].numel() / 2


def test_texts_longer_than_a_window_and_texts_padded_on_the_left_are_computed_as_trl_does(tmp_path):
    batch = batch_of(trainer_of(Shared, tmp_path))
    for window, long in ((batch["input_ids"].shape[1], False), (batch["input_ids"].shape[1] - 1, True)):
        trainer = trainer_of(Shared, tmp_path, model_of("mistral", {"sliding_window": window}))
        assert trainer.prompts.not_shared is None
        assert (positions(trainer, batch)[0] == batch["input_ids"].shape) == long
    trainer = trainer_of(Shared, tmp_path)
    left = {name: x.flip(1) for name, x in batch.items()}
    assert trainer.prompts.not_shared is None and positions(trainer, left)[0] == batch["input_ids"].shape


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
        assert attention_of(base) == "pairs" and fused == [m for m in base.modules() if "forward" in vars(m)]
    hook.remove()
    assert seen == [("pairs", True, True)] * 2 and attention_of(base) == "sdpa"


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
    assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4) and gradients[0].any()


def test_a_field_that_it_does_not_give_is_trls(tmp_path):
    trainer = trainer_of(Shared, tmp_path)
    batch = batch_of(trainer)
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    model = trainer.model.eval()
    with trainer.prompts.used():
        mine, theirs = (m(**batch, labels=labels, fused_lm_head=True) for m in (PairedForward(model), model))
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
