"""Resource limits: checked with dockerd's words, and as the runtime-spec has them (pure).

Sources: runtime-spec config-linux.md; moby's daemon/daemon_unix.go for which combinations are refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from nagaya.engine.model import Resources
from nagaya.errors import InvalidArgument

_SMALLEST_MEMORY = 6 << 20
_DEFAULT_PERIOD = 100_000


def _bad(message: str, subject: str) -> InvalidArgument:
    return InvalidArgument(message, subject=subject)


def parse_cpuset(text: str, field: str) -> set[int]:
    """The numbers of "0-2,5". Raises InvalidArgument."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
            raise _bad(f"Invalid value {text} for cpuset {field}", f"Cpuset{field.title()}")
        low, high = int(first[:6]), int((last or first)[:6])
        if high < low or high > 65535:
            raise _bad(f"Invalid value {text} for cpuset {field}", f"Cpuset{field.title()}")
        found.update(range(low, high + 1))
    return found


def check(limits: Resources, *, cpus: set[int], memory_nodes: set[int]) -> Resources:
    """The limits with defaults filled in (memory+swap is twice the memory). Raises InvalidArgument."""
    if 0 < limits.memory < _SMALLEST_MEMORY:
        raise _bad("Minimum memory limit allowed is 6MB", "Memory")
    if limits.memory < 0 or limits.memory_reservation < 0:
        raise _bad("memory limits cannot be negative", "Memory")
    if limits.memory_swap > 0 and limits.memory == 0:
        raise _bad(
            "You should always set the Memory limit when using Memoryswap limit, see usage", "MemorySwap"
        )
    if 0 < limits.memory_swap < limits.memory:
        raise _bad("Minimum memoryswap limit should be larger than memory limit, see usage", "MemorySwap")
    if limits.memory_swap < -1:
        raise _bad("memory-swap is a size, or -1 for no limit", "MemorySwap")
    if limits.memory_swappiness is not None and not -1 <= limits.memory_swappiness <= 100:
        raise _bad(
            f"Invalid value: {limits.memory_swappiness}, valid memory swappiness range is 0-100",
            "MemorySwappiness",
        )
    if 0 < limits.memory < limits.memory_reservation:
        raise _bad("Minimum memory limit can not be less than memory reservation limit, see usage", "Memory")
    if limits.nano_cpus:
        if limits.cpu_period:
            raise _bad("Conflicting options: Nano CPUs and CPU Period cannot both be set.", "NanoCpus")
        if limits.cpu_quota:
            raise _bad("Conflicting options: Nano CPUs and CPU Quota cannot both be set.", "NanoCpus")
        if not 10_000_000 <= limits.nano_cpus <= len(cpus) * 1_000_000_000:
            raise _bad(
                f"Range of CPUs is from 0.01 to {len(cpus)}.00, as there are only {len(cpus)} CPUs available",
                "NanoCpus",
            )
    if limits.cpu_period and not 1000 <= limits.cpu_period <= 1_000_000:
        raise _bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s", "CpuPeriod")
    if 0 < limits.cpu_quota < 1000:
        raise _bad("CPU cfs quota can not be less than 1ms (i.e. 1000)", "CpuQuota")
    if limits.blkio_weight and not 10 <= limits.blkio_weight <= 1000:
        raise _bad("Range of blkio weight is from 10 to 1000", "BlkioWeight")
    for text, field, word, present in (
        (limits.cpuset_cpus, "cpus", "CPUs", cpus),
        (limits.cpuset_mems, "mems", "memory nodes", memory_nodes),
    ):
        if text and not parse_cpuset(text, field) <= present:
            there = ",".join(str(n) for n in sorted(present))
            raise _bad(
                f"Requested {word} are not available - requested {text}, available: {there}",
                f"Cpuset{field.title()}",
            )
    if limits.memory > 0 and limits.memory_swap == 0:
        return msgspec.structs.replace(limits, memory_swap=2 * limits.memory)
    return limits


class Abilities(NamedTuple):
    """What this kernel can limit."""

    weight: bool
    device_weight: bool
    realtime: bool


def supported(wanted: Resources, kernel: Abilities) -> tuple[Resources, list[str]]:
    """(the limits without those that dockerd drops where the kernel has them not, warnings). Raises
    InvalidArgument for those that a container cannot run without."""
    warnings = []
    if wanted.blkio_weight and not kernel.weight:
        warnings.append(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
        )
        wanted = msgspec.structs.replace(wanted, blkio_weight=0)
    if wanted.blkio_weight_device and not kernel.device_weight:
        warnings.append(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. "
            "Weight-device discarded."
        )
        wanted = msgspec.structs.replace(wanted, blkio_weight_device=())
    if (wanted.cpu_rt_period or wanted.cpu_rt_runtime) and not kernel.realtime:
        raise _bad("Your kernel does not support CPU real-time scheduler", "CpuRealtimeRuntime")
    return wanted, warnings


def to_oci(limits: Resources) -> dict[str, Any]:
    """`linux.resources` of the runtime-spec, without its device rules and what limits single block devices
    (devices.block_io); absent fields are unlimited."""
    memory: dict[str, Any] = {}
    if limits.memory:
        memory["limit"] = limits.memory
    if limits.memory_swap:
        memory["swap"] = limits.memory_swap
    if limits.memory_reservation:
        memory["reservation"] = limits.memory_reservation
    if limits.memory_swappiness is not None and limits.memory_swappiness >= 0:
        memory["swappiness"] = limits.memory_swappiness
    if limits.oom_kill_disable:
        memory["disableOOMKiller"] = True
    cpu: dict[str, Any] = {}
    if limits.cpu_shares:
        cpu["shares"] = limits.cpu_shares
    if limits.nano_cpus:
        cpu["period"] = _DEFAULT_PERIOD
        cpu["quota"] = limits.nano_cpus * _DEFAULT_PERIOD // 1_000_000_000
    if limits.cpu_period:
        cpu["period"] = limits.cpu_period
    if limits.cpu_quota:
        cpu["quota"] = limits.cpu_quota
    if limits.cpuset_cpus:
        cpu["cpus"] = limits.cpuset_cpus
    if limits.cpuset_mems:
        cpu["mems"] = limits.cpuset_mems
    if limits.cpu_rt_period:
        cpu["realtimePeriod"] = limits.cpu_rt_period
    if limits.cpu_rt_runtime:
        cpu["realtimeRuntime"] = limits.cpu_rt_runtime
    out: dict[str, Any] = {}
    if memory:
        out["memory"] = memory
    if cpu:
        out["cpu"] = cpu
    if limits.pids_limit > 0:
        out["pids"] = {"limit": limits.pids_limit}
    if limits.blkio_weight:
        out["blockIO"] = {"weight": limits.blkio_weight}
    return out
