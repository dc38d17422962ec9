"The memory of a training step is estimated once for all processes of a test run: it simulates the step, half a second."

import hashlib
import os
import pickle
import sys
from pathlib import Path

FOLDER = "FT_TEST_ESTIMATES"  # the environment variable that names it


class Shared(dict):
    "The estimates of a process, and those that others have written into the folder; once cleared, of it alone."

    def __init__(self, folder: Path, known: dict):
        super().__init__(known)
        self.folder = folder

    def __contains__(self, key: str) -> bool:
        if not super().__contains__(key) and self.folder and (file := self._file(key)).is_file():
            super().__setitem__(key, pickle.loads(file.read_bytes()))
        return super().__contains__(key)

    def __setitem__(self, key: str, memory) -> None:
        super().__setitem__(key, memory)
        if self.folder:
            part = self._file(f"{os.getpid()} {key}")
            part.write_bytes(pickle.dumps(memory))
            part.rename(self._file(key))  # whole, or not there

    def clear(self) -> None:
        super().clear()
        self.folder = None

    def _file(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()


def share() -> None:
    "From now on, in this process and its forks, where the estimates are imported and the folder is there."
    folder, module = os.environ.get(FOLDER), sys.modules.get("ft_notebooks.loading.training_memory")
    if folder and Path(folder).is_dir() and module and type(module._ESTIMATES) is dict:
        module._ESTIMATES = Shared(Path(folder), module._ESTIMATES)
