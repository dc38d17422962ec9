"""Every lesson runs, in their order: each goes on with what the one before it has trained.

They train the real model for half an hour, so NB_FLAGS="smol" asks for them, as .ci/run does.
"""

import os

import pytest
from notebook_runs import LESSONS, check_run, imported, name  # noqa: F401


@pytest.mark.whole
@pytest.mark.parametrize("nb", LESSONS, ids=name)
def test_runs(nb, imported, real_model, tmp_path, monkeypatch, record_property):  # noqa: F811
    if not real_model or "smol" not in os.environ.get("NB_FLAGS", "").split():
        pytest.skip('needs the real model in the cache, and half an hour for all: NB_FLAGS="smol"')
    check_run(nb, real_model, tmp_path, monkeypatch, record_property)
