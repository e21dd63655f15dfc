"""Small files the engine writes on the host for a container."""

from __future__ import annotations

import os
from contextlib import suppress

from nagaya.image import trees
from nagaya.image.content import disk_error


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a small file in place: a running container has it mounted, so its inode must stay.
    Raises ResourceExhausted when the disk is full, KernelError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            left = memoryview(text.encode())
            while left:  # the last of a disk's room takes a part
                left = left[os.write(fd, left) :]
        finally:
            os.close(fd)
    except OSError as error:
        raise disk_error(error, f"write {path}", path) from None


def touch(path: str) -> None:
    """Make a file, or find it there. Raises ResourceExhausted, KernelError."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640))
    except OSError as error:
        raise disk_error(error, f"open {path}", path) from None


def make_directory(path: str, mode: int) -> None:
    """Make it and what is missing above, or find it there. Raises ResourceExhausted, KernelError."""
    try:
        os.makedirs(path, mode, exist_ok=True)
    except OSError as error:
        raise disk_error(error, f"make directory {path}", path) from None


def remove(path: str) -> None:
    """Delete a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def remove_flat(directory: str) -> None:
    """Delete a directory of ours that has only files in it. May be repeated."""
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


def remove_tree(path: str) -> None:
    """Delete a tree whose content is a stranger's, if it is there. Raises what `trees.remove` does."""
    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        trees.remove(parent, os.path.basename(path))
    finally:
        os.close(parent)
