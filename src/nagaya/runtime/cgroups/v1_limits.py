"""OCI linux.resources on cgroups v1: which file gets what (`plan_v1`, `memory_order`: pure), and writing it.

Sources: OCI runtime-spec config-linux.md (Control groups); Documentation/admin-guide/cgroup-v1/*.rst;
runc's order of writes where the kernel cares.
"""

from __future__ import annotations

import errno

from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError
from nagaya.linux import cgroup
from nagaya.runtime.cgroups import devices as device_rules
from nagaya.runtime.cgroups.fields import device, items, number, pids_max, section, text, write_failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Write = tuple[str, str, str]

_FIELD = "linux.resources"

# Which OCI field a file's value came from, for errors; a name ending in "*" is a prefix.
_FIELDS = {
    "memory.limit_in_bytes": "memory.limit",
    "memory.memsw.limit_in_bytes": "memory.swap",
    "memory.soft_limit_in_bytes": "memory.reservation",
    "memory.oom_control": "memory.disableOOMKiller",
    "memory.swappiness": "memory.swappiness",
    "cpu.shares": "cpu.shares",
    "cpu.cfs_period_us": "cpu.period",
    "cpu.cfs_quota_us": "cpu.quota",
    "cpu.cfs_burst_us": "cpu.burst",
    "cpu.rt_period_us": "cpu.realtimePeriod",
    "cpu.rt_runtime_us": "cpu.realtimeRuntime",
    "cpu.idle": "cpu.idle",
    "cpuset.cpus": "cpu.cpus",
    "cpuset.mems": "cpu.mems",
    "pids.max": "pids.limit",
    "blkio.weight": "blockIO.weight",
    "blkio.leaf_weight": "blockIO.leafWeight",
    "blkio.weight_device": "blockIO.weightDevice",
    "blkio.leaf_weight_device": "blockIO.weightDevice",
    "blkio.throttle.read_bps_device": "blockIO.throttleReadBpsDevice",
    "blkio.throttle.write_bps_device": "blockIO.throttleWriteBpsDevice",
    "blkio.throttle.read_iops_device": "blockIO.throttleReadIOPSDevice",
    "blkio.throttle.write_iops_device": "blockIO.throttleWriteIOPSDevice",
    "devices.allow": "devices",
    "devices.deny": "devices",
    "net_cls.classid": "network.classID",
    "net_prio.ifpriomap": "network.priorities",
    "rdma.max": "rdma",
}

# The BFQ scheduler has files of its own; the generic ones are gone since Linux 5.0.
_OTHER_NAME = {"blkio.weight": "blkio.bfq.weight", "blkio.weight_device": "blkio.bfq.weight_device"}

# The old value of the second may forbid the new one of the first: written again at the end.
_AFTER = {
    "cpu.cfs_period_us": "cpu.cfs_quota_us",
    "cpu.cfs_burst_us": "cpu.cfs_quota_us",
    "cpu.rt_period_us": "cpu.rt_runtime_us",
}

_SHARES_MIN, _SHARES_MAX = 2, 262144


def _memory(resources: dict[str, Any]) -> list[Write]:
    memory = section(resources, "memory")
    field = f"{_FIELD}.memory"
    limit = number(memory.get("limit"), f"{field}.limit") or 0
    swap = number(memory.get("swap"), f"{field}.swap") or 0
    if limit > 0 and 0 < swap < limit:
        raise InvalidArgument(
            f"memory+swap ({swap}) must not be below memory ({limit})", subject=f"{field}.swap"
        )
    writes: list[Write] = []
    if limit:
        writes.append(("memory", "memory.limit_in_bytes", str(limit)))
    if swap or limit == -1:
        # unlimited memory cannot be below a limit of memory+swap: both are lifted
        writes.append(("memory", "memory.memsw.limit_in_bytes", str(swap or -1)))
    reservation = number(memory.get("reservation"), f"{field}.reservation")
    if reservation:
        writes.append(("memory", "memory.soft_limit_in_bytes", str(reservation)))
    if memory.get("disableOOMKiller"):
        writes.append(("memory", "memory.oom_control", "1"))
    swappiness = number(memory.get("swappiness"), f"{field}.swappiness")
    if swappiness is not None and swappiness not in (-1, 2**64 - 1):
        if not 0 <= swappiness <= 100:
            raise InvalidArgument(
                f"memory swappiness must be from 0 to 100, not {swappiness}", subject=f"{field}.swappiness"
            )
        writes.append(("memory", "memory.swappiness", str(swappiness)))
    return writes


def _cpu(resources: dict[str, Any]) -> list[Write]:
    cpu = section(resources, "cpu")
    field = f"{_FIELD}.cpu"
    writes: list[Write] = []
    # the real-time slice must be there before the first real-time process joins
    for key, file in (("realtimePeriod", "cpu.rt_period_us"), ("realtimeRuntime", "cpu.rt_runtime_us")):
        value = number(cpu.get(key), f"{field}.{key}")
        if value:
            writes.append(("cpu", file, str(value)))
    shares = number(cpu.get("shares"), f"{field}.shares")
    if shares:
        if not _SHARES_MIN <= shares <= _SHARES_MAX:
            raise InvalidArgument(
                f"cpu shares must be from {_SHARES_MIN} to {_SHARES_MAX}, not {shares}",
                subject=f"{field}.shares",
            )
        writes.append(("cpu", "cpu.shares", str(shares)))
    period = number(cpu.get("period"), f"{field}.period")
    burst = number(cpu.get("burst"), f"{field}.burst")
    quota = number(cpu.get("quota"), f"{field}.quota")
    if period:
        writes.append(("cpu", "cpu.cfs_period_us", str(period)))
    if burst is not None:
        writes.append(("cpu", "cpu.cfs_burst_us", str(burst)))
    if quota:
        writes.append(("cpu", "cpu.cfs_quota_us", str(max(quota, -1))))
    idle = number(cpu.get("idle"), f"{field}.idle")
    if idle is not None:
        writes.append(("cpu", "cpu.idle", str(idle)))
    for key in ("cpus", "mems"):
        listed = text(cpu.get(key), f"{field}.{key}")
        if listed:
            writes.append(("cpuset", f"cpuset.{key}", listed))
    return writes


_THROTTLES = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device"),
)


def _blkio(resources: dict[str, Any]) -> list[Write]:
    blkio = section(resources, "blockIO")
    field = f"{_FIELD}.blockIO"
    writes: list[Write] = []
    for key, file in (("weight", "blkio.weight"), ("leafWeight", "blkio.leaf_weight")):
        value = number(blkio.get(key), f"{field}.{key}")
        if value:
            writes.append(("blkio", file, str(value)))
    for index, entry in enumerate(items(blkio.get("weightDevice"), f"{field}.weightDevice")):
        where = f"{field}.weightDevice[{index}]"
        for key, file in (("weight", "blkio.weight_device"), ("leafWeight", "blkio.leaf_weight_device")):
            value = number(entry.get(key), f"{where}.{key}")
            if value:
                writes.append(("blkio", file, f"{device(entry, where)} {value}"))
    for key, file in _THROTTLES:
        for index, entry in enumerate(items(blkio.get(key), f"{field}.{key}")):
            where = f"{field}.{key}[{index}]"
            rate = number(entry.get("rate"), f"{where}.rate") or 0
            writes.append(("blkio", file, f"{device(entry, where)} {rate}"))
    return writes


def _others(resources: dict[str, Any]) -> list[Write]:
    writes: list[Write] = []
    limit = number(section(resources, "pids").get("limit"), f"{_FIELD}.pids.limit")
    if limit is not None:
        writes.append(("pids", "pids.max", pids_max(limit)))
    for index, entry in enumerate(items(resources.get("hugepageLimits"), f"{_FIELD}.hugepageLimits")):
        size, value = huge_page(entry, f"{_FIELD}.hugepageLimits[{index}]")
        writes.append(("hugetlb", f"hugetlb.{size}.limit_in_bytes", value))
        writes.append(("hugetlb", f"hugetlb.{size}.rsvd.limit_in_bytes", value))
    network = section(resources, "network")
    classid = number(network.get("classID"), f"{_FIELD}.network.classID")
    if classid:
        writes.append(("net_cls", "net_cls.classid", str(classid)))
    for index, entry in enumerate(items(network.get("priorities"), f"{_FIELD}.network.priorities")):
        where = f"{_FIELD}.network.priorities[{index}]"
        name = text(entry.get("name"), f"{where}.name")
        priority = number(entry.get("priority"), f"{where}.priority") or 0
        writes.append(("net_prio", "net_prio.ifpriomap", f"{name} {priority}"))
    writes.extend(("rdma", "rdma.max", line) for line in rdma_lines(resources))
    return writes


def huge_page(entry: dict[str, Any], field: str) -> tuple[str, str]:
    """(size, limit) of an entry of hugepageLimits (pure). Raises InvalidArgument."""
    size = text(entry.get("pageSize"), f"{field}.pageSize")
    if not size or "/" in size or not size[0].isdigit():
        raise InvalidArgument(
            f"{field}.pageSize must be like '2MB', not {size!r:.60}", subject=f"{field}.pageSize"
        )
    return size, str(number(entry.get("limit"), f"{field}.limit") or 0)


def rdma_lines(resources: dict[str, Any]) -> list[str]:
    """The lines of rdma.max (pure; the same on v1 and v2)."""
    lines = []
    for name, entry in section(resources, "rdma").items():
        line = text(name, f"{_FIELD}.rdma")
        for key, word in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
            value = number(entry.get(key), f"{_FIELD}.rdma.{name}.{key}")
            if value is not None:
                line += f" {word}={value}"
        lines.append(line)
    return lines


def plan_v1(resources: dict[str, Any], *, devices: bool = True) -> list[Write]:
    """What to write for OCI linux.resources, in order: (controller, file, value) (pure).

    devices: also the rules of devices, which start from "deny everything" and end with the devices
    every container may use. The kernel's own accounting of memory (kernel, kernelTCP) is ignored:
    kernels no longer have a separate limit. Raises InvalidArgument naming the field.
    """
    if resources.get("unified"):
        raise InvalidArgument(
            "invalid configuration: linux.resources.unified needs cgroup v2, and this host has v1",
            subject=f"{_FIELD}.unified",
        )
    writes = _cpu(resources) + _memory(resources) + _blkio(resources) + _others(resources)
    if devices:
        writes += [
            ("devices", "devices.allow" if allow else "devices.deny", rule)
            for allow, rule in device_rules.v1_lines(device_rules.parse(resources.get("devices")))
        ]
    return writes


def memory_order(writes: list[Write], current_limit: int) -> list[Write]:
    """Put memory.limit and memory.memsw.limit in the order the kernel takes (pure): memory must
    never be above memory+swap, so what is raised first depends on the limit now in force."""
    files = [w[1] for w in writes]
    if "memory.limit_in_bytes" not in files or "memory.memsw.limit_in_bytes" not in files:
        return writes
    at, after = files.index("memory.limit_in_bytes"), files.index("memory.memsw.limit_in_bytes")
    swap = int(writes[after][2])
    if swap != -1 and current_limit >= swap:
        return writes
    ordered = list(writes)
    ordered[at], ordered[after] = ordered[after], ordered[at]
    return ordered


def apply(paths: dict[str, str], resources: dict[str, Any], *, devices: bool, lenient: bool) -> None:
    """Write OCI linux.resources to the cgroups at paths. lenient: controllers may have been left out.

    Raises InvalidArgument, FailedPrecondition, KernelError.
    """
    writes = plan_v1(resources, devices=devices)
    if any(w[1] == "memory.memsw.limit_in_bytes" for w in writes):
        now = cgroup.try_read(f"{paths.get('memory', '')}/memory.limit_in_bytes") or "0"
        writes = memory_order(writes, int(now))
    again: list[Write] = []
    files = {write[1] for write in writes}
    for write in writes:
        error = _write(paths, write)
        if error == errno.EINVAL and _AFTER.get(write[1]) in files:
            again.append(write)
        elif error:
            _refused(paths, write, error, lenient)
    for write in again:
        error = _write(paths, write)
        if error:
            _refused(paths, write, error, lenient)


def _write(paths: dict[str, str], write: Write) -> int:
    controller, file, value = write
    path = paths.get(controller)
    if path is None:
        return errno.ENOSYS
    error = cgroup.try_write(f"{path}/{file}", value)
    if error == errno.ENOENT and file in _OTHER_NAME:
        error = cgroup.try_write(f"{path}/{_OTHER_NAME[file]}", value)
    return error


def _refused(paths: dict[str, str], write: Write, error: int, lenient: bool) -> None:
    controller, file, value = write
    name = "hugepageLimits" if controller == "hugetlb" else _FIELDS[file]
    field = f"{_FIELD}.{name}"
    if error == errno.ENOENT:
        if ".rsvd." in file or file in ("cpu.cfs_burst_us", "blkio.leaf_weight"):
            return  # refinements that older kernels (5.7, 5.14) or newer ones (5.0) lack
        if file == "memory.memsw.limit_in_bytes" and value == "-1":
            return  # no swap accounting: there is no limit to lift
    if error == errno.ENOSYS and lenient:
        raise FailedPrecondition(
            f"cannot set {controller} limit: container could not join or create cgroup", subject=field
        )
    if error == errno.ENOSYS:
        raise FailedPrecondition(
            f"{field} cannot be set: the {controller} cgroup controller is not mounted on this host",
            subject=field,
            step="set cgroup limits",
        )
    if error == errno.EBUSY and file == "memory.limit_in_bytes":
        usage = (cgroup.try_read(f"{paths['memory']}/memory.usage_in_bytes") or "?").strip()
        raise KernelError(
            f"{field}: cannot set {value}, {usage} bytes are in use",
            subject=field,
            step=f"cgroup memory: write {value!r} to {file}",
            errno=error,
        )
    raise write_failed(controller, file, value, field, error)
