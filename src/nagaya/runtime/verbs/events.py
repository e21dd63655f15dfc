"""`events`: usage statistics of a container, once or at an interval, one JSON object a line."""

from __future__ import annotations

import select

from nagaya.errors import InvalidArgument, NagayaError
from nagaya.linux import os, pids
from nagaya.linux.json import dumps
from nagaya.runtime import lifecycle
from nagaya.runtime import state as store
from nagaya.runtime.arguments import FLAG, TEXT, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options] <container-id>"
ARITY = (1, 1)
OPTIONS = [
    Option("interval", TEXT, "set the stats collection interval", "5s"),
    Option("stats", FLAG, "display the container's stats then exit"),
]

_UNITS = (("ms", 0.001), ("us", 1e-6), ("s", 1.0), ("m", 60.0), ("h", 3600.0))


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Print until the container stops; an "oom" line when the kernel killed a process of it."""
    return follow(settings, options, positional[0], lifecycle.stats, lifecycle.oom_kills)


def follow(
    settings: Settings,
    options: dict[str, Any],
    identifier: str,
    stats: Callable[[str, str], dict[str, Any]],
    oom_kills: Callable[[dict[str, Any]], int],
) -> int:
    """The same with the numbers of others: stats of (root, id), kills of a container's record."""
    interval = seconds(options["interval"])
    _print("stats", identifier, stats(settings.root, identifier))
    if options["stats"]:
        return 0
    record = store.load(settings.root, identifier)
    pidfd = pids.pidfd_open(record["pid"])
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    kills = oom_kills(record)
    while not poll.poll(interval * 1000):
        try:
            if (now := oom_kills(record)) > kills:
                kills = now
                _print("oom", identifier, None)
            _print("stats", identifier, stats(settings.root, identifier))
        except NagayaError:
            break
    return 0


def _print(kind: str, identifier: str, data: dict[str, Any] | None) -> None:
    line: dict[str, Any] = {"type": kind, "id": identifier}
    if data is not None:
        line["data"] = data
    os.write(1, (dumps(line) + "\n").encode())


def seconds(text: str) -> float:
    """A duration of Go's form, with one unit: "500ms", "5s". Raises InvalidArgument."""
    for unit, factor in _UNITS:
        if text.endswith(unit):
            try:
                value = float(text[: -len(unit)]) * factor
            except ValueError:
                break
            if value > 0:
                return value
            break
    raise InvalidArgument("duration interval must be greater than 0", subject="--interval")
