"""Print how dense each package's code is, beside the project's bounds, and the ten densest functions.

Counted in the syntax trees, without `_modidx.py`, per 100 statements (a docstring or an import is one, too):
comprehensions and generator expressions; boolean expressions (`a and b and c` is one); parallel assignments of unlike
things, `a, b = x, y` with both sides written out, but no swap (`a, b = b, a`) and no target of a loop. Private per
public compares the functions and classes at a module's top. A function's density is the sum of the three per 100 of its
statements, where it has ten or more.
"""

import ast
from collections import Counter, defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ft_notebooks"
HEAD = ["package", "modules", "statements", "comprehensions", "boolean", "parallel", "private/public", "fmt: skip"]
BOUNDS = ["bound", "", "14300", "5.0", "5.0", "0.8", "1.00", "60"]
DENSE = ["comprehensions", "boolean", "parallel"]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def is_parallel(node):
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
        return False
    target = node.targets[0]
    return isinstance(target, ast.Tuple) and {*map(ast.unparse, target.elts)} != {*map(ast.unparse, node.value.elts)}


def counts(tree):
    found = Counter()
    for node in ast.walk(tree):
        found["statements"] += isinstance(node, ast.stmt)
        found["comprehensions"] += isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp))
        found["boolean"] += isinstance(node, ast.BoolOp)
        found["parallel"] += is_parallel(node)
    return found


def cells(name, found):
    shares = [f"{100 * found[kind] / found['statements']:.1f}" for kind in DENSE]
    private = f"{found['private'] / max(1, found['public']):.2f}"
    return [name, found["modules"], found["statements"], *shares, private, found["fmt: skip"]]


packages, functions = defaultdict(Counter), []
for file in sorted(PACKAGE.glob("*/*.py")):
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    own = packages[file.parent.name]
    own.update(counts(tree), modules=1, **{"fmt: skip": text.count("# fmt: skip")})
    own.update("private" if top.name[0] == "_" else "public" for top in tree.body if hasattr(top, "name"))
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and (found := counts(node))["statements"] >= 10:
            density = 100 * sum(found[kind] for kind in DENSE) / found["statements"]
            functions.append((density, f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}"))

table = [cells(name, found) for name, found in packages.items()]
for row in [HEAD, *table, cells("all", sum(packages.values(), Counter())), BOUNDS]:
    print("{:14} {:>7} {:>10} {:>14} {:>7} {:>8} {:>14} {:>9}".format(*row))
for density, name in sorted(functions, reverse=True)[:10]:
    print(f"{density:6.0f} {name}")
