"The families that people fine-tune, each as a tiny model: losses, gradients, layouts and what a run leaves behind."

import json
import math
import shutil
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from tiny_families import SHAPE, family
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from trl import DPOTrainer, GRPOTrainer, RewardTrainer, RLOOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.dpo.trainer import dpo_trainer
from ft_notebooks.inference.generation import generate
from ft_notebooks.kernels.patching import optimizations, speed_up
from ft_notebooks.kernels.shared_prompt import SharedForward, prompt_groups, sharing, why_not_shared
from ft_notebooks.loading.example_models import tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.grpo import grpo_trainer
from ft_notebooks.sft.trainer import sft_trainer
from ft_notebooks.tokenization.padding import IGNORE
from ft_notebooks.training.expert_balance import loss_alone
from ft_notebooks.training.run import fit

TOK = tiny_tokenizer()
ANSWERS = {
    "hello": "hi",
    "count to three": "one, two, three",
    "and then?": "four, five",
    "bye": "see you tomorrow, then",
}
TALKS = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in ANSWERS.items()]
SHORT = Dataset.from_list([{"messages": talk} for talk in TALKS])
ROWS = encode_chats(TOK, SHORT)[0]
CHATS = [talk[:-1] for talk in TALKS[:2]]
EXACT = {"bf16": False, "disable_tqdm": True, "use_cpu": True, "report_to": "none", "logging_steps": 1}
EXACT |= {"save_strategy": "no"}
HYBRIDS = ["qwen3_5_text", "qwen3_next", "lfm2", "lfm2_moe", "granitemoehybrid", "falcon_h1"]
CONVOLVED = ["qwen3_5_text", "lfm2", "falcon_h1"]  # of each way to mix neighbouring rows, one
BALANCED = ["qwen3_moe", "mixtral", "gpt_oss"]  # with an auxiliary loss


def adapted(name: str, **fields):
    model = family(name, **fields)
    targets = ["in_proj"] if name == "falcon_h1" else None  # PEFT refuses its `out_proj`
    return add_adapter(model, lora_config(model, **({"target_modules": targets} if targets else {})))


@pytest.fixture
def sft(tmp_path):
    def sft(model, folder="run", eval_dataset=None, **settings):
        settings = {"effective_batch": 4, "max_steps": 1, **EXACT, **settings}
        return sft_trainer(model, TOK, ROWS, eval_dataset, output_dir=tmp_path / folder, **settings)

    return sft


class Gradients(TrainerCallback):
    "The gradient of each step, before it is clipped."

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
        self.found.append(torch.cat(grads).clone())


def trained(trainer):
    "The losses of the run, and its first gradient."
    trainer.add_callback(seen := Gradients())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], seen.found[0]


# norms


@pytest.mark.parametrize("name", ["qwen3_5_text", "qwen3_next", "granitemoehybrid", "falcon_h1"])
def test_a_norm_with_a_gate_keeps_its_own_forward(name):
    model = family(name).eval().requires_grad_(False)
    gated = [m for m in model.modules() if "Gated" in type(m).__name__ and "Norm" in type(m).__name__]
    optimizations(model)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = model(input_ids=ids, use_cache=False).logits
        with speed_up(model):
            assert not any("forward" in vars(norm) for norm in gated)
            assert torch.allclose(model(input_ids=ids, use_cache=False).logits, plain, atol=1e-5)


# rows without padding


@pytest.mark.parametrize("name", CONVOLVED)
def test_a_hybrid_is_trained_with_padding_and_the_plan_says_why(sft, name, capsys):
    trainer = sft(adapted(name))
    assert not trainer.args.padding_free
    assert "padded, since" in capsys.readouterr().out
    losses, _ = trained(trainer)
    assert math.isfinite(losses[0])


@pytest.mark.parametrize(
    ("name", "how"), [("qwen3_5_text", {"packing": True, "max_length": 600}), ("lfm2", {"padding_free": True})]
)
def test_a_hybrid_asked_to_pack_is_refused_before_step_1(sft, name, how):
    with pytest.raises(ValueError, match=rf"cannot keep documents.*{next(iter(how))}"):
        sft(adapted(name), **how)


@pytest.mark.parametrize("attention, how", [("eager", {}), ("sdpa", {"padding_free": False})])
def test_packing_of_the_evaluation_alone_does_not_change_how_rows_are_trained(sft, attention, how):
    model = family("llama")
    model.set_attn_implementation(attention)
    assert not sft(model, eval_dataset=ROWS, max_length=600, eval_packing=True, **how).args.padding_free


# shared prompts


@pytest.mark.parametrize("name", [*HYBRIDS, "mamba2"])
def test_a_prompt_is_not_shared_where_an_answer_would_see_the_other_one_in_16_bits_too(name):
    "Falcon-H1's convolution and state change little, 4% of full attention: less than attention rounds in 16 bits."
    assert "of the change" in why_not_shared(family(name).bfloat16())


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "mixtral", "deepseek_v3", "glm4_moe"])
def test_a_prompt_is_shared_in_16_bits_where_only_rounding_differs(name):
    assert why_not_shared(family(name).bfloat16()) is None


# experts that an auxiliary loss balances


def router_settings(model):
    config = model.config.get_text_config()
    return config.output_router_logits, getattr(config, "router_aux_loss_coef", None)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_a_trained_mixture_of_experts_and_its_folder_generate(sft, name, tmp_path):
    model = family(name)
    before = router_settings(model)
    trainer = sft(model, router_aux_loss_coef=0.5, save_strategy="steps")
    assert router_settings(model) == before
    generate(model, TOK, CHATS, 2, progress=False)  # as samples before step 1 do
    fit(trainer)
    assert "aux_loss" in trainer.state.log_history[0]
    assert router_settings(model) == before
    generate(model, TOK, CHATS, 2, progress=False)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert router_settings(again) == before
    generate(again, TOK, CHATS, 2, progress=False)


def test_a_folder_that_asks_for_router_logits_is_healed_by_a_run(sft):
    model = family("mixtral", output_router_logits=True)
    fit(sft(model, save_strategy="steps"))
    assert not model.config.output_router_logits
    generate(model, TOK, CHATS, 2, progress=False)


def test_a_plain_trainer_of_trl_leaves_a_folder_that_generates(tmp_path):
    args = SFTConfig(
        output_dir=tmp_path / "run", max_steps=1, per_device_train_batch_size=2, **EXACT | {"save_strategy": "steps"}
    )
    trainer = SFTTrainer(family("mixtral"), args, train_dataset=ROWS, processing_class=TOK)
    fit(trainer)
    assert "aux_loss" in trainer.state.log_history[0]
    generate(AutoModelForCausalLM.from_pretrained(tmp_path / "run"), TOK, CHATS, 2, progress=False)


def loss_by_hand(model, rows=ROWS):
    "The mean loss of the trained tokens, with each row alone."
    losses = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1].float()
            losses.append(cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="none"))
    labels = torch.cat([torch.tensor(row["labels"][1:]) for row in rows])
    return torch.cat(losses)[labels != IGNORE].mean().item()


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_next"])
def test_the_evaluation_loss_is_the_mean_over_trained_tokens_without_the_auxiliary_loss(sft, name):
    model = family(name).eval()
    trainer = sft(model, eval_dataset=ROWS)
    found = trainer.evaluate()
    assert abs(found["eval_loss"] - loss_by_hand(model)) < 1e-5
    assert ("eval_aux_loss" in found) == (name != "llama")
    losses, _ = trained(trainer)  # which has the auxiliary loss
    aux = trainer.state.log_history[0].get("aux_loss", 0)
    weight = getattr(trainer, "router_aux_loss_coef", 0) if aux else 0
    assert abs(losses[0] - found["eval_loss"] - weight * aux) < 2e-5


def pairs_of(n=4):
    bad = [{"role": "assistant", "content": "No idea, sorry."}]
    return [{"prompt": talk[:-1], "chosen": talk[-1:], "rejected": bad} for talk in TALKS[:n]]


def test_dpo_is_evaluated_without_the_auxiliary_loss_and_its_prompts_are_not_shared(tmp_path, capsys):
    settings = {"effective_batch": 4, "max_steps": 1, "router_aux_loss_coef": 0.5, **EXACT}
    trainer = dpo_trainer(family("mixtral"), TOK, pairs_of(), pairs_of(), output_dir=tmp_path / "run", **settings)
    assert "each prompt twice" in capsys.readouterr().out
    found = trainer.evaluate()
    assert abs(found["eval_loss"] - math.log(2)) < 1e-5
    assert found["eval_aux_loss"] > 0
    losses, _ = trained(trainer)
    assert abs(losses[0] - math.log(2) - 0.5 * trainer.state.log_history[0]["aux_loss"]) < 1e-4


def test_grpo_says_that_the_prompts_of_balanced_experts_are_not_shared(tmp_path, capsys):
    def said(name, **settings):
        settings = {"prompts_a_step": 2, "generations": 2, "max_steps": 1, "max_completion_length": 32, **settings}
        grpo_trainer(
            family(name), TOK, SHORT.select([0, 1]), "exact_match", output_dir=tmp_path / name, **settings, **EXACT
        )
        return capsys.readouterr().out

    assert "balances its experts" in said("qwen3_moe")
    assert "each prompt computed once in the update" in said("qwen3_moe", router_aux_loss_coef=0.0)
    assert "each prompt computed once in the update" in said("llama")
    assert "different logits for texts in one row" in said("lfm2")


@pytest.mark.parametrize("asked", [{}, {"router_aux_loss_coef": 0.5}])
def test_a_run_of_experts_goes_on_where_its_manifest_has_the_fields_that_trl_wrote(sft, tmp_path, asked):
    fit(sft(family("mixtral"), save_strategy="steps", **asked))
    file = tmp_path / "run" / "manifest.json"
    record = json.loads(file.read_text())
    assert not record["run"]["model.config.output_router_logits"]
    written = {"output_router_logits": True, **asked}
    record["run"] |= {f"model.config.{name}": value for name, value in written.items()}
    file.write_text(json.dumps(record))
    fit(sft(family("mixtral"), save_strategy="steps", **asked))
    with pytest.raises(ValueError, match="router_aux_loss_coef was .*, is 0.25"):
        sft(family("mixtral"), router_aux_loss_coef=0.25)


def test_no_run_goes_on_with_another_loss(sft, tmp_path):
    "As a run that an earlier version began, whose manifest says nothing of the loss."

    def check(make, name, said):
        fit(make())
        file = tmp_path / "run" / "manifest.json"
        record = json.loads(file.read_text())
        assert record["run"].pop(name) == said
        file.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=f"{name} was not set, is '{said}'; an earlier version"):
            make()

    saved = {"save_strategy": "steps", "save_steps": 1}
    single = {**saved, "per_device_train_batch_size": 1}
    check(lambda: sft(not_told("llama"), **single), "loss.trained", "divided by the labels of the step")
    shutil.rmtree(tmp_path / "run")
    best = {**EXACT, **saved, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    best |= {"effective_batch": 4, "max_steps": 1, "output_dir": tmp_path / "run"}
    pairs = (pairs_of(), pairs_of())
    check(lambda: dpo_trainer(adapted("mixtral"), TOK, *pairs, **best), "loss.evaluated", "without auxiliary loss")


def test_a_run_whose_loss_has_not_changed_says_nothing_of_it(sft, tmp_path):
    for model in (family("llama"), family("mixtral"), not_told("llama")):
        fit(sft(model, type(model).__name__, save_strategy="steps"))
    for file in tmp_path.glob("*/manifest.json"):
        assert not any(key.startswith("loss.") for key in json.loads(file.read_text())["run"])


# experts whose auxiliary loss TRL cannot compute


def granite(**fields):
    torch.manual_seed(0)
    shape = {**SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("granitemoe", **shape, **fields))


@pytest.mark.parametrize("make", [granite, lambda: family("qwen3_moe", output_router_logits=True)])
def test_experts_train_without_an_auxiliary_loss_whatever_the_configuration_asks_for(sft, make, tmp_path, capsys):
    how = {"router_aux_loss_coef": 0.0}
    assert "aux_loss" not in fitted(sft(make(), logging_steps=1, **how))
    trainer = dpo_trainer(
        make(), TOK, pairs_of(), output_dir=tmp_path / "dpo", effective_batch=4, max_steps=1, **EXACT | how
    )
    assert "each prompt once" in capsys.readouterr().out
    assert "aux_loss" not in fitted(trainer)


def fitted(trainer):
    trained(trainer)
    assert not trainer.model.config.output_router_logits
    return trainer.state.log_history[0]


def test_scaled_experts_with_an_auxiliary_loss_that_trl_cannot_compute_are_trained(sft):
    "Their head is not a plain product, so TRL's computes it, and the auxiliary loss where the configuration asks."
    fitted(sft(granite(logits_scaling=2.0)))


def test_a_mixture_whose_auxiliary_loss_trl_cannot_compute_trains_without_it_and_says_so(sft, capsys):
    model = family("granitemoehybrid")
    before = router_settings(model)
    trainer = sft(model)
    assert "no auxiliary loss" in capsys.readouterr().out
    assert router_settings(model) == before
    losses, _ = trained(trainer)
    assert abs(losses[0] - loss_by_hand(family("granitemoehybrid").eval())) < 1e-4


def test_an_auxiliary_loss_that_trl_cannot_compute_is_refused_where_it_is_asked_for(sft, tmp_path):
    with pytest.raises(ValueError, match="router_aux_loss_coef=0.1: .*GraniteMoeHybridConfig has no num_experts"):
        sft(family("granitemoehybrid"), router_aux_loss_coef=0.1)
    with pytest.raises(ValueError, match="router_aux_loss_coef=0.1: .*GraniteMoeHybridConfig has no num_experts"):
        dpo_trainer(family("granitemoehybrid"), TOK, pairs_of(), output_dir=tmp_path, router_aux_loss_coef=0.1, **EXACT)


# one loss and gradient, whatever the batch plan


def plans(start, model):
    "Losses and first gradients of 4 x 1, 2 x 2 and 1 x 4."
    return [trained(start(model(), f"{rows}", per_device_train_batch_size=rows)) for rows in (4, 2, 1)]


def check_same(found):
    for losses, gradient in found[1:]:
        assert abs(losses[0] - found[0][0][0]) < 1e-5
        assert torch.allclose(gradient, found[0][1], atol=1e-5, rtol=1e-4)


def not_told(name):
    "A model whose class says that it does not take the number of items in the batch."
    model = family(name)
    model.accepts_loss_kwargs = False
    return model


def test_the_loss_of_a_wrapper_does_not_depend_on_the_batch_plan(sft):
    found = plans(sft, lambda: text_part(family("gemma4")))
    check_same(found)
    assert abs(found[0][0][0] - loss_by_hand(family("gemma4").eval())) < 1e-5


def text_part(model):
    "Trained without what images go into, which texts do not reach."
    for name, p in model.named_parameters():
        p.requires_grad = "language_model" in name
    return model


@pytest.mark.parametrize("kind", [DPOTrainer, RewardTrainer, GRPOTrainer, RLOOTrainer])
def test_the_other_trainers_scale_their_loss_whatever_the_class_of_the_model_says(kind):
    assert kind.loss_is_scaled_for_ga is not None  # else transformers.Trainer would ask the model


def test_the_loss_of_dpo_does_not_depend_on_the_batch_plan_whatever_the_class_of_the_model_says(tmp_path):
    def dpo(model, folder, **settings):
        settings = {"effective_batch": 4, "max_steps": 1, **settings, **EXACT}
        return dpo_trainer(model, TOK, pairs_of(), output_dir=tmp_path / folder, **settings)

    check_same(plans(dpo, lambda: not_told("llama")))


# gradients of experts


def change_experts(model, pre=None, post=None):
    "Hooks on the experts of each layer: on the expert of each token, and on what they return."
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            if pre:
                module.register_forward_pre_hook(pre)
            if post:
                module.register_forward_hook(post)
    return model


def to_two_experts(module, args):
    states, chosen, weights = args
    return states, chosen.clamp(max=1), weights


@pytest.mark.parametrize(("name", "make"), [("qwen3_moe", family), ("mixtral", adapted), ("gpt_oss", family)])
def test_experts_that_no_token_is_routed_to_are_no_fault(sft, name, make):
    losses, _ = trained(sft(change_experts(make(name), pre=to_two_experts), max_steps=3))
    assert len(losses) == 3


@pytest.mark.parametrize(("name", "make"), [("mixtral", family), ("gpt_oss", adapted)])
def test_experts_that_no_gradient_reaches_are_named(sft, name, make):
    model = change_experts(make(name), post=lambda module, args, out: out.detach())
    with pytest.raises(ValueError, match=r"tensors have had no gradient \(.*experts"):
        sft(model, max_steps=3).train()


# equal to TRL's trainers and to the formulas

PROVED = ["llama", "qwen3_moe", "qwen3_5_text", "gemma4_text", "gpt_oss"]


@pytest.mark.parametrize("name", PROVED)
def test_loss_and_gradient_of_sft_are_those_of_trl(sft, name, tmp_path):
    ours = sft(adapted(name))
    args = SFTConfig(tmp_path / "plain", max_steps=1, per_device_train_batch_size=4, **EXACT)
    plain = SFTTrainer(adapted(name), args, train_dataset=ROWS, processing_class=TOK)
    plain.add_callback(theirs := Gradients())
    plain.train()
    losses, gradient = trained(ours)
    assert abs(losses[0] - plain.state.log_history[0]["loss"]) < 1e-5
    assert (gradient - theirs.found[0]).norm() < 1e-4 * gradient.norm()


def answer_log_prob(model, prompt, answer):
    "The log-probability of an answer, computed alone."
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return log_probs.gather(1, torch.tensor(answer)[:, None]).sum().item()


@pytest.mark.parametrize("name", PROVED)
def test_the_loss_of_dpo_is_its_formula(name, tmp_path):
    reference, policy = family(name).eval(), family(name).eval()
    for p in policy.parameters():
        p.data += 0.02 * torch.randn_like(p)
    how = {"ref_model": reference, "effective_batch": 2, "precompute_ref_log_probs": False, **EXACT}
    trainer = dpo_trainer(policy, TOK, pairs_of(2), output_dir=tmp_path / "run", **how)
    margins = []
    for row in trainer.train_dataset:
        policies, references = (
            [answer_log_prob(model, row["prompt_ids"], row[key]) for key in ("chosen_ids", "rejected_ids")]
            for model in (policy, reference)
        )
        margins.append(policies[0] - policies[1] - references[0] + references[1])
    by_hand = -logsigmoid(0.1 * torch.tensor(margins)).mean().item()
    batch = trainer.data_collator(list(trainer.train_dataset))
    with loss_alone(trainer), torch.no_grad():
        assert abs(trainer.compute_loss(trainer.model, batch).item() - by_hand) < 1e-5
    assert abs(by_hand - math.log(2)) > 1e-3


@pytest.mark.parametrize("name", PROVED)
def test_grpo_scores_answers_as_trl_does_with_a_shared_prompt_or_without(name):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (4, 20), generator=draw)
    ids[1], ids[3] = torch.cat([ids[0, :12], ids[1, 12:]]), torch.cat([ids[2, :12], ids[3, 12:]])  # two prompts
    mask = torch.ones_like(ids)
    mask[2:, :3] = 0  # one of them is shorter, and padded on the left
    labels = ids.masked_fill(torch.arange(20) < 12, IGNORE)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True}
    theirs, ours = family(name), family(name)
    for model in (theirs, ours):
        add_fused_lm_head(model)
    shared = why_not_shared(ours, "left") is None
    assert shared == (name in ("llama", "qwen3_moe"))
    expected = theirs(**batch).log_probs
    with speed_up(ours, ("attention",) if shared else ()), sharing(ours) if shared else nullcontext():
        found = SharedForward(ours, prompt_groups)(**batch).log_probs
        found[:, 11:].square().sum().backward()
    expected[:, 11:].square().sum().backward()
    assert torch.allclose(found[:, 11:], expected[:, 11:], atol=1e-5, rtol=1e-4)
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert (p.grad is None) == (q.grad is None) and (
            p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-3, rtol=1e-3)
        )
