"Settings as people write them by accident: each is taken as it was meant, or refused with the place and the cure."

import json
import os
from pathlib import Path

import pytest

from ft_notebooks.cli.arguments import in_full, parser
from ft_notebooks.cli.commands import main
from ft_notebooks.cli.settings import read_settings
from ft_notebooks.core.files import write_atomically
from ft_notebooks.course.example_task import appointments
from ft_notebooks.evaluation.metrics import find_scorers
from ft_notebooks.lora.merging import whole_folder
from ft_notebooks.runs.record import held_out


def refused(call, *words):
    with pytest.raises(ValueError) as e:
        call(*words)
    return str(e.value)


@pytest.mark.parametrize("command", [["init"], ["launch", "--processes", "2", "--slurm", "--", "sft", "a.jsonl"]])
def test_a_link_that_leads_nowhere_is_never_replaced(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    links = [Path(name) for name in ("settings.ini", "runs/job.sh", "runs/accelerate-ddp-2.yaml")]
    for link in links:
        link.symlink_to("lost")
        assert f"{link}: it is a link to lost, where there is nothing" in refused(write_atomically, link, "text")
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2 and "it is a link to lost, where there is nothing" in capsys.readouterr().err
    assert all(link.is_symlink() for link in links)


def test_a_folder_does_not_replace_a_link(tmp_path):
    (tmp_path / "merged").symlink_to("lost")
    with pytest.raises(ValueError, match="it is a link to lost"), whole_folder(tmp_path / "merged"):
        raise AssertionError
    assert os.readlink(tmp_path / "merged") == "lost"


@pytest.mark.parametrize("key", ["allow_cut", "allow_equal", "allow_long"])
@pytest.mark.parametrize("value", ["5", "-0.1", "1.01"])
def test_a_share_is_between_0_and_1(tmp_path, key, value):
    (tmp_path / "settings.ini").write_text(f"[data]\n{key} = {value}\n")
    said = f"{key} must be a share from 0 to 1, such as 0.05 for 5 %, got '{value}'"
    assert refused(read_settings, tmp_path / "settings.ini") == f"{tmp_path / 'settings.ini'}:2: {said}"
    assert refused(read_settings, None, [f"data.{key}={value}"]) == f"--set data.{key}={value}: {said}"
    assert read_settings(None, [f"data.{key}=1"])["data"] == {key: 1.0}


@pytest.mark.parametrize(
    "text, expected",
    [
        ('"base #new"', "base #new"),
        ("'base ;2' # the second", "base ;2"),
        ('"base"  ; "old"', "base"),
        ("base#2", "base#2"),
        ("it's", "it's"),
    ],
)
def test_quotes_keep_a_value_whole(tmp_path, text, expected):
    (tmp_path / "settings.ini").write_text(f"[model] # which\nname = {text}\n")
    assert read_settings(tmp_path / "settings.ini")["model"] == {"name": expected}


@pytest.mark.parametrize("text", ["base #new", "base ;2", "#new"])
def test_a_text_with_the_mark_of_a_comment_is_ambiguous(tmp_path, text):
    (tmp_path / "settings.ini").write_text(f"[model]\nname = {text}\n")
    said = refused(read_settings, tmp_path / "settings.ini")
    assert said.startswith(f"{tmp_path / 'settings.ini'}:2: name = {text!r} may hold a comment; put ")
    assert said.endswith("around the value, or the comment on a line of its own")


def test_a_number_may_be_followed_by_a_comment(tmp_path):
    text = "[lora]\nr = 8 # small\nlayers_to_transform = 1, # first\n    2 ; second\n[sft]\npacking = true #"
    (tmp_path / "settings.ini").write_text(text)
    found = read_settings(tmp_path / "settings.ini")
    assert found["lora"] == {"r": 8, "layers_to_transform": [1, 2]} and found["sft"] == {"packing": True}


def test_the_home_folder_may_be_short_in_each_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = '[model]\nname = ~/base\n[data]\neval = "~/eval.jsonl"\n[grpo]\nrewards = ~/a.py:f, ~/b.py:g\n'
    (tmp_path / "settings.ini").write_text(text)
    found = read_settings(tmp_path / "settings.ini", ["sft.run_name=~/a"])
    assert found["model"]["name"] == f"{tmp_path}/base" and found["data"]["eval"] == f"{tmp_path}/eval.jsonl"
    assert found["sft"]["run_name"] == f"{tmp_path}/a"
    assert found["grpo"]["rewards"] == [f"{tmp_path}/a.py:f", f"{tmp_path}/b.py:g"]


@pytest.mark.parametrize("rule, right", [("0,1", "0.1"), (",5", ".5"), ("12,5%", "12.5%")])
def test_a_share_with_a_comma_is_not_the_name_of_a_file(rule, right):
    assert refused(held_out, appointments(8), rule) == f"data.eval={rule} is not a number; write {right}"


def test_a_file_of_rewards_that_reads_the_command_line_is_refused_with_the_cure(tmp_path, capsys):
    (tmp_path / "r.py").write_text(
        "import argparse\nargparse.ArgumentParser().parse_args(['--x'])\ndef f(a, b, c): ..."
    )
    said = refused(find_scorers, f"{tmp_path / 'r.py'}:f")
    assert said.endswith('raised SystemExit: 2; put its command line below if __name__ == "__main__":')


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "reward", "grpo"])
@pytest.mark.parametrize("field", ["model_init_kwargs={}", "trust_remote_code=true"])
def test_how_the_model_is_loaded_is_no_setting_of_a_stage(stage, field):
    said = refused(read_settings, None, [f"{stage}.{field}"])
    assert said.endswith("; leave it out: [model] determines how the model is loaded")


@pytest.mark.parametrize(
    "quoted",
    [
        "'--set data.eval=none'",
        '"try --output it\'s"',
        "['a', '--set sft.max_steps=1 ']",
        '"\\"--output x\\""',
        "--output it's",
        "--set a.b='",
        "--output a\\",
    ],
)
def test_what_a_row_says_is_never_a_command(quoted):
    text, args = f"a.jsonl:3: the row is {quoted}; it must be an object", parser().parse_args(["sft", "a.jsonl"])
    if quoted[0] == "-":  # without quotes it may be advice, of which no error may be made
        assert in_full(text, args).endswith("; it must be an object")
    else:
        assert in_full(text, args) == text
    advice = in_full(f"{text}: the users' rows, --set data.eval=none", args)
    assert advice.endswith("the users' rows, ft sft a.jsonl --set data.eval=none")


def test_a_file_that_holds_options_is_answered_with_its_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = {"messages": [{"role": "--output it's", "content": "--set sft.max_steps=1"}]}
    Path("a.jsonl").write_text(json.dumps(row))
    with pytest.raises(SystemExit) as end:
        main(["sft", "a.jsonl"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and 'a.jsonl:1: message 1 has the role "--output it\'s"; the roles are' in said
