"""Which public functions can be broken without a cell of their notebook failing: docs/mutation.json

python tools/mutate.py --packages data sft [--sample 12] [--seed 0]   # on Linux, since it forks

A mutant is one change of an exported cell, in a copy of the repository, where nbdev exports the cell's module anew. It
is killed if its notebook fails, and the unchanged one does not. Say by hand in a survivor's "note" why it may live.
A mutant that the file has as killed, or with a note, is not run again.
"""

import argparse
import ast
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RECORD = Path("docs/mutation.json")
LIBRARIES = ("nbdev", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
PAIRS = [p.split() for p in "Lt LtE,Gt GtE,Eq NotEq,In NotIn,Is IsNot,Add Sub,Mult Div,And Or".split(",")]
TURNED = {getattr(ast, a): getattr(ast, b) for pair in PAIRS for a, b in (pair, pair[::-1])}


def change(node):
    "Changes a node in place, and says whether it did."
    match node:
        case ast.Compare():
            node.ops = [TURNED[type(node.ops[0])](), *node.ops[1:]]
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in TURNED:
            node.op = TURNED[type(node.op)]()
        case ast.UnaryOp(op=ast.Not()):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            node.value += 1  # of an index, too
        case ast.Return(value=ast.expr()) if ast.unparse(node) != "return None":
            node.value = ast.Constant(None)
        case ast.Raise():
            node.__class__ = ast.Pass
        case _:
            return False
    return True


def changes(tree, function):
    "Each change of the function: the node's place, what is changed, and the code of the cell with it."
    for node in ast.walk(function):
        kind, kept, old = type(node), vars(node).copy(), ast.unparse(node)
        if isinstance(node, ast.JoinedStr):  # whose parts have a place only from Python 3.12 on
            for part in ast.walk(node):
                ast.copy_location(part, node)
        if change(node):
            text = f"{old} -> {ast.unparse(node)}"
            yield node.lineno - function.lineno, node.col_offset, text, "#| export\n" + ast.unparse(tree)
            node.__class__ = kind
            vars(node).update(kept)


def mutants(package, seed):
    "One of each function, then a second of each, and so on: where and what it is, its notebook, and the text of that."
    found = []
    for file in sorted(Path("nbs/package", package).glob("*.ipynb")):
        module, notebook = Path("ft_notebooks", package, f"{file.stem}.py"), json.loads(file.read_text("utf-8"))
        lines = {getattr(n, "name", ""): n.lineno for n in ast.parse(module.read_text("utf-8")).body}
        for cell in [c for c in notebook["cells"] if c["cell_type"] == "code" and "#| export\n" in c["source"]]:
            source, tree = cell["source"], ast.parse("".join(cell["source"]))
            for function in [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]:
                draw, own = random.Random(f"{seed} {module} {function.name}"), list(changes(tree, function))
                for turn, (line, column, text, cell["source"]) in enumerate(draw.sample(own, len(own))):
                    known = {"file": str(module), "line": lines[function.name] + line, "column": column}
                    known |= {"function": function.name, "change": text}
                    found.append((turn, draw.random(), known, file, json.dumps(notebook)))
            cell["source"] = source
    return [one[2:] for one in sorted(found, key=lambda one: one[:2])]


def prove(folder, file):
    import captured
    from nbdev.export import nb_export
    from nbdev.test import nbdev_test

    captured.raise_errors()
    os.setsid()
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ |= {"PYTHONPATH": folder, "IPYTHONDIR": f"{folder}/ipython", "FT_TRIES": f"{folder}/tries.json"}
    nb_export(file, lib_path="ft_notebooks")
    nbdev_test(str(file), flags=os.environ.get("NB_FLAGS", ""), n_workers=0)


def outcome(folder, file, text, limit=240):
    "Runs the notebook with this text in the copy, and puts the old one back."
    Path(folder, file).write_text(text, "utf-8")
    process = multiprocessing.get_context("fork").Process(target=prove, args=(folder, file))
    process.start()
    process.join(limit)
    if late := process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    for path in (file, Path("ft_notebooks", *file.with_suffix(".py").parts[2:])):
        shutil.copy(path, Path(folder, path))
    return "timed out" if late else "killed" if process.exitcode else "survived"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", nargs="+", required=True)
    parser.add_argument("--sample", type=int, default=12, help="mutants of a package")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {"packages": {}}
    folder, unchanged = tempfile.mkdtemp(), {}
    shutil.copy("pyproject.toml", folder)
    for part in ("ft_notebooks", "nbs"):
        shutil.copytree(part, Path(folder, part))
    for package in args.packages:
        tried = []
        for known, file, text in mutants(package, args.seed)[: args.sample]:
            last = record["packages"].get(package, {"mutants": []})["mutants"]
            one = next((m for m in last if known.items() <= m.items()), known)
            if one.get("outcome") != "killed" and "note" not in one:
                unchanged[file] = unchanged.get(file) or outcome(folder, file, file.read_text("utf-8"))
                start = time.time()
                said = outcome(folder, file, text) if unchanged[file] == "survived" else "fails without a change"
                before = {"before": one["outcome"]} if one.get("outcome", said) != said else {}
                one = one | before | {"outcome": said, "seconds": round(time.time() - start)}
                print(*one.values(), flush=True)
            tried.append(one)
        killed = sum(one["outcome"] == "killed" for one in tried)
        record["packages"][package] = {"tried": len(tried), "killed": killed, "mutants": tried}
        day = subprocess.run(["git", "log", "-1", "--format=%cs"], capture_output=True, text=True).stdout.strip()
        record |= {"commit": day, "seed": args.seed, "versions": {name: version(name) for name in LIBRARIES}}
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    shutil.rmtree(folder)


if __name__ == "__main__":
    import trl.trainer.sft_trainer  # noqa: F401  (once for all forks)

    main()
