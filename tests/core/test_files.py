"Edges of `ft_notebooks.core.files`: which folder and which name the unfinished file has."

import os

from ft_notebooks.core.files import write_atomically


def test_a_file_is_replaced_from_its_own_folder_so_that_the_rename_stays_on_one_disk(tmp_path, monkeypatch):
    moves, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda part, path: moves.append((part, path)) or replace(part, path))
    write_atomically(tmp_path / "a", "one")
    write_atomically(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two" and [p.name for p in tmp_path.iterdir()] == ["a"]
    assert all(part.parent == tmp_path and part.name.startswith(".") and path.name == "a" for part, path in moves)
    assert len(moves) == 2


def test_two_processes_do_not_write_the_same_part(tmp_path, monkeypatch):
    parts = []
    monkeypatch.setattr(os, "replace", lambda part, path: parts.append(part))
    for pid in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda: pid)
        write_atomically(tmp_path / "a", "text")
    assert len(set(parts)) == 2
