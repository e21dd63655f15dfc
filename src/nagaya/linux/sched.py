"""How the kernel runs a process: sched_setattr(2), sched_setaffinity(2), ioprio_set(2), set_mempolicy(2)."""

from __future__ import annotations

from _struct import pack

from nagaya.linux.ffi import syscall, try_syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_IOPRIO_WHO_PROCESS = 1
_ALL = b"\xff" * 128


def set_scheduler(
    pid: int, policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int
) -> None:
    """sched_setattr(2) of a process, 0 is this one. Raises KernelError."""
    attr = pack("=IIQiIQQQ", 48, policy, flags, nice, priority & 0xFFFFFFFF, runtime, deadline, period)
    syscall("sched_setattr", pid, attr, 0, subject=f"policy {policy}")


def set_io_priority(value: int) -> None:
    """ioprio_set(2) of this process. Raises KernelError."""
    syscall("ioprio_set", _IOPRIO_WHO_PROCESS, 0, value, subject=str(value))


def _mask(members: Iterable[int]) -> bytes:
    bits = 0
    for member in members:
        bits |= 1 << member
    size = max(8, (bits.bit_length() + 63) // 64 * 8)
    return bits.to_bytes(size, "little")


def set_affinity(cpus: list[int]) -> None:
    """Run on these CPUs only. Raises KernelError."""
    mask = _mask(cpus)
    syscall("sched_setaffinity", 0, len(mask), mask, subject=str(cpus))


def reset_affinity() -> None:
    """Run on every CPU that the cpuset allows; where even that is refused, as before."""
    try_syscall("sched_setaffinity", 0, len(_ALL), _ALL)


def set_memory_policy(mode: int, nodes: list[int]) -> None:
    """set_mempolicy(2) of this process and what it starts. Raises KernelError."""
    mask = _mask(nodes) if nodes else None
    # the kernel reads one bit less than maxnode says
    syscall("set_mempolicy", mode, mask, len(mask) * 8 + 1 if mask else 0, subject=f"mode {mode:#x}")
