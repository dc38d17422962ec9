"What a run does for people who look at it and for a power cut, switched off in tests that look at neither."

import os
import sys

import pytest


@pytest.fixture(autouse=True)
def light(monkeypatch):
    "A run draws no figure (tests/cli and the notebooks have runs that do), and does not wait for the disk."
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    if run := sys.modules.get("ft_notebooks.training.run"):
        monkeypatch.setattr(run, "save_figure", lambda file, draw: None)
