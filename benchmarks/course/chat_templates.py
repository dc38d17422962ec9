"""What do the answers do when the chat template or the labels are wrong? SmolLM2 on the notes-to-JSON task.

Each model is trained on the same 64 notes, and differs in the text of its rows or in what is trained there. It is
then asked for 40 held-out notes, in the template of its training and in others.

    python benchmarks/course/chat_templates.py                             # all points
    python benchmarks/course/chat_templates.py --only "train=answers"      # these again
"""

import functools

import torch
from common import measure, score, train
from datasets import Dataset

from ft_notebooks import add_adapter, appointments, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.data.chat_encoding import encode_chats
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.tokenization.padding import IGNORE

PLAIN = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"  # the contents alone, no end
HEADINGS = (  # of text alone: the roles as headings, EOS behind an answer
    "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)
SETTINGS = {
    "model": "SmolLM2-135M-Instruct, float32 weights, computed in bfloat16 while training",
    "adapter": "LoRA r=16 on all linear layers",
    "learning_rate": 1e-3,
    "examples": 64,
    "effective_batch": 8,
    "steps": 8,
    "test": "40 notes of the test part; one pass finds what greedy decoding would write (argmax at each position)",
    "train": {
        "answers": "the model's own template; the answer and its end of turn are trained",
        "all": "the same text; every token is trained",
        "no_end": "the same text; the answer is trained and its end of turn is not",
        "headings": "roles as headings such as ### user, EOS behind an answer; answer and EOS are trained",
        "plain": "the contents, one a line, without roles and end; every token is trained",
    },
    "ask": {
        "template": "the model's template, with the system message and the generation prompt",
        "no_system": "the same without the system message, so that the template writes its own",
        "double_bos": "the same with its first token twice",
        "headings": "roles as headings, and the generation prompt ### assistant",
    },
}
ASKED = {
    "none": ("template",),
    "answers": ("template", "no_system", "headings", "double_bos"),
    "all": ("template",),
    "no_end": ("template",),
    "headings": ("headings", "template"),
    "plain": ("template",),
}


@functools.cache
def tokenizer(how: str):
    tok = load_tokenizer(smollm2())
    tok.chat_template = {"headings": HEADINGS, "plain": PLAIN}.get(how, tok.chat_template)
    return tok


def row(how: str, messages: list[dict]) -> dict:
    "One row of the training set `how`."
    tok = tokenizer(how)
    if how == "plain":
        ids = tok.apply_chat_template(messages, return_dict=False)
        return {"input_ids": ids, "labels": ids}
    [made] = encode_chats(tok, Dataset.from_list([{"messages": messages}]))[0].to_list()
    ids, labels = made["input_ids"], made["labels"]
    if how == "all":
        labels = ids
    if how == "no_end":
        labels = [IGNORE if i == tok.eos_token_id else i for i in labels]
    return {"input_ids": ids, "labels": labels}


@functools.lru_cache(1)
def trained(how: str, seed: int, quick: bool):
    model = load_model(smollm2(), bits=32)
    if how == "none":
        return model, {}
    rows = [row(how, chat["messages"]) for chat in appointments(64, seed=seed)]
    share = sum(i != IGNORE for r in rows for i in r["labels"]) / sum(len(r["labels"]) for r in rows)
    model = add_adapter(model, lora_config(model, r=16), seed=seed)
    tok = tokenizer("template" if how == "plain" else how)  # `sft_trainer` takes no template that ends no answer
    losses = train(
        model, tok, Dataset.from_list(rows), learning_rate=1e-3, effective_batch=8,
        max_steps=1 if quick else 8, seed=seed, data_seed=seed, logging_steps=1,
    )  # fmt: skip
    found = {"trained_share": round(share, 4), "loss_first": round(losses[0], 4), "loss_last": round(losses[-1], 4)}
    return model, found


def prompt(ask: str, messages: list[dict]) -> list[int]:
    asked = messages[1 if ask == "no_system" else 0 : -1]
    ids = tokenizer(ask).apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    return ids[:1] + ids if ask == "double_bos" else ids


@torch.no_grad()
def greedy(model, prompts: list[list[int]], answers: list[list[int]]) -> list[list[bool]]:
    "For each answer, whether each of its tokens is the likeliest one behind the prompt and the tokens before it."
    found = []
    for asked, answer in zip(prompts, answers):
        logits = model(torch.tensor([asked + answer]), use_cache=False).logits[0, len(asked) - 1 : -1]
        found.append((logits.argmax(-1) == torch.tensor(answer)).tolist())
    return found


def point(train: str, ask: str, seed: int, quick: bool) -> dict:
    model, found = trained(train, seed, quick)
    tok, test = tokenizer("template"), appointments(4 if quick else 40, part="test")["messages"]
    prompts = [prompt(ask, messages) for messages in test]
    answers = [tok(messages[-1]["content"]).input_ids + [tok.eos_token_id] for messages in test]
    model.eval()
    right = greedy(model, prompts, answers)
    exact, words = ([float(all(row[:end])) for row in right] for end in (None, -1))
    ended = [row[-1] for row in right]  # the end comes where it should, after the right words
    ids = torch.tensor([prompts[0]])
    out = model.generate(input_ids=ids, max_new_tokens=48, do_sample=False, eos_token_id=tok.eos_token_id)
    first = tok.decode(out[0, ids.shape[1] :])
    found = found | score(interval(exact), "exact_match") | score(interval(words), "right_words")
    return found | {"right_end": sum(ended) / len(ended), "first": first}


POINTS = [{"train": how, "ask": ask, "seed": 0} for how, asks in ASKED.items() for ask in asks]

if __name__ == "__main__":
    measure(__file__, POINTS, lambda p, quick: point(**p, quick=quick), SETTINGS, __doc__)
