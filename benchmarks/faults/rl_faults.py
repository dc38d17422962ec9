"Faults of reward models and of reinforcement learning"

# ruff: noqa: E501 (the table has a line for each)

from good import Case
from plant import Fault, on_each, on_rows, setting

RL = "reinforcement learning"


def reward(body: str):
    "Another reward function in the user's file."

    def plant(case: Case):
        text = f"def near(generated, expected, example):\n    {body}\n"
        (case.folder / "rewards.py").write_text(text, encoding="utf-8")

    return plant


def named(*names: str):
    def plant(case: Case):
        case.reward = list(names)

    return plant


def as_text(row, i):
    row["prompt"] = row["prompt"][1]["content"]


def with_answer(row, i):
    row["prompt"].append({"role": "assistant", "content": row["expected"]})


def answer_in_question(row, i):
    "The answer stands in the system message."
    row["prompt"][0]["content"] += f" The answer is {row['expected']}."


def no_answers(row, i):
    del row["expected"]


def impossible(row, i):
    row["expected"] = "\u2603\u2604\u2605"[i % 3] * (2 + i % 5)


def cut_before_the_end(rows):
    "The rejected answer is the chosen one without its end."
    for row in rows:
        row["rejected"][0]["content"] = row["chosen"][0]["content"][:-3]


def longer_than(row, i):
    row["chosen"][0]["content"] += " All of it is exactly as the note says, word for word."


def pad_is_end(case: Case):
    case.json("tokenizer_config.json", pad_token="<|im_end|>")


CONSTANT = r"constant|same reward|equal reward|every answer|all (answers|rewards)|rewards?.*(equal|same|differ)|nothing (to|can be|would be) learn|zero"
FAULTS = [
    Fault("reward: the chosen answer is always the longer one", RL, on_each(longer_than), r"long|length|short", stage="reward", least="note"),
    Fault("reward: pairs in both orders", RL, on_rows(lambda rows: rows + [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]), r"contradict|both|exchanged|swapped|conflict|opposite|reverse", stage="reward", holdout=True),
    Fault("reward: most pairs longer than max_length", RL, setting(reward__max_length=160), r"max_length|longer|left out|allow_long|cut", stage="reward"),
    Fault("reward: a third of the pairs with two equal answers", RL, on_rows(lambda rows: [r | {"rejected": r["chosen"]} if i % 3 == 0 else r for i, r in enumerate(rows)]), r"equal|same answer|identical", stage="reward"),
    Fault("reward: a rate of 10", RL, setting(reward__learning_rate=10), r"learning.rate|worse", stage="reward", holdout=True),
    Fault("reward: a base in 4 bits", RL, setting(model__bits=4), r"bits.*(head|quantiz)|head.*quantiz", stage="reward"),
    Fault("reward: one pair, written 36 times", RL, on_rows(lambda rows: rows[:1] * len(rows)), r"distinct|duplicate|repeat|same|identical|held.out|near", stage="reward", holdout=True),
    Fault("GRPO: a constant reward", RL, reward("return 1.0"), CONSTANT, stage="grpo"),
    Fault("GRPO: a misspelt column", RL, reward("return float(example.get('expectd') == generated)"), CONSTANT, stage="grpo"),
    Fault("GRPO: a column that is not there", RL, reward("return float(example['target'] == generated)"), r"target", stage="grpo", holdout=True),
    Fault("GRPO: a reward of None", RL, reward("return None if len(generated) % 2 else 1.0"), r"None|finite number", stage="grpo"),
    Fault("GRPO: a reward of minus infinity", RL, reward("return float('-inf') if len(generated) % 5 == 0 else len(generated) / 64"), r"-inf|finite", stage="grpo"),
    Fault("GRPO: a reward of NaN", RL, reward("return float('nan')"), r"nan|finite", stage="grpo", holdout=True),
    Fault("GRPO: exact match with an answer that is never given", RL, on_each(impossible), CONSTANT + r"|expected|never", stage="grpo", holdout=True),
    Fault("GRPO: prompts without the answers that the reward reads", RL, on_each(no_answers), r"expected|answer|" + CONSTANT, stage="grpo", holdout=True),
    Fault("GRPO: prompts that are texts", RL, on_each(as_text), r"text", stage="grpo"),
    Fault("GRPO: prompts that hold the answer", RL, on_each(with_answer), r"answer", stage="grpo"),
    Fault("GRPO: the answer in the system message", RL, on_each(answer_in_question), r"answer.*(prompt|question|system)|(prompt|question|system).*answer", stage="grpo", holdout=True, least="note"),
    Fault("GRPO: more prompts a step than there are", RL, setting(grpo__prompts_a_step=64), r"prompts_a_step|prompts|no step", stage="grpo"),
    Fault("GRPO: one answer for each prompt", RL, setting(grpo__generations=1), r"generations", stage="grpo"),
    Fault("GRPO: answers cut before they can end", RL, setting(grpo__max_completion_length=4), r"max_completion_length|cut", stage="grpo"),
    Fault("GRPO: cut answers masked, and all are cut", RL, lambda case: case.set(grpo__mask_truncated_completions="true", grpo__max_completion_length=11), r"mask_truncated|cut", stage="grpo", holdout=True),
    Fault("GRPO: a temperature of 0.001", RL, setting(grpo__temperature=0.001), r"temperature|" + CONSTANT, stage="grpo", holdout=True),
    Fault("GRPO: a temperature of 50", RL, setting(grpo__temperature=50), r"temperature", stage="grpo", holdout=True),
    Fault("GRPO: a rate of 1", RL, setting(grpo__learning_rate=1), r"learning.rate|worse", stage="grpo", holdout=True),
    Fault("GRPO: no reward", RL, named(), r"no reward", stage="grpo"),
    Fault("GRPO: a reward that does not exist", RL, named("exact_macth"), r"exact_match|exact_macth", stage="grpo"),
    Fault("GRPO: the weight of the reward is 0", RL, named("rewards.py:near:0"), r"weight|" + CONSTANT, stage="grpo", holdout=True),
    Fault("GRPO: a language model as the reward", RL, named("model"), r"head|score|reward model|num_labels|sequence", stage="grpo"),
    Fault("GRPO: tools in the rows", RL, on_each(lambda row, i: row.update(tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}])), r"tools", stage="grpo", holdout=True),
    Fault("GRPO: a reward that draws a number", RL, reward("import random; return random.random()"), r"random|twice|differ|same answer|determin", stage="grpo", holdout=True),
    Fault("GRPO: a reward for what nobody wants", RL, reward("return sum(a == 'e' for a in generated) / 64"), r"wish", stage="grpo", unknowable="no tool knows the wish behind a reward; held-out answers are scored by other scorers during the run, and a warning says when the reward rises and they fall"),
    Fault("the chosen answers are the worse ones", RL, on_rows(lambda rows: [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]), r"swapped", stage="reward", unknowable="which answer is better is the user's choice; the base's own order is named where it contradicts nearly all pairs, and three pairs are shown"),
]  # fmt: skip
