"The sdist and the wheel, built from what a commit would hold, and an environment that has the wheel."

import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IGNORED = [  # what lies in a folder that somebody works in
    "build/lib/old.py",
    "ft_notebooks/__pycache__/x.cpython-311.pyc",
    "nbs/.ipynb_checkpoints/00-checkpoint.ipynb",
    "nbs/runs/course/adapter_model.safetensors",
    "nbs/solutions/runs/sft/manifest.json",
    "benchmarks/course/runs/rates/log.json",
    "tests/__pycache__/conftest.cpython-311.pyc",
    "tests/.hypothesis/examples",
    ".nb/00_first_fine_tune.py",
    ".venv/bin/python",
    ".pytest_cache/README.md",
    "runs/demo/manifest.json",
    "gpu_check/table.md",
]


def build(files, source, to):
    """Writes both to the folder `to`, the wheel made from the sdist, from a copy of the files in `source`.

    Beside them lie files that git ignores. The build takes the setuptools of this environment: in one of its own it
    would download it.
    """
    for file in [*files, *map(ROOT.joinpath, IGNORED)]:
        copy = source / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy) if file in files else copy.write_text("ignored")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", to, source]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


class Installed:
    """An environment that has the wheel, without git and without a compiler.

    The libraries are those of this environment: its folder is read after that of the wheel, without its `.pth` files,
    so that an editable install is not seen.
    """

    def __init__(self, wheel, place):
        venv.create(place, symlinks=True)
        self.place = place
        self.bin = place / "bin"
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python"]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
        [packages] = place.glob("lib/python*/site-packages")
        libraries = [path for path in [*site.getsitepackages(), site.getusersitepackages()] if Path(path).is_dir()]
        (packages / "libraries.pth").write_text("\n".join(libraries))

    def run(self, folder, *words, code=0, stdin="", path=""):
        "What the program prints in this folder; `path` has folders of other programs."
        kept = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "FT_NOTEBOOKS_CACHE", "HOME")
        env = {name: os.environ[name] for name in kept if name in os.environ} | {"PATH": f"{self.bin}{path}"}
        program = folder / words[0] if "/" in words[0] else shutil.which(words[0], path=env["PATH"])
        done = subprocess.run([program, *words[1:]], cwd=folder, env=env, input=stdin, capture_output=True, text=True)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout
