"Changes after which the run is as good as before"

# ruff: noqa: E501 (the table has a line for each)

import codecs
import json

import torch
from good import DAYS, Case, shuffled
from plant import Benign, config, content, on_answers, on_each, on_questions, on_rows, setting
from scripts import encoded

from ft_notebooks.course.example_task import appointments

TOOL = {"name": "add_event", "description": "Adds an event.", "parameters": {"type": "object", "properties": {}}}
TEXTS = {
    "emoji": ("Planned 🎉📅", "Done ✅ 👍🏽"),
    "right to left": ("مرحبا، سجل الموعد من فضلك", "تم تسجيل الموعد"),
    "Chinese, Japanese and Korean": ("请把约会写进日历。予定を入れてください。", "好的,已经记下。약속을 적었습니다."),
}


def generation(**fields):
    return lambda case: case.json("generation_config.json", **fields)


def older_template(case: Case):
    "The template of an older save beside the file that is read."
    file = case.model / "chat_template.jinja"
    case.json("tokenizer_config.json", chat_template=file.read_text().replace("im_start", "start"))


def tied_weights(case: Case):
    "The head is the embedding in the file, too, and the configuration says so."

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    case.weights(change)


def pickle_beside(case: Case):
    torch.save({"unread": torch.zeros(2)}, case.model / "pytorch_model.bin")


def with_bom(case: Case):
    case.file.write_bytes(codecs.BOM_UTF8 + case.file.read_bytes())


def script(question: str, answer: str):
    def each(row, i):
        row["messages"][1]["content"] += f" {question} {i}"
        row["messages"][2]["content"] = f"{answer} {i}: " + row["messages"][2]["content"]

    return on_each(each)


def few_duplicates(rows):
    "One row of a hundred stands twice."
    notes = [{"messages": messages} for messages in appointments(100, seed=31)["messages"]]
    return notes + notes[:1]


def short_answers(rows):
    for i, row in enumerate(rows):
        day = next(day for day in DAYS if day in row["messages"][2]["content"])
        row["messages"] = [*row["messages"][:2], {"role": "assistant", "content": day}]


def long_row(row, i):
    if i == 3:
        row["messages"][1]["content"] = " ".join(f"{j}: {row['messages'][1]['content']}" for j in range(20))


def without_system(rows):
    for row in rows:
        row["messages"] = row["messages"][1:]


def no_system_at_all(case: Case):
    "A template that knows no system message, and rows without."
    case.rows(without_system)
    case.template(
        lambda text: "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + text
    )


def turns(count: int):
    def change(rows):
        notes = iter(appointments(24 * count, seed=41)["messages"])
        found = []
        for _ in range(24):
            parts = [next(notes) for _ in range(count)]
            found.append({"messages": [parts[0][0], *(m for part in parts for m in part[1:])]})
        return found

    return on_rows(change)


def sharegpt(case: Case):
    speaker = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = [json.loads(line) for line in case.file.read_text().splitlines()]
    case.write([
        {"id": f"c{i}", "conversations": [{"from": speaker[m["role"]], "value": m["content"]} for m in row["messages"]]}
        for i, row in enumerate(rows)
    ])  # fmt: skip


def alpaca(case: Case):
    rows = [json.loads(line) for line in case.file.read_text().splitlines()]
    case.write([
        {"instruction": row["messages"][0]["content"], "input": row["messages"][1]["content"],
         "output": row["messages"][2]["content"]}
        for row in rows
    ])  # fmt: skip


def with_tools(case: Case):
    case.rows(lambda rows: [row | {"tools": [{"type": "function", "function": TOOL}]} for row in rows])
    case.template(
        lambda text: (
            "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools|tojson + '<|im_end|>\n' }}{% endif %}" + text
        )
    )


def code(text, i):
    return f"```python\ndef book():\n    return {text!r}\n```\nRun it with `book()`.\n\n1. Done\n2. Checked"


def mathematics(text, i):
    return f"{text}\n\n$$\\int_0^1 x^{i} dx = \\frac{{1}}{{{i + 1}}}$$, i.e. α ≤ β — “quoted” & <b>not HTML</b>"


def hh(row, i):
    "Anthropic's form: each side is the whole dialogue, as text."
    before = f"\n\nHuman: {row.pop('prompt')[1]['content']}\n\nAssistant: "
    for side in ("chosen", "rejected"):
        row[side] = before + row[side][0]["content"]


def encoded_rows(it):
    "The script encodes its rows itself."
    it.rows, it.held = encoded(it, it.rows), encoded(it, it.held)


def all_weights(it):
    it.model = it.model.unload()
    for parameter in it.model.parameters():
        parameter.requires_grad_(True)
    it.config["learning_rate"] = 1e-4


def own_optimizer(it):
    trained = [p for p in it.model.parameters() if p.requires_grad]
    it.arguments["optimizers"] = (torch.optim.AdamW(trained, lr=1e-3), None)


def nothing_else(it):
    "A script without a fault."


def script_with(change):
    return lambda case: setattr(case, "script", change)


BENIGN = [
    *(Benign(f"{stage}: the good run", lambda case: None, stage, parts=0) for stage in ("sft", "dpo", "reward", "grpo")),
    Benign("sampling in the generation config", generation(do_sample=True, temperature=5.0, top_p=0.2)),
    Benign("penalties in the generation config", generation(repetition_penalty=1.8, no_repeat_ngram_size=3)),
    Benign("beams in the generation config", generation(num_beams=4, length_penalty=2.0)),
    Benign("two templates in the folder", older_template),
    Benign("a head that is the embedding, and is said to be", lambda case: (tied_weights(case), case.config(tie_word_embeddings=True)), parts=2),
    Benign("float16 in the configuration of float32 files", config(dtype="float16")),
    Benign("a pickle beside the safetensors", pickle_beside),
    Benign("a UTF-8 byte order mark", with_bom),
    Benign("Windows line ends", lambda case: case.text(lambda text: text.replace("\n", "\r\n"))),
    *(Benign(name, script(*texts)) for name, texts in TEXTS.items()),
    Benign("one row of a hundred twice", on_rows(few_duplicates)),
    Benign("rows and template without system messages", no_system_at_all, parts=2),
    Benign("very short answers", on_rows(short_answers)),
    Benign("one very long row within the context", on_each(long_row)),
    Benign("rows of one turn", turns(1)),
    Benign("rows of ten turns", turns(10)),
    Benign("another seed", setting(sft__seed=7)),
    Benign("tools declared and never called", with_tools, parts=2),
    Benign("all weights trained", setting(model__method="full", sft__learning_rate=2e-4)),
    Benign("an adapter trained further", lambda case: None, start="adapter", parts=0),
    Benign("a base in 4 bits", setting(model__bits=4)),
    Benign("a base in 8 bits", setting(model__bits=8)),
    Benign("a base in 16 bits", setting(model__bits=16)),
    Benign("float32", setting(sft__bf16="false", sft__fp16="false")),
    Benign("a template that trims", content("trim")),
    Benign("the turns of ShareGPT, with ids", sharegpt),
    Benign("Alpaca rows", alpaca),
    Benign("rows in another order", on_rows(shuffled)),
    Benign("code in the answers", on_answers(code)),
    Benign("mathematics, quotes and tags in the answers", on_answers(mathematics)),
    Benign("line breaks in the questions", on_questions(lambda text, i: text.replace(" ", "\n", 1) + "\n\nThanks\tin advance")),
    Benign("columns for the user's own use", on_each(lambda row, i: row.update(id=i, source="notes"))),
    Benign("the padding on the left", lambda case: case.json("tokenizer_config.json", padding_side="left")),
    Benign("the end of text as the padding", lambda case: case.json("tokenizer_config.json", pad_token="<|im_end|>")),
    Benign("a smaller rank", setting(lora__r=2, lora__lora_alpha=4)),
    Benign("a dropout of 0.1 in the adapter", setting(lora__lora_dropout=0.1)),
    Benign("a short warm-up and a cosine", setting(sft__warmup_steps=2, sft__lr_scheduler_type="cosine")),
    Benign("the last rows held out", setting(data__eval="last:6")),
    Benign("packing", setting(sft__packing="true")),
    Benign("a limit that cuts nothing", setting(sft__max_length=1024)),
    Benign("DPO: another seed", setting(dpo__seed=7), "dpo"),
    Benign("DPO: a constant margin as a score", on_each(lambda row, i: row.update(score_chosen=9.0, score_rejected=3.0)), "dpo"),
    Benign("DPO: lengths that differ either way", on_each(lambda row, i: row["chosen" if i % 2 else "rejected"][0].update(content=row["chosen" if i % 2 else "rejected"][0]["content"] + " Thanks, noted.")), "dpo"),
    Benign("DPO: with the loss of SFT", setting(dpo__loss_type="sigmoid,sft", dpo__loss_weights="[1.0, 1.0]"), "dpo"),
    Benign("DPO: pairs as dialogues in a text", on_each(hh), "dpo"),
    Benign("reward: another seed", setting(reward__seed=7), "reward"),
    Benign("reward: three of five chosen answers are longer", on_each(lambda row, i: row["chosen" if i % 5 < 3 else "rejected"][0].update(content=row["chosen" if i % 5 < 3 else "rejected"][0]["content"] + " Thanks, noted.")), "reward"),
    Benign("a script", script_with(nothing_else)),
    Benign("a script that encodes its rows", script_with(encoded_rows)),
    Benign("a script that trains all weights", script_with(all_weights)),
    Benign("a script with an optimizer of its own", script_with(own_optimizer)),
    Benign("DPO: a script", script_with(nothing_else), "dpo"),
    Benign("reward: a script", script_with(nothing_else), "reward"),
    Benign("GRPO: another seed", setting(grpo__seed=7), "grpo"),
    Benign("GRPO: a temperature of 0.9", setting(grpo__temperature=0.9), "grpo"),
    Benign("GRPO: two rewards with weights", lambda case: setattr(case, "reward", ["rewards.py:near:2", "length:0.01"]), "grpo"),
]  # fmt: skip
