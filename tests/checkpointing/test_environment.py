"Edges of `ft_notebooks.checkpointing.environment`: folders without a commit, and a git that hangs."

import os
import subprocess

import pytest
from small_runs import HANGS

from ft_notebooks.checkpointing.environment import git_commit

pytestmark = pytest.mark.whole


def git(folder, *words):
    set_ = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *set_, *words], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_recorded_and_whether_a_tracked_file_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **given: run(*args, **{**given, "timeout": HANGS})
    )  # a busy machine's git
    assert git_commit() is None
    git(tmp_path, "init", "-q")
    assert git_commit() is None  # no commit yet
    (tmp_path / "train.py").write_text("1")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "new").write_text("not tracked")
    assert git_commit()["dirty"] is False and len(git_commit()["commit"]) == 40
    (tmp_path / "train.py").write_text("2")
    assert git_commit()["dirty"] is True


def test_a_git_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: run(*args, **{**kwargs, "timeout": 0.1}))
    assert git_commit() is None
