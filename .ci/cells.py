"""Runs the code cells of a notebook in IPython, as Colab does; with --install the block of its text that installs.

python .ci/cells.py NOTEBOOK [--install]
"""

import json
import os
import re
import sys
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell

notebook = Path(sys.argv[1]).resolve()
cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
if "--install" in sys.argv:
    text = "\n".join("".join(cell["source"]) for cell in cells)
    sources = [block for block in re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S) if "%pip install" in block]
else:
    os.chdir(notebook.parent)
shell = InteractiveShell.instance()
for source in sources:
    shell.run_cell(source, store_history=False).raise_error()
