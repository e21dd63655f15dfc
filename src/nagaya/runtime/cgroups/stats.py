"""What a container used, in the shape of `data` of `runc events --stats`.

Files that a kernel lacks count as nothing: statistics never fail because of one controller.
"""

from __future__ import annotations

from nagaya.linux import cgroup, os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Group = str | dict[str, str] | None

_TICK_NS = 1_000_000_000 // (os.sysconf("SC_CLK_TCK") or 100)
_NO_LIMIT = 2**64 - 1


def _text(path: Group, file: str) -> str:
    if isinstance(path, dict):
        return path.get(file, "").strip()
    return (cgroup.try_read(f"{path}/{file}") or "").strip() if path else ""


def _number(path: Group, file: str) -> int:
    text = _text(path, file)
    if text == "max":
        return _NO_LIMIT
    return int(text) if text.isdigit() else 0


def _pairs(path: Group, file: str) -> dict[str, int]:
    return cgroup.parse_pairs(_text(path, file))


def _list(path: str | None, file: str) -> list[int]:
    return [int(word) for word in _text(path, file).split() if word.isdigit()]


def cpu_list(text: str) -> list[int]:
    """[0, 1, 2, 5] of "0-2,5" (pure)."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def blkio_entries(text: str) -> list[dict[str, Any]]:
    """Entries of a v1 blkio file: lines "MAJOR:MINOR OPERATION VALUE" (pure)."""
    entries: list[dict[str, Any]] = []
    for line in text.split("\n"):
        words = line.split()
        major, _, minor = words[0].partition(":") if words else ("", "", "")
        if len(words) in (2, 3) and major.isdigit() and minor.isdigit() and words[-1].isdigit():
            operation = words[1] if len(words) == 3 else ""
            entries.append(
                {"major": int(major), "minor": int(minor), "op": operation, "value": int(words[-1])}
            )
    return entries


def _entry(usage: int, maximum: int, limit: int, failures: int) -> dict[str, int]:
    return {"limit": limit, "usage": usage, "max": maximum, "failcnt": failures}


def _v1_memory(path: str | None, prefix: str) -> dict[str, int]:
    return _entry(
        _number(path, f"memory.{prefix}usage_in_bytes"),
        _number(path, f"memory.{prefix}max_usage_in_bytes"),
        _number(path, f"memory.{prefix}limit_in_bytes"),
        _number(path, f"memory.{prefix}failcnt"),
    )


def _huge_pages(path: str | None, usage: str, maximum: str, events: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    try:
        names = os.listdir(path) if path else []
    except OSError:
        names = []
    for name in names:
        if name.startswith("hugetlb.") and name.endswith(usage) and ".rsvd." not in name:
            size = name[len("hugetlb.") : -len(usage)]
            text = _text(path, f"hugetlb.{size}{events}")
            failures = int(text) if text.isdigit() else cgroup.parse_pairs(text).get("max", 0)
            sizes[size] = {
                "usage": _number(path, name),
                "max": _number(path, f"hugetlb.{size}{maximum}") if maximum else 0,
                "failcnt": failures,
            }
    return sizes


def _cpuset(path: str | None) -> dict[str, Any]:
    return {
        "cpus": cpu_list(_text(path, "cpuset.cpus")),
        "mems": cpu_list(_text(path, "cpuset.mems")),
        "cpu_exclusive": _number(path, "cpuset.cpu_exclusive"),
        "mem_hardwall": _number(path, "cpuset.mem_hardwall"),
        "mem_exclusive": _number(path, "cpuset.mem_exclusive"),
        "memory_migrate": _number(path, "cpuset.memory_migrate"),
        "memory_spread_page": _number(path, "cpuset.memory_spread_page"),
        "memory_spread_slab": _number(path, "cpuset.memory_spread_slab"),
        "memory_pressure": _number(path, "cpuset.memory_pressure"),
        "sched_load_balance": _number(path, "cpuset.sched_load_balance"),
        "sched_relax_domain_level": _number(path, "cpuset.sched_relax_domain_level"),
    }


def v1(paths: Mapping[str, str]) -> dict[str, Any]:
    """The statistics of v1 cgroups. paths: {controller: absolute path}."""
    cpu, account, memory = paths.get("cpu"), paths.get("cpuacct"), paths.get("memory")
    pids, blkio = paths.get("pids"), paths.get("blkio")
    throttling = _pairs(cpu, "cpu.stat")
    split = _pairs(account, "cpuacct.stat")
    raw = _pairs(memory, "memory.stat")
    limit = _number(pids, "pids.max")

    def io(*files: str) -> list[dict[str, Any]]:
        # BFQ counts only what it schedules: the throttling layer's numbers when it has none
        for file in files:
            entries = blkio_entries(_text(blkio, file))
            if entries:
                return entries
        return []

    return {
        "cpu": {
            "usage": {
                "total": _number(account, "cpuacct.usage"),
                "percpu": _list(account, "cpuacct.usage_percpu"),
                "percpu_kernel": _list(account, "cpuacct.usage_percpu_sys"),
                "percpu_user": _list(account, "cpuacct.usage_percpu_user"),
                "kernel": split.get("system", 0) * _TICK_NS,
                "user": split.get("user", 0) * _TICK_NS,
            },
            "throttling": {
                "periods": throttling.get("nr_periods", 0),
                "throttledPeriods": throttling.get("nr_throttled", 0),
                "throttledTime": throttling.get("throttled_time", 0),
            },
        },
        "cpuset": _cpuset(paths.get("cpuset")),
        "memory": {
            "cache": raw.get("cache", 0),
            "usage": _v1_memory(memory, ""),
            "swap": _v1_memory(memory, "memsw."),
            "kernel": _v1_memory(memory, "kmem."),
            "kernelTCP": _v1_memory(memory, "kmem.tcp."),
            "raw": raw,
        },
        # runc's way to say "no limit" is 0
        "pids": {"current": _number(pids, "pids.current"), "limit": 0 if limit == _NO_LIMIT else limit},
        "blkio": {
            "ioServiceBytesRecursive": io(
                "blkio.bfq.io_service_bytes_recursive",
                "blkio.throttle.io_service_bytes_recursive",
                "blkio.throttle.io_service_bytes",
            ),
            "ioServicedRecursive": io(
                "blkio.bfq.io_serviced_recursive",
                "blkio.throttle.io_serviced_recursive",
                "blkio.throttle.io_serviced",
            ),
        },
        "hugetlb": _huge_pages(paths.get("hugetlb"), ".usage_in_bytes", ".max_usage_in_bytes", ".failcnt"),
        "intel_rdt": {},
        "network_interfaces": None,
    }


def io_stat(text: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(bytes, operations) in v1's form of the text of io.stat (pure)."""
    amounts: list[dict[str, Any]] = []
    operations: list[dict[str, Any]] = []
    names = {"rbytes": ("Read", 0), "wbytes": ("Write", 0), "rios": ("Read", 1), "wios": ("Write", 1)}
    for line in text.split("\n"):
        words = line.split()
        major, _, minor = words[0].partition(":") if words else ("", "", "")
        if not (major.isdigit() and minor.isdigit()):
            continue
        for word in words[1:]:
            key, _, value = word.partition("=")
            if key in names and value.isdigit():
                name, which = names[key]
                entry = {"major": int(major), "minor": int(minor), "op": name, "value": int(value)}
                (operations if which else amounts).append(entry)
    return amounts, operations


def pressure(text: str) -> dict[str, Any]:
    """{"psi": ...} of the text of cpu.pressure and its like, {} of none: a kernel that was started without
    psi=1 has the files, and nothing in them (pure)."""
    found: dict[str, Any] = {}
    for line in text.split("\n"):
        kind, _, rest = line.partition(" ")
        values = dict(word.partition("=")[::2] for word in rest.split())
        if kind in ("some", "full") and values.get("total", "").isdigit():
            averages = {name: float(values.get(name) or 0) for name in ("avg10", "avg60", "avg300")}
            found[kind] = {**averages, "total": int(values["total"])}
    return {"psi": found} if found else {}


def v2(path: str | dict[str, str]) -> dict[str, Any]:
    """The statistics of a v2 cgroup: a directory here, or {name: content} of another kernel's files."""
    cpu = _pairs(path, "cpu.stat")
    raw = _pairs(path, "memory.stat")
    events = _pairs(path, "memory.events")
    usage = _number(path, "memory.current")
    swap_limit, memory_limit = _number(path, "memory.swap.max"), _number(path, "memory.max")
    swap = _number(path, "memory.swap.current")
    amounts, operations = io_stat(_text(path, "io.stat"))
    pids_limit = _number(path, "pids.max")
    both = _NO_LIMIT if _NO_LIMIT in (swap_limit, memory_limit) else swap_limit + memory_limit
    return {
        "cpu": {
            "usage": {
                "total": cpu.get("usage_usec", 0) * 1000,
                "percpu": [],
                "percpu_kernel": [],
                "percpu_user": [],
                "kernel": cpu.get("system_usec", 0) * 1000,
                "user": cpu.get("user_usec", 0) * 1000,
            },
            "throttling": {
                "periods": cpu.get("nr_periods", 0),
                "throttledPeriods": cpu.get("nr_throttled", 0),
                "throttledTime": cpu.get("throttled_usec", 0) * 1000,
            },
            **pressure(_text(path, "cpu.pressure")),
        },
        "cpuset": {
            "cpus": cpu_list(_text(path, "cpuset.cpus.effective")),
            "mems": cpu_list(_text(path, "cpuset.mems.effective")),
        },
        "memory": {
            "cache": raw.get("file", 0),
            "usage": _entry(usage, _number(path, "memory.peak"), memory_limit, events.get("max", 0)),
            # memory and swap together, as v1 counts it and readers of this shape expect
            "swap": _entry(swap + usage, 0, both, 0),
            "kernel": _entry(raw.get("kernel", 0), 0, 0, 0),
            "kernelTCP": _entry(raw.get("sock", 0), 0, 0, 0),
            "raw": raw,
            **pressure(_text(path, "memory.pressure")),
        },
        "pids": {
            "current": _number(path, "pids.current"),
            "limit": 0 if pids_limit == _NO_LIMIT else pids_limit,
        },
        "blkio": {
            "ioServiceBytesRecursive": amounts,
            "ioServicedRecursive": operations,
            **pressure(_text(path, "io.pressure")),
        },
        "hugetlb": _huge_pages(path, ".current", "", ".events") if isinstance(path, str) else {},
        "intel_rdt": {},
        "network_interfaces": None,
    }
