"What all tests share: no network, and the real model only where it already is"

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run two at a time
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub, which reads it once


@pytest.fixture(scope="session")
def real_model() -> Path | None:  # the folder that `smollm2()` returns without a download, or None
    from ft_notebooks.models import _cache, smollm2

    return smollm2() if (_cache() / "SmolLM2-135M-Instruct").is_dir() else None


@pytest.fixture(autouse=True)
def _skip_without_the_real_model(request):
    if request.node.get_closest_marker("smol") and not request.getfixturevalue("real_model"):
        pytest.skip('needs the real model: python -c "from ft_notebooks.models import smollm2; smollm2()"')


@pytest.fixture(autouse=True, scope="module")
def _old_objects_are_no_garbage():
    "A trainer begins with `gc.collect()`, which would look at half a million objects of the libraries: longer than it trains."
    gc.collect()
    gc.freeze()
