"""What does SFT teach about tool calls? SmolLM2-135M-Instruct before and after 64 chats, three seeds.

Each chat declares two of three tools. Half of the chats need a call of one of them; a quarter asks for the tool that
is not declared, and a quarter for nothing that a tool does: there the answer is a sentence without a call.
The 40 held-out questions have wordings and cities that no chat of the training has.

    python benchmarks/course/tool_calls.py                    # all points
    python benchmarks/course/tool_calls.py --only "rows=64"   # these again
"""

import json
import random
import time

from common import WITH_TOOLS, measure, score, train

from ft_notebooks import add_adapter, load_model, load_tokenizer, lora_config, smollm2
from ft_notebooks.course.sums_task import with_tools
from ft_notebooks.evaluation import expected_text, tool_calls
from ft_notebooks.evaluation.answer_format import read_json
from ft_notebooks.evaluation.runner import interval
from ft_notebooks.inference.generation import answers

SFT = {"effective_batch": 8, "max_steps": 8, "learning_rate": 1e-3}
ARGUMENTS = {
    "weather": {"city": "string", "day": "string"},
    "alarm": {"hour": "integer", "day": "string"},
    "exchange": {"amount": "integer", "currency": "string"},
}
TOOLS = {
    name: {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {key: {"type": kind} for key, kind in given.items()}},
        },
    }
    for name, given in ARGUMENTS.items()
}
WORDINGS = {
    "trained": {
        "weather": ["What will the weather be in {city} on {day}?", "Weather for {city}, {day}, please.",
                    "Tell me the {day} forecast of {city}.", "I am in {city} on {day}. How is the weather?"],
        "alarm": ["Set an alarm for {hour} o'clock on {day}.", "An alarm on {day} at {hour}, please.",
                  "Wake me at {hour} on {day}.", "On {day} I get up at {hour}. Set the alarm."],
        "exchange": ["How many euros are {amount} {currency}?", "Change {amount} {currency} into euros.",
                     "What are {amount} {currency} worth?", "I have {amount} {currency}. How much is that in euros?"],
        None: ["Thank you very much!", "Tell me a joke.", "Who wrote Hamlet?", "Good morning!", "What is a verb?",
               "How are you?", "Name a bird.", "Is the sun a star?"],
    },
    "held_out": {
        "weather": ["Will it rain in {city} on {day}?", "Do I need a coat on {day} in {city}?"],
        "alarm": ["Please ring on {day} at {hour}.", "I must not sleep past {hour} on {day}."],
        "exchange": ["My wallet holds {amount} {currency}; give me the value in euros.",
                     "{amount} {currency} would be what in euros?"],
        None: ["Bye for now!", "Which animal says moo?", "Give me a word that rhymes with cat.", "What is a noun?",
               "Do you like music?", "How many legs has a spider?", "You are kind.", "Name a colour."],
    },
}  # fmt: skip
CITIES = {"trained": "Oslo Rome Paris Cairo Lima Boston".split(), "held_out": "Madrid Berlin Tokyo Delhi".split()}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NONE = "I have no tool for that."
SETTINGS = {
    "model": WITH_TOOLS,
    "sft": {**SFT, "chats": "64, another draw for each seed: 32 with a call, 16 whose tool is not declared, 16 others"},
    "held_out": "40, the same for all: 24 with a call, 8 whose tool is not declared, 8 others; greedy, 40 tokens",
    "right": "of the 24: by the scorer tool_calls, the name and all arguments",
    "named": "of the 24: the call has the right name",
    "well_formed": "of the answers with a call or a part of one: one call between its marks, and nothing else, of a "
    "declared tool with exactly its arguments",
    "needless": "of the 8 and 8: the answer has a call or a part of one",
    "cpu_seconds": "of the process, for the training",
}


def chats(n: int, seed: int, part: str, calls: int) -> list[dict]:
    "The first `calls` of n need a call, half of the others would need the tool that is not declared."
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        kind = ("call", "undeclared", "other")[(i >= calls) + (i >= (n + calls) // 2)]
        wanted, *others = draw.sample(list(TOOLS), 3)
        declared = draw.sample([wanted, others[0]] if kind == "call" else others, 2)
        wordings = WORDINGS[part][None if kind == "other" else wanted]
        values = {
            "city": draw.choice(CITIES[part]), "day": draw.choice(DAYS), "hour": draw.randrange(5, 12),
            "amount": draw.randrange(10, 100), "currency": draw.choice(["dollars", "yen", "pesos", "crowns"]),
        }  # fmt: skip
        answer = {"role": "assistant", "content": NONE if kind == "undeclared" else "No tool is needed."}
        if kind == "call":
            arguments = {key: values[key] for key in ARGUMENTS[wanted]}
            call = {"type": "function", "function": {"name": wanted, "arguments": arguments}}
            answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        asked = {"role": "user", "content": wordings[i % len(wordings)].format(**values)}
        rows.append({"kind": kind, "messages": [asked, answer], "tools": [TOOLS[name] for name in declared]})
    return rows


def attempted(text: str) -> bool:
    return "tool_call" in text or '"arguments"' in text


def well_formed(text: str, tools: list[dict]) -> bool:
    "Whether the answer is one call between its marks, of a declared tool, with exactly its arguments."
    inner = text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
    declared = {tool["function"]["name"] for tool in tools}
    try:
        call = read_json(inner)
        return (
            text.strip() == f"<tool_call>{inner}</tool_call>"
            and call["name"] in declared
            and call["arguments"].keys() == ARGUMENTS[call["name"]].keys()
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def share(found: list, name: str) -> dict:
    return score(interval([float(value) for value in found]), name) if found else {f"{name}_n": 0}


def run(point: dict, quick: bool) -> dict:
    seed = point.get("seed", 0)
    tok = with_tools(load_tokenizer(smollm2()))
    model = load_model(smollm2(), bits=16)
    kept = {}
    if point["rows"]:
        model = add_adapter(model, lora_config(model, r=16), seed)
        known = [{key: row[key] for key in ("messages", "tools")} for row in chats(64, 10 + seed, "trained", 32)]
        begun = time.process_time()
        losses = train(model, tok, known, seed=seed, **SFT | ({"max_steps": 1} if quick else {}))
        kept = {"cpu_seconds": round(time.process_time() - begun), "last_loss": round(losses[-1], 4)}
    held = chats(40, 1, "held_out", 24)[:: 8 if quick else 1]
    said = answers(
        model, tok, [row["messages"][:1] for row in held], 40, progress=False, tools=[row["tools"] for row in held]
    )
    rows = [(row["kind"], row, answer["text"]) for row, answer in zip(held, said)]
    wanted = [(row["messages"][1], text) for kind, row, text in rows if kind == "call"]
    tried = [(row, text) for _, row, text in rows if attempted(text)]
    name = [f'"name": {json.dumps(message["tool_calls"][0]["function"]["name"])}' for message, _ in wanted]
    kept |= share([tool_calls(text, expected_text(message)) for message, text in wanted], "right")
    kept |= share([mark in text for mark, (_, text) in zip(name, wanted)], "named")
    kept |= share([well_formed(text, row["tools"]) for row, text in tried], "well_formed")
    for what in ("undeclared", "other"):
        kept |= share([attempted(text) for kind, _, text in rows if kind == what], f"needless_{what}")
    examples = {kind: text for kind, _, text in rows}  # the last of each kind
    return {**kept, "most_tokens": max(answer["tokens"] for answer in said), "answers": examples}


if __name__ == "__main__":
    points = [{"rows": 0}, *({"rows": 64, "seed": seed} for seed in range(3))]
    measure(__file__, points, run, SETTINGS, __doc__)
