"""One daemon per root: a lock that the kernel gives back whatever way the process ends, and the pid file."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from nagaya.errors import FailedPrecondition, KernelError


def take(path: str) -> int:
    """Lock the file at path, making it; returns its fd. Raises FailedPrecondition when another
    process has it, naming that process."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(
            os.strerror(error.errno or 0).lower(), subject=path, step=f"open {path}", errno=error.errno or 0
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise FailedPrecondition(
            f"another nagayad{f' (process {holder})' if holder else ''} works on {os.path.dirname(path)}",
            subject=path,
        ) from None
    with suppress(OSError):  # a full disk: it only says who has the lock
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def write_pid(path: str) -> None:
    """Write our pid: whole, or not at all."""
    part = f"{path}.{os.getpid()}"
    with open(part, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    os.replace(part, path)


def remove_pid(path: str) -> None:
    """Delete the pid file if it is ours."""
    with suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            ours = int(file.read()) == os.getpid()
        if ours:
            os.unlink(path)
