"""A cell that fails below `%%capture` fails its notebook, and is named."""

import nbformat
import pytest
from notebook_runs import failing_cell, run


def notebook(folder, *sources):
    file = folder / "planted.ipynb"
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    return file


@pytest.mark.whole
def test_an_error_below_capture_ends_the_run(tmp_path):
    file = notebook(tmp_path, "1 + 1", "%%capture\nprint('lost')\n1 / 0", "2 + 2")
    assert run(file, "", tmp_path / "log") != 0
    cell, traceback = failing_cell((tmp_path / "log").read_text())
    assert cell == 1 and "ZeroDivisionError" in traceback


@pytest.mark.whole
def test_what_is_captured_can_be_read(tmp_path):
    file = notebook(tmp_path, "%%capture said\nprint('kept')", "assert said.stdout == 'kept\\n'")
    assert run(file, "", tmp_path / "log") == 0
