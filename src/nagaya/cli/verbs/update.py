"""`nagaya update`: change the limits of containers while they run."""

from __future__ import annotations

from nagaya.cli import life, values
from nagaya.cli.create import CREATE_FLAGS, SIZES, value_of
from nagaya.cli.flags import UsageError
from nagaya.cli.output import note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
SUMMARY = "Change the limits of containers"
_PLAIN = {
    "blkio-weight": "BlkioWeight",
    "cpu-period": "CpuPeriod",
    "cpu-quota": "CpuQuota",
    "cpu-shares": "CpuShares",
    "cpuset-cpus": "CpusetCpus",
    "cpuset-mems": "CpusetMems",
    "pids-limit": "PidsLimit",
}
_SIZES = {flag: key for flag, key in SIZES.items() if flag != "shm-size"}
FLAGS = tuple(flag for flag in CREATE_FLAGS if flag.name in {*_PLAIN, *_SIZES, "cpus", "restart"})
ARGS = (1, None)


def body(given: Given) -> dict[str, Any]:
    """The JSON of POST /containers/{id}/update: only what was given. Raises UsageError for nothing."""
    found: dict[str, Any] = {key: given[flag] for flag, key in _PLAIN.items() if flag in given.changed}
    found |= {
        key: value_of(given, flag, values.size) for flag, key in _SIZES.items() if flag in given.changed
    }
    if "cpus" in given.changed:
        found["NanoCpus"] = values.nano_cpus(given["cpus"])
    if "restart" in given.changed:
        found["RestartPolicy"] = values.restart(given["restart"])
    if not found:
        raise UsageError("you must provide one or more flags when using this command")
    return found


def run(given: Given, client: Client) -> int:
    """Print each name once it is done."""
    wanted = body(given)

    def change(name: str) -> None:
        answer = client.call("POST", life.path(name) + "/update", body=wanted)
        for warning in (answer or {}).get("Warnings") or ():
            note(f"WARNING: {warning}")

    return life.each(given.args, change)
