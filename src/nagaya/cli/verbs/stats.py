"""`nagaya stats`: what containers use of the machine."""

from __future__ import annotations

import sys
import time

from nagaya.cli import life
from nagaya.cli.flags import Flag
from nagaya.cli.http import ApiError
from nagaya.cli.output import human_bytes, human_size, rows, short_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] [CONTAINER...]"
SUMMARY = "Show live use of resources by containers"
FLAGS = (
    Flag("all", "Show all containers, not only running ones", short="a"),
    Flag("format", "table, json, or a Go template", kind="text"),
    Flag("no-stream", "Show one reading only"),
    Flag("no-trunc", "Do not shorten"),
)
ARGS = (0, None)

_COLUMNS = (
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
)


def run(given: Given, client: Client) -> int:
    """Print a table, again and again on a terminal until interrupted."""
    while True:
        names = given.args or [c["Id"] for c in client.call("GET", "/containers/json", {"all": given["all"]})]
        found = []
        for name in names:
            try:
                reading = client.call("GET", life.path(name) + "/stats", {"stream": "0"})
            except ApiError as error:
                if error.status != 404 or given.args:
                    raise
                continue  # it ended since the list was made
            found.append(row(reading, full=given["no-trunc"]))
        if not given["no-stream"] and not given["format"]:
            sys.stdout.write("\x1b[H\x1b[J")
        rows(found, _COLUMNS, given["format"])
        sys.stdout.flush()
        if given["no-stream"]:
            return 0
        time.sleep(1)


def row(reading: dict[str, Any], *, full: bool) -> dict[str, Any]:
    """One container's fields, under docker's names."""
    memory = reading.get("memory_stats") or {}
    inner = memory.get("stats") or {}
    # what the kernel would give back at once is no use of the container's (as docker and free(1) count)
    cache = inner.get("total_inactive_file", inner.get("inactive_file", 0))
    used = max(0, memory.get("usage", 0) - cache)
    limit = memory.get("limit", 0)
    networks = (reading.get("networks") or {}).values()
    received, sent = (sum(n.get(key, 0) for n in networks) for key in ("rx_bytes", "tx_bytes"))
    blocks = (reading.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    read, written = (
        sum(b.get("value", 0) for b in blocks if b.get("op", "").lower() == op) for op in ("read", "write")
    )
    return {
        "Container": reading.get("id", ""),
        "ID": reading.get("id", "") if full else short_id(reading.get("id", "")),
        "Name": reading.get("name", "").removeprefix("/"),
        "CPUPerc": f"{cpu_percent(reading):.2f}%",
        "MemUsage": f"{human_bytes(used)} / {human_bytes(limit)}",
        "MemPerc": f"{100 * used / limit if limit else 0:.2f}%",
        "NetIO": f"{human_size(received)} / {human_size(sent)}",
        "BlockIO": f"{human_size(read)} / {human_size(written)}",
        "PIDs": str((reading.get("pids_stats") or {}).get("current", 0)),
    }


def cpu_percent(reading: dict[str, Any]) -> float:
    """CPU time since the reading before, over the machine's, times its CPUs."""
    now, before = reading.get("cpu_stats") or {}, reading.get("precpu_stats") or {}
    used = (now.get("cpu_usage") or {}).get("total_usage", 0) - (before.get("cpu_usage") or {}).get(
        "total_usage", 0
    )
    whole = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    if used <= 0 or whole <= 0:
        return 0.0
    return float(100.0 * used / whole * (now.get("online_cpus") or 1))
