"""Making sure that what was written is on the disk: syncfs(2)."""

from __future__ import annotations

from nagaya.linux.ffi import syscall


def syncfs(fd: int) -> None:
    """syncfs(2): everything of fd's file system is on its disk, or KernelError (also for earlier
    write-back errors, Linux >= 5.8)."""
    syscall("syncfs", fd)
