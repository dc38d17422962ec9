"README's scripts run as they stand, one after the other in one folder: the third goes on with the run of the first."

import os
import re
import runpy
from pathlib import Path

import pytest
from ranks_of import ended, forked

from ft_notebooks.loading.example_models import tiny_model, tiny_tokenizer
from ft_notebooks.rlhf.reward_choice import choose_rewards

pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## In a script")[2].partition("\n## ")[0]
SCRIPTS = re.findall(r"```python\n(.*?)```", SECTION, flags=re.S)


def test_there_are_four_scripts_of_fewer_than_twelve_lines():
    lines = [[line for line in script.splitlines() if line.strip()] for script in SCRIPTS]
    assert [("sft" in script, "bits=4" in script, "dpo" in script) for script in SCRIPTS] == [
        (True, False, False),
        (True, True, False),
        (True, False, True),
        (False, False, False),
    ]
    assert all(len(script) < 12 for script in lines)


def test_the_reward_is_one_that_ft_grpo_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, function = re.search(r"--reward (\w+\.py):(\w+)", README).groups()
    [code] = [code for code in re.findall(r"```python\n(.*?)```", README, flags=re.S) if f"def {function}(" in code]
    Path(file).write_text(code, encoding="utf-8")
    [reward] = choose_rewards([f"{file}:{function}"])
    assert (reward.scorer("one two", "one", {}), reward.scorer("word " * 41, "one", {})) == (1.0, 0.0)


def run_all(folder, model="smollm2()"):
    "Each script in turn, in `folder`, with the model for which `model` stands."
    for number, script in enumerate(SCRIPTS):
        (folder / f"{number}.py").write_text(script.replace("smollm2()", model), encoding="utf-8")

    def each():
        os.chdir(folder)
        for number in range(len(SCRIPTS)):
            runpy.run_path(f"{number}.py", run_name="__main__")

    [code] = ended([forked(each, folder, "said")])
    assert code == 0, (folder / "said.log").read_text()[-3000:]
    assert (folder / "runs/sft/report/report.html").is_file()
    assert all((folder / "runs" / run / "adapter_model.safetensors").is_file() for run in ("sft", "qlora", "dpo"))
    assert (folder / "runs/plain/model.safetensors").is_file()


def test_the_scripts_run_on_the_tiny_model(tmp_path):
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    run_all(tmp_path, '"tiny"')


@pytest.mark.smol
@pytest.mark.slow
def test_the_scripts_run_as_they_stand(tmp_path):
    run_all(tmp_path)
