"""`nagaya builder prune`: forget what builds keep to be quick."""

from __future__ import annotations

from nagaya.cli import values
from nagaya.cli.flags import Flag
from nagaya.cli.output import confirmed, filters, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Remove the build cache"
FLAGS = (
    Flag("all", "Remove what images still use, too", short="a"),
    Flag("filter", "Only those that match: until=24h, id=ID, type=TYPE", kind="list"),
    Flag("force", "Do not ask", short="f"),
    Flag("keep-storage", "Keep so much of it", kind="text"),
)
ARGS = (0, 0)

_DANGLING = "WARNING! This will remove all dangling build cache."
_ALL = "WARNING! This will remove all build cache."


def run(given: Given, client: Client) -> int:
    """Print what has gone."""
    if not (given["force"] or confirmed(_ALL if given["all"] else _DANGLING)):
        return 0
    query = {
        "all": given["all"],
        "filters": filters(given["filter"]),
        "keep-storage": values.size(given["keep-storage"]) if given["keep-storage"] else "",
    }
    found = client.call("POST", "/build/prune", query)
    if found["CachesDeleted"]:
        print("Deleted build cache objects:", *found["CachesDeleted"], "", sep="\n")
    print(f"Total reclaimed space: {human_size(found['SpaceReclaimed'])}")
    return 0
