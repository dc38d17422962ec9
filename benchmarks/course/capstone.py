"""The capstone's task: the first line of a function's docstring. How does it get better with more functions?

The functions are those of Python's standard library, split by module. Text that people wrote, with no single right
answer: a program checks the form, and F1 of the words says how near a line is to the one that was written. Each run
takes one epoch of LoRA.

    python benchmarks/course/capstone.py                       # all points
    python benchmarks/course/capstone.py --only "n=512"        # this one again
"""

import ast
import platform
import random
import sysconfig
import time
from pathlib import Path

from common import measure, score, train

from ft_notebooks import add_adapter, evaluate, load_model, load_tokenizer, lora_config, merge_adapter, smollm2
from ft_notebooks.data import encode_chats

SYSTEM = "Write the first line of the docstring of this Python function."
SETTINGS = {
    "model": "SmolLM2-135M-Instruct",
    "method": "LoRA r=16 on all linear layers",
    "learning_rate": 5e-4,
    "effective_batch": 8,
    "epochs": 1,
    "rows": "functions of 80 to 400 characters of Python's standard library; every fifth module is held out",
    "python": platform.python_version(),
    "test": "40 functions of the held-out modules, greedy decoding, 40 tokens at most",
}


def functions(file):  # pairs of a function without its docstring, and the docstring's first line
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            line, node.body = " ".join(text.split("\n\n")[0].split()), node.body[1:]
            if node.body and 80 <= len(code := ast.unparse(node)) <= 400 and 20 <= len(line) <= 80 and line[-1] == ".":
                yield code, line


def rows() -> dict:  # {"train": rows, "test": rows}, each a list of messages
    folder = Path(sysconfig.get_path("stdlib"))
    files = [f for f in sorted(folder.rglob("*.py")) if not {"test", "tests", "site-packages"} & {*f.parts}]
    found = {"train": [], "test": []}
    modules = sorted({file.relative_to(folder).parts[0] for file in files})
    for file in files:
        part = "test" if modules.index(file.relative_to(folder).parts[0]) % 5 == 0 else "train"
        for code, line in functions(file):
            chat = [("system", SYSTEM), ("user", code), ("assistant", line)]
            found[part].append({"messages": [{"role": role, "content": text} for role, text in chat]})
    for part in found.values():
        random.Random(0).shuffle(part)
    return found


def one_line(generated, expected, example):
    text = generated.strip()
    return float("\n" not in text and len(text) <= 80 and text.endswith("."))


def run(point: dict, quick: bool) -> dict:
    n, data = point["n"], rows()
    tok, model = load_tokenizer(smollm2()), load_model(smollm2())
    found = {"available": len(data["train"]), "tokens": 0, "seconds": 0, "losses": []}
    if n:
        chosen = data["train"][: 16 if quick else n]
        found["tokens"] = sum(map(len, encode_chats(tok, chosen)[0]["input_ids"]))
        model, start = add_adapter(model, lora_config(model, r=16), seed=point["seed"]), time.perf_counter()
        settings = {"learning_rate": point.get("rate", 5e-4), "effective_batch": 8, "num_train_epochs": 1}
        losses = train(model, tok, chosen, seed=point["seed"], **settings)
        found |= {"seconds": round(time.perf_counter() - start), "losses": [round(loss, 3) for loss in losses]}
        model = merge_adapter(model)
    test = data["test"][: 4 if quick else 40]
    scored = evaluate(model, tok, test, {"one_line": one_line, "token_f1": "token_f1"}, max_new_tokens=40)
    for name in ("one_line", "token_f1"):
        found |= score(scored.scores[name], name)
    found["perplexity"] = round(scored.scores["perplexity"]["value"], 2)
    return {**found, "answers": [row["generated"] for row in scored.rows[:5]]}


if __name__ == "__main__":
    points = [{"n": n, "seed": 0} for n in (0, 128, 512, 2048)]
    points += [{"n": 128, "seed": 0, "rate": rate} for rate in (2e-4, 1e-3)]  # the others: 5e-4
    measure(__file__, points, run, SETTINGS, __doc__)
