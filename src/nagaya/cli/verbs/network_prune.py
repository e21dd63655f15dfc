"""`nagaya network prune`: remove all networks that no container is in."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import confirmed, filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Remove all unused networks"
FLAGS = (
    Flag("filter", "Only those that match: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]", kind="list"),
    Flag("force", "Do not ask", short="f"),
)
ARGS = (0, 0)

_WARNING = "WARNING! This will remove all custom networks not used by at least one container."


def run(given: Given, client: Client) -> int:
    """Print the names of what has gone."""
    if not given["force"] and not confirmed(_WARNING):
        return 0
    found = client.call("POST", "/networks/prune", {"filters": filters(given["filter"])})
    if found["NetworksDeleted"]:
        print("Deleted Networks:", *found["NetworksDeleted"], "", sep="\n")
    return 0
