"""What holds in a lesson and its solutions: functions that take cells and yield what is wrong.

A cell is a dict with "cell_type", "source", "metadata" and "outputs", as in a notebook, its source one text.
"""

import ast
import re
from html import unescape

WORDS = 1200, 3500
VISIBLE, LINES = 24, 8  # code cells of a lesson; lines of one
GUESSES, DRAWINGS, SLIDERS, EXERCISES, HINTS = 2, 2, 1, 4, 3
WIDTH, TEXT = 380, 11  # units


def prose(cells):
    return "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")


def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def visible(cells):
    return [cell for cell in code(cells) if not is_folded(cell)]


def is_folded(cell):
    return bool(cell["metadata"].get("jupyter", {}).get("source_hidden"))


def tree(source):
    if source.startswith("%%writefile"):  # a file's text, which may be no Python
        return ast.Module([], [])
    return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M))


def calls(cells, name):
    "The calls of a function."
    for cell in cells:
        for node in ast.walk(tree(cell["source"])):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield node


def wrong_length(cells):
    words = len(prose(cells).split())
    if not WORDS[0] <= words <= WORDS[1]:
        yield f"{words} words of prose, {WORDS[0]} to {WORDS[1]} are asked for"


def wrong_visible_cells(cells):
    if len(visible(cells)) > VISIBLE:
        yield f"{len(visible(cells))} visible code cells, at most {VISIBLE}"
    for cell in visible(cells):
        if not 1 <= len(cell["source"].splitlines()) <= LINES:
            yield f"a visible cell has 1 to {LINES} lines: {cell['source']}"
        if any(isinstance(node, ast.Assert) for node in ast.walk(tree(cell["source"]))):
            yield f"an assert stands in a visible cell: {cell['source']}"
        if re.search(r"^#\s*\|\s*(hide|export|default_exp)", cell["source"], flags=re.M):
            yield f"a cell for nbdev or with #| hide must be folded: {cell['source']}"


def wrong_folded_cells(cells):
    for cell in filter(is_folded, code(cells)):
        if not re.match(r"(%%capture.*\n)?#\| (hide|export|default_exp)", cell["source"]):
            yield f"a folded cell must begin with #| hide: {cell['source']}"


def pages(cells):
    "The text/html outputs of drawings and sliders, each with its alternative text."
    for cell in code(cells):
        for output in cell["outputs"]:
            data = {kind: "".join(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
            if "ft-drawing" in data.get("text/html", ""):
                yield data["text/html"], data["text/plain"]


def wrong_drawings(cells):
    sliders = [page for page, _ in pages(cells) if "data-frames=" in page]
    drawings = [(page, words) for page, words in pages(cells) if "data-frames=" not in page]
    if len(sliders) < SLIDERS:
        yield "no cell has the output of explore"
    if len(drawings) < DRAWINGS:
        yield f"{len(drawings)} cells have a Drawing as their output, at least {DRAWINGS}"
    for page, words in drawings:
        title, _, told = words.partition(". ")
        if not title or len(told.split()) < 6:
            yield f"a drawing must say in words what is seen: {words!r}"
    for page in [*sliders, *(page for page, _ in drawings)]:
        widths = {int(width) for width in re.findall(r'viewBox="0 0 (\d+) ', unescape(page))}
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', unescape(page))]
        if widths != {WIDTH}:
            yield f"a drawing is {widths} units wide, not {WIDTH}"
        if not sizes or min(sizes) < TEXT:
            yield f"a drawing has no text, or text smaller than {TEXT}"


def wrong_guesses(cells):
    compared = len([*calls(visible(cells), "compare_guess")])
    asked = prose(cells).count("**Your guess.**")
    if compared < GUESSES or asked < GUESSES:
        yield f"{asked} guesses are asked for and {compared} compared, at least {GUESSES}"
    for cell in visible(cells):
        if [*calls([cell], "compare_guess")] and not cell["metadata"].get("jupyter", {}).get("outputs_hidden"):
            head = '# %% jupyter={"outputs_hidden": true}'
            yield f"a guess needs the head {head}, else its saved output tells the answer: {cell['source']}"


def checked(cells):
    "The numbers of the exercises that cells check."
    return [ast.literal_eval(call.args[0]) for call in calls(cells, "check")]


def wrong_exercises(cells, lesson):
    wanted = [f"{lesson}.{i}" for i in range(1, EXERCISES + 1)]
    asked = re.findall(r"\*\*(\d+\.\d+) [^*]+\*\*", prose(cells).partition("## Exercises")[2])
    if asked != wanted:
        yield f"the exercises are {asked}, not {wanted}"
    if checked(visible(cells)) != wanted:
        yield f"the cells check {checked(visible(cells))}, not {wanted}"


def wrong_end(cells, file):
    text = prose(cells)
    remembered = text.partition("## What to remember")[2].partition("\n## ")[0]
    if len(re.findall(r"^- ", remembered, flags=re.M)) != 5:
        yield "What to remember has five bullets"
    if f"](solutions/{file})" not in text:
        yield "there is no link to the solutions"


def wrong_lesson(cells, file):
    "Everything above, of the cells of nbs/`file`."
    yield from wrong_length(cells)
    yield from wrong_visible_cells(cells)
    yield from wrong_folded_cells(cells)
    yield from wrong_drawings(cells)
    yield from wrong_guesses(cells)
    yield from wrong_exercises(cells, int(file[:2]))
    yield from wrong_end(cells, file)


def gives_away(hint, answer):
    "Whether a hint holds the answer: the number, the word, or the whole list."
    if isinstance(answer, (set, frozenset, list, tuple)):
        parts = [str(part) for part in answer]
        return len(parts) > 0 and repr(answer) in hint or ", ".join(sorted(parts)) in hint and len(parts) > 1
    if isinstance(answer, bool) or isinstance(answer, dict):
        return repr(answer) in hint
    if isinstance(answer, (int, float)):
        numbers = [float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", hint)]
        small = isinstance(answer, int) and abs(answer) < 10  # may count something else in the hint
        return not small and any(abs(number - answer) <= 1e-9 * abs(answer) for number in numbers)
    word = re.escape(str(answer))
    if len(str(answer)) < 4:  # an answer such as "is", which any sentence may have
        return re.search(rf"[`'\"]{word}[`'\"]", hint, flags=re.I) is not None
    return re.search(rf"(?<!\w){word}(?!\w)", hint, flags=re.I) is not None


def wrong_hints(exercises, lesson):
    "Of the dict `EXERCISES` of a lesson."
    wanted = [f"{lesson}.{i}" for i in range(1, EXERCISES + 1)]
    if list(exercises) != wanted:
        yield f"EXERCISES has {list(exercises)}, not {wanted}"
    for name, exercise in exercises.items():
        if ("answer" in exercise) == ("faults" in exercise):
            yield f"{name} has an answer or a rule, one of the two"
        if unknown := set(exercise) - {"answer", "within", "slips", "faults", "keys", "hints"}:
            yield f"{name} has {unknown}, which nothing reads"
        if len(exercise.get("hints", [])) < HINTS:
            yield f"{name} has fewer than {HINTS} hints"
        told = [*exercise.get("hints", []), *(sentence for _, sentence in exercise.get("slips", []))]
        for hint in told if "answer" in exercise else []:
            if gives_away(hint, exercise["answer"]):
                yield f"a hint of {name} gives the answer away: {hint}"


def wrong_solutions(cells, lesson):
    "Of the cells of a solutions notebook."
    right, wrong = set(), set()
    for cell in code(cells):
        for node in ast.walk(tree(cell["source"])):
            if isinstance(node, ast.Assert):
                found = {ast.literal_eval(call.args[0]) for call in calls([{"source": ast.unparse(node)}], "check")}
                (wrong if "not check(" in ast.unparse(node) else right).update(found)
    for name in (f"{lesson}.{i}" for i in range(1, EXERCISES + 1)):
        if name not in right:
            yield f'no cell has: assert check("{name}", ...) with a right answer'
        if name not in wrong:
            yield f'no cell has: assert not check("{name}", ...) with a wrong answer'
