"""README's scripts and commands run as they stand against the installed wheel, in a folder without the repository.

Which: the four scripts of "In a script", one after the other, since the third goes on with the run of the first; the
reward; the commands of "With a file of your own" but `NOT_RUN`; and the script beside a copy of `merged`. The other
blocks of lessons and recipes are parts of scripts, whose names the notebook has defined; their commands are parsed.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from ft_notebooks.cli.arguments import parser
from ft_notebooks.course.demo_task import demo_pairs
from ft_notebooks.course.example_task import appointments
from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.rlhf.reward_choice import choose_rewards

pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## In a script")[2].partition("\n## ")[0]
SCRIPTS = re.findall(r"```python\n(.*?)```", SECTION, flags=re.S)
FILES = README.partition("## With a file of your own")[2].partition("\n## ")[0]
NOT_RUN = {  # first words, and why
    ".venv/bin/pip install": "needs the network",
    ".venv/bin/ft launch": "eight processes; tests/distributed launches two",
    ".venv/bin/ft serve": "until Ctrl-C; tests/inference asks a server",
}
NOT_ZERO = {  # commands that end with another exit code here, and why
    "doctor": 1,  # a warning: the tiny model was never trained
}
NOTEBOOKS = sorted([*ROOT.glob("nbs/*.ipynb"), *ROOT.glob("nbs/recipes/*.ipynb")])


def test_there_are_four_scripts_of_fewer_than_twelve_lines():
    lines = [[line for line in script.splitlines() if line.strip()] for script in SCRIPTS]
    assert [("sft" in script, "bits=4" in script, "dpo" in script) for script in SCRIPTS] == [
        (True, False, False),
        (True, True, False),
        (True, False, True),
        (False, False, False),
    ]
    assert all(len(script) < 12 for script in lines)


def reward_file(folder):
    "Writes the reward of README; its name as `--reward` takes it."
    file, function = re.search(r"--reward (\w+\.py):(\w+)", README).groups()
    [code] = [code for code in re.findall(r"```python\n(.*?)```", README, flags=re.S) if f"def {function}(" in code]
    (folder / file).write_text(code, encoding="utf-8")
    return f"{file}:{function}"


def test_the_reward_is_one_that_ft_grpo_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [reward] = choose_rewards([reward_file(tmp_path)])
    assert (reward.scorer("one two", "one", {}), reward.scorer("word " * 41, "one", {})) == (1 / 3, 1 / 42)


def run_all(installed, folder, model="smollm2()"):
    "Each script in turn, in `folder`, with the model for which `model` stands; one process, to import once."
    for number, script in enumerate(SCRIPTS):
        (folder / f"{number}.py").write_text(script.replace("smollm2()", model), encoding="utf-8")
    each = "import runpy; [runpy.run_path(f'{n}.py', run_name='__main__') for n in range(%d)]" % len(SCRIPTS)
    installed.run(folder, "python", "-c", each)
    assert (folder / "runs/sft/report/report.html").is_file()
    assert all((folder / "runs" / run / "adapter_model.safetensors").is_file() for run in ("sft", "qlora", "dpo"))
    assert (folder / "runs/plain/model.safetensors").is_file()


def write_tiny(folder):
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")


def test_the_scripts_run_on_the_tiny_model(installed, tmp_path):
    write_tiny(tmp_path)
    run_all(installed, tmp_path, '"tiny"')


@pytest.mark.smol
@pytest.mark.slow
def test_the_scripts_run_as_they_stand(installed, tmp_path):
    run_all(installed, tmp_path)


def write_files(folder):
    "The files that the commands name."
    rows = appointments(40)
    rows.to_json(folder / "chats.jsonl")
    demo_pairs(40, seed=1).to_json(folder / "pairs.jsonl")
    texts = [[message["content"] for message in messages[-2:]] for messages in rows["messages"]]
    faq = ["question,answer", *(",".join('"' + text.replace('"', '""') + '"' for text in row) for row in texts)]
    (folder / "faq.csv").write_text("\n".join(faq), encoding="utf-8")
    rated = [{"prompt": asked, "completion": answer, "label": n % 2 == 0} for n, (asked, answer) in enumerate(texts)]
    (folder / "rated.jsonl").write_text("\n".join(map(json.dumps, rated)), encoding="utf-8")
    (folder / "documents").mkdir()
    for n, (asked, answer) in enumerate(texts):
        (folder / "documents" / f"{n}.txt").write_text(f"{asked}\n{answer}\n" * 4, encoding="utf-8")


def commands():
    [block] = re.findall(r"```bash\n(.*?)```", FILES, flags=re.S)
    lines = [line for line in block.replace("\\\n", "").splitlines() if line and line[0] != "#"]
    assert all(sum(line.startswith(one) for line in lines) == 1 for one in NOT_RUN)
    return [line for line in lines if not line.startswith(tuple(NOT_RUN))]


@pytest.mark.slow
def test_the_commands_run_as_they_stand(installed, tmp_path):
    "Seventeen processes; the tiny model is named in the settings that `ft init` writes."
    write_tiny(tmp_path)
    write_files(tmp_path)
    reward_file(tmp_path)
    (tmp_path / ".venv").symlink_to(installed.place)
    first, *others = commands()
    assert len(others) == 15
    installed.run(tmp_path, *shlex.split(first))
    settings = tmp_path / "settings.ini"
    text = settings.read_text().replace("\n[model]\n", "\n[model]\nname = tiny\n")
    text = text.replace("\n[sft]\n", "\n[sft]\nlearning_rate = 0.01\n")  # so that the teacher differs from its base
    settings.write_text(text)
    for line in others:
        code = NOT_ZERO.get(line.split()[1], 0)
        installed.run(tmp_path, *shlex.split(line), code=code, stdin="Hi\n")
    (tmp_path / "runs/sft/merged").rename(tmp_path / "merged")
    [script] = [code for code in re.findall(r"```python\n(.*?)```", FILES, flags=re.S) if "pipeline" in code]
    assert "assistant" in installed.run(tmp_path, "python", "-c", script)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_command_that_a_page_shows_is_one(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", "").splitlines()
    for line in lines:
        if words := re.match(r"(?:\.venv/bin/)?ft (.+)", line):
            parser().parse_args(shlex.split(words[1], comments=True))  # SystemExit names what is wrong
