"""`nagaya volume ls`: the volumes."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import filters, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "List volumes"
FLAGS = (
    Flag("filter", "Show those that match: dangling=true, name=data", short="f", kind="list"),
    Flag("format", "table, json, or a Go template", kind="text"),
    Flag("quiet", "Show names only", short="q"),
)
ARGS = (0, 0)

_COLUMNS = (("Driver", "DRIVER"), ("Name", "VOLUME NAME"))
_OTHERS = {"Labels": "LABELS", "Mountpoint": "MOUNTPOINT", "Scope": "SCOPE"}


def run(given: Given, client: Client) -> int:
    """Print one line a volume."""
    found = []
    for item in client.call("GET", "/volumes", {"filters": filters(given["filter"])})["Volumes"] or ():
        labels = item.get("Labels") or {}
        found.append(
            {
                **{field: item[field] for field in ("Driver", "Name", "Mountpoint", "Scope")},
                "Labels": ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
                "Label": lambda name, labels=labels: labels.get(name, ""),
            }
        )
    found.sort(key=lambda row: str(row["Name"]))
    if given["quiet"]:
        for row in found:
            print(row["Name"])
        return 0
    rows(found, _COLUMNS, given["format"], _OTHERS)
    return 0
