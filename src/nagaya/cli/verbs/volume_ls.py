"""`nagaya volume ls`: the volumes."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import filters, label_fields, rows

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
        found.append(
            {
                **{field: item[field] for field in ("Driver", "Name", "Mountpoint", "Scope")},
                **label_fields(item.get("Labels") or {}),
            }
        )
    found.sort(key=lambda row: str(row["Name"]))
    if given["quiet"]:
        for row in found:
            print(row["Name"])
        return 0
    rows(found, _COLUMNS, given["format"], _OTHERS)
    return 0
