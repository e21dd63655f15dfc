"""`update`: change the limits of a running container."""

from __future__ import annotations

from nagaya.errors import InvalidArgument
from nagaya.linux import os
from nagaya.linux.json import loads
from nagaya.runtime import lifecycle
from nagaya.runtime.arguments import NUMBER, TEXT, Option
from nagaya.runtime.verbs import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id>"
ARITY = (1, 1)
OPTIONS = [
    Option(
        "resources r", TEXT, "path to the file containing the resources to update or '-' for standard input"
    ),
    Option("blkio-weight", NUMBER, "Specifies per cgroup weight, range is from 10 to 1000"),
    Option("cpu-period", NUMBER, "CPU CFS period to be used for hardcapping (in usecs)"),
    Option("cpu-quota", NUMBER, "CPU CFS hardcap limit (in usecs)"),
    Option("cpu-burst", NUMBER, "CPU CFS hardcap burst limit (in usecs)"),
    Option("cpu-share", NUMBER, "CPU shares (relative weight vs. other containers)"),
    Option("cpu-rt-period", NUMBER, "CPU realtime period to be used for hardcapping (in usecs)"),
    Option("cpu-rt-runtime", NUMBER, "CPU realtime hardcap limit (in usecs)"),
    Option("cpu-idle", NUMBER, "set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE"),
    Option("cpuset-cpus", TEXT, "CPU(s) to use"),
    Option("cpuset-mems", TEXT, "Memory node(s) to use"),
    Option("memory", TEXT, "Memory limit (in bytes)"),
    Option("memory-reservation", TEXT, "Memory reservation or soft_limit (in bytes)"),
    Option("memory-swap", TEXT, "Total memory usage (memory + swap); set '-1' to enable unlimited swap"),
    Option("pids-limit", NUMBER, "Maximum number of pids allowed in the container"),
    Option("kernel-memory", TEXT, "obsolete, ignored"),
    Option("kernel-memory-tcp", TEXT, "obsolete, ignored"),
    Option("l3-cache-schema", TEXT, "The string of Intel RDT/CAT L3 cache schema"),
    Option("mem-bw-schema", TEXT, "The string of Intel RDT/MBA memory bandwidth schema"),
]

# option -> (section, key) of linux.resources
_PLACES = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "pids-limit": ("pids", "limit"),
}
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_STDIN_LIMIT = 1 << 20


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """0 when all limits are set."""
    lifecycle.update(settings.root, positional[0], resources_of(options))
    return 0


def resources_of(options: dict[str, Any]) -> dict[str, Any]:
    """`linux.resources` of the options, or of the file that they name. Raises InvalidArgument, NotFound."""
    for key in ("l3-cache-schema", "mem-bw-schema"):
        if options[key]:
            raise InvalidArgument("Intel RDT is not supported", subject=f"--{key}")
    if options["resources"]:
        return _read(options["resources"])
    resources: dict[str, Any] = {}
    for key, (section, member) in _PLACES.items():
        value = options[key]
        if value is None or value == "":
            continue
        if section == "memory":
            value = size(value, key)
        resources.setdefault(section, {})[member] = value
    return resources


def _read(path: str) -> dict[str, Any]:
    document = loads(os.read(0, _STDIN_LIMIT)) if path == "-" else launch.read_json(path)
    if not isinstance(document, dict):
        raise InvalidArgument("the resources must be an object", subject="--resources")
    return document


def size(text: str, option: str) -> int:
    """Bytes of "64m", "1g", "-1", as docker/go-units reads them. Raises InvalidArgument."""
    if text == "-1":
        return -1
    number = text.lower().rstrip("ib").rstrip("kmgtp")
    unit = text.lower()[len(number) :].rstrip("b").rstrip("i")
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise InvalidArgument(f"invalid value for {option}: {text!r}", subject=f"--{option}") from None
