"""Moving bytes through pipes without reading them: splice(2), tee(2), and pipe facts (pipe(7))."""

from __future__ import annotations

from _struct import unpack
from errno import EAGAIN, EINTR
from fcntl import ioctl

from nagaya.errors import KernelError
from nagaya.linux import os
from nagaya.linux.ffi import try_syscall

SPLICE_F_MOVE = 1
SPLICE_F_NONBLOCK = 2
FIONREAD = 0x541B  # asm-generic/ioctls.h


def tee(source: int, target: int, length: int) -> int:
    """tee(2): duplicate up to length bytes from pipe to pipe without consuming them.

    Returns 0 when the source is empty. Raises KernelError.
    """
    while True:
        count, error = try_syscall("tee", source, target, length, SPLICE_F_NONBLOCK)
        if not error:
            return count
        if error == EAGAIN:
            return 0
        if error != EINTR:
            raise KernelError(os.strerror(error).lower(), step="tee", errno=error)


def pending(fd: int) -> int:
    """How many bytes wait in a pipe or terminal (FIONREAD)."""
    count: int = unpack("=i", ioctl(fd, FIONREAD, bytes(4)))[0]
    return count
