"""`nagaya container prune`: remove all containers that do not run."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import confirmed, filters, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Remove all stopped containers"
FLAGS = (
    Flag("filter", "Only those that match: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]", kind="list"),
    Flag("force", "Do not ask", short="f"),
)
ARGS = (0, 0)


def run(given: Given, client: Client) -> int:
    """Print the ids of what has gone."""
    if not given["force"] and not confirmed("WARNING! This will remove all stopped containers."):
        return 0
    found = client.call("POST", "/containers/prune", {"filters": filters(given["filter"])})
    if found["ContainersDeleted"]:
        print("Deleted Containers:", *found["ContainersDeleted"], "", sep="\n")
    print(f"Total reclaimed space: {human_size(found['SpaceReclaimed'])}")
    return 0
