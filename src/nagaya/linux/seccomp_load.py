"""Loading a compiled filter (seccomp(2)): without the compiler, which is big and runs elsewhere."""

from __future__ import annotations

from _ctypes import addressof
from _struct import pack

from nagaya.linux.ffi import buffer, syscall

FLAG_NEW_LISTENER = 8


def load(program: bytes, flags: int = 0) -> int:
    """seccomp(2) SECCOMP_SET_MODE_FILTER: filter the calling thread from now on, for good.

    It needs no_new_privs or CAP_SYS_ADMIN. Returns the listener's fd with FLAG_NEW_LISTENER
    (close-on-exec), else -1. Raises KernelError.
    """
    filters = buffer(program)
    header = pack("=HxxxxxxQ", len(program) // 8, addressof(filters))  # struct sock_fprog
    result = syscall("seccomp", 1, flags, header, subject=f"{len(program) // 8} instructions")
    return result if flags & FLAG_NEW_LISTENER else -1
