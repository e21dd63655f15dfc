"""Small files the engine writes on the host for a container."""

from __future__ import annotations

import os
from contextlib import suppress


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a small file in place: a running container has it mounted, so its inode must stay."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


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
