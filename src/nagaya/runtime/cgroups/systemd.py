"""The systemd cgroup driver: a transient scope per container, its limits as unit properties.

`parse_path`, `slice_path` and `properties` are pure. D-Bus is spoken by jeepney, imported only when
systemd is used. Limits that systemd has no property for are written to the cgroup itself, as runc
does, which systemd leaves alone in a delegated scope.
Sources: org.freedesktop.systemd1(5), systemd.resource-control(5), systemd.slice(5).
"""

from __future__ import annotations

import time

from nagaya.errors import FailedPrecondition, InvalidArgument, Unavailable
from nagaya.linux import cgroup, os
from nagaya.linux.namespaces import close_range
from nagaya.runtime.cgroups import devices as device_rules
from nagaya.runtime.cgroups import unitproperties, v1, v2
from nagaya.runtime.cgroups.base import Manager
from nagaya.runtime.cgroups.fields import number, section, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # (name, (D-Bus signature, value))
    Property = tuple[str, tuple[str, Any]]

_FIELD = "linux.resources"
_UNLIMITED = 2**64 - 1
_BUS = "org.freedesktop.systemd1"
_OBJECT = "/org/freedesktop/systemd1"
_WAIT_SECONDS = 30.0


def parse_path(cgroups_path: str, container_id: str) -> tuple[str, str]:
    """(slice, unit) of OCI cgroupsPath "slice:prefix:name" (pure); empty is "system.slice" and
    "nagaya-ID.scope". Raises InvalidArgument."""
    if not cgroups_path:
        return "system.slice", f"nagaya-{container_id}.scope"
    parts = cgroups_path.split(":")
    if len(parts) != 3 or any("/" in part or "\0" in part for part in parts):
        raise InvalidArgument(
            f"with the systemd cgroup driver cgroupsPath must be 'slice:prefix:name', not {cgroups_path!r}",
            subject="linux.cgroupsPath",
        )
    parent, prefix, name = parts
    if not name:
        raise InvalidArgument("cgroupsPath has no unit name", subject="linux.cgroupsPath")
    if name.endswith(".slice"):
        return parent or "system.slice", name
    return parent or "system.slice", f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


def slice_path(name: str) -> str:
    """The directory of a slice: "a-b.slice" lies in "a.slice" (pure). Raises InvalidArgument."""
    stem = name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if stem == name or "/" in name or not all(parts):
        raise InvalidArgument(f"{name!r} is not the name of a slice", subject="linux.cgroupsPath")
    return "".join(f"/{'-'.join(parts[: index + 1])}.slice" for index in range(len(parts)))


def cpu_bits(listed: str, field: str) -> bytes:
    """The bit mask, lowest byte first, of "0-2,5" (pure). Raises InvalidArgument."""
    mask = 0
    for part in listed.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise InvalidArgument(f"{field} must be a list like '0-2,5', not {listed!r}", subject=field)
        low, high = int(first), int(last or first)
        if high < low or high > 8191:
            raise InvalidArgument(f"{field}: {part!r} is not a range of CPUs or nodes", subject=field)
        mask |= (1 << (high + 1)) - (1 << low)
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _quota(quota: int, period: int) -> list[Property]:
    if not quota and not period:
        return []
    per_second = _UNLIMITED
    if quota > 0:
        per_second = quota * 1_000_000 // (period or 100_000)
        # systemd counts in 10 ms: rounded up, so that no container gets less than it asked for
        per_second = -(-per_second // 10_000) * 10_000
    found: list[Property] = [("CPUQuotaPerSecUSec", ("t", per_second))]
    if period:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    return found


def _unsigned(value: int) -> int:
    return _UNLIMITED if value == -1 else value


def properties(resources: dict[str, Any], version: int) -> list[Property]:
    """The unit properties for OCI linux.resources on cgroup v1 or v2 (pure). Raises InvalidArgument."""
    found: list[Property] = []
    memory = section(resources, "memory")
    limit = number(memory.get("limit"), f"{_FIELD}.memory.limit") or 0
    reservation = number(memory.get("reservation"), f"{_FIELD}.memory.reservation") or 0
    if limit:
        found.append(("MemoryMax" if version == 2 else "MemoryLimit", ("t", _unsigned(limit))))
    if version == 2:
        if reservation:
            found.append(("MemoryLow", ("t", _unsigned(reservation))))
        swap = v2.swap_of(limit, number(memory.get("swap"), f"{_FIELD}.memory.swap") or 0)
        if swap is not None:
            found.append(("MemorySwapMax", ("t", _unsigned(swap))))
    cpu = section(resources, "cpu")
    shares = number(cpu.get("shares"), f"{_FIELD}.cpu.shares") or 0
    if shares and version == 2:
        # a weight of 0 is how systemd spells cpu.idle
        weight = 0 if cpu.get("idle") == 1 else v2.weight_of_shares(shares)
        found.append(("CPUWeight", ("t", weight)))
    elif shares:
        found.append(("CPUShares", ("t", shares)))
    found += _quota(
        number(cpu.get("quota"), f"{_FIELD}.cpu.quota") or 0,
        number(cpu.get("period"), f"{_FIELD}.cpu.period") or 0,
    )
    if version == 2:
        for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
            listed = text(cpu.get(key), f"{_FIELD}.cpu.{key}")
            if listed:
                found.append((name, ("ay", cpu_bits(listed, f"{_FIELD}.cpu.{key}"))))
    pids = number(section(resources, "pids").get("limit"), f"{_FIELD}.pids.limit")
    if pids is not None:
        found.append(("TasksMax", ("t", max(pids, 1) if pids >= 0 else _UNLIMITED)))
    weight = number(section(resources, "blockIO").get("weight"), f"{_FIELD}.blockIO.weight") or 0
    if weight and version == 1:
        found.append(("BlockIOWeight", ("t", weight)))
    return found


def unit_properties(unit: str, parent: str, description: str, pid: int) -> list[Property]:
    """The properties that make the scope (or slice) itself (pure)."""
    found: list[Property] = [("Description", ("s", description))]
    if unit.endswith(".slice"):
        found.append(("Wants", ("as", [parent])))
    else:
        found += [("Slice", ("s", parent)), ("Delegate", ("b", True)), ("PIDs", ("au", [pid]))]
    found += [(f"{name}Accounting", ("b", True)) for name in ("Memory", "CPU", "IO", "Tasks")]
    found.append(("DefaultDependencies", ("b", False)))
    return found


def manager(
    found: cgroup.Layout, cgroups_path: str, container_id: str, annotations: dict[str, str]
) -> Manager:
    """The manager of a container in a scope of systemd. Raises InvalidArgument, FailedPrecondition."""
    parent, unit = parse_path(cgroups_path, container_id)
    below = f"{slice_path(parent)}/{unit}"
    if found.version == 2:
        made: _SystemdV1 | _SystemdV2 = _SystemdV2({"": found.unified + below}, parent, unit)
        made.wanted = unitproperties.wanted(annotations)
        return made
    named = v1.paths_for(found, {}, below, container_id)
    named.pop("", None)  # systemd's own, where the scope has its processes already
    made = _SystemdV1(named, parent, unit)
    made.wanted = unitproperties.wanted(annotations)
    return made


def from_state(state: dict[str, Any]) -> Manager:
    """The manager that `to_state` described. Raises InvalidArgument."""
    parent, unit = state.get("slice"), state.get("unit")
    if not isinstance(parent, str) or not isinstance(unit, str):
        raise InvalidArgument("the recorded cgroups are not readable", subject="state.cgroup")
    kind = _SystemdV2 if state["version"] == 2 else _SystemdV1
    return kind(state["paths"], parent, unit)


class _Bus:
    """One connection to systemd's manager. Raises FailedPrecondition when there is none."""

    __slots__ = ("_connection", "_jeepney")

    def __init__(self) -> None:
        try:
            # optional, 15 ms, and only for this driver; by name, for it may be absent where types are checked
            jeepney: Any = __import__("jeepney")
            blocking: Any = __import__("jeepney.io.blocking", fromlist=["open_dbus_connection"])
        except ImportError:
            raise FailedPrecondition(
                "the systemd cgroup driver needs the Python package jeepney", step="connect to systemd"
            ) from None
        self._jeepney = jeepney
        try:
            self._connection = blocking.open_dbus_connection(bus="SYSTEM")
        except (OSError, KeyError) as error:
            raise FailedPrecondition(
                f"the systemd cgroup driver cannot reach D-Bus ({error}); use the cgroupfs driver",
                step="connect to systemd",
            ) from None

    def call(self, method: str, signature: str, arguments: tuple[Any, ...]) -> Any:
        address = self._jeepney.DBusAddress(_OBJECT, bus_name=_BUS, interface=f"{_BUS}.Manager")
        message = self._jeepney.new_method_call(address, method, signature, arguments)
        try:
            reply = self._connection.send_and_get_reply(message, timeout=_WAIT_SECONDS)
        except TimeoutError:
            raise Unavailable(f"systemd did not answer {method}", step=f"systemd {method}") from None
        if reply.header.message_type == self._jeepney.MessageType.error:
            name = reply.header.fields.get(self._jeepney.HeaderFields.error_name, "error")
            said = reply.body[0] if reply.body else ""
            raise FailedPrecondition(f"{name}: {said}", subject=str(name), step=f"systemd {method}")
        return reply.body

    def close(self) -> None:
        self._connection.close()


def _start_unit(unit: str, found: list[Property]) -> None:
    bus = _Bus()
    try:
        bus.call("StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "replace", found, []))
    finally:
        bus.close()


def _set_properties(unit: str, found: list[Property]) -> None:
    if not found:
        return
    bus = _Bus()
    try:
        bus.call("SetUnitProperties", "sba(sv)", (unit, True, found))
    finally:
        bus.close()


def _stop_unit(unit: str) -> None:
    bus = _Bus()
    try:
        bus.call("StopUnit", "ss", (unit, "replace"))
        # one that ended by the kernel's hand (oom-kill) has failed, and would stay to be looked at
        bus.call("ResetFailedUnit", "s", (unit,))
    except FailedPrecondition as error:
        if not error.subject.endswith(".NoSuchUnit"):
            raise
    finally:
        bus.close()


def device_properties(rules: list[device_rules.Rule], groups: dict[tuple[str, int], str]) -> list[Property]:
    """DevicePolicy and DeviceAllow for the rules (pure): without them systemd would open the devices
    of a v1 scope again at every daemon-reload. groups: {("c", 136): "pts"} of /proc/devices."""
    if rules[0][0]:
        return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
    allowed: list[tuple[str, str]] = []
    for allow, line in device_rules.v1_lines(rules)[1:]:
        kind, numbers, access = line.split(" ")
        major, _, minor = numbers.partition(":")
        word = "char" if kind == "c" else "block"
        if major == "*":
            node = f"{word}-*"
        elif minor == "*":
            if (kind, int(major)) not in groups:
                continue  # no driver has that number: there is nothing to allow
            node = f"{word}-{groups[kind, int(major)]}"
        else:
            node = f"/dev/{word}/{major}:{minor}"
        if allow:
            allowed.append((node, access))
    return [("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", allowed))]


def parse_proc_devices(listed: str) -> dict[tuple[str, int], str]:
    """{("c", 136): "pts"} of the text of /proc/devices (pure)."""
    groups: dict[tuple[str, int], str] = {}
    kind = "c"
    for line in listed.split("\n"):
        words = line.split()
        if line.startswith("Block"):
            kind = "b"
        elif len(words) == 2 and words[0].isdigit():
            groups.setdefault((kind, int(words[0])), words[1])
    return groups


class _Placeholder:
    """A process that keeps a scope alive until the container's own is in it: systemd makes no scope
    without a process. It ends with its pipe, so with us at the latest."""

    __slots__ = ("_end", "pid")

    def __init__(self) -> None:
        reader, self._end = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                reader = os.dup2(reader, 0)
                close_range(1)  # no pipe or terminal of the container's may stay open here
                os.read(0, 1)
            finally:
                os._exit(0)
        os.close(reader)

    def end(self) -> None:
        os.close(self._end)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass


def _start_scope(one: _SystemdV1 | _SystemdV2) -> None:
    """Make the scope with a placeholder in it, and wait until its cgroups exist."""
    holder = one.holder = _Placeholder()
    found = unit_properties(one.unit, one.slice, f"nagaya container {one.unit}", holder.pid)
    _start_unit(one.unit, [*found, *one.wanted])
    deadline = time.monotonic() + _WAIT_SECONDS
    while f"/{one.unit}" not in (cgroup.try_read(f"/proc/{holder.pid}/cgroup") or ""):
        if time.monotonic() > deadline:
            raise Unavailable(f"systemd did not start {one.unit}", subject=one.unit, step="start scope")
        time.sleep(0.002)


def _set(one: _SystemdV1 | _SystemdV2, resources: dict[str, Any], devices: bool) -> None:
    found = properties(resources, one.version)
    if devices:
        groups = parse_proc_devices(cgroup.read("/proc/devices"))
        try:
            found += device_properties(device_rules.parse(resources.get("devices")), groups)
        except InvalidArgument:
            if one.version == 1:
                raise
            # rules that only an ordered list can express: the BPF program does on v2
    _set_properties(one.unit, found)


class _SystemdV1(v1.ManagerV1):
    __slots__ = ("holder", "slice", "unit", "wanted")

    driver = "systemd"

    def __init__(self, paths: dict[str, str], parent: str, unit: str) -> None:
        super().__init__(paths)
        self.slice, self.unit = parent, unit
        self.holder: _Placeholder | None = None
        self.wanted: list[Property] = []

    def create(self) -> None:
        _start_scope(self)
        self.fresh = True
        self._make()  # hierarchies that systemd does not manage (freezer, cpuset, ...)

    def set(self, resources: dict[str, Any], *, devices: bool | None = None) -> None:
        _set(self, resources, self.fresh if devices is None else devices)
        super().set(resources, devices=devices)

    def settle(self) -> None:
        if self.holder is not None:
            self.holder.end()
            self.holder = None

    def delete(self) -> None:
        self.settle()
        _stop_unit(self.unit)
        super().delete()

    def to_state(self) -> dict[str, Any]:
        return {**super().to_state(), "slice": self.slice, "unit": self.unit}


class _SystemdV2(v2.ManagerV2):
    __slots__ = ("holder", "slice", "unit", "wanted")

    driver = "systemd"

    def __init__(self, paths: dict[str, str], parent: str, unit: str) -> None:
        super().__init__(paths)
        self.slice, self.unit = parent, unit
        self.holder: _Placeholder | None = None
        self.wanted: list[Property] = []

    def create(self) -> None:
        _start_scope(self)
        self._make()

    def set(self, resources: dict[str, Any], *, devices: bool | None = None) -> None:
        _set(self, resources, self.fresh if devices is None else devices)
        super().set(resources, devices=devices)

    def settle(self) -> None:
        if self.holder is not None:
            self.holder.end()
            self.holder = None

    def delete(self) -> None:
        self.settle()
        _stop_unit(self.unit)
        super().delete()

    def to_state(self) -> dict[str, Any]:
        return {**super().to_state(), "slice": self.slice, "unit": self.unit}
