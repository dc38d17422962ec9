"""An error below `%%capture` is an error: IPython alone writes its traceback into what is captured, and goes on.

`python tools/captured.py NOTEBOOK ...` is `nbdev_test` with that.
"""

from functools import wraps

from IPython.core.magics.execution import ExecutionMagics

_capture = ExecutionMagics.capture


@wraps(_capture)  # with what IPython keeps on it: the parser of its arguments
def _raising(self, line, cell):
    ran = []
    self.shell.events.register("post_run_cell", ran.append)
    try:
        _capture(self, line, cell)
    finally:
        self.shell.events.unregister("post_run_cell", ran.append)
    for result in ran:
        result.raise_error()


def raise_errors():
    "From now on, in this process."
    ExecutionMagics.capture = _raising


if __name__ == "__main__":
    from nbdev.test import nbdev_test

    raise_errors()
    nbdev_test()
