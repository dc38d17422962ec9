"GRPO with an environment: what is trained, what ends a run, what resumes, and what a run says of its tools."

import contextlib
import functools
import io
import json
import random
import signal
import threading
import time
from pathlib import Path

import datasets
import pytest
import torch
from ranks_of import ranks
from small_runs import ROUNDED, killed_at, only_rounded
from trl import GRPOTrainer

from ft_notebooks.checkpointing.integrity import last_good_checkpoint
from ft_notebooks.cli.commands import main
from ft_notebooks.course.sums_task import Calculator, sum_rows, with_tools
from ft_notebooks.inference.generation import encode_prompts
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.rlhf.environments import guarded_environment
from ft_notebooks.rlhf.grpo import grpo_trainer, rloo_trainer
from ft_notebooks.rlhf.reward_choice import measure_rewards, reward_lines
from ft_notebooks.rlhf.rewards import read_prompts
from ft_notebooks.rlhf.tool_use import tool_lines
from ft_notebooks.training.run import fit

FIXED = {
    "bf16": False, "disable_tqdm": True, "save_steps": 2, "max_steps": 4, "learning_rate": 1e-3,
    "prompts_a_step": 2, "generations": 4, "max_completion_length": 160,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()


def tokenizer():
    return with_tools(tiny_tokenizer())


def calling():
    "A tokenizer with which the text between a vowel and the next full stop is a call: the tiny model makes some."
    tok = tokenizer()
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": "{content}"}}}
    fields = {
        "tool_calls": {"open_pattern": "[aeiou]", "close_pattern": r"\.|<\|im_end\|>|$", "content": "text",
                       "repeats": True, "transform": call},
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    }  # fmt: skip
    tok.response_template = {"defaults": {"role": "assistant"}, "start_anchor": "<|im_start|>assistant\n"}
    tok.response_template["fields"] = fields
    return tok


class Echo:
    "Replies with a random number, and counts its calls."

    def __init__(self):
        self.count = 0

    def reset(self, expected):
        return f" ({len(expected)} digits)"

    def say(self, text: str) -> str:
        """
        Say a text.

        Args:
            text: It.
        """
        self.count += 1
        return f"{len(text)} {random.random():.3f}"

    def get_reward(self):
        return self.count / 4


def letters(generated, expected, example):
    return sum("a" <= letter <= "z" for letter in generated[:16]) / 16


def made(folder, *, tok=None, kind=Echo, rows=6, rewards=letters, model=None, **given):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trainer = grpo_trainer(
            model or tiny_model(), tok or calling(), sum_rows(rows), rewards, output_dir=str(folder), environment=kind,
            **FIXED | given,
        )  # fmt: skip
    trainer.said = said
    return trainer


def fitted(folder, **given):
    trainer = made(folder, **given)
    with contextlib.redirect_stdout(trainer.said):
        fit(trainer)
    return trainer


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.whole
def test_a_run_with_tools_that_is_killed_goes_on_to_the_same_weights(tmp_path):
    whole = fitted(tmp_path / "whole")
    assert killed_at(3, lambda: fitted(tmp_path / "parts")) == -signal.SIGKILL
    assert last_good_checkpoint(tmp_path / "parts").endswith("checkpoint-2")
    parts = fitted(tmp_path / "parts")
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(p, other[name]) for name, p in one.items())
    keys = ("reward", "grad_norm", "tools/call_frequency", "rewards/Echo/mean")
    logs = [[[e[k] for k in keys] for e in t.state.log_history if "grad_norm" in e] for t in (whole, parts)]
    assert logs[0] == logs[1] and len(logs[0]) == 4
    assert all(0 < entry[2] for entry in logs[0])


# what is trained

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
BAD = '<tool_call>\n{"name": "add", "arguments": {"a": "one"}}\n</tool_call>'


def scripted(trainer, says):
    "The model of the trainer says what `says(row of the batch, prompt)` returns; the sizes of the batches."
    tok = trainer.processing_class
    sizes = []

    def one_turn(prompt_ids, *args, **kwargs):
        sizes.append(len(prompt_ids))
        return [tok(says(n, tok.decode(ids)) + "<|im_end|>")["input_ids"] for n, ids in enumerate(prompt_ids)], None

    trainer._generate_single_turn = one_turn
    return sizes


def says(n, prompt):
    "A call, an answer, a call whose arguments do not fit, two calls; then an answer."
    if prompt.count("<tool_response>") == 0:
        return [CALL, "I guess 7.", BAD, f"{CALL}\n{CALL}"][n % 4]
    return "It is 3."


def replies_by_hand(*texts):
    "What the template of Qwen3-Instruct-2507 writes behind a call's end token, up to the next answer."
    inner = "".join(f"\n<tool_response>\n{text}\n</tool_response>" for text in texts)
    return f"\n<|im_start|>user{inner}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def batch(tmp_path):
    "A trainer, and the batch that it makes of the scripted answers."
    trainer = made(tmp_path, tok=tokenizer(), kind=Calculator, rewards="number_match", max_completion_length=400)
    scripted(trainer, says)
    trainer.model.train()
    rows = [trainer.train_dataset[n] for n in (0, 0, 0, 0, 1, 1, 1, 1)]
    rewards = iter([1.0, 0.0, 0.5, 0.25] * 2)
    trainer.reward_funcs[:] = [lambda completions, **_: [next(rewards) for _ in completions]]
    return trainer, trainer._generate_and_score_completions(rows)


def test_the_mask_is_the_one_laid_out_by_hand_token_by_token(batch):
    trainer, found = batch
    tok = trainer.processing_class
    wrong = "{'error': \"add: 'b' is a required property\"}"
    end = "<|im_end|>"
    layouts = [
        [(CALL + end, 1), (replies_by_hand("3"), 0), ("It is 3." + end, 1)],
        [("I guess 7." + end, 1)],
        [(BAD + end, 1), (replies_by_hand(wrong), 0), ("It is 3." + end, 1)],
        [(f"{CALL}\n{CALL}{end}", 1), (replies_by_hand("3", "3"), 0), ("It is 3." + end, 1)],
    ]
    for row, layout in enumerate(layouts * 2):
        ids = [token for text, _ in layout for token in tok(text)["input_ids"]]
        mask = [kind for text, kind in layout for _ in tok(text)["input_ids"]]
        real = found["completion_mask"][row].bool()
        assert tok.decode(found["completion_ids"][row][real]) == tok.decode(ids)
        assert found["completion_ids"][row][real].tolist() == ids
        assert found["tool_mask"][row][real].tolist() == mask


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_log_probabilities_of_replies_change_neither_loss_nor_gradient(batch, loss, level):
    trainer, found = batch
    trainer.loss_type, trainer.importance_sampling_level = loss, level
    trainer.beta, trainer.current_gradient_accumulation_steps = 0.1, 1
    draw = torch.Generator().manual_seed(0)
    shape = found["completion_ids"].shape
    start, other, old, ref = (-torch.rand(shape, generator=draw) for _ in range(4))
    batch = found | {"old_per_token_logps": old, "ref_per_token_logps": ref}
    mine = (found["tool_mask"] * found["completion_mask"]).bool()
    results = []
    for values in (start, torch.where(mine, start, other)):
        logps = values.clone().requires_grad_()
        trainer._get_per_token_logps_and_entropies = lambda *_, logps=logps, **__: (logps, torch.zeros(shape), None)
        value = trainer._compute_loss(trainer.model, batch)
        value.backward()
        results.append((value.detach(), logps.grad))
    (one, gradient), (same, again) = results
    assert torch.equal(one, same) and torch.equal(gradient, again)
    assert not gradient[~mine].any() and (gradient[mine] != 0).float().mean() > 0.5


def test_without_the_mask_the_update_is_refused(batch):
    trainer, found = batch
    del found["tool_mask"]
    with pytest.raises(RuntimeError, match="gave no tool_mask, so that replies of tools would be trained"):
        trainer.compute_loss(trainer.model, found)


@pytest.mark.numbers
def test_a_prompt_that_is_computed_once_gives_the_loss_of_one_that_is_computed_for_each_answer(batch):
    trainer, found = batch
    assert trainer.shares
    trainer.current_gradient_accumulation_steps = 1
    with trainer._while_training():
        shared = trainer.compute_loss(trainer.model, found)
    plain = GRPOTrainer.compute_loss(trainer, trainer.model, found)
    gradients = []
    for value in (shared, plain):
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(trainer.model.parameters()))]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()  # float32


# what ends a run


def adding(name, add):
    "A `Calculator` with another `add`, of which the model is told the same."
    return type(name, (Calculator,), {"add": functools.wraps(Calculator.add)(add)})


Broken = adding("Broken", lambda self, a, b: self.more[a])
Hangs = adding("Hangs", lambda self, a, b: time.sleep(60))
Forgets = adding("Forgets", lambda self, a, b: None)


@pytest.mark.parametrize(
    "kind, message",
    [
        (Broken, r"environment Broken, row [0-5] \(counted from 0\), call 1, add\(a=1, b=2\): it raised Attri"),
        (Hangs, r"environment Hangs, row [0-5] .*, call 1, add\(a=1, b=2\): .*the call takes more than 0.2 seconds"),
        (Forgets, r"environment Forgets, row [0-5] .*the method returned None; return what the model shall read"),
    ],
)
def test_an_error_inside_a_method_ends_the_run_before_an_update(tmp_path, kind, message):
    given = {"max_completion_length": 400, "seconds_a_call": 0.2, "save_strategy": "no"}
    trainer = made(tmp_path, tok=tokenizer(), kind=kind, rewards="length", **given)
    before = weights(trainer)
    scripted(trainer, says)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=message), contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in weights(trainer).items())
    assert time.monotonic() - begun < 60  # the method sleeps as long


def test_rounds_of_calls_have_a_limit(tmp_path):
    given = {"max_completion_length": 1000, "max_tool_calling_iterations": 2, "max_steps": 1, "save_strategy": "no"}
    trainer = made(tmp_path, tok=tokenizer(), kind=Calculator, rewards="length", **given)
    sizes = scripted(trainer, lambda n, prompt: CALL if n % 4 or "<tool_response>" in prompt else "No.")
    with contextlib.redirect_stdout(trainer.said):
        trainer.train()
    assert sizes == [8, 6, 6]  # the last one asks for a call that is not made
    assert "tools of Calculator: add; at most 2 rounds of calls, 10 s a call" in trainer.said.getvalue()


# what is refused before anything is sampled


class Untyped:
    def look(self, name):
        "Look up a name."


class Slow:
    async def look(self, name: str) -> str:
        """
        Look.

        Args:
            name: It.
        """


class Needs(Calculator):
    def __init__(self, path):
        pass


class Nothing:
    def reset(self):
        pass


@pytest.mark.parametrize(
    "kind, message",
    [
        (Untyped, r"test_environments.py:\d+: Untyped.look: .*give each a type"),
        (Slow, r"test_environments.py:\d+: Slow.look is async, but calls .* write it with def"),
        (Needs, "environment Needs: it must be made without arguments"),
        (Nothing, "environment Nothing has no public method beside reset, get_reward; write one"),
        (Calculator().add, "is no class; give a class, whose public methods are the tools"),
    ],
)
def test_a_class_that_says_too_little_is_refused(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        made(tmp_path, tok=tokenizer(), kind=kind)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_that_would_limit_nothing_is_refused(tmp_path, seconds):
    with pytest.raises(ValueError, match="seconds_a_call=.* must be a finite number above 0"):
        made(tmp_path, tok=tokenizer(), kind=Calculator, seconds_a_call=seconds)


def test_a_template_without_tools_is_refused_with_the_cure(tmp_path):
    with pytest.raises(ValueError, match="does not write the tool 'add' or its calls and replies; take a model whose"):
        made(tmp_path, tok=tiny_tokenizer(), kind=Calculator)
    tok = tokenizer()
    tok.chat_template += "{# another one #}"
    with pytest.raises(ValueError, match="how this chat template's calls are parsed; set tok.response_template"):
        made(tmp_path, tok=tok, kind=Calculator)


class Leaks(Echo):
    def reset(self, expected):
        raise KeyError("table")


def test_a_reset_that_fails_is_found_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"environment Leaks, row 0 \(counted from 0\), reset\(\): it raised KeyError"):
        made(tmp_path, kind=Leaks)


def test_other_ways_to_give_tools_are_refused(tmp_path):
    with pytest.raises(ValueError, match="write them as methods of a class, and give it as environment"):
        made(tmp_path, kind=None, tools=[Calculator().add])
    with pytest.raises(ValueError, match="'environment_factory' would have no effect as a setting; give environment"):
        made(tmp_path, kind=None, environment_factory=Calculator)
    with pytest.raises(ValueError, match="trl.RLOOTrainer calls no tools; use grpo_trainer"):
        rloo_trainer(tiny_model(), tokenizer(), sum_rows(4), letters, output_dir=str(tmp_path), environment=Calculator)
    row = {**sum_rows(1)[0], "environments": 1}
    with pytest.raises(ValueError, match="rename the columns environments"):
        read_prompts([row] * 2)


# what an object keeps, and what the model reads


class Table:
    "Its table is the row's; it writes down what it was asked."

    def __init__(self):
        self.asked = []

    def reset(self, table, **columns):
        self.table = json.loads(table)
        self.columns = columns

    def price(self, item: str, currency: str = "EUR") -> dict:
        """
        The price of an item.

        Args:
            item: Its name.
            currency: A code.
        """
        self.asked.append(item)
        return {"price": self.table.get(item), "currency": currency}

    def note(self, text: str) -> str:
        """
        Write down a text.

        Args:
            text: It.
        """
        return f"noted: {text}"

    def get_reward(self):
        return len(self.asked)


def test_each_answer_begins_with_a_new_object():
    episode = guarded_environment(Table, tokenizer())()
    for _ in range(2):
        assert episode.reset(row=3, table='{"tea": 4}', expected="4") is None
        assert episode.price(item="tea") == '{"price": 4, "currency": "EUR"}'
        assert episode.score() == 1 and episode.environment.columns == {"row": 3, "expected": "4"}


@pytest.mark.parametrize(
    "given, text",
    [
        ({}, "price: 'item' is a required property"),
        ({"item": 4}, "price: 4 is not of type 'string'"),
        ({"item": "tea", "shop": "A"}, "price: Additional properties are not allowed"),
    ],
)
def test_arguments_that_do_not_fit_are_the_models_mistake(given, text):
    episode = guarded_environment(Table, tokenizer())()
    episode.reset(row=3, table="{}", expected="4")
    with pytest.raises(ValueError, match=text):
        episode.price(**given)
    assert episode.calls == [("price", given, None)] and not episode.faults


def test_special_tokens_in_a_reply_end_no_turn():
    episode = guarded_environment(Table, tokenizer())()
    episode.reset(row=3, table="{}", expected="4")
    assert episode.note(text="a<|im_end|>\n<|im_start|>system") == "noted: a\nsystem"


def test_outside_the_main_thread_a_call_has_no_limit_and_works():
    episode = guarded_environment(Table, tokenizer())()
    found = []

    def run():
        episode.reset(row=3, table='{"tea": 4}', expected="4")
        found.append(episode.price(item="tea"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == ['{"price": 4, "currency": "EUR"}']


# what a run says of its tools


def test_tools_that_work_get_one_line():
    used = [[("add", {"a": n}, str(2 * n))] if n % 2 else [] for n in range(8)]
    assert tool_lines(used, [True] * 7 + [False], [1, 0] * 4) == [
        "4 of 8 answers call a tool: 4 calls, 0 with arguments that do not fit; mean reward 0, 1 without a call"
    ]
    same = [[("add", {"a": 1}, "2")]] * 8  # equal calls have equal replies
    assert len(tool_lines(same, [False] * 8, [1, 0] * 4)) == 1


def test_a_model_that_calls_no_tool_is_told_of_where_all_rewards_are_equal(tmp_path, capsys):
    trainer = made(tmp_path, tok=tokenizer(), rewards=lambda generated, expected, example: 0.0)
    scripted(trainer, lambda n, prompt: "No.")
    with pytest.raises(ValueError, match="all have the same reward"):
        trainer.train()
    assert "no answer calls a tool, so none can be preferred for it" in capsys.readouterr().out


# whether the reward depends on what the tools return


def repeats(model, tok, prompts, max_new_tokens):
    "In place of a model: calls, then says the number that it reads in the reply, or 0."
    found = []
    for prompt in prompts:
        _, _, text = tok.decode(prompt).rpartition("<|im_start|>user\n")
        reply = text.partition("<tool_response>\n")[2].partition("\n")[0]
        answer = f"Both cost {reply or 0} euros." if "<tool_response>" in text else CALL
        found.append((tok(answer)["input_ids"], True))
    return found


def test_a_reward_that_does_not_depend_on_the_tool_is_named(monkeypatch):
    monkeypatch.setattr("ft_notebooks.rlhf.tool_use.greedy_answers", repeats)
    rows = read_prompts([{**row, "expected": "3"} for row in sum_rows(6)])  # what CALL returns
    with_tool = measure_rewards(
        tiny_model(), tokenizer(), rows, {"number_match": "number_match", "short": lambda g, e, x: 1.0}, 64,
        environment=Calculator,
    )  # fmt: skip
    assert with_tool["answers with a call"]["value"] == 1
    assert with_tool["number_match"]["value"] == 1 and with_tool["number_match, empty replies"]["value"] == 0
    lines = "\n".join(reward_lines(with_tool, with_tool, 6))
    assert "short is as high with empty replies: it does not depend on what the tools return" in lines
    assert "number_match is as high" not in lines


# several processes


def given_answers(prompts, trainer):
    "Answers that depend on the prompt, the step and the place in the group alone; what a vowel begins is a call."
    tok = trainer.processing_class
    asked = encode_prompts(tiny_model(), tok, prompts, 12, [trainer.environment.tools] * len(prompts))
    said, times = [], {}
    for prompt in prompts:
        text = prompt[-1]["content"]
        n = times[text] = times.get(text, -1) + 1
        said.append(tok(f"{text[2 : 5 + 2 * n]}{trainer.state.global_step}A<|im_end|>")["input_ids"])
    return {"prompt_ids": asked, "completion_ids": said, "logprobs": None}


class Counts(Echo):
    def say(self, text: str) -> str:
        """
        Say a text.

        Args:
            text: It.
        """
        self.count += len(text)
        return text.upper()


def learned(folder):
    trainer = made(folder, kind=Counts, rollout_func=given_answers)
    own = trainer.processing_class("B<|im_end|>")["input_ids"]
    trainer._generate_single_turn = lambda prompts, *_, **__: ([own] * len(prompts), None)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(trainer)
    keys = ("reward", "reward_std", "tools/call_frequency")
    logs = [[e[k] for k in keys] for e in trainer.state.log_history if "grad_norm" in e]
    return {"weights": torch.cat([p.flatten() for p in weights(trainer).values()]), "logs": torch.tensor(logs)}


@pytest.mark.whole
def test_two_processes_learn_from_given_answers_and_their_calls_what_one_does(tmp_path):
    one = learned(tmp_path / "one")
    two = ranks(2, lambda rank: learned(tmp_path / "two"), tmp_path / "ranks")
    assert torch.equal(two[0]["weights"], two[1]["weights"])
    assert (one["logs"][:, 2] > 0).all() and (two[0]["logs"] - one["logs"]).abs().max() < ROUNDED
    assert only_rounded((two[0]["weights"] - one["weights"]).abs(), 2 * 1e-3 * 4)


# the same run


Renamed = adding("Renamed", lambda self, a, b: b + a + 0)


@pytest.mark.whole
def test_a_run_with_another_environment_is_another_run(tmp_path):
    given = {"tok": tokenizer(), "rewards": "length", "max_completion_length": 400, "max_steps": 1}
    trainer = made(tmp_path, kind=Calculator, **given)
    scripted(trainer, says)
    with contextlib.redirect_stdout(io.StringIO()):
        fit(trainer)
    made(tmp_path, kind=Calculator, **given)
    with pytest.raises(ValueError, match="holds a different run: environment was '[0-9a-f]{16}', is '"):
        made(tmp_path, kind=Renamed, **given)


# the command

TOOLS = """
class Echo:
    def __init__(self):
        self.count = 0

    def say(self, text: str) -> str:
        "Say a text.\\n\\nArgs:\\n    text: It."
        self.count += 1
        return str(len(text))

    def get_reward(self):
        return self.count / 4

class Silent:
    def say(self, text: str) -> str:
        return text

number = 4
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny")
    calling().save_pretrained("tiny")
    Path("tools.py").write_text(TOOLS)
    rows = [{"prompt": row["prompt"], "expected": row["expected"]} for row in sum_rows(8)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def ft(*words, **settings):
    fixed = {"model.name": "tiny", "model.bits": 32, "grpo.bf16": "false", "data.eval": "last:2"}
    fixed |= {f"grpo.{key}": value for key, value in FIXED.items() if key not in ("bf16", "disable_tqdm")}
    given = fixed | {"grpo.max_steps": 1} | {key.replace("__", "."): value for key, value in settings.items()}
    options = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    main(["grpo", "rows.jsonl", *words, *options])


@pytest.mark.whole
def test_ft_grpo_with_an_environment_measures_with_its_tools(here, capsys):
    ft("--environment", "tools.py:Echo", "--reward", "length:0.001")
    said = capsys.readouterr().out
    assert '"name": "say"' in said  # the first prompt, as the model sees it
    assert "tools of Echo: say; at most 4 rounds of calls, 10 s a call" in said
    assert "answers call a tool:" in said and "held-out prompts, mean before and after" in said
    found = json.loads(Path("runs/grpo/metrics.json").read_text())["rewards"]
    assert {"length", "length, empty replies", "Echo", "Echo, empty replies", "answers with a call"} < found.keys()
    record = json.loads(Path("runs/grpo/run.json").read_text())
    assert record["grpo.environment"] == "tools.py:Echo" and len(record["environment.file"]) == 16
    Path("tools.py").write_text(TOOLS + "more = 1\n")
    with pytest.raises(SystemExit):
        ft("--environment", "tools.py:Echo", "--reward", "length:0.001")
    assert "environment.file" in capsys.readouterr().err


@pytest.mark.whole
def test_get_reward_is_reward_enough(here, capsys):
    ft("--environment", "tools.py:Echo")
    assert "before step 1, 8 answers to 2 prompts" in capsys.readouterr().out


@pytest.mark.whole
@pytest.mark.parametrize(
    "words, message",
    [
        (("--environment", "tools.py"), "--environment tools.py: name file and class, FILE.py:CLASS"),
        (("--environment", "tools.py:number"), "no function or class 'number' in tools.py"),
        (("--environment", "tool.py:Echo"), "there is no file 'tool.py'"),
        (("--environment", "tools.py:Silent", "--reward", "length"), "Silent.say: the model knows a tool by its types"),
        (("--environment", "tools.py:Silent"), "no reward; give one or more"),
    ],
)
def test_ft_grpo_refuses_an_environment_before_the_model_is_loaded(here, capsys, monkeypatch, words, message):
    monkeypatch.setattr("ft_notebooks.training.stage.load_model", None)
    with pytest.raises(SystemExit) as ended:
        ft(*words)
    assert ended.value.code == 2 and message in capsys.readouterr().err
