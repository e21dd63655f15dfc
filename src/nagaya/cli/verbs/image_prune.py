"""`nagaya image prune`: remove images that nothing needs."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import confirmed, filters, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Remove unused images"
FLAGS = (
    Flag("all", "Remove all unused images, not just dangling ones", short="a"),
    Flag("filter", "Only those that match: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]", kind="list"),
    Flag("force", "Do not ask", short="f"),
)
ARGS = (0, 0)

_ALL = "WARNING! This will remove all images without at least one container associated to them."
_DANGLING = "WARNING! This will remove all dangling images."


def run(given: Given, client: Client) -> int:
    """Print what has gone."""
    if not (given["force"] or confirmed(_ALL if given["all"] else _DANGLING)):
        return 0
    words = [*given["filter"], f"dangling={'false' if given['all'] else 'true'}"]
    found = client.call("POST", "/images/prune", {"filters": filters(words)})
    if found["ImagesDeleted"]:
        lines = (f"{kind.lower()}: {name}" for item in found["ImagesDeleted"] for kind, name in item.items())
        print("Deleted Images:", *lines, "", sep="\n")
    print(f"Total reclaimed space: {human_size(found['SpaceReclaimed'])}")
    return 0
