"""What config.json says about how a process is run, as the kernel's numbers: process.scheduler,
ioPriority and execCPUAffinity, linux.memoryPolicy and personality.

Pure. Every function raises InvalidArgument with the path of the field (runtime-spec config.md "Linux
Process", config-linux.md "Memory policy", "Personality"). Imported only where one of them is given.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# linux/sched.h
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
_TIMES = ("runtime", "deadline", "period")
# linux/ioprio.h
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
# linux/mempolicy.h
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
}
# linux/personality.h
DOMAINS = {"LINUX": 0x0000, "LINUX32": 0x0008}
_HIGHEST = 4095  # more CPUs or nodes than any kernel is built for


def _bad(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {message}", subject=field)


def _word(table: dict[str, int], value: Any, field: str, what: str) -> int:
    if not isinstance(value, str) or value not in table:
        raise _bad(field, f"invalid {what} {value!r:.60}: must be one of {' '.join(table)}")
    return table[value]


def _words(table: dict[str, int], values: Any, field: str, what: str) -> int:
    if values is not None and not isinstance(values, list):
        raise _bad(field, "must be a list of strings")
    bits = 0
    for index, value in enumerate(values or []):
        bits |= _word(table, value, f"{field}[{index}]", what)
    return bits


def _integer(parent: dict[str, Any], key: str, field: str, low: int, high: int) -> int:
    value = parent.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(f"{field}.{key}", f"must be an integer, not {value!r:.60}")
    if not low <= value <= high:
        raise _bad(f"{field}.{key}", f"{value} is out of range ({low} to {high})")
    return value


def _object(parent: dict[str, Any], key: str, field: str) -> dict[str, Any] | None:
    value = parent.get(key)
    if value is not None and not isinstance(value, dict):
        raise _bad(field, f"must be an object, not {value!r:.60}")
    return value


def numbers(text: Any, field: str, what: str) -> list[int]:
    """[0, 2, 3] of "0,2-3"."""
    if not isinstance(text, str):
        raise _bad(field, f"must be a string, not {text!r:.60}")
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not part:
            continue
        if not all(e.isascii() and e.isdigit() and len(e) < 11 and int(e) <= _HIGHEST for e in ends):
            raise _bad(field, f"invalid {what} {part!r:.60}")
        if int(ends[0]) > int(ends[1]):
            raise _bad(field, f"invalid {what} {part!r:.60}: the range ends before it begins")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(found)


def scheduler(process: dict[str, Any], field: str) -> tuple[int, int, int, int, int, int, int] | None:
    """(policy, flags, nice, priority, runtime, deadline, period) for sched_setattr(2), or None."""
    field = f"{field}.scheduler"
    given = _object(process, "scheduler", field)
    if given is None:
        return None
    policy = _word(POLICIES, given.get("policy"), f"{field}.policy", "scheduler policy")
    flags = _words(FLAGS, given.get("flags"), f"{field}.flags", "scheduler flag")
    nice = _integer(given, "nice", field, -20, 19)
    priority = _integer(given, "priority", field, -(1 << 31), (1 << 31) - 1)
    if priority and policy not in (POLICIES["SCHED_FIFO"], POLICIES["SCHED_RR"]):
        raise _bad(f"{field}.priority", "only SCHED_FIFO and SCHED_RR have priorities")
    runtime, deadline, period = (_integer(given, key, field, 0, (1 << 64) - 1) for key in _TIMES)
    if (runtime or deadline or period) and policy != POLICIES["SCHED_DEADLINE"]:
        raise _bad(field, "runtime, deadline and period are SCHED_DEADLINE's alone")
    return policy, flags, nice, priority, runtime, deadline, period


def io_priority(process: dict[str, Any], field: str) -> int | None:
    """The value for ioprio_set(2), or None."""
    field = f"{field}.ioPriority"
    given = _object(process, "ioPriority", field)
    if given is None:
        return None
    kind = _word(IO_CLASSES, given.get("class"), f"{field}.class", "class of I/O priority")
    return kind << 13 | _integer(given, "priority", field, 0, 7)


def exec_affinity(process: dict[str, Any], field: str) -> tuple[list[int], list[int]]:
    """(CPUs before, CPUs after the container's cgroups are entered); empty for all that are allowed."""
    field = f"{field}.execCPUAffinity"
    given = _object(process, "execCPUAffinity", field) or {}
    initial, final = (numbers(given.get(k) or "", f"{field}.{k}", "CPU") for k in ("initial", "final"))
    return initial, final


def memory_policy(linux: dict[str, Any]) -> tuple[int, list[int]] | None:
    """(mode with its flags, nodes) for set_mempolicy(2), or None."""
    field = "linux.memoryPolicy"
    given = _object(linux, "memoryPolicy", field)
    if given is None:
        return None
    mode = _word(MEMORY_MODES, given.get("mode"), f"{field}.mode", "memory policy mode")
    flags = _words(MEMORY_FLAGS, given.get("flags"), f"{field}.flags", "memory policy flag")
    nodes = numbers(given.get("nodes") or "", f"{field}.nodes", "memory policy node")
    if mode in (MEMORY_MODES["MPOL_DEFAULT"], MEMORY_MODES["MPOL_LOCAL"]) and nodes:
        raise _bad(f"{field}.nodes", f"{given['mode']} mode requires 0 nodes but got {len(nodes)}")
    return mode | flags, nodes


def personality(linux: dict[str, Any]) -> int | None:
    """The value for personality(2), or None. There are no flags yet (runtime-spec)."""
    field = "linux.personality"
    given = _object(linux, "personality", field)
    if given is None:
        return None
    flags = given.get("flags")
    if flags is not None and flags != []:
        raise _bad(f"{field}.flags", "no flags are defined")
    return _word(DOMAINS, given.get("domain"), f"{field}.domain", "personality domain")


class Scheduling:
    """All of it, for one process."""

    __slots__ = ("affinity", "io", "memory", "personality", "scheduler")

    def __init__(self, process: dict[str, Any], linux: dict[str, Any], field: str = "process") -> None:
        self.scheduler = scheduler(process, field)
        self.io = io_priority(process, field)
        self.affinity = exec_affinity(process, field)
        self.memory = memory_policy(linux)
        self.personality = personality(linux)
