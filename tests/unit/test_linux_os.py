"""The stand-in for `os`: what it has of its own does what `os` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nagaya.linux import os as ours

PATHS = (
    "",
    "/",
    "//",
    "a",
    "/a",
    "a/",
    "/a/",
    "/a//b",
    "a/../b",
    "/..",
    "../x/./y/",
    "/a/b/../../..",
    ".",
    "é/\udcff",
)


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_taken_apart_as_by_the_standard_module(path: str) -> None:
    assert ours.dirname(path) == os.path.dirname(path)
    if not path.startswith("//"):  # POSIX leaves two slashes to the system, and Linux takes them for one
        assert ours.abspath(path) == os.path.abspath(path)
    assert ours.fsencode(path) == os.fsencode(path)
    assert ours.fsdecode(os.fsencode(path)) == path


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "dangling").symlink_to("nothing")
    ours.makedirs(str(tmp_path / "directory" / "a" / "b"), 0o700)
    assert (tmp_path / "directory" / "a" / "b").stat().st_mode & 0o777 == 0o700
    for name in ("file", "link", "dangling", "directory", "nothing", "file/below", "nul\0"):
        path = str(tmp_path / name)
        assert ours.exists(path) == os.path.exists(path)
        assert ours.isdir(path) == os.path.isdir(path)
    for path in (str(tmp_path / "link" / ".." / "file"), str(tmp_path / "link" / "a")):
        assert ours.realpath(path) == os.path.realpath(path)
    with pytest.raises(FileNotFoundError):
        ours.realpath(str(tmp_path / "dangling"))
    ours.makedirs(str(tmp_path / "link" / "a"), exist_ok=True)
    for taken in ("file", "directory"):
        with pytest.raises(FileExistsError):
            ours.makedirs(str(tmp_path / taken), exist_ok=taken == "file")


def test_a_program_is_looked_for_as_by_the_standard_module(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "program").write_text("not executable")
    (tmp_path / "second").mkdir()
    program = tmp_path / "second" / "program"
    program.write_text('#!/bin/sh\necho "$1"\n')
    program.chmod(0o755)
    code = "from nagaya.linux import os; os.execvp('program', ['program', 'found'])"
    source = str(Path(ours.__file__).parents[2])
    environment = {"PATH": f"/nothing:{tmp_path}/first:{tmp_path}/second", "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "found\n", done.stderr
    environment["PATH"] = str(tmp_path / "first")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "FileNotFoundError" in done.stderr
