"""What a process can change about itself: prctl(2), personality(2), prlimit(2), keyrings, signals,
and the plain clone(2) that seccomp profiles allow where they refuse clone3."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
from _ctypes import addressof
from _struct import pack, unpack

from nagaya.linux import os
from nagaya.linux.ffi import buffer, syscall, try_syscall
from nagaya.linux.namespaces import CLONE_PIDFD
from nagaya.linux.pids import SIGRTMAX

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# asm-generic/resource.h (x86 and arm64 use the generic numbers)
RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}


def prctl(option: int, argument: int = 0, *, subject: str = "") -> int:
    """prctl(2). Raises KernelError."""
    return syscall("prctl", option, argument, 0, 0, 0, subject=subject)


def set_name(name: str) -> None:
    """What ps shows of this process, 15 bytes of it at most (prctl(2), PR_SET_NAME)."""
    syscall("prctl", PR_SET_NAME, name.encode(), 0, 0, 0, subject="name")


def set_no_new_privs() -> None:
    """No exec of this process gains privileges any more (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, subject="no_new_privs")


def set_keep_caps(keep: bool) -> None:
    """Keep the permitted set over a change of user ids."""
    prctl(PR_SET_KEEPCAPS, int(keep), subject="keepcaps")


def set_dumpable(dumpable: bool) -> None:
    """May others of the same user read this process (ptrace(2), /proc/PID)?"""
    prctl(PR_SET_DUMPABLE, int(dumpable), subject="dumpable")


def set_child_subreaper(on: bool) -> None:
    """Orphaned descendants become our children."""
    prctl(PR_SET_CHILD_SUBREAPER, int(on), subject="child_subreaper")


def clone(flags: int) -> tuple[int, int]:
    """Plain clone(2) without a new stack, exit signal SIGCHLD: (0, -1) in the child, (pid, pidfd) in
    the parent, pidfd -1 without CLONE_PIDFD.

    No after-fork hook of Python runs (see namespaces.clone3).
    """
    slot = buffer(4)
    pid = syscall("clone", flags | _signal.SIGCHLD, 0, addressof(slot), 0, 0)
    return pid, unpack("=i", bytes(slot))[0] if pid and flags & CLONE_PIDFD else -1


def set_rlimit(kind: int, soft: int, hard: int, *, pid: int = 0, subject: str = "") -> None:
    """prlimit(2); pid 0 is this process. Raises KernelError(EPERM) when hard is raised without
    CAP_SYS_RESOURCE."""
    top = 0xFFFFFFFFFFFFFFFF
    syscall("prlimit64", pid, kind, pack("=QQ", soft & top, hard & top), None, subject=subject)


def get_rlimit(kind: int) -> tuple[int, int]:
    """(soft, hard) of this process; RLIM_INFINITY is 2**64 - 1."""
    data = buffer(16)
    syscall("prlimit64", 0, kind, None, data)
    soft, hard = unpack("=QQ", bytes(data))
    return soft, hard


def personality(persona: int) -> int:
    """personality(2); returns the former one."""
    return syscall("personality", persona, subject=hex(persona))


_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL_SETPERM = 5
_KEYRING_PERMISSIONS = 0x3F1B0000 | 0x00080000  # possessor all, user view/read/search/link + search


def join_session_keyring(name: str) -> bool:
    """A new session keyring (keyctl(2)); False where the kernel, or a filter, has none."""
    key, error = try_syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, os.fsencode(name))
    if error in (1, 38):  # EPERM of an outer seccomp profile, ENOSYS
        return False
    if error:
        syscall("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, os.fsencode(name), subject=name)
    try_syscall("keyctl", _KEYCTL_SETPERM, key, _KEYRING_PERMISSIONS)
    return True


def signalfd(numbers: list[int]) -> int:
    """Block these signals, to be read from the descriptor that is returned (signalfd(2)): `arrived` takes
    what was read apart. Close-on-exec, non-blocking. Raises KernelError."""
    mask = sum(1 << number - 1 for number in numbers)
    fd = syscall("signalfd4", -1, pack("=Q", mask), 8, os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers)
    return fd


def arrived(data: bytes) -> list[int]:
    """The numbers of signals read from a signalfd (pure): struct signalfd_siginfo has 128 bytes."""
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 128)]


def reset_signals() -> None:
    """Default dispositions and an empty mask, as a new program expects: Python ignores SIGPIPE and
    SIGXFSZ, a caller (nohup) may ignore more, and exec(2) would hand both on."""
    for number in (32, 33):  # the C library keeps these to itself (nptl(7)), and hands them on as they are
        try_syscall("rt_sigaction", number, bytes(32), None, 8)  # a struct sigaction of SIG_DFL
    for number in range(1, SIGRTMAX + 1):
        if number in (9, 19, 32, 33):
            continue
        try:
            if _signal.getsignal(number) != _signal.SIG_DFL:
                _signal.signal(number, _signal.SIG_DFL)
        except (OSError, ValueError):
            continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
