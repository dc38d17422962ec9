"The pages of the site, as texts that Sphinx reads."

import ast
import base64
import json
import os
import re
from collections import Counter
from html import escape
from pathlib import Path

from claims import last_proof, proofs, waits_for_gpu, with_proofs
from course_pages import NBS, anchor, is_hidden, lessons, read, title  # noqa: F401  (anchor: for conf.py)

ROOT = NBS.parent
PACKAGE = ROOT / "ft_notebooks"
SITE = os.environ.get("SITE_URL", "").rstrip("/")  # where it will stand: a page that is shared names its whole address
DIRECTIVE = re.compile(r"^#\s*\|.*\n?", re.M)
NO_GUESS = json.dumps(["No guess yet.\n", "\n"])[1:-1] + ", "  # the lines above a saved answer
INTERNAL = re.compile(r"\n<!-- made from .*?-->", re.S)
KINDS = {
    "assertion": "a cell asserts it",
    "library": "a cell compares it with the library's own result",
    "error": "a cell shows the error",
    "guides say": "a sentence of a guide, with what is true",
    "measurement": "a measurement, with its command, seeds and machine",
    "cited": "somebody else's figure, with its source",
    "not asserted": "a figure that no cell shows",
    "explained": "explained, without a proof",
    "not run yet": "for a GPU: not run yet",
}


def slug(heading):
    "The address of a heading, which stands between quotes."
    return anchor(heading).replace('"', "")


def badge(notebook, cells=()):
    one = last_proof(notebook)
    place = notebook.relative_to(ROOT).as_posix()
    if not one:
        return f'<p class="proved">To run this page, open <code>{place}</code> in JupyterLab.</p>'
    named = ", ".join(f"{library} {one['versions'][library]}" for library in ("torch", "transformers", "trl", "peft"))
    code = [("".join(cell["source"]), cell["outputs"]) for cell in cells if cell["cell_type"] == "code"]
    but = ["those for a GPU"] * any(waits_for_gpu(*cell) for cell in code)
    if not one.get("slow"):  # a run without LEG leaves these out
        but += ["the slow ones"] * any(re.search(r"^#\s*\|.*\bslow\b", source, re.M) for source, _ in code)
    every = f"Every cell but {' and '.join(but)}" if but else "Every cell"
    what = f"{every} ran on {one['run']} with {named}, Python {one['python']}, {one['device']}."
    run = f"To run it yourself, open <code>{place}</code> in JupyterLab."
    return f'<p class="proved"><a href="/claims">Proved.</a> {escape(what)} {run}</p>'


def alternative(cell):
    "What a cell's picture shows, where its output says it."
    texts = ["".join(output.get("data", {}).get("text/plain", "")) for output in cell["outputs"]]
    told = [text for text in texts if text and not text.startswith("<")]
    return told[0] if told else "The plot that the cell above draws"


def shown(cell, source, tags):
    "What a picture is called, and what stands on a folded cell."
    folded = "The check" if re.search(r"^\s*(assert |with expect_fail)", source, re.M) else "The code behind this page"
    if any("data" in output for output in cell["outputs"]):
        folded = "The code of what stands below"
    names = {"code_prompt_show": "Show the answer" if "hide-output" in tags else folded, "code_prompt_hide": "Hide"}
    return {"image": {"alt": alternative(cell)}, **names}


def with_messages(source):
    "The list of error messages with a heading for each, which the search finds by its words."
    head, mark, table = source.partition("## By error message")
    rows = re.findall(r"^\| (`+.*?`+) \| (.*) \|$", table, re.M)
    return head + mark + "".join(f"\n\n### {message}\n\n{answer}" for message, answer in rows) if rows else source


def page(notebook):
    "A notebook for Sphinx: folded where it is folded in JupyterLab, without directives, with its last proof."
    whole = json.loads(notebook.read_text(encoding="utf-8"))
    depth = len(notebook.relative_to(ROOT).parts) - 1
    mark = badge(notebook, whole["cells"])
    for cell in whole["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            folded = cell["metadata"].get("jupyter", {})
            hidden = re.search(r"^#\s*\|\s*(hide|default_exp)\b", source, re.M) or folded.get("source_hidden")
            tags = ["hide-input"] * bool(hidden) + ["hide-output"] * bool(folded.get("outputs_hidden"))
            cell["metadata"] = {"mystnb": shown(cell, source, tags), "tags": tags}
            if "hide-output" in tags:  # what the reader is to guess first
                cell["outputs"] = json.loads(json.dumps(cell["outputs"]).replace(NO_GUESS, ""))
            if "waits for your answer" in str(cell["outputs"]):
                cell["outputs"] = []
            if waits_for_gpu(source, cell["outputs"]):
                said = {"output_type": "stream", "name": "stdout", "text": "Not run yet: this cell needs a GPU.\n"}
                cell["outputs"] = [said]
            source = DIRECTIVE.sub("", source)
        else:
            source = with_messages(with_links(INTERNAL.sub("", source)))
        cell["source"] = source
    cells = [cell for cell in whole["cells"] if cell["source"].strip() or cell.get("outputs")]
    mark = mark.replace("/claims", "../" * depth + "claims.html")
    if mark:
        cells.insert(1, {"cell_type": "markdown", "id": "proved", "metadata": {}, "source": mark})
    language = {"name": "python", "pygments_lexer": "ipython3"}
    metadata = {**whole["metadata"], "language_info": language}
    if notebook.stem == "questions":
        metadata["tocdepth"] = 2  # without the error messages, which are headings of the third level
    return json.dumps({**whole, "cells": cells, "metadata": metadata}, ensure_ascii=False)


def solutions_page():
    tree = toctree("Solutions", [f"nbs/solutions/{lesson.stem}" for lesson in lessons()], hidden=False)
    return f"# Solutions\n\n> What is the answer to an exercise, and why?\n\n{tree}\n"


def picture(lesson, begins):
    "The saved picture of a lesson whose alternative text begins so: its alternative text, and the PNG."
    for cell in read(NBS / f"{lesson}.ipynb"):
        for data in (output.get("data", {}) for output in getattr(cell, "outputs", [])):
            alt = "".join(data.get("text/plain", ""))
            if "image/png" in data and alt.startswith(begins):
                return alt, base64.b64decode("".join(data["image/png"]))
    raise ValueError(f"tools/site/cards.md: no picture of {lesson} begins with {begins!r}")


def cards():
    "For each failure to share a page with one picture, and their list: the names of files and what they hold."
    table = Path(__file__).with_name("cards.md").read_text(encoding="utf-8")
    listed = []
    for row in table.splitlines()[2:]:
        failure, truth, cure, lesson, begins = (part.strip() for part in row.strip("|").split("|"))
        slug = re.sub(r"\W+", "-", failure.lower())
        alt, png = picture(lesson, begins)
        shown = f"![{alt}]({slug}.png)\n\n**The cure.** {cure}\n\n[The lesson that shows it](../nbs/{lesson}.ipynb)"
        meta = f"html_meta:\n    'og:title': {json.dumps(failure)}\n    'og:description': {json.dumps(truth)}"
        if SITE:
            meta += f"\n    'og:image': {SITE}/cards/{slug}.png"
        yield f"cards/{slug}.png", png
        yield f"cards/{slug}.md", f"---\nmyst:\n  {meta}\n---\n\n# {failure}\n\n> {truth}\n\n{shown}\n".encode()
        listed.append((slug, failure, truth))
    lines = "\n".join(f"- [{failure}]({slug}.md): {truth}" for slug, failure, truth in listed)
    tree = toctree("Failures", [slug for slug, _, _ in listed])
    yield (
        "cards/index.md",
        f"# Failures to share\n\n> One picture each, with its proof.\n\n{lines}\n\n{tree}\n".encode(),
    )


def toctree(caption, entries, hidden=True):
    options = [f":caption: {caption}", ":maxdepth: 1", *[":hidden:"] * hidden]
    return "\n".join(["```{toctree}", *options, "", *entries, "```"])


def github_names():
    "What GitHub makes of a heading of benchmarks/README.md, and what this site makes of it."
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"): anchor(heading) for heading in headings}


def with_links(text):
    "Markdown whose links lead to the pages of this site."
    names = github_names()
    text = re.sub(r"(\]\([^)#]*#)([^)]+)\)", lambda link: f"{link[1]}{slug(names.get(link[2], link[2]))})", text)
    return re.sub(r"\]\(((?:\.\./)*)index\.ipynb(#[^)]*)?\)", r"](\1../index.md\2)", text)


def moving_picture():
    "The slider of lesson 0: what the model answers after each step of its training."
    for cell in read(NBS / "00_first_fine_tune.ipynb"):
        for data in (output.get("data", {}) for output in getattr(cell, "outputs", [])):
            if 'type="range"' in (html := "".join(data.get("text/html", ""))):
                return html
    raise ValueError("nbs/00_first_fine_tune.ipynb has no slider for the site's first page")


def first_page():
    "README, with lesson 0's slider in place of its picture, and the order of all pages."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^<!--.*?-->\s*", "", text, flags=re.S)
    told = "Watch a model learn: press Play, or move the slider from step to step of its training."
    play = '<button class="play" type="button">Play</button><script src="_static/play.js" defer></script>'
    moving = f"{told}\n\n```{{raw}} html\n{moving_picture()}\n{play}\n```"
    text = re.sub(r"^!\[.*\]\(nbs/before_and_after\.png\)$", lambda _: moving, text, flags=re.M)
    trees = []
    for part, body in re.findall(r"^### \d+\. (.+?)\n(.*?)(?=^##)", text, re.M | re.S):
        trees.append(toctree(part, re.findall(r"\((nbs/\d\d_\w+)\.ipynb\)", body)))
    recipes = [f"nbs/recipes/{notebook.stem}" for notebook in sorted(NBS.glob("recipes/*.ipynb"))]
    trees.append(toctree("How do I …?", ["nbs/questions", *recipes]))
    more = [
        "cards/index",
        "nbs/projects",
        "solutions",
        "nbs/glossary",
        "nbs/what_guides_say",
        "nbs/families",
        "nbs/colab",
        "claims",
    ]
    trees.append(toctree("Look up", [*more, "reference/index", "benchmarks/README"]))
    papers = [paper for paper in ("CHANGELOG", "CONTRIBUTING", "SECURITY") if (ROOT / f"{paper}.md").exists()]
    trees.append(toctree("The project", papers))
    return "\n\n".join([text, *trees]) + "\n"


def with_dates(claims):
    "The claims, each with the day of its notebook's last green run, and the address of its page."
    dated = []
    for claim in with_proofs(claims):
        one = claim.pop("proof") or {"run": "", "seconds": None}
        address = claim["notebook"].removesuffix(".ipynb") + ".html#" + slug(claim.get("section", ""))
        dated.append({**claim, "address": address, "proved": one["run"], "seconds": one["seconds"]})
    return dated


def mutation_table():
    "How many broken functions the notebooks of a package noticed, as tools/mutate.py counted them."
    packages = json.loads((ROOT / "docs" / "mutation.json").read_text(encoding="utf-8"))["packages"]
    rows = [f"| {name} | {one['tried']} | {one['killed']} |" for name, one in packages.items()]
    return "\n".join(["| package | functions broken | noticed by a notebook |", "|---|---|---|", *rows])


def ledger_page(claims):
    counts = Counter(claim["kind"] for claim in claims)
    rows = "\n".join(f"| {kind} | {KINDS[kind]} | {counts[kind]:,} |" for kind in KINDS if counts[kind])
    versions = "".join(
        f"\n- {day}: Python {run['python']}, {run['device']}, "
        + ", ".join(f"{k} {v}" for k, v in run["versions"].items())
        for day, run in sorted(proofs()["runs"].items())
    )
    data = json.dumps(with_dates(claims), ensure_ascii=False).replace(
        "</", "<\\/"
    )  # in the page: a file may fetch nothing
    options = "".join(f"<option>{kind}</option>" for kind in KINDS if counts[kind])
    return f"""# The ledger of claims

> Which cell shows this sentence, and when did it last run?

A tool reads the notebooks: each cell that proves something belongs to the sentence beside it. A day is that of the
notebook's last green run; "none on record" says that its tests were not run since days are recorded.
{versions}

| kind | what shows it | claims |
|---|---|---|
{rows}

```{{raw}} html
<form class="ledger" onsubmit="return false">
<label>Sentences with <input id="claim-words" type="search" placeholder="padding"></label>
<label>Kind <select id="claim-kind"><option value="">all</option>{options}</select></label>
<output id="claim-count"></output>
</form>
<div class="scroll" tabindex="0" role="region" aria-label="claims"><table id="claims"><thead><tr>
<th scope="col">sentence</th><th scope="col">kind</th><th scope="col">page</th><th scope="col">last run</th>
</tr></thead><tbody></tbody></table></div>
<script type="application/json" id="claims-data">{data}</script>
<script src="_static/ledger.js" defer></script>
```

## Would a cell notice?

A tool breaks one exported function at a time, in a copy, and runs the notebook that proves it. In `docs/mutation.json`
stands what no cell noticed, and why it may stay.

{mutation_table()}
"""


def signature(source, node):
    "A function's or a class's first lines as they stand, with the comments that say what each parameter is."
    last = node.body[0].lineno - 1 if node.body[0].lineno > node.lineno else node.lineno
    lines = source.splitlines()[node.lineno - 1 : last]
    while lines and not lines[-1].split("#")[0].rstrip().endswith(":"):
        lines.pop()
    return "\n".join(lines)


def entry(source, node, public):
    "One public name of a module, or nothing."
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public:
        return ""
    parts = [f"### `{node.name}`", f"```python\n{signature(source, node)}\n```", ast.get_docstring(node) or ""]
    methods = [
        one for one in getattr(node, "body", []) if isinstance(node, ast.ClassDef) and isinstance(one, ast.FunctionDef)
    ]
    for method in methods:
        if not method.name.startswith("_") and ast.get_docstring(method):
            parts += [f"```python\n{signature(source, method)}\n```", ast.get_docstring(method)]
    return "\n\n".join(parts)


def module_part(module):
    "A module's public names, under a heading; nothing where it has none."
    source = module.read_text(encoding="utf-8")
    tree = ast.parse(source)
    public = re.search(r"__all__ = (\[[^\]]*\])", source)
    public = ast.literal_eval(public[1]) if public else []
    entries = [text for text in (entry(source, node, public) for node in tree.body) if text]
    notebook = f"nbs/package/{module.parent.name}/{module.stem}.ipynb"
    if not entries or not (ROOT / notebook).exists():
        return ""
    shown = f"[What it does, and what proves it](../{notebook})"
    return "\n\n".join([f"## {module.stem}", f"> {ast.get_docstring(tree)}", shown, *entries])


def reference():
    "A page for each package, and their index."
    packages = []
    for face in sorted(PACKAGE.glob("*/__init__.py")):
        package = face.parent.name
        parts = [part for part in map(module_part, sorted(face.parent.glob("[a-z]*.py"))) if part]
        notebooks = [f"../nbs/package/{package}/{nb.stem}" for nb in sorted(NBS.glob(f"package/{package}/*.ipynb"))]
        tree = toctree(f"{package}: the notebooks", notebooks, hidden=False)
        yield f"reference/{package}.md", "\n\n".join([f"# {package}", *parts, tree]) + "\n"
        packages.append(package)
    shown = "[All notebooks by package](../nbs/package/README.md)"
    head = f"# The package\n\n> Which function does it, and what does it take?\n\n{shown}"
    yield "reference/index.md", head + "\n\n" + toctree("Packages", packages, hidden=False) + "\n"
