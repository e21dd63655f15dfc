"""Answering system calls of another process (seccomp_unotify(2)): the listener of a filter that asks."""

from __future__ import annotations

import errno
from _struct import pack, unpack_from

from nagaya.errors import KernelError
from nagaya.linux.ffi import buffer, syscall, try_syscall

_RECEIVE, _ADD_FD = 0xC0502100, 0x40182103  # _IOWR('!', 0, seccomp_notif), _IOW('!', 3, seccomp_notif_addfd)
_AND_ANSWER = 2  # SECCOMP_ADDFD_FLAG_SEND: the descriptor is the call's result (Linux 5.14)


class Call:
    """A system call that waits for its answer: its thread, number and arguments."""

    __slots__ = ("arguments", "id", "number", "pid")

    def __init__(self, identifier: int, pid: int, number: int, arguments: tuple[int, ...]) -> None:
        self.id = identifier
        self.pid = pid
        self.number = number
        self.arguments = arguments


def receive(listener: int) -> Call | None:
    """The next call; None when its process has died meanwhile. Waits: poll the listener first. Raises
    KernelError."""
    data = buffer(bytes(80))  # must be zeros
    _, number = try_syscall("ioctl", listener, _RECEIVE, data)
    if number == errno.ENOENT:
        return None
    if number:
        raise KernelError("no call can be received", step="seccomp notify", errno=number)
    raw = bytes(data)
    identifier, pid = unpack_from("=QI", raw)
    return Call(identifier, pid, unpack_from("=i", raw, 16)[0], unpack_from("=6Q", raw, 32))


def answer_with_fd(listener: int, call: Call, fd: int, *, cloexec: bool = True) -> None:
    """The call's result is a duplicate of our descriptor. Raises KernelError, also when the process has
    died meanwhile."""
    o_cloexec = 0o2000000 if cloexec else 0
    request = buffer(pack("=QIIII", call.id, _AND_ANSWER, fd, 0, o_cloexec))
    syscall("ioctl", listener, _ADD_FD, request, subject=str(fd))
