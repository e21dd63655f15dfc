"""Namespaces and processes: clone3(2), unshare(2), setns(2), pidfd (namespaces(7), pidfd_open(2))."""

from __future__ import annotations

from _ctypes import addressof
from _struct import pack, unpack_from

from nagaya.linux import os
from nagaya.linux.ffi import buffer, syscall, try_syscall

CLONE_NEWTIME = 0x80
CLONE_VM = 0x100
CLONE_PIDFD = 0x1000
CLONE_VFORK = 0x4000
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

SIGCHLD = 17


def clone3(flags: int, *, exit_signal: int = SIGCHLD, cgroup: int = 0) -> tuple[int, int]:
    """clone3(2) without a new stack, as fork(2) does it.

    Returns (0, -1) in the child; (pid, pidfd) in the parent, pidfd -1 without CLONE_PIDFD.
    Python's after-fork hooks do not run: call it from a single-threaded process whose child
    soon execs. With CLONE_PARENT the exit signal must be 0 (the kernel uses the caller's).
    """
    slot = buffer(4)
    if flags & CLONE_PARENT:
        exit_signal = 0
    arguments = pack("=11Q", flags, addressof(slot), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup)
    pid = syscall("clone3", arguments, len(arguments))
    if pid == 0:
        return 0, -1
    return pid, unpack_from("=i", bytes(slot))[0] if flags & CLONE_PIDFD else -1


def unshare(flags: int) -> None:
    """unshare(2)."""
    syscall("unshare", flags, subject=hex(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2): join the namespace(s) of an open /proc/PID/ns/X, pin file, or pidfd."""
    syscall("setns", fd, flags, subject=hex(flags))


_PIDFD_GET_INFO = 0xC0000000 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, struct pidfd_info), size or'ed in
_PIDFD_INFO_EXIT = 1 << 3
_INFO_SIZE = 72


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of another process's descriptor, close-on-exec (pidfd_getfd(2)). Raises KernelError."""
    return syscall("pidfd_getfd", pidfd, fd, 0, subject=str(fd))


def pidfd_exit_status(pidfd: int) -> int | None:
    """The wait status of an exited and reaped process that we are not the parent of.

    PIDFD_GET_INFO with PIDFD_INFO_EXIT (Linux >= 6.15, include/uapi/linux/pidfd.h).
    Returns None when it has not been reaped yet or the kernel cannot tell.
    """
    info = buffer(pack("=Q", _PIDFD_INFO_EXIT) + bytes(_INFO_SIZE - 8))
    _, error = try_syscall("ioctl", pidfd, _PIDFD_GET_INFO | _INFO_SIZE << 16, info)
    if error:
        return None
    mask, status = unpack_from("=Q", bytes(info))[0], unpack_from("=i", bytes(info), 64 - 4)[0]
    return status if mask & _PIDFD_INFO_EXIT else None


def close_range(first: int, last: int = 0xFFFFFFFF, *, cloexec: bool = False) -> None:
    """close_range(2): close, or mark close-on-exec, every fd from first to last."""
    syscall("close_range", first, last, 4 if cloexec else 0)


def sethostname(name: str) -> None:
    """sethostname(2)."""
    data = os.fsencode(name)
    syscall("sethostname", data, len(data), subject=name)


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    data = os.fsencode(name)
    syscall("setdomainname", data, len(data), subject=name)
