"Every lesson runs, in their order: each goes on with what the one before it has trained."

import pytest
from notebook_runs import LESSONS, check_run, imported, name  # noqa: F401


@pytest.mark.whole
@pytest.mark.parametrize("nb", LESSONS, ids=name)
def test_runs(nb, imported, real_model, tmp_path, monkeypatch):  # noqa: F811
    if not real_model:
        pytest.skip("needs the real model")
    check_run(nb, real_model, tmp_path, monkeypatch)
