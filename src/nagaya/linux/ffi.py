"""The one seam to the kernel: `syscall(number, *arguments)`, over `_ctypes` alone.

`import ctypes` costs about 8 ms of start-up, `_ctypes` under one (docs/design.md, "Python's
start-up is the enemy"). Every call that `os` and `posix` lack goes through `syscall`, so a test
replaces it by a recorder (`record`) and sees, without root, what would have been done.

Arguments may be int, bytes (address of a NUL-terminated buffer), a `Buffer`, or None (NULL).
"""

from __future__ import annotations

from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    Array,
    CFuncPtr,
    _SimpleCData,
    dlopen,
    get_errno,
)

from nagaya.errors import KernelError
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Argument = int | bytes | Array[Any] | None


class _CLong(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _CPointer(_SimpleCData):  # type: ignore[type-arg]
    # accepts int, bytes, arrays and None: one function pointer serves every system call
    _type_ = "P"


class _CChar(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "c"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _CLong


class _Libc:
    _handle = dlopen(None, 0)  # type: ignore[arg-type]  # NULL: the program itself, which has libc


_syscall: Any = _Function(("syscall", _Libc()))  # type: ignore[arg-type]
_syscall.argtypes = (_CLong,) + (_CPointer,) * 6

_PADDING = (0,) * 6  # syscall(2) reads six registers whatever the call takes

_recorder: Callable[[str, tuple[Argument, ...]], int] | None = None

# Numbers of the calls that Python's os module lacks: asm/unistd_64.h and asm-generic/unistd.h.
# From 424 on both tables agree.
_COMMON = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "set_mempolicy_home_node": 450,
}
_X86_64 = {
    "rt_sigaction": 13,
    "ioctl": 16,
    "clone": 56,
    "personality": 135,
    "pivot_root": 155,
    "prctl": 157,
    "capget": 125,
    "capset": 126,
    "mount": 165,
    "umount2": 166,
    "sethostname": 170,
    "setdomainname": 171,
    "set_mempolicy": 238,
    "keyctl": 250,
    "ioprio_set": 251,
    "unshare": 272,
    "tee": 276,
    "sched_setaffinity": 203,
    "setns": 308,
    "syncfs": 306,
    "sched_setattr": 314,
    "seccomp": 317,
    "signalfd4": 289,
    "bpf": 321,
    "setgroups": 116,
    "setresuid": 117,
    "setresgid": 119,
    "setfsuid": 122,
    "setfsgid": 123,
    "inotify_init1": 294,
    "inotify_add_watch": 254,
    "inotify_rm_watch": 255,
    "memfd_create": 319,
    "prlimit64": 302,
    "execveat": 322,
    "renameat2": 316,
    "quotactl": 179,
    "name_to_handle_at": 303,
    "statx": 332,
    "fstatfs": 138,
}
_AARCH64 = {
    "rt_sigaction": 134,
    "ioctl": 29,
    "clone": 220,
    "personality": 92,
    "pivot_root": 41,
    "prctl": 167,
    "capget": 90,
    "capset": 91,
    "mount": 40,
    "umount2": 39,
    "sethostname": 161,
    "setdomainname": 162,
    "set_mempolicy": 237,
    "keyctl": 219,
    "ioprio_set": 30,
    "unshare": 97,
    "tee": 77,
    "sched_setaffinity": 122,
    "setns": 268,
    "syncfs": 267,
    "sched_setattr": 274,
    "seccomp": 277,
    "signalfd4": 74,
    "bpf": 280,
    "setgroups": 159,
    "setresuid": 147,
    "setresgid": 149,
    "setfsuid": 151,
    "setfsgid": 152,
    "inotify_init1": 26,
    "inotify_add_watch": 27,
    "inotify_rm_watch": 28,
    "memfd_create": 279,
    "prlimit64": 261,
    "execveat": 281,
    "renameat2": 276,
    "quotactl": 60,
    "name_to_handle_at": 264,
    "statx": 291,
    "fstatfs": 44,
}
_BY_MACHINE = {"x86_64": _X86_64, "aarch64": _AARCH64}
NUMBERS: dict[str, int] = {**_COMMON, **_BY_MACHINE.get(os.uname().machine, {})}


def buffer(size_or_data: int | bytes) -> Any:
    """A writable C buffer: of that many zero bytes, or holding a copy of the bytes. `.raw`-like
    reading is `bytes(buf)`."""
    data = bytearray(size_or_data)
    kind = type("Buffer", (Array,), {"_type_": _CChar, "_length_": len(data)})
    return kind.from_buffer(data)  # type: ignore[attr-defined]


def try_syscall(name: str, *arguments: Argument) -> tuple[int, int]:
    """Make the system call; return (result, errno), errno 0 when it did not fail."""
    if _recorder is not None:
        return _recorder(name, arguments), 0
    number = NUMBERS.get(name)
    if number is None:
        raise KernelError(f"system call {name} is not known on {os.uname().machine}", step=name, errno=38)
    result: int = _syscall(number, *arguments, *_PADDING[len(arguments) :])
    return (result, get_errno()) if result == -1 else (result, 0)


def syscall(name: str, *arguments: Argument, subject: str = "") -> int:
    """Make the system call; return its result.

    Raises KernelError with errno, and a step naming the call and `subject`.
    """
    result, error = try_syscall(name, *arguments)
    if error:
        raise KernelError(
            os.strerror(error).lower(),
            subject=subject,
            step=f"{name} {subject}" if subject else name,
            errno=error,
        )
    return result


class record:
    """Context manager for tests: no system call is made, `calls` lists what would have been.

    answer(name, arguments) -> result may be given; else every call returns 0.
    """

    def __init__(self, answer: Callable[[str, tuple[Argument, ...]], int] | None = None) -> None:
        self.calls: list[tuple[str, tuple[Argument, ...]]] = []
        self._answer = answer

    def __enter__(self) -> record:
        global _recorder

        def recorder(name: str, arguments: tuple[Argument, ...]) -> int:
            self.calls.append((name, arguments))
            return self._answer(name, arguments) if self._answer else 0

        _recorder = recorder
        return self

    def __exit__(self, *exc: object) -> None:
        global _recorder
        _recorder = None

    def __iter__(self) -> Iterator[tuple[str, tuple[Argument, ...]]]:
        return iter(self.calls)
