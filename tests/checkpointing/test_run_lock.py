"A lock of another user can only be read, and excludes all the same."

import fcntl
import os

import pytest

from ft_notebooks.checkpointing import run_lock
from ft_notebooks.checkpointing.run_lock import lock_run


def test_a_lock_that_can_only_be_read_excludes_while_it_is_held_and_is_taken_when_it_is_left(tmp_path, monkeypatch):
    def refused(self, *args, **kwargs):
        raise PermissionError("of another user")

    monkeypatch.setattr(run_lock.FileLock, "acquire", refused)
    (tmp_path / "complete.json").write_text("{}")  # which lets a reader in, but never beside a run
    lock = tmp_path / ".running.lock"
    lock.touch()
    handle = os.open(lock, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="is being trained by another process"):
        with lock_run(tmp_path):
            pass
    os.close(handle)
    with lock_run(tmp_path):
        assert (tmp_path / ".running.json").is_file()


def test_the_lock_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        with lock_run(tmp_path):
            assert (tmp_path / ".running.lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
