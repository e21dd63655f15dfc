"""Snapshots as files: the machine's state behind a line that says which machine, and its memory as it lay.

The formats are this program's own: Firecracker's hold KVM's structures, which QEMU has no use for.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

from nagaya.api.firecracker import serde
from nagaya.errors import InvalidArgument, KernelError, NotFound
from nagaya.linux import namespaces

_MAGIC = b"nagaya-vmm snapshot 1\n"
_HEADER_MAX = 1 << 20
_CHUNK = 4 << 20
_F_GET_SEALS, _F_SEAL_SHRINK = 1034, 2
_FDS = 256


def is_sealed(fd: int) -> bool:
    """Whether its owner can no longer make the file shorter: only then is a mapping of it safe."""
    try:
        return bool(fcntl.fcntl(fd, _F_GET_SEALS) & _F_SEAL_SHRINK)
    except OSError:
        return False


def ram(pidfd: int, mib: int) -> int:
    """A descriptor of the guest's memory, which QEMU made and sealed. Raises NotFound."""
    for number in range(3, _FDS):
        try:
            fd = namespaces.pidfd_getfd(pidfd, number)
        except KernelError:
            continue
        if os.fstat(fd).st_size == mib << 20 and is_sealed(fd):
            return fd
        os.close(fd)
    raise NotFound("the guest's memory cannot be found", step="snapshot")


def copy(source: int, target: int, size: int) -> None:
    """Copy what is in a file, and leave its holes out. The target is empty. Raises OSError."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = min(os.lseek(source, begin, os.SEEK_HOLE), size)
        at = begin
        while at < end:
            data = os.pread(source, min(_CHUNK, end - at), at)
            if not data:
                return
            done = 0
            while done < len(data):
                done += os.pwrite(target, memoryview(data)[done:], at + done)
            at += len(data)


def begin(fd: int, shown: dict[str, Any]) -> None:
    """Write what goes before the state. Raises OSError."""
    head = _MAGIC + json.dumps(shown, separators=(",", ":")).encode() + b"\n"
    while head:
        head = head[os.write(fd, head) :]


def read_beginning(fd: int) -> dict[str, Any]:
    """The inverse: the file is then where the state begins. Raises InvalidArgument, OSError."""
    head = os.pread(fd, _HEADER_MAX, 0)
    line, newline, _ = head.removeprefix(_MAGIC).partition(b"\n")
    if not head.startswith(_MAGIC) or not newline:
        raise InvalidArgument("not a snapshot of nagaya-vmm's", step="load snapshot")
    try:
        shown = serde.decode_any(line)
    except serde.SerdeError:
        raise InvalidArgument("the snapshot's beginning is broken", step="load snapshot") from None
    if not isinstance(shown, dict):
        raise InvalidArgument("the snapshot's beginning is broken", step="load snapshot")
    os.lseek(fd, len(_MAGIC) + len(line) + 1, os.SEEK_SET)
    return shown
