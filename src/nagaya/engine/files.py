"""Small files the engine writes on the host for a container."""

from __future__ import annotations

import os


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a small file in place: a running container has it mounted, so its inode must stay."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
