"What each process does that a test, a notebook or a launcher forks from one that has imported torch"

import os
import sys


def renew_threads() -> None:
    """In every fork from now on, its main thread replaces torch's pool of threads before others can.

    The first call of `at::set_num_threads` after a fork releases the pool of the process that forked. Two threads that
    call it at once, as those of transformers that load a model's weights do, fail now and then: the second gets a null
    pointer while the first releases ("pool INTERNAL ASSERT FAILED at ParallelOpenMP.cpp: Invalid thread pool!").
    """
    os.register_at_fork(after_in_child=_renewed)


def _renewed():
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())
