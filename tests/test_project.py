"The repository's own promises."

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import ft_notebooks

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PACKAGE = ROOT / "nbs" / "package"
NBS = sorted(p for p in ROOT.glob("nbs/**/*.ipynb") if not any(part[0] in "_." for part in p.relative_to(ROOT).parts))
LESSONS = [nb for nb in NBS if nb.parent.name == "nbs" and nb.name[0].isdigit()]
STAGES = [nb for nb in LESSONS if "#| default_exp" in nb.read_text(encoding="utf-8")]  # whose package has a face
INSIDE = [nb for nb in NBS if PACKAGE in nb.parents]
BOOKS = INSIDE + LESSONS
INDEX = ROOT / "nbs" / "index.ipynb"
SOLUTIONS = [nb for nb in NBS if nb.parent.name == "solutions"]
EXERCISES = sorted(ROOT.glob("ft_notebooks/exercises/lesson_[0-9][0-9].py"))  # made by solutions, for `check` alone
MODULES = sorted(p for p in ROOT.glob("ft_notebooks/**/*.py") if p.name[0] != "_" and p not in EXERCISES)
FACES = sorted(ROOT.glob("ft_notebooks/*/__init__.py"))
LOWEST = ROOT / ".ci" / "lowest.txt"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REPOSITORY = PYPROJECT["project"].get("urls", {}).get("Repository")
DIRECTIVES = {"default_exp", "export", "hide", "eval", "smol", "gpu", "hub", "slow", "notest"}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "matplotlib"}
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest -q"
DEMO = "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/ft demo"


def cells(nb, kind=None):
    found = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found if kind in (None, c["cell_type"])]


def module(nb):  # what nbs/package/PACKAGE/MODULE.ipynb has to export, and what a lesson does export
    if nb in INSIDE:
        return ".".join(nb.relative_to(PACKAGE).with_suffix("").parts)
    return cells(nb)[-1]["source"].splitlines()[0].removeprefix("#| default_exp ")


def flags(source):
    return set(re.findall(r"^#\s*\|\s*(\w+)", source, flags=re.M))


def python(source):  # the cell without `%magic` and `!shell` lines; nothing for a cell in another language
    if re.match(r"(#.*\n|\s)*%%(?!capture|time)", source):
        return ""
    return re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M)


def public(name):  # a module's __all__, read without importing it
    file = ROOT / "ft_notebooks" / f"{name.replace('.', '/')}.py"
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return next(ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")


def fresh(code):  # what a new interpreter prints
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def copy(tmp_path):
    def outputs(folder, names):  # of runs that a lesson or a solution has made beside itself
        made = ["runs"] if Path(folder) in (ROOT / "nbs", ROOT / "nbs" / "solutions") else []
        return shutil.ignore_patterns("__pycache__", ".*", *made)(folder, names)

    for folder in ("nbs", "ft_notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=outputs)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def nbdev(command, folder):  # with IN_TEST set nbdev-export would do nothing
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    run = subprocess.run([BIN / command], cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def differing(copy, pattern):
    here, there = ({p.relative_to(r): p.read_bytes() for p in r.glob(pattern)} for r in (ROOT, copy))
    here = {name: text for name, text in here.items() if not any(part[0] == "." for part in name.parts)}
    assert len(here) > 60, f"{pattern} finds next to nothing"
    return sorted(str(name) for name in here.keys() | there.keys() if here.get(name) != there.get(name))


@pytest.mark.whole
def test_the_package_is_what_the_notebooks_export_and_nothing_else(copy):
    for file in copy.glob("ft_notebooks/**/*.py"):
        if file.name not in ("__init__.py", "__main__.py"):
            file.unlink()
    nbdev("nbdev-export", copy)
    assert differing(copy, "ft_notebooks/**/*.py") == [], "run nbdev-export; delete modules whose notebook is gone"


@pytest.mark.whole
def test_the_notebooks_are_clean(copy):
    nbdev("nbdev-clean", copy)
    assert differing(copy, "nbs/**/*.ipynb") == [], "run nbdev-clean"


def test_there_are_notebooks_modules_and_faces():
    assert len(BOOKS) > 60 and len(MODULES) > 60 and FACES


def test_a_module_is_made_by_one_notebook_and_a_lesson_makes_its_package_s_face():
    address = {".".join(p.relative_to(ROOT / "ft_notebooks").with_suffix("").parts) for p in MODULES}
    assert {module(nb) for nb in INSIDE} == address
    for nb in STAGES:
        exported = [c["source"] for c in cells(nb, "code") if "export" in flags(c["source"])]
        assert re.fullmatch(r"\w+\.__init__", module(nb)) and len(exported) == 1, nb.name
        assert exported[0].splitlines()[-1].startswith("__getattr__, __dir__, __all__ = lazy_loader.attach(")
    assert len({module(nb) for nb in STAGES}) == len(STAGES)


@pytest.mark.whole
def test_the_layers_of_the_packages_hold():
    run = subprocess.run(
        [BIN / "lint-imports"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr


def test_a_module_imports_neither_the_root_nor_a_package_s_face():
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = file.parents[max(node.level - 1, 0)]
            inside = base.relative_to(ROOT).parts if node.level else ()
            address = [*inside, *(node.module or "").split(".")] if node.module else list(inside)
            if address[0] == "ft_notebooks":
                target = ROOT.joinpath(*address)
                assert target.with_suffix(".py").exists(), (
                    f"{file.name}:{node.lineno} imports from {'.'.join(address)}: name the module"
                )


def test_a_public_name_is_defined_in_one_module_and_no_module_imports_a_private_one_of_another():
    defined = {}
    for file in MODULES:
        address = ".".join(file.relative_to(ROOT / "ft_notebooks").with_suffix("").parts)
        for name in public(address):
            assert not (file.parent / f"{name}.py").exists(), f"{name} of {address} is also a module's name"
            if (address, name) == ("exercises.replies", "check"):  # the learner's word; the doctor has a decorator
                continue
            assert name not in defined, f"{name} is defined in {defined[name]} and in {address}"
            defined[name] = address
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            ours = isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("ft_notebooks"))
            private = [name.name for name in node.names if name.name[0] == "_"] if ours else []
            assert not private, f"{address}:{node.lineno} imports {private[0]}: make it public, or move what needs it"
    assert len(defined) > 250


@pytest.mark.parametrize("face", FACES, ids=lambda p: p.parent.name)
def test_the_names_of_a_face_are_public_in_a_module_below_it_and_none_is_a_module_s(face):
    package = __import__(f"ft_notebooks.{face.parent.name}", fromlist=["x"])
    below = {p.stem: public(f"{face.parent.name}.{p.stem}") for p in MODULES if p.parent == face.parent}
    assert below and package.__all__ and package.__doc__
    for name in package.__all__:
        assert sum(name in names for names in below.values()) == 1, name
        assert name not in below, f"{name} is also a module of {face.parent.name}"


def test_exercises_are_made_by_the_solutions_of_their_lesson_and_import_nothing_of_the_package():
    made = {}
    for nb in SOLUTIONS:
        if named := re.fullmatch(r"#\| default_exp exercises\.(lesson_\d\d)", cells(nb)[0]["source"]):
            made[named[1]] = nb.name[:2]
    assert made == {file.stem: file.stem[-2:] for file in EXERCISES}
    for file in EXERCISES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not [
            node
            for node in tree.body
            if "ft_notebooks" in ast.unparse(node) and "import" in type(node).__name__.lower()
        ]
        assert not HEAVY & {
            name for node in tree.body for name in re.findall(r"^(?:import|from) (\w+)", ast.unparse(node))
        }


def wrong_start(nb):
    first, second = cells(nb)[:2]
    source = rf"\n\nSource of `ft_notebooks\.{re.escape(module(nb))}`; lesson \d+ [^\n]+\."
    if (first["cell_type"], first["source"]) != ("code", f"#| default_exp {module(nb)}"):
        yield f"the first cell must be: #| default_exp {module(nb)}"
    head = second["source"] if second["cell_type"] == "markdown" else ""
    if not re.match(rf"# [^\n]+\n\n> [^\n]+{source}(\n\n|$)", head):
        yield f"the second cell must hold a title, a subtitle and the source: {second['source']}"


NO_USE = {  # a public module whose notebook has no section "Use", and why
    "checkpointing.graceful_stop": "a notebook may be run beside the main thread, where Python handles no signal",
    "cli.doctor": "its reader calls `ft doctor`; doctor.diagnosis shows the function",
    "course.gpu_check": "needs a GPU",
    "doctor.unusual_rows": "a lesson reads its table of codes, and nobody calls it",
}


def public_modules():  # with a name at the root or in a package's face, or that a lesson or recipe imports
    found = set(ft_notebooks._lazy.values())
    for face in FACES:
        body = ast.parse(face.read_text(encoding="utf-8")).body
        names = [n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_names"]
        found |= {f"{face.parent.name}.{one}" for table in names for one in ast.literal_eval(table)}
    for nb in LESSONS + [nb for nb in NBS if nb.parent.name == "recipes"]:
        for cell in cells(nb, "code"):
            found |= set(re.findall(r"^\s*from ft_notebooks\.(\w+\.\w+) import", cell["source"], flags=re.M))
    return found & {module(nb) for nb in INSIDE}


def wrong_use(nb):
    subtitle = re.search(r"^> (.+)$", cells(nb)[1]["source"], flags=re.M)[1]
    if len(subtitle.split()) > 20:
        yield f"the subtitle has more than 20 words: {subtitle}"
    if module(nb) in NO_USE:
        return
    head, cell = cells(nb)[2:4]
    if not re.fullmatch(r"## Use\n\n[^\n]+:", head["source"]) or cell["cell_type"] != "code" or flags(cell["source"]):
        yield f"title and subtitle must be followed by ## Use, with a sentence and a cell: {head['source']}"
        return
    lines = [line for line in cell["source"].splitlines() if line.strip()]
    called = [line for line in lines if not re.match(r"(?:import|from) ", line)]
    if not (len(lines) >= 3 and 1 <= len(called) <= 6):
        yield f"three lines or more, six at most besides imports: {cell['source']}"
    if not any(re.search(rf"\b{name}\b", cell["source"]) for name in public(module(nb))):
        yield f"the cell uses no name of the module: {cell['source']}"
    if not cell["outputs"]:
        yield f"the cell shows nothing: {cell['source']}"


def test_a_notebook_of_a_public_module_opens_with_its_use():
    modules = public_modules()
    assert len(modules) > 130 and NO_USE.keys() <= modules
    books = [nb for nb in INSIDE if module(nb) in modules]
    assert {module(nb): found for nb in books if (found := [*wrong_use(nb)])} == {}


def wrong_directives(nb):
    for cell in cells(nb, "code"):  # nbdev runs the cell as if an unknown or a late directive were not there
        head = re.match(r"(?:#\s*\|.*(?:\n|$)|%%.*\n|\s*\n)*", cell["source"])[0]
        if not flags(cell["source"]) <= DIRECTIVES or flags(cell["source"]) != flags(head):
            yield f"a directive is not known, or does not stand first: {cell['source']}"


def wrong_captures(nb):
    for cell in cells(nb, "code"):
        if "%%capture" in cell["source"]:  # elsewhere than at the start Jupyter does not know the line
            if not cell["source"].startswith("%%") or "assert" in cell["source"]:
                yield f"%%capture must stand first, and over no proof: {cell['source']}"


def missing_names(nb):
    always, sometimes = set(), set()
    for cell in cells(nb, "code"):
        tables = [symtable.symtable(python(cell["source"]), nb.name, "exec")]
        defined = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported()}
        if flags(cell["source"]) & {"smol", "gpu", "hub", "slow", "notest"}:
            sometimes |= defined
            continue
        always |= defined
        used = {s.get_name() for s in tables[0].get_symbols() if s.is_referenced()}
        for table in tables:
            tables += table.get_children()
            used |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        if missing := used & sometimes - always:
            yield f"only a flagged cell defines {missing}: {cell['source']}"


NOISE = {
    "an absolute path": r"(?<![\w./:])/(?:root|home|w[o]rk|tmp|usr|opt|var|Users|content)/",
    "a progress bar": r"[\d?]\s*(?:it/s|s/it)\b|\d%\|",
    "a time": r"\b\w*_(?:runtime|per_second)\b|Wall time|CPU times",
    "an address": r"\b0x[0-9a-f]{6,}",
    "an escape sequence": r"\x1b",
    "a widget": r"jupyter\.widget",
}


def noise(output):
    if output["output_type"] == "error" or output.get("name") == "stderr":
        return [output["output_type"] + " " + output.get("name", output.get("ename", ""))]
    data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/png")}
    shown = "\n".join(
        "".join(v) if isinstance(v, list) else str(v) for v in (output.get("text", ""), *data, *data.values())
    )
    shown = re.sub(r"data:image/png;base64,[\w+/=]+", "", shown)
    return [f"{what}: {found[0]}" for what, pattern in NOISE.items() if (found := re.search(pattern, shown))]


def noisy_outputs(nb):
    for cell in cells(nb, "code"):
        for output in cell["outputs"]:
            for what in noise(output):
                yield f"{what} in the output of: {cell['source']}"


@pytest.mark.parametrize("nb", NBS, ids=lambda nb: str(nb.relative_to(ROOT / "nbs").with_suffix("")))
def test_a_notebook_keeps_the_form_that_nbdev_and_readers_rely_on(nb):
    checks = [wrong_directives, wrong_captures, missing_names, noisy_outputs]
    if nb in INSIDE:
        checks.append(wrong_start)
    assert [problem for check in checks for problem in check(nb)] == []


@pytest.mark.parametrize(
    "text",
    [
        "saved in /root/x",
        "'/tmp/abc/model'",
        " 12%|█    | 3/25",
        "3.10it/s",
        "[00:01, ?it/s]",
        "1.2s/it",
        "{'train_runtime': 3}",
    ]
    + ["<object at 0x7f12ab34cd56>", "\x1b[31mred", "Wall time: 3 s"],
)
def test_the_check_for_noise_sees(text):
    assert noise({"output_type": "stream", "name": "stdout", "text": text})
    assert noise({"output_type": "execute_result", "data": {"text/plain": [text]}})
    assert noise({"output_type": "stream", "name": "stderr", "text": "a plain word"})
    assert not noise({"output_type": "stream", "name": "stdout", "text": "text/plain, and/or 50% | 3 tokens/item"})


@pytest.mark.whole
def test_readme_mirrors_the_index():
    run = subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_readme_gives_the_two_commands():
    lines = [line.strip(" `") for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    assert TESTS in lines and DEMO in lines


def test_links_between_files_lead_to_files():
    pages = [*ROOT.glob("*.md"), PACKAGE / "README.md", *NBS]
    for source, base in ((page, page.parent) for page in pages):
        what, parts = "line", source.read_text(encoding="utf-8").splitlines()
        if source.suffix == ".ipynb":
            what, parts = "cell", [cell["source"] * (cell["cell_type"] == "markdown") for cell in cells(source)]
        for i, part in enumerate(parts, what == "line"):
            for target in re.findall(r"(?<!`)\]\(([^)#\s`]+)[^)]*\)", part):
                found = re.match(r"\w+:", target) or (base / target).exists()
                assert found, f"{source.relative_to(ROOT)}, {what} {i}: {target} is not there"


def contents():
    "The rows of the index's table of lessons: number, the cell of the lesson, question, minutes."
    prose = "\n".join(cell["source"] for cell in cells(INDEX, "markdown"))
    table = prose.partition("## The course")[2].partition("\n## ")[0]
    return re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", table, flags=re.M)


def test_the_index_lists_the_lessons_and_links_to_each_that_is_there():
    rows = contents()
    assert [int(number) for number, *_ in rows] == list(range(len(LESSONS)))
    linked = {link[1]: int(number) for number, name, *_ in rows if (link := re.search(r"\]\((.+)\)", name))}
    assert linked == {nb.name: int(nb.name[:2]) for nb in LESSONS}
    assert all(("](" in name) == (minutes != "coming") for _, name, _, minutes in rows)


@pytest.mark.parametrize("nb", LESSONS, ids=lambda nb: nb.stem)
def test_the_index_gives_a_lesson_s_title_and_minutes(nb):
    _, name, _, minutes = contents()[int(nb.name[:2])]
    head = cells(nb, "markdown")[0]["source"]
    told = re.match(r"# (\d+) · ([^\n]+)\n\n> [^\n]+\n\n\*(\d+) minutes to read", head)
    assert told and (name, minutes) == (f"[{told[2]}]({nb.name})", told[3])


def test_the_page_of_the_package_lists_exactly_its_notebooks():
    links = re.findall(r"^- \[[\w.]+\]\(([\w/]+\.ipynb)\): \S", (PACKAGE / "README.md").read_text("utf-8"), flags=re.M)
    assert sorted(links) == sorted(nb.relative_to(PACKAGE).as_posix() for nb in INSIDE)


def test_contributing_says_where_to_change_a_thing_by_names_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(\w+\.\w+\.\w+)`", text):
        package, module, what = name.split(".")
        code = (ROOT / "ft_notebooks" / package / f"{module}.py").read_text(encoding="utf-8")
        table = symtable.symtable(code, name, "exec").get_symbols()
        defined = {symbol.get_name() for symbol in table if symbol.is_assigned() and not symbol.is_imported()}
        assert what in defined, f"{name} is not defined there"
    tasks = re.findall(r"^\| ([^|]+) \| (`[^|]+) \|$", text, flags=re.M)
    assert len(tasks) >= 21
    assert not [task for task, begin in tasks if len(re.findall(r"`\w+\.\w+\.\w+`", begin)) not in (1, 2)]


def test_the_drawing_of_the_packages_has_the_layers_that_are_checked():
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    packages = [name.strip() for layer in reversed(layers) for name in layer.split("|")]
    drawing = (PACKAGE / "architecture.svg").read_text(encoding="utf-8")  # bottom to top, from left to right
    assert re.findall(r'class="package"[^>]*>(\w+)<', drawing) == packages
    for page in (ROOT / "CONTRIBUTING.md", PACKAGE / "README.md"):
        assert "architecture.svg)" in page.read_text(encoding="utf-8"), page


@pytest.mark.whole
def test_every_public_name_of_the_package_is_in_the_module_it_names():
    for name, where in ft_notebooks._lazy.items():
        assert name in public(where), f"ft_notebooks.{name} should come from {where}"
    assert (
        ft_notebooks.tiny_tokenizer is __import__("ft_notebooks.loading.example_models", fromlist=["x"]).tiny_tokenizer
    )
    assert set(ft_notebooks._lazy) <= set(dir(ft_notebooks))
    with pytest.raises(AttributeError, match="nonsense"):
        ft_notebooks.nonsense


@pytest.mark.whole
def test_the_root_has_about_forty_names_and_the_packages_have_them_all():
    assert 35 <= len(ft_notebooks._lazy) <= 45
    for name, where in ft_notebooks._lazy.items():
        face = importlib.import_module(f"ft_notebooks.{where.partition('.')[0]}")
        assert name in face.__all__ and getattr(face, name) is getattr(ft_notebooks, name), name


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(nb for nb in NBS if nb not in INSIDE)], ids=lambda page: page.stem
)
def test_every_name_that_a_shown_script_imports_is_there(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join(cell["source"] for cell in cells(page, "markdown"))
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        for node in ast.walk(ast.parse(python(block))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ft_notebooks":
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == [], ast.unparse(node)


@pytest.mark.whole
def test_importing_the_package_loads_nothing_heavy():
    assert fresh(f"import sys, ft_notebooks; print({HEAVY} & {{*sys.modules}})") == "set()\n"


@pytest.mark.whole
@pytest.mark.parametrize("args", [["--help"], ["sft", "--help"]], ids=" ".join)
def test_the_help_of_ft_loads_nothing_heavy(args):
    told = fresh(
        f"import sys\nsys.argv[1:] = {args}\nfrom ft_notebooks.cli.commands import main\ntry: main()\n"
        f"except SystemExit as end: assert not end.code\nprint({HEAVY} & {{*sys.modules}})"
    )
    assert told.startswith("usage: ft") and told.endswith("set()\n")


def test_settings_ini_says_first_what_it_is_and_contributing_that_nbdev_does_not_read_it():
    first = (ROOT / "settings.ini").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# The settings of your runs.") and "nbdev" not in first
    assert "never run `nbdev-migrate-config`" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_colab_links_follow_the_repository_address():
    for nb in NBS:
        links = re.findall(r"https://colab\.research\.google\.com[\w./-]*", nb.read_text(encoding="utf-8"))
        if not REPOSITORY:
            assert links == [], f"{nb.name}: pyproject.toml names no repository that a link could lead to"
        elif nb in BOOKS:
            here = REPOSITORY.removeprefix("https://github.com/")
            link = f"https://colab.research.google.com/github/{here}/blob/main/{nb.relative_to(ROOT)}"
            assert set(links) == {link} and link in cells(nb)[0]["source"], nb.name
            assert f"git+{REPOSITORY}" in cells(nb)[1]["source"], f"{nb.name}: its second cell installs the package"


PRIVATE = {  # what only the people who wrote a change can follow
    "a path outside the repository": r"\.\./sh[a]red|(?<![\w.])/w[o]rk\b",
    "the number of an issue": r"\b[Ii]ssue #?\d{1,2}\b|(?<![\w&])#[1-9]\d?\b",
}


@pytest.mark.whole
def test_no_file_names_what_a_reader_cannot_open(files):
    assert ROOT / "pyproject.toml" in files and PACKAGE / "loading" / "example_models.ipynb" in files
    for file in files:
        if file.suffix == ".png":  # compressed: any letters may come about
            continue
        text = file.read_bytes().decode(errors="ignore")
        for what, pattern in PRIVATE.items():
            found = re.search(pattern, text)
            assert not found, (
                f"{file.relative_to(ROOT)} names {what}: {text[max(found.start() - 60, 0) : found.end() + 60]!r}"
            )


def test_only_the_linters_are_pinned():
    project = PYPROJECT["project"]
    needs = [*project["dependencies"], *(n for extra in project["optional-dependencies"].values() for n in extra)]
    assert [re.split("[=<>~]", need)[0] for need in needs if "==" in need] == ["ruff", "mypy"]
    assert "+cpu" not in (ROOT / "pyproject.toml").read_text()


def test_the_lowest_versions_that_are_tested_are_the_lower_bounds_of_every_dependency():
    project, bounds = PYPROJECT["project"], {}
    for text in [
        *project["dependencies"],
        *(need for extra in project["optional-dependencies"].values() for need in extra),
    ]:
        need = Requirement(text)
        if need.name == "ft-notebooks":  # an extra that holds another one
            continue
        lowest = [Version(bound.version) for bound in need.specifier if bound.operator in (">=", "==")]
        assert len(lowest) == 1, f"{text} has no lower bound"
        bounds.setdefault(need.name, set()).update(lowest)
    pins = [Requirement(line) for line in LOWEST.read_text().splitlines() if not line.startswith("#")]
    tested = {pin.name: {Version(str(pin.specifier).removeprefix("=="))} for pin in pins}
    assert tested == bounds, f"run the command that the head of {LOWEST.name} gives"


@pytest.mark.whole
def test_a_leg_that_does_not_exist_is_refused_before_anything_is_installed(tmp_path):
    env = {**os.environ, "LEG": "middle", "VENV": str(tmp_path / "venv")}
    run = subprocess.run(["bash", ROOT / ".ci" / "run"], env=env, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (
        1,
        "LEG=middle: set LEG=lowest, newest, main, green, colab or colab-image, or leave it out\n",
    )
    assert not (tmp_path / "venv").exists()


@pytest.mark.whole
@pytest.mark.parametrize(
    "script",
    [".ci/run", ".ci/colab", ".ci/gpu", ".ci/green", ".ci/issue", ".ci/propose", ".ci/site", ".ci/tag", "tools/nb"],
)
def test_a_script_is_executable_bash(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_the_workflow_runs_what_a_person_runs_with_the_newest_and_the_lowest_versions():
    legs, leg = ((ROOT / ".github/workflows" / name).read_text() for name in ("ci.yml", "leg.yml"))
    assert re.search(r"^\s*- run: bash \.ci/run$", leg, flags=re.M) and "LEG: ${{ inputs.leg }}" in leg
    assert re.search(r'^\s*leg: \["", lowest\]', legs, flags=re.M) and "leg: ${{ matrix.leg }}" in legs
