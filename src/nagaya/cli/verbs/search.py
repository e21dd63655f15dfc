"""`nagaya search`: what a registry has for a word."""

from __future__ import annotations

from nagaya.cli.auth import registry_auth
from nagaya.cli.flags import Flag
from nagaya.cli.output import ellipsis, filters, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] [REGISTRY/]TERM"
SUMMARY = "Search a registry for images"
FLAGS = (
    Flag("filter", "Only those that match: is-official=true, stars=3", short="f", kind="list"),
    Flag("format", "table, json, or a Go template", kind="text"),
    Flag("limit", "Most results to show, up to 100 (default 25)", kind="int"),
    Flag("no-trunc", "Do not shorten"),
)
ARGS = (1, 1)

_COLUMNS = (
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
)


def run(given: Given, client: Client) -> int:
    """Print one line a repository."""
    term = given.args[0]
    query = {"term": term, "limit": given["limit"], "filters": filters(given["filter"])}
    headers = {"X-Registry-Auth": registry_auth(term)}
    found = []
    for item in client.call("GET", "/images/search", query, headers=headers):
        description = item.get("description", "").replace("\n", " ").replace("\r", " ")
        found.append(
            {
                "Name": item["name"],
                "Description": description if given["no-trunc"] else ellipsis(description, 45),
                "StarCount": str(item.get("star_count", 0)),
                "IsOfficial": "[OK]" if item.get("is_official") else "",
            }
        )
    rows(found, _COLUMNS, given["format"])
    return 0
