"""Runs the code cells of a notebook in IPython, as Colab does; with --install the block of its text that installs.

python .ci/cells.py NOTEBOOK [--install] [--report FILE.xml]

FILE.xml says which cell failed, in the form of pytest's reports: tools/broken_claims.py reads it.
"""

import argparse
import json
import os
import re
import traceback
from pathlib import Path
from xml.etree import ElementTree as xml

from IPython.core.interactiveshell import InteractiveShell

parser = argparse.ArgumentParser()
parser.add_argument("notebook")
parser.add_argument("--install", action="store_true")
parser.add_argument("--report", type=Path)
args = parser.parse_args()
notebook, report = Path(args.notebook).resolve(), args.report and args.report.resolve()
cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
sources = [(number, "".join(cell["source"])) for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
if args.install:
    text = "\n".join("".join(cell["source"]) for cell in cells)
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S)
    sources = [(0, block) for block in blocks if "%pip install" in block]
else:
    os.chdir(notebook.parent)


def write(number, error):
    case = xml.Element("testcase", classname="cells", name=args.notebook)
    said = re.sub(r"[^\n -\uffff]", "", "".join(traceback.format_exception(error)))  # XML takes no control characters
    known = {"notebook": args.notebook, "cell": str(number), "error": said}
    properties = xml.SubElement(case, "properties")
    for name, value in known.items():
        xml.SubElement(properties, "property", name=name, value=value)
    xml.SubElement(case, "failure", message=type(error).__name__)
    report.write_bytes(xml.tostring(case))


shell = InteractiveShell.instance()
for number, source in sources:
    done = shell.run_cell(source, store_history=False)
    if report and not done.success:
        write(number, done.error_before_exec or done.error_in_exec)
    done.raise_error()
