"""`nagaya system df`: what images, containers and volumes take on disk."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import human_size, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Show what is used of the disk"
FLAGS = (Flag("format", "table, json, or a Go template", kind="text"),)
ARGS = (0, 0)

_COLUMNS = (
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
)


def run(given: Given, client: Client) -> int:
    """Print one line a kind of thing."""
    usage = client.call("GET", "/system/df")
    images, containers, volumes = usage["Images"], usage["Containers"], usage["Volumes"]
    used = sum(image["Size"] - image["SharedSize"] for image in images if image["Containers"])
    living = ("running", "paused", "restarting")
    data = [(volume["UsageData"]["Size"], volume["UsageData"]["RefCount"] > 0) for volume in volumes]
    found = [
        _row("Images", len(images), sum(bool(i["Containers"]) for i in images), usage["LayersSize"], used),
        _row(
            "Containers",
            len(containers),
            sum(c["State"] in living for c in containers),
            sum(c.get("SizeRw") or 0 for c in containers),
            sum(c.get("SizeRw") or 0 for c in containers if c["State"] in living),
        ),
        _row(
            "Local Volumes",
            len(data),
            sum(wanted for _, wanted in data),
            sum(size for size, _ in data),
            sum(size for size, wanted in data if wanted),
        ),
    ]
    rows(found, _COLUMNS, given["format"])
    return 0


def _row(kind: str, total: int, active: int, size: int, used: int) -> dict[str, Any]:
    """One line; what is not used could be had back."""
    free = human_size(size - used) + (f" ({(size - used) * 100 // size}%)" if size > 0 else "")
    return {
        "Type": kind,
        "TotalCount": str(total),
        "Active": str(active),
        "Size": human_size(size),
        "Reclaimable": free,
    }
