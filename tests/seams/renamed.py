"""Runs a script with one name of the libraries renamed throughout, as it would run with a release that renames it.

`python tests/seams/renamed.py NAME SCRIPT ARGUMENT...` changes the source of transformers, trl, peft and accelerate
while it is imported: code, strings and comments alike. `--torch` before the name changes that of torch too, but for
what torch has in C. `--trainers` changes only a method of the trainers, where the name is also a common word, such as
`train`. Nothing is written to the disk. The exit code is 3 where the name occurs in nothing that was imported.
"""

import importlib.util
import io
import linecache
import re
import runpy
import sys
from importlib.machinery import PathFinder, SourceFileLoader

STACK = ("transformers", "trl", "peft", "accelerate")
ABSENT = 3  # the exit code for a name that was not there to be renamed
READS_ITSELF = "transformers.utils.import_utils"  # it looks for public names in source files, beside importing them


class Renaming:
    "A finder of modules, before Python's own, whose modules have the name renamed in their source."

    def __init__(self, name: str, libraries: tuple[str, ...], *, trainers: bool):
        method = r"(?:(?<=def )|(?<=self\.)|(?<=super\(\)\.)|(?<=trainer\.))"
        self.name, self.libraries, self.count = name, libraries, 0
        self.word = re.compile(rf"{method if trainers else ''}\b{re.escape(name)}\b")
        self.place = re.compile("trainer" if trainers else "")  # in the path of a file

    def changed(self, path: str, text: str) -> str:
        if self.name not in text:  # quicker than the pattern, in some thousand files
            return text
        return self.word.sub(f"{self.name}_renamed", text) if self.place.search(path) else text

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in self.libraries:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Changed(self, fullname, spec.loader.path)
        return spec


class Changed(SourceFileLoader):
    "Compiles the changed text, where there is a change, and keeps it in memory."

    def __init__(self, renaming: Renaming, fullname: str, path: str):
        super().__init__(fullname, path)
        self.renaming = renaming

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        text = importlib.util.decode_source(self.get_data(path))
        changed = self.renaming.changed(path, text)
        if changed == text:
            return super().get_code(fullname)  # as it was compiled before
        self.renaming.count += 1
        linecache.cache[path] = len(changed), None, changed.splitlines(True), path  # what `inspect` shows
        return compile(changed, path, "exec", dont_inherit=True)

    def exec_module(self, module):
        if module.__name__ == READS_ITSELF:
            module.open = self.open
        super().exec_module(module)

    def open(self, path, *args, **kwargs):
        file = open(path, *args, **kwargs)
        if not str(path).endswith(".py"):
            return file
        with file:
            return io.StringIO(self.renaming.changed(str(path), file.read()))


def main(arguments: list[str]) -> None:
    options = {argument for argument in arguments[:2] if argument in ("--torch", "--trainers")}
    name, script, *rest = arguments[len(options) :]
    libraries = (*STACK, "torch") if "--torch" in options else STACK
    renaming = Renaming(name, libraries, trainers="--trainers" in options)
    sys.meta_path.insert(0, renaming)
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")
    if not renaming.count:
        sys.stdout.flush()
        print(f"{name} occurs in no module of {', '.join(libraries)} that was imported", file=sys.stderr)
        sys.exit(ABSENT)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main(sys.argv[1:])
