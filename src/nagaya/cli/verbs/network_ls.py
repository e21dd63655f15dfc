"""`nagaya network ls`: the networks."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import filters, label_fields, rows, short_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "List networks"
FLAGS = (
    Flag("filter", "Show those that match: driver=bridge, name=host", short="f", kind="list"),
    Flag("format", "table, json, or a Go template", kind="text"),
    Flag("no-trunc", "Do not shorten"),
    Flag("quiet", "Show ids only", short="q"),
)
ARGS = (0, 0)

_COLUMNS = (("ID", "NETWORK ID"), ("Name", "NAME"), ("Driver", "DRIVER"), ("Scope", "SCOPE"))
_OTHERS = {
    "CreatedAt": "CREATED AT",
    "IPv4": "IPV4",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
}


def run(given: Given, client: Client) -> int:
    """Print one line a network."""
    found = []
    for item in client.call("GET", "/networks", {"filters": filters(given["filter"])}):
        found.append(
            {
                "ID": item["Id"] if given["no-trunc"] else short_id(item["Id"]),
                "Name": item["Name"],
                "Driver": item["Driver"],
                "Scope": item["Scope"],
                "IPv4": str(item.get("EnableIPv4", True)).lower(),
                "IPv6": str(item.get("EnableIPv6", False)).lower(),
                "Internal": str(item.get("Internal", False)).lower(),
                **label_fields(item.get("Labels") or {}),
                "CreatedAt": item["Created"],
            }
        )
    found.sort(key=lambda row: str(row["Name"]))
    if given["quiet"]:
        for row in found:
            print(row["ID"])
        return 0
    rows(found, _COLUMNS, given["format"], _OTHERS)
    return 0
