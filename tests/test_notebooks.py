"""Every notebook runs: one `nbdev_test` over the selected ones, in parallel, reported as one pytest test each.

`pytest -k tokenizer` runs that notebook only. NB_FLAGS="smol gpu" says which flagged cells run; without it the
cells flagged `smol` run where the real model is in the cache.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBDEV_TEST = """
import gc, os, sys
if not os.path.exists("/dev/nvidiactl"):  # what has opened a GPU cannot be forked
    import bitsandbytes, datasets, peft, torch, transformers, trl
    from trl import DPOTrainer, SFTTrainer
    gc.collect()
    gc.freeze()
from nbdev.test import nbdev_test
nbdev_test(do_print=True, flags=sys.argv[1], file_re=sys.argv[2])
"""  # `nbdev_test` from a process that its workers are forked from: they need not import the libraries once more
NBS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if p.name[0] not in "_.")


@pytest.fixture(scope="session")
def run(request, real_model, tmp_path_factory):
    chosen = [i.callspec.params["nb"] for i in request.session.items if getattr(i, "originalname", "") == "test_runs"]
    names = "|".join(re.escape(nb.name) for nb in chosen)
    flags = os.environ.get("NB_FLAGS", "smol" if real_model else "")
    env = {"IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    cmd = [sys.executable, "-c", NBDEV_TEST, flags, f"^({names})$"]
    return subprocess.run(cmd, cwd=ROOT, env=env, capture_output=True, text=True)


def test_there_are_notebooks():
    assert NBS


@pytest.mark.parametrize("nb", NBS, ids=lambda nb: nb.stem)
def test_runs(nb, run):
    out, err = run.stdout, run.stderr
    failed, _, names = err.rpartition("nbdev Tests Failed On The Following Notebooks")
    if not ("Success." in out if run.returncode == 0 else failed):
        pytest.fail(f"nbdev_test died with {run.returncode}\n{out[-2000:]}{err[-6000:]}", pytrace=False)
    if run.returncode and re.search(rf"^\t{re.escape(nb.name)}$", names, flags=re.M):
        blocks = re.split(r"(?m)^(?=\w+ in \S+\.ipynb:$)", failed)
        mine = [block for block in blocks if block.split("\n", 1)[0].endswith(f"{nb}:")]
        pytest.fail("".join(mine)[:8000] or err[-8000:], pytrace=False)
    if f"- Completed {nb}" not in out:
        pytest.skip("the notebook says skip_exec")
