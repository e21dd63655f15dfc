"""Capabilities: names, capget(2), capset(2), the bounding and the ambient set (capabilities(7))."""

from __future__ import annotations

from _struct import pack, unpack

from nagaya.linux.ffi import buffer, syscall, try_syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# in the order of linux/capability.h: the index is the number
NAMES = tuple(
    "CAP_" + name
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4


def to_mask(names: Iterable[str]) -> tuple[int, list[str]]:
    """(bit mask, names that no kernel of ours knows) of capability names."""
    mask, unknown = 0, []
    for name in names:
        number = NUMBERS.get(name)
        if number is None:
            unknown.append(name)
        else:
            mask |= 1 << number
    return mask, unknown


def to_names(mask: int) -> list[str]:
    """The names of the bits of a mask, in kernel order."""
    return [name for number, name in enumerate(NAMES) if mask >> number & 1]


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of this process. Raises KernelError."""
    data = buffer(24)
    syscall("capget", pack("=Ii", _VERSION_3, 0), data)
    e0, p0, i0, e1, p1, i1 = unpack("=6I", bytes(data))
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this process's capability sets. Raises KernelError(EPERM) beyond the permitted set."""
    low = 0xFFFFFFFF
    data = pack(
        "=6I",
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> 32,
        permitted >> 32,
        inheritable >> 32,
    )
    syscall("capset", pack("=Ii", _VERSION_3, 0), data)


class acting_as:
    """As a context manager: root's thread makes files as this user and group (setfsuid(2)), with the rights
    of root all the same. Raises KernelError."""

    __slots__ = ("_gid", "_uid")

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid

    def __enter__(self) -> None:
        if self._uid or self._gid:
            _, permitted, inheritable = capget()
            try_syscall("setfsgid", self._gid)
            try_syscall("setfsuid", self._uid)
            capset(permitted, permitted, inheritable)  # another id than 0 has dropped some (capabilities(7))

    def __exit__(self, *_: object) -> None:
        if self._uid or self._gid:
            try_syscall("setfsuid", 0)
            try_syscall("setfsgid", 0)


def bounding_set() -> int:
    """The bounding set of this process."""
    mask = 0
    for number in range(64):
        value, error = try_syscall("prctl", _PR_CAPBSET_READ, number, 0, 0, 0)
        if error:
            break
        mask |= value << number
    return mask


def drop_bounding(keep: int) -> None:
    """Drop every capability that is not in `keep` from the bounding set. Raises KernelError."""
    for number in range(64):
        if keep >> number & 1:
            continue
        _, error = try_syscall("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
        if error == 22:  # EINVAL: beyond the last capability of this kernel
            return
        if error:
            syscall("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0, subject=NAMES[number])


def set_ambient(mask: int) -> None:
    """Replace the ambient set. Each must be permitted and inheritable. Raises KernelError."""
    syscall("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, subject="ambient")
    for number in range(64):
        if mask >> number & 1:
            syscall("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0, subject=NAMES[number])
