"""What goes wrong in reinforcement learning without an error: what TRL 1.16 does, and what is done here.

A side of the table is a function of a folder, or the place of a cell or test that proves it in another file.
"""

import contextlib
import copy
import functools
import io
import json
import math
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from ft_notebooks.kernels.label_head import LabelHead
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.lora.adapter import add_adapter, lora_config
from ft_notebooks.rlhf.grpo import grpo_trainer
from ft_notebooks.rlhf.reward_model import load_reward_model
from ft_notebooks.rlhf.reward_scoring import score_ids
from ft_notebooks.rlhf.rewards import Reward, reward_functions

pytestmark = pytest.mark.whole

TOK, HERE = tiny_tokenizer(), Path(__file__).parents[2]
WORDS = ["a", "be", "cat", "dove", "eagle", "ferret and fox", "goose"]
PROMPTS = [{"prompt": [{"role": "user", "content": f"Say {word}."}], "word": word} for word in WORDS]
STEP = {"disable_tqdm": True, "bf16": False, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-3}
STEP |= {"max_steps": 1, "max_completion_length": 8, "report_to": "none"}

FAILURES = """
the pad id of the config is not the tokenizer's
the config has no pad id
EOS is the pad token
an adapter that does not save the head
LoRA on the head
answers cut before they are scored
pairs beyond max_length are dropped
a head in bfloat16
the accuracy is a mean over batches
the score follows length
a classifier of two labels as the reward
a language model as the reward
the adapter of a language model as a reward model
a cut answer looks ended to the reward model
the reference of a model that has changed
the reference of RLOO, by default
the reference of KTO
PiSSA, whose base is the reference
PiSSA, copied for the reference
dropout in the policy
prompts that are never seen
bfloat16 weights and a low learning rate
optimizations without the gradient of the entropy
a reward of the number of messages
a misspelt column
None of one reward counts as 0
None of all rewards
a reward of minus infinity, or NaN
small differences count as much as large ones
a form that is never sampled
all answers cut and left out
cut answers trained as if they were whole
the loss is 0 whether something is learned or not
the answer in the prompt
a prompt without the chat template
answers from another distribution
the reward rises and the task falls
special tokens read as text
"""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def lowercase(text):
    return sum("a" <= letter <= "z" for letter in text) / 8


def trl(folder, reward, rows=PROMPTS, model=None, **given):
    "A run of trl.GRPOTrainer to its end: the trainer, and the log of its first step."
    fields = {"use_cpu": True, "gradient_checkpointing": False, "num_generations": 4, "per_device_train_batch_size": 8}
    arguments = {
        name: given.pop(name) for name in ("rollout_func", "reward_processing_classes", "peft_config") if name in given
    }
    args = GRPOConfig(str(folder), **STEP | fields | given)
    data = Dataset.from_list([dict(row) for row in rows])
    trainer = GRPOTrainer(model or tiny_model(), reward, args, data, processing_class=tiny_tokenizer(), **arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return trainer, next((entry for entry in trainer.state.log_history if "reward" in entry), {})


def ours(folder, reward, rows=PROMPTS, model=None, steps=True, **given):
    "The same with `grpo_trainer`: the trainer, and what was printed."
    given = STEP | {"prompts_a_step": 2, "generations": 4} | given
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trainer = grpo_trainer(model or tiny_model(), TOK, rows, reward, output_dir=str(folder), **given)
        if steps:
            trainer.train()
    return trainer, said.getvalue()


def refused(message, reward, *args, **given):
    "A side of the table: the run raises `ValueError` before its first update, with this message."

    def proof(folder):
        model = given.pop("model", tiny_model)()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            ours(folder, reward, *args, model=model, **given)
        now = {name.removeprefix("base_model.model."): p for name, p in model.state_dict().items()}
        assert all(torch.equal(p, now[name.removeprefix("base_model.model.")]) for name, p in before.items())

    return proof


def nothing_is_learned(reward, said, **given):
    "A side of the table: a run of TRL ends, its reward is `said`, and no gradient was other than 0."

    def proof(folder):
        _, log = trl(folder, reward, **given)
        assert log["grad_norm"] == 0.0 and log["loss"] == 0.0
        assert log["reward"] == said

    return proof


def proved(file, *texts):
    "A side of the table: a cell of this notebook, or this file of tests, has each of the texts."

    def proof(folder):
        text = (HERE / file).read_text(encoding="utf-8")
        cells = ["".join(c["source"]) for c in json.loads(text)["cells"]] if file.endswith(".ipynb") else [text]
        assert all(any(text in cell for cell in cells) for text in texts), texts

    return proof


def cell(name, *texts):
    return proved(f"nbs/package/rlhf/{name}.ipynb", *texts)


class Failure(NamedTuple):
    name: str
    trl: object
    ours: object


# the reward model


def scores_of_another_base(folder):
    "LoRA on the head: scores after loading over another random head."
    tiny_model().save_pretrained(folder / "base")
    model = load_reward_model(folder / "base", TOK, seed=0)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    adapted.save_pretrained(folder / "adapter")
    ids = torch.tensor([TOK("<|im_start|>user\nhi").input_ids])
    with torch.no_grad():
        run = adapted(ids).logits.item()
        other = load_reward_model(folder / "base", TOK, seed=1)
        again = PeftModel.from_pretrained(other, folder / "adapter")(ids).logits.item()
    assert abs(run - again) > 0.05


def loud_in_batches_alone(folder):
    model = LlamaForSequenceClassification(tiny_model().config)
    model.config.pad_token_id = None
    assert model(torch.tensor([[5, 6]])).logits.isfinite().all()
    with pytest.raises(ValueError, match="Cannot handle batch sizes > 1"):
        model(torch.tensor([[5, 6], [7, 8]]))


def no_pad_id(folder):
    tiny_model().save_pretrained(folder)
    model = load_reward_model(folder, TOK, seed=0)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="config.pad_token_id is None, and the tokenizer pads with 0"):
        score_ids(model, TOK, [[5, 6]])


def classifier(labels):
    config = copy.deepcopy(tiny_model().config)
    config.num_labels = labels
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config).eval()


def first_label_is_the_reward(folder):
    judge, seen = classifier(2), []
    judge.register_forward_hook(lambda module, given, out: seen.append(out.logits.clone()))
    _, log = trl(folder, judge, reward_processing_classes=tiny_tokenizer())
    assert log["reward"] == pytest.approx(seen[0][:, 0].mean().item(), abs=1e-5)


def a_random_head_rewards(folder):
    tiny_model().save_pretrained(folder / "language")
    TOK.save_pretrained(folder / "language")
    _, log = trl(folder / "run", str(folder / "language"), use_cpu=True)
    assert log["grad_norm"] > 0 and log["reward_std"] > 0


def nothing_of_it_is_trained(folder):
    tiny_model().save_pretrained(folder / "base")
    language = AutoModelForCausalLM.from_pretrained(folder / "base")
    add_adapter(language, lora_config(language)).save_pretrained(folder / "sft")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "sft", num_labels=1)
    assert not any(p.requires_grad for p in model.parameters())


def no_reward_of_a_language_model(folder):
    with pytest.raises(ValueError, match="LlamaForCausalLM has no head for a score; make one with load_reward_model"):
        ours(folder, tiny_model())


def cut_answer_looks_ended(folder):
    judge, seen = classifier(1), []
    judge.register_forward_pre_hook(lambda module, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    trl(folder, judge, reward_processing_classes=tiny_tokenizer(), rollout_func=cut_answers)
    assert all(TOK.decode(row).rstrip("<pad>").endswith(f"a{n}c<|im_end|>\n") for n, row in enumerate(seen[0]))


def cut_answers(prompts, trainer):
    "Answers of three letters that the model did not end, different for each place in the batch."
    asked = TOK.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    return {
        "prompt_ids": asked,
        "completion_ids": [TOK(f"a{n}c").input_ids for n in range(len(prompts))],
        "logprobs": None,
    }


# the policy and its reference


def dropout_is_on(folder):
    model = add_adapter(tiny_model(), lora_config(tiny_model(), lora_dropout=0.3))
    for name, p in model.named_parameters():
        p.data += 0.05 * ("lora_B" in name)
    _, log = trl(folder, spread, model=model, beta=0.1, learning_rate=0.0)
    assert log["kl"] > 1e-3


PISSA = lora_config(tiny_model(), init_lora_weights="pissa", target_modules=["q_proj"])


def pissa_moves_the_reference(folder):
    _, log = trl(folder, spread, beta=0.1, learning_rate=0.0, peft_config=copy.deepcopy(PISSA))
    assert log["kl"] > 1e-3


def pissa_moves_the_policy(folder):
    ids, model = torch.arange(3, 20)[None], add_adapter(tiny_model(), copy.deepcopy(PISSA))
    with torch.no_grad():
        before = model(ids).logits
    trainer, log = trl(folder, spread, model=model, beta=0.1, learning_rate=0.0)
    with torch.no_grad():
        after = trainer.model(ids).logits
    assert log["kl"] < 1e-6 and (after - before).abs().max() > 0.01


def prompts_not_seen(folder):
    trainer, log = trl(folder, spread, PROMPTS[:3], per_device_train_batch_size=16)
    assert trainer.state.global_step == 0 and not log
    rows = set()

    def noted(completions, word, **columns):
        rows.update(word)
        return spread(completions)

    trl(folder, noted, per_device_train_batch_size=16, max_steps=-1, num_train_epochs=1)
    assert len(rows) == 4  # of 7


def every_prompt_is_seen(folder):
    seen = []

    def noted(generated, expected, example):
        seen.append((example["row"], example["word"]))
        return lowercase(generated) + len(seen) / 100

    trainer, said = ours(folder, noted, prompts_a_step=4, max_steps=-1, num_train_epochs=1)
    assert "1 of 7 prompts twice in an epoch" in said
    times = {row: seen.count((row, WORDS[row])) for row in range(7)}
    assert trainer.state.global_step == 2 and sum(times.values()) == len(seen) == 32
    assert sorted(times.values()) == [4] * 6 + [8]
    refused("3 prompts are fewer than prompts_a_step=4, so no step would be taken", score, PROMPTS[:3],
            prompts_a_step=4)(folder / "few")  # fmt: skip


def bfloat16_weights_stand_still(folder):
    model = tiny_model().bfloat16()
    before = [p.clone() for p in model.parameters()]
    _, log = trl(folder, spread, model=model, learning_rate=1e-6)
    moved = sum((a != b).sum().item() for a, b in zip(before, model.parameters())) / sum(p.numel() for p in before)
    assert log["grad_norm"] > 0 and moved < 0.05


# rewards


def spread(completions, **columns):
    return [float(i % 4) for i in range(len(completions))]


def score(generated, expected, example):
    return len(generated) + lowercase(generated)


def number_of_messages(completions, **columns):
    return [float(len(completion) == 1) for completion in completions]


def misspelt(completions, wantd=None, **columns):
    return [float(completion[0]["content"] == wantd) for completion in completions]


def missing_counts_as_zero(folder):
    def half(completions, **columns):
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    one, other = (trl(folder, [lambda completions, **_: [1.0] * len(completions), *more])[1] for more in ([], [half]))
    assert one["grad_norm"] == 0.0 and other["grad_norm"] > 0.1 and other["reward"] == 1.5


def one_is_minus_infinity(folder):
    trainer, log = trl(folder, lambda completions, **_: [-math.inf, *spread(completions)[1:]])
    assert log["reward"] == -math.inf and trainer.state.global_step == 1


def not_finite(folder):
    for n, (wrong, said) in enumerate(((math.nan, "nan"), (-math.inf, "-inf"), ([1.0], r"\[1.0\]"), ("yes", "'yes'"))):
        calls = []

        def late(generated, expected, example, wrong=wrong, calls=calls):
            calls.append(example["row"])
            return wrong if len(calls) > 8 and example["row"] == calls[8] else len(generated) / 100 + len(calls) / 1e3

        with pytest.raises(ValueError, match=f"reward 'late', row . .counted from 0., answer .*: it returned {said}"):
            ours(folder / str(n), late, max_steps=2)


def differences_of_a_thousandth_count_as_much(folder):
    norms = [trl(folder, lambda completions, size=size, **_: [x * size for x in spread(completions)])[1]["grad_norm"]
             for size in (1.0, 1e-3)]  # fmt: skip
    assert norms[1] > 0.9 * norms[0] > 0.1


def loss_of_nothing_and_of_learning(folder):
    logs = [trl(folder, reward, rollout_func=cut_answers)[1] for reward in (number_of_messages, spread)]
    assert all(abs(log["loss"]) < 1e-6 for log in logs)
    assert logs[0]["grad_norm"] == 0.0 and logs[1]["grad_norm"] > 0.1


def cut_answers_are_trained(folder):
    _, log = trl(folder, spread, rollout_func=cut_answers)
    assert log["grad_norm"] > 0.1 and log["completions/clipped_ratio"] == 1.0


def letter(generated, expected, example):
    return ord(generated[1])


def entropy_without_its_gradient(folder):
    ids = torch.tensor([TOK("hello").input_ids])
    out = LabelHead(tiny_model())(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)
    assert out.log_probs.requires_grad and not out.entropy.requires_grad


def entropy_has_its_gradient(folder):
    norms = []
    for coefficient in (0.0, 0.5):
        trainer, _ = ours(folder, score, entropy_coef=coefficient, learning_rate=0.0)
        norms.append(next(e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e))
    assert abs(norms[1] - norms[0]) > 1e-3


# prompts and sampling


def shown(folder, prompt):
    "What the model is shown of a prompt."
    model, seen = tiny_model(), []
    generate = model.generate
    model.generate = lambda *args, **given: (seen.append(given["input_ids"][0]), generate(*args, **given))[1]
    trl(folder, spread, [{"prompt": prompt}] * 2, model=model)
    return TOK.decode(seen[0])


CHAT = [{"role": "user", "content": "Say 4."}, {"role": "assistant", "content": "four"}]


def answer_is_shown(folder):
    assert shown(folder, CHAT).endswith("four<|im_end|>\n<|im_start|>assistant\n")


def no_template(folder):
    assert shown(folder, "say one") == "say one"


def entropy_of_all_tokens(folder):
    _, log = trl(folder, spread, top_k=2)
    assert log["entropy"] > 5  # nats; what was sampled has at most log 2 = 0.69


def special_tokens_count(folder):
    "Five letters for the token that ends an answer: the shortest answer would earn most, letter for letter."
    ids = TOK("ab<|im_end|>").input_ids
    assert 8 * lowercase(TOK.decode(ids)) == 2 + len("imend")


def generated_text(folder):
    [reward] = reward_functions(lambda generated, expected, example: len(generated), tiny_model(), TOK)
    text = TOK.decode(TOK("ab<|im_end|>").input_ids, skip_special_tokens=True)  # as TRL decodes
    given = {"row": [0], "expected": [""]}
    assert reward([[]], [[{"content": text}]], [TOK("ab<|im_end|>").input_ids], **given) == [2.0]


never = functools.partial(nothing_is_learned, lambda completions, **_: [0.0] * len(completions), 0.0)
TABLE = [
    # the reward model
    Failure("the pad id of the config is not the tokenizer's",
            cell("reward_scoring", 'found["another pad id"] < 1'),
            cell("reward_scoring", "config.pad_token_id is 7, and")),
    Failure("the config has no pad id", loud_in_batches_alone, no_pad_id),
    Failure("EOS is the pad token",
            cell("reward_scoring", "assert ends == cut_off"),
            cell("reward_scoring", "the tokenizer has EOS ('<|im_end|>'")),
    Failure("an adapter that does not save the head",
            cell("reward_model", "min(abs(scores[0] - run[0]) for scores in reloaded) > 1e-3"),
            cell("reward_model", '"the adapter neither trains nor saves the head"')),
    Failure("LoRA on the head", scores_of_another_base, cell("reward_training", "the head itself has a LoRA layer")),
    Failure("answers cut before they are scored",
            cell("reward_scoring", 'found["cut to 35 tokens"] < 0.75'),
            cell("reward_scoring", "a row that is cut loses")),
    Failure("pairs beyond max_length are dropped",
            cell("reward_training", "0 < left < 12"),
            cell("reward_training", 'f"of 12 pairs do not fit into max_length={limit}"')),
    Failure("a head in bfloat16", cell("reward_scoring", '"torch.bfloat16": 65'),
            cell("reward_scoring", '"its head is bfloat16"')),
    Failure("the accuracy is a mean over batches",
            cell("reward_training", "abs(accuracies[0][0] - accuracies[1][0]) > 0.3"),
            cell("reward_training", 'truth["accuracy"]["value"] == 0.5')),
    Failure("the score follows length",
            cell("reward_training", "by_length[1.0][1] < 0.5 < by_length[0.5][1]"),
            cell("reward_statistics", "in no pair is the chosen answer the shorter one")),
    Failure("a classifier of two labels as the reward", first_label_is_the_reward,
            refused("it is a classifier with 2 labels, and a reward is one number", classifier(2))),
    Failure("a language model as the reward", a_random_head_rewards, no_reward_of_a_language_model),
    Failure("the adapter of a language model as a reward model",
            nothing_of_it_is_trained,
            cell("reward_model", 'assert trained == {"lora_A", "lora_B", "weight"}')),
    Failure("a cut answer looks ended to the reward model", cut_answer_looks_ended,
            cell("rewards", "1e-5 < abs(ended - cut)")),
    # the policy
    Failure("the reference of a model that has changed",
            cell("grpo", "wrong > 0.001"), cell("grpo", "all(abs(kl) < 1e-6 for kl in right)")),
    Failure("the reference of RLOO, by default",
            cell("grpo", "abs(wrong[0]) > 0.001", 'assert "Repo id" in unnamed'),
            cell("grpo", "all(abs(kl[0]) < 1e-6 < abs(kl[1]) for kl in right)")),
    Failure("the reference of KTO",
            proved("nbs/package/training/preflight.ipynb", 'found["TRL"] > 1e-3'),
            proved("nbs/package/training/preflight.ipynb", "model.embed_tokens.weight differs")),
    Failure("PiSSA, whose base is the reference", pissa_moves_the_reference,
            cell("grpo", '"its logits differ" in errors[11]')),
    Failure("PiSSA, copied for the reference", pissa_moves_the_policy,
            cell("grpo", '"changed the base a second time" in errors[12]')),
    Failure("dropout in the policy", dropout_is_on,
            refused("'disable_dropout' would have no effect as a setting; dropout", score, disable_dropout=False)),
    Failure("prompts that are never seen", prompts_not_seen, every_prompt_is_seen),
    Failure("bfloat16 weights and a low learning rate", bfloat16_weights_stand_still,
            refused("are trainable and bfloat16", score, model=lambda: tiny_model().bfloat16())),
    Failure("optimizations without the gradient of the entropy",
            entropy_without_its_gradient, entropy_has_its_gradient),
    # rewards
    Failure("a reward of the number of messages", nothing_is_learned(number_of_messages, 1.0),
            refused("the 4 answers to a prompt all have the same reward, for each of 2 prompts: 1",
                    lambda generated, expected, example: 1.0)),
    Failure("a misspelt column", nothing_is_learned(misspelt, 0.0),
            refused(r"it raised KeyError\('wantd'\); the row has the columns word",
                    lambda generated, expected, example: float(generated == example["wantd"]))),
    Failure("None of one reward counts as 0", missing_counts_as_zero,
            refused("it returned None; a reward must be one finite number",
                    lambda generated, expected, example: None)),
    Failure("None of all rewards", nothing_is_learned(lambda completions, **_: [None] * len(completions), None),
            cell("rewards", '"nothing": lambda g, e, x: None')),
    Failure("a reward of minus infinity, or NaN", one_is_minus_infinity, not_finite),
    Failure("small differences count as much as large ones", differences_of_a_thousandth_count_as_much,
            cell("rewards", "which is rounding in rewards of up to 1000.01", '{"group": 5, "batch": 4, "none": 4}')),
    Failure("a form that is never sampled", never(),
            refused("train on them first, by sft_trainer or ft sft", {"right": "exact_match"},
                    [row | {"expected": "Yes."} for row in PROMPTS])),
    Failure("all answers cut and left out",
            nothing_is_learned(spread, 1.5, rollout_func=cut_answers, mask_truncated_completions=True),
            refused("all 8 answers are cut, and mask_truncated_completions=True leaves them out", letter,
                    rollout_func=cut_answers, mask_truncated_completions=True)),
    Failure("cut answers trained as if they were whole",
            cut_answers_are_trained,
            refused("max_completion_length=8 would cut answers like those of the rows", score,
                    [row | {"expected": "a long answer"} for row in PROMPTS])),
    Failure("the loss is 0 whether something is learned or not", loss_of_nothing_and_of_learning,
            proved("tests/test_cli_grpo.py", '{"reward.png"', 'not (run / "loss.png").exists()')),
    # prompts and sampling
    Failure("the answer in the prompt", answer_is_shown,
            refused("the prompt ends with the assistant's message 'four'", score, [{"prompt": CHAT}] * 2)),
    Failure("a prompt without the chat template", no_template,
            refused("the prompt 'say one' is text, without the chat template", score, [{"prompt": "say one"}] * 2)),
    Failure("answers from another distribution", entropy_of_all_tokens,
            refused("top_k=2 samples answers from a changed distribution", score, top_k=2)),
    # what is rewarded
    Failure("the reward rises and the task falls",
            cell("reward_hacking", "rewards[-1] > 2 * rewards[0] and wishes[-1] <"),
            cell("reward_hacking", "held-out score 'distinct' has fallen")),
    Failure("special tokens read as text",
            special_tokens_count, generated_text),
]  # fmt: skip


@pytest.mark.parametrize("failure", TABLE, ids=[failure.name for failure in TABLE])
def test_a_failure_of_which_trl_says_nothing(tmp_path, failure):
    for side in ("trl", "ours"):
        (tmp_path / side).mkdir()
        getattr(failure, side)(tmp_path / side)


def test_the_table_has_each_failure_once():
    names = [failure.name for failure in TABLE]
    assert len(set(names)) == len(names) and {*names} == {*map(str.strip, FAILURES.strip().splitlines())}


def test_a_reward_that_exits_is_an_error_that_names_it():
    def leaves(generated, expected, example):
        raise SystemExit

    asked = {"prompts": [[]], "completions": [[{"content": "yes"}]], "completion_ids": [[1]]}
    with pytest.raises(ValueError, match=r"reward 'leaves', row 0 .*it raised SystemExit\(\)"):
        Reward("leaves", leaves, [1])(**asked, expected=[""], row=[0])
