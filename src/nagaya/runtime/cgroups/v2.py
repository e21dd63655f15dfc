"""Cgroups v2: one directory; OCI's v1 vocabulary is converted as runc converts it.

`path_for`, `plan_v2` and the conversions are pure. Sources: OCI config-linux.md (Control groups,
Unified); Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno

from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError
from nagaya.linux import bpf, cgroup, os
from nagaya.runtime.cgroups import devices as device_rules
from nagaya.runtime.cgroups.base import Manager, check_path
from nagaya.runtime.cgroups.fields import device, items, number, pids_max, section, text, write_failed
from nagaya.runtime.cgroups.v1_limits import huge_page, rdma_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # (file, value, OCI field)
    Write = tuple[str, str, str]

_FIELD = "linux.resources"
_PERIOD = 100000  # the kernel's default of cpu.max, in microseconds
_OF_THREADS = frozenset(("cpu", "cpuset", "perf_event", "pids"))
_AFTER_QUOTA = ("cpu.max.burst",)  # may be above the old quota: written again at the end


def path_for(found: cgroup.Layout, own: dict[str, str], cgroups_path: str, container_id: str) -> str:
    """The absolute path for OCI cgroupsPath (pure): absolute below the mount point; relative (or
    the id, when empty) beside our own cgroup, since ours has processes and then may not delegate
    controllers to children ("no internal processes", cgroup-v2.rst). Raises InvalidArgument."""
    inner = check_path(cgroups_path) or check_path(container_id)
    if inner in ("", "/"):
        raise InvalidArgument("cgroupsPath must name a cgroup of its own", subject="linux.cgroupsPath")
    if inner.startswith("/"):
        return found.unified + inner
    mine = cgroup.relative_to_mount(own.get("", "/"), found.unified_root)
    return f"{found.unified}{os.dirname(mine).rstrip('/')}/{inner}"


def _log2(value: int) -> float:
    """log2 of a positive integer, bit by bit: `import math` is not worth its time here."""
    whole = value.bit_length() - 1
    rest, result, bit = value / 2**whole, float(whole), 0.5
    while bit > 1e-12:
        rest *= rest
        if rest >= 2:
            rest /= 2
            result += bit
        bit /= 2
    return result


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1 to 10000) of cpu.shares (2 to 262144): 1024 becomes 100, the two defaults
    (runc since 1.4, crun since 1.23; the linear formula before made 1024 a weight of 39)."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = _log2(shares)
    exponent = (log * log + 125 * log) / 612.0 - 7.0 / 34.0
    weight = float(10.0**exponent)
    return int(weight) + (0 if weight - int(weight) < 1e-9 else 1)


def io_weight_of_blkio(weight: int) -> int:
    """io.weight (1 to 10000) of a blkio weight (10 to 1000)."""
    return 1 + (weight - 10) * 9999 // 990


def swap_of(memory: int, swap: int) -> int | None:
    """memory.swap.max of OCI memory.limit and memory.swap (which is memory and swap together);
    -1 for "max", None for unset. Raises InvalidArgument."""
    field = f"{_FIELD}.memory.swap"
    if memory == -1 and swap == 0:
        return -1
    if swap == 0:
        return None
    if swap == -1 or memory == -1:
        return swap
    if memory == 0:
        raise InvalidArgument("a swap limit needs a memory limit", subject=field)
    if swap < memory:
        raise InvalidArgument(f"memory+swap ({swap}) must not be below memory ({memory})", subject=field)
    return swap - memory


def _limit(value: int) -> str:
    return "max" if value == -1 else str(value)


def _memory(resources: dict[str, Any]) -> list[Write]:
    memory = section(resources, "memory")
    field = f"{_FIELD}.memory"
    limit = number(memory.get("limit"), f"{field}.limit") or 0
    swap = swap_of(limit, number(memory.get("swap"), f"{field}.swap") or 0)
    reservation = number(memory.get("reservation"), f"{field}.reservation")
    writes: list[Write] = []
    if swap is not None:
        writes.append(("memory.swap.max", _limit(swap), f"{field}.swap"))
    if limit:
        writes.append(("memory.max", _limit(limit), f"{field}.limit"))
    if reservation:
        writes.append(("memory.low", _limit(reservation), f"{field}.reservation"))
    return writes


def _cpu(resources: dict[str, Any]) -> list[Write]:
    cpu = section(resources, "cpu")
    field = f"{_FIELD}.cpu"
    for key in ("realtimePeriod", "realtimeRuntime"):
        if number(cpu.get(key), f"{field}.{key}"):
            raise InvalidArgument("cgroup v2 has no real-time limits", subject=f"{field}.{key}")
    writes: list[Write] = []
    idle = number(cpu.get("idle"), f"{field}.idle")
    if idle is not None:
        writes.append(("cpu.idle", str(idle), f"{field}.idle"))
    shares = number(cpu.get("shares"), f"{field}.shares")
    # an idle group's weight is fixed: the kernel refuses another
    if shares and not idle:
        writes.append(("cpu.weight", str(weight_of_shares(shares)), f"{field}.shares"))
    burst = number(cpu.get("burst"), f"{field}.burst")
    if burst is not None:
        writes.append(("cpu.max.burst", str(burst), f"{field}.burst"))
    quota = number(cpu.get("quota"), f"{field}.quota") or 0
    period = number(cpu.get("period"), f"{field}.period") or 0
    if quota or period:
        value = f"{quota if quota > 0 else 'max'} {period or _PERIOD}"
        writes.append(("cpu.max", value, f"{field}.{'quota' if quota else 'period'}"))
    for key in ("cpus", "mems"):
        listed = text(cpu.get(key), f"{field}.{key}")
        if listed:
            writes.append((f"cpuset.{key}", listed, f"{field}.{key}"))
    return writes


_THROTTLES = (
    ("throttleReadBpsDevice", "rbps"),
    ("throttleWriteBpsDevice", "wbps"),
    ("throttleReadIOPSDevice", "riops"),
    ("throttleWriteIOPSDevice", "wiops"),
)


def _io(resources: dict[str, Any], bfq: bool) -> list[Write]:
    blkio = section(resources, "blockIO")
    field = f"{_FIELD}.blockIO"
    writes: list[Write] = []
    weight = number(blkio.get("weight"), f"{field}.weight")
    if weight:
        if bfq:
            writes.append(("io.bfq.weight", str(weight), f"{field}.weight"))
        else:
            writes.append(("io.weight", str(io_weight_of_blkio(weight)), f"{field}.weight"))
    for index, entry in enumerate(items(blkio.get("weightDevice"), f"{field}.weightDevice")):
        where = f"{field}.weightDevice[{index}]"
        weight = number(entry.get("weight"), f"{where}.weight")
        if weight and bfq:
            writes.append(("io.bfq.weight", f"{device(entry, where)} {weight}", where))
        elif weight:
            writes.append(("io.weight", f"{device(entry, where)} {io_weight_of_blkio(weight)}", where))
    for key, word in _THROTTLES:
        for index, entry in enumerate(items(blkio.get(key), f"{field}.{key}")):
            where = f"{field}.{key}[{index}]"
            rate = number(entry.get("rate"), f"{where}.rate") or 0
            writes.append(("io.max", f"{device(entry, where)} {word}={rate or 'max'}", where))
    return writes


def _unified(resources: dict[str, Any]) -> list[Write]:
    writes: list[Write] = []
    for key, value in section(resources, "unified").items():
        field = f"{_FIELD}.unified[{key}]"
        if "/" in key or "." not in key or key.startswith((".", "cgroup.")):
            raise InvalidArgument(
                f"unified key {key!r:.60} must be a file name of a controller, like 'memory.high'",
                subject=field,
            )
        if not isinstance(value, str):
            raise InvalidArgument(f"{field} must be a string", subject=field)
        # a file may take more lines (io.max): one write each
        writes += [(key, line.strip(), field) for line in value.strip().split("\n")]
    return writes


def plan_v2(resources: dict[str, Any], *, bfq: bool = False) -> list[Write]:
    """What to write for OCI linux.resources, in order: (file, value, OCI field) (pure).

    bfq: the cgroup has io.bfq.weight. Not here: device rules, which are a BPF program. v1 settings
    without an equivalent that only tune (swappiness, OOM killer off, kernel memory, leafWeight) are
    left out as runc does; limits and tags that would not hold (real time, net_cls, net_prio) raise
    InvalidArgument.
    """
    network = section(resources, "network")
    for key in ("classID", "priorities"):
        if network.get(key):
            raise InvalidArgument(f"cgroup v2 has no network.{key}", subject=f"{_FIELD}.network.{key}")
    writes: list[Write] = []
    limit = number(section(resources, "pids").get("limit"), f"{_FIELD}.pids.limit")
    if limit is not None:
        writes.append(("pids.max", pids_max(limit), f"{_FIELD}.pids.limit"))
    writes += _memory(resources) + _io(resources, bfq) + _cpu(resources)
    for index, entry in enumerate(items(resources.get("hugepageLimits"), f"{_FIELD}.hugepageLimits")):
        field = f"{_FIELD}.hugepageLimits[{index}]"
        size, value = huge_page(entry, field)
        writes.append((f"hugetlb.{size}.max", value, field))
        writes.append((f"hugetlb.{size}.rsvd.max", value, field))
    writes += [("rdma.max", line, f"{_FIELD}.rdma") for line in rdma_lines(resources)]
    return writes + _unified(resources)


def check_usage(resources: dict[str, Any], current: int, swap: int) -> None:
    """memory.checkBeforeUpdate: refuse a limit below what is in use, which would kill (pure).

    Raises FailedPrecondition.
    """
    memory = section(resources, "memory")
    if not memory.get("checkBeforeUpdate"):
        return
    limit = number(memory.get("limit"), f"{_FIELD}.memory.limit") or 0
    if 0 < limit < current:
        raise FailedPrecondition(
            f"rejecting memory limit {limit} < usage {current}", subject=f"{_FIELD}.memory.limit"
        )
    both = number(memory.get("swap"), f"{_FIELD}.memory.swap") or 0
    if 0 < both < current + swap:
        raise FailedPrecondition(
            f"rejecting memory+swap limit {both} < usage {current + swap}", subject=f"{_FIELD}.memory.swap"
        )


def takes_no_process(subtree_control: str) -> bool:
    """Does a cgroup that enables these controllers for its children refuse processes (pure)? Those of
    threads do not count (cgroup-v2.rst, No Internal Process Constraint, and Threads)."""
    return bool(set(subtree_control.split()) - _OF_THREADS)


class ManagerV2(Manager):
    """One cgroup in the unified hierarchy."""

    __slots__ = ()

    version = 2

    @property
    def path(self) -> str:
        """The cgroup's directory."""
        return self.paths[""]

    def create(self) -> None:
        """Make the directory, handing every controller down the path to it."""
        if self.exists():
            self._refuse_used()
        self._make()

    def _make(self) -> None:
        mount = cgroup.layout().unified
        parent, names = mount, self.path[len(mount) :].strip("/").split("/")
        for name in names:
            _delegate(parent)
            parent = f"{parent}/{name}"
            made = self._make_one("") if parent == self.path else cgroup.make(parent)
            if not made and self.paths:
                _refuse_threaded(parent)
        self.fresh = True

    def set(self, resources: dict[str, Any], *, devices: bool | None = None) -> None:
        memory = section(resources, "memory")
        if memory.get("checkBeforeUpdate"):
            usage = [cgroup.try_read(f"{self.path}/memory.{f}current") or "0" for f in ("", "swap.")]
            check_usage(resources, int(usage[0]), int(usage[1]))
        blkio = section(resources, "blockIO")
        weighed = bool(blkio.get("weight") or blkio.get("weightDevice"))
        bfq = weighed and os.exists(f"{self.path}/io.bfq.weight")
        writes = plan_v2(resources, bfq=bfq)
        again: list[Write] = []
        has_quota = any(w[0] == "cpu.max" for w in writes)
        for write in writes:
            error = cgroup.try_write(f"{self.path}/{write[0]}", write[1])
            if error == errno.EINVAL and has_quota and write[0] in _AFTER_QUOTA:
                again.append(write)
            elif error:
                self._refused(write, error)
        for write in again:
            error = cgroup.try_write(f"{self.path}/{write[0]}", write[1])
            if error:
                self._refused(write, error)
        if self.fresh and not self.rootless if devices is None else devices:
            self._set_devices(resources)

    def _refused(self, write: Write, error: int) -> None:
        file, value, field = write
        if error == errno.ENOENT:
            if ".rsvd." in file or file == "cpu.max.burst":
                return  # refinements that older kernels lack
            if file == "memory.swap.max" and value in ("max", "0"):
                return  # no swap accounting, and no limit asked of it
            controller = file.partition(".")[0]
            enabled = (cgroup.try_read(f"{self.path}/cgroup.controllers") or "").split()
            if controller not in (*enabled, "cgroup"):
                raise FailedPrecondition(
                    f"{field} cannot be set: {self.path} has no {controller} controller",
                    subject=field,
                    step="set cgroup limits",
                )
        raise write_failed(file.partition(".")[0], file, value, field, error)

    def _set_devices(self, resources: dict[str, Any]) -> None:
        rules = device_rules.parse(resources.get("devices"))
        # where everything is allowed there is nothing to check on every open
        program = b"" if all(rule[0] for rule in rules) else bpf.compile_devices(rules)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bpf.replace_device_program(fd, program)
        except KernelError as error:
            raise KernelError(
                f"{_FIELD}.devices: {error.message}",
                subject=f"{_FIELD}.devices",
                step=error.step,
                errno=error.errno,
            ) from None
        finally:
            os.close(fd)

    def join_paths(self, memory: bool | None = None) -> list[str]:
        return [] if memory is False else [self.path]

    def join_fds_beside(self, pid: int) -> list[int]:
        """A container may have moved its processes down and divided its cgroup, as systemd does: then
        one who joins goes where the first process is (runc and crun)."""
        enabled = cgroup.try_read(f"{self.path}/cgroup.subtree_control") or ""
        if not takes_no_process(enabled):
            return self.join_fds()
        found = cgroup.layout()
        inner = cgroup.parse_proc_cgroup(cgroup.read(f"/proc/{pid}/cgroup")).get("", "/")
        path = found.unified + cgroup.relative_to_mount(inner, found.unified_root)
        if not path.startswith(f"{self.path}/"):
            raise FailedPrecondition(
                f"the container has divided its cgroup and left it for {inner}",
                subject=self.path,
                step="join cgroup",
            )
        return ManagerV2({"": path}).join_fds()

    def birthplace(self) -> int:
        return cgroup.open_directory(self.path)

    def kill_all(self, signal: int = 9) -> None:
        """cgroup.kill (Linux >= 5.14) for SIGKILL: no fork can escape it."""
        if signal == 9 and not cgroup.try_write(f"{self.path}/cgroup.kill", "1"):
            return
        super().kill_all(signal)

    def _freezer(self) -> tuple[str, str, str]:
        return self.path, "1", "0"

    def _write_freezer(self, path: str, value: str) -> None:
        cgroup.write(f"{path}/cgroup.freeze", value)

    def oom_kills(self) -> int:
        events = cgroup.try_read(f"{self.path}/memory.events") or ""
        return cgroup.parse_pairs(events).get("oom_kill", 0)

    def stats(self) -> dict[str, Any]:
        from nagaya.runtime.cgroups import stats  # only the verb `events` and the API's stats need it

        return stats.v2(self.path)


def _delegate(parent: str) -> None:
    """Enable for the children whatever controllers `parent` has. What cannot be (a real-time process
    blocks cpu, processes in `parent` block all) is left out: only a limit that needs it fails, then."""
    names = (cgroup.try_read(f"{parent}/cgroup.controllers") or "").split()
    enabled = (cgroup.try_read(f"{parent}/cgroup.subtree_control") or "").split()
    missing = [f"+{name}" for name in names if name not in enabled]
    if missing and cgroup.try_write(f"{parent}/cgroup.subtree_control", " ".join(missing)):
        for one in missing:
            cgroup.try_write(f"{parent}/cgroup.subtree_control", one)


def _refuse_threaded(path: str) -> None:
    """Refuse a threaded cgroup on the way: no process could be put below it."""
    kind = (cgroup.try_read(f"{path}/cgroup.type") or "domain").strip()
    if kind in ("threaded", "domain invalid"):
        raise FailedPrecondition(
            f"cgroup {path} is of type {kind!r:.60} and cannot hold containers",
            subject=path,
            step="create cgroups",
        )
