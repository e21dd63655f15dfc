"""What Docker gives a container that asked for nothing: capabilities, paths, mounts, devices. Pure data.

Facts of dockerd 28 (its default OCI spec), in the runtime-spec's vocabulary. Composed by the engine;
callers must not change what they get from here, so containers are tuples or made anew per call.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

# Hidden: they tell about, or act on, the whole host. /proc/interrupts and the CPUs' thermal_throttle
# (`thermal_paths`) time keystrokes and neighbours (GHSA-6fw5-f8r9-fgfm); powercap reads the power
# that other tenants' secrets draw (GHSA-jq35-85cj-fj4p).
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In a network namespace of its own a container may listen on any port and ping without privileges.
SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}

# Namespaces made for every container; "cgroup" comes on top where cgroups are v2 (Docker's default).
NAMESPACES = ("mount", "network", "uts", "pid", "ipc")

SHM_SIZE = 64 << 20

_CHARACTER_DEVICES = (
    (1, 5),  # zero
    (1, 3),  # null
    (1, 9),  # urandom
    (1, 8),  # random
    (5, 0),  # tty
    (5, 1),  # console
)


def thermal_paths(cpus: Iterable[int]) -> list[str]:
    """The thermal_throttle directories of those CPUs, to be masked where they exist."""
    return [f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle" for cpu in cpus]


def device_rules() -> list[dict[str, Any]]:
    """linux.resources.devices: nothing but the devices that every /dev has."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in _CHARACTER_DEVICES
    ]
    rules.append({"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"})  # fuse
    return rules


def mounts(*, shm_size: int = SHM_SIZE) -> list[dict[str, Any]]:
    """The mounts of every container, in the order they are made."""

    def mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source, "options": list(options)}

    quiet = ("nosuid", "noexec", "nodev")
    return [
        mount("/proc", "proc", "proc", *quiet),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        mount("/sys", "sysfs", "sysfs", *quiet, "ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", *quiet),
        mount("/dev/mqueue", "mqueue", "mqueue", *quiet),
        mount("/dev/shm", "tmpfs", "shm", *quiet, "mode=1777", f"size={shm_size}"),
    ]


def environment(hostname: str, *, terminal: bool = False, home: str = "") -> list[str]:
    """The variables that a container has before its image's and its own are merged over them."""
    variables = [f"PATH={PATH}", f"HOSTNAME={hostname}"]
    if terminal:
        variables.append("TERM=xterm")
    if home:
        variables.append(f"HOME={home}")
    return variables
