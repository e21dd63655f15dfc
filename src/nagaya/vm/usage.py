"""What a container in a microVM uses, runs and may use: the guest's kernel knows, its monitor asks it."""

from __future__ import annotations

from nagaya.errors import FailedPrecondition
from nagaya.linux import os
from nagaya.linux.cgroup import parse_pairs
from nagaya.runtime import lifecycle
from nagaya.runtime import state as store
from nagaya.runtime.cgroups import stats as shapes
from nagaya.vm import control, launching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def _running(root: str, identifier: str) -> dict[str, Any]:
    record = store.load(root, identifier)
    if not store.alive(record):
        raise FailedPrecondition(f"container with id {identifier} is not running", subject=identifier)
    return record


def _files(record: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = control.ask(launching.directory_of(record), op="stats", container=record["id"])
    return found


def stats(root: str, identifier: str) -> dict[str, Any]:
    """Usage in the shape of `events --stats`. Raises FailedPrecondition."""
    return shapes.v2(_files(_running(root, identifier)))


def oom_kills(record: dict[str, Any]) -> int:
    """How many processes of the container the guest's OOM killer has killed."""
    return parse_pairs(_files(record).get("memory.events", "")).get("oom_kill", 0)


def update(root: str, identifier: str, resources: dict[str, Any]) -> None:
    """Apply new linux.resources. More memory than its machine has is refused. Raises FailedPrecondition."""
    record = _running(root, identifier)
    mib = int(record[launching.VM]["mib"])
    limit = int((resources.get("memory") or {}).get("limit") or 0)
    if limit > mib << 20:
        raise FailedPrecondition(
            f"the microVM has {mib} MiB: a higher limit needs a new start",
            subject="linux.resources.memory.limit",
        )
    directory = launching.directory_of(record)
    control.ask(directory, op="update", container=identifier, resources=resources)
    lifecycle.update(root, identifier, {"cpu": resources["cpu"]} if resources.get("cpu") else {})


def processes(root: str, identifier: str) -> dict[str, Any]:
    """{"uptime": of the guest in seconds, "processes": [stat, status, command line] of each}, as the guest's
    /proc tells them (proc(5))."""
    record = _running(root, identifier)
    found: dict[str, Any] = control.ask(launching.directory_of(record), op="ps", container=identifier)
    return found


def table(rows: Sequence[Sequence[str]]) -> str:
    """The processes as ps(1) prints them with -ef, as far as the guest tells (pure)."""
    lines = [("UID", "PID", "PPID", "TIME", "CMD")]
    ticks = os.sysconf("SC_CLK_TCK")
    for stat, status, command in rows:
        name, fields = stat[stat.find("(") + 1 : stat.rfind(")")], stat[stat.rfind(")") + 2 :].split()
        if len(fields) < 13:
            continue  # it has ended meanwhile
        uid = next((line.split()[1] for line in status.split("\n") if line.startswith("Uid:")), "?")
        seconds = (int(fields[11]) + int(fields[12])) // ticks
        time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        words = command.replace("\0", " ").strip() or f"[{name}]"
        lines.append((uid, stat.partition(" ")[0], fields[1], time, words))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    shown = [
        " ".join((line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in (1, 2, 3)), line[4]))
        for line in lines
    ]
    return "".join(f"{line}\n" for line in shown)
