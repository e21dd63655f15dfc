"""`nagaya volume prune`: remove the volumes that no container has."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import confirmed, filters, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Remove unused volumes"
FLAGS = (
    Flag("all", "Named ones, too, not only anonymous ones", short="a"),
    Flag("filter", "Only those that match: label=a, label!=a=b", kind="list"),
    Flag("force", "Do not ask", short="f"),
)
ARGS = (0, 0)


def run(given: Given, client: Client) -> int:
    """Print what was removed."""
    which = "local" if given["all"] else "anonymous local"
    if not given["force"] and not confirmed(
        f"WARNING! This will remove {which} volumes not used by at least one container."
    ):
        return 0
    wanted = [*given["filter"], *(["all=true"] if given["all"] else [])]
    answer = client.call("POST", "/volumes/prune", {"filters": filters(wanted)})
    if answer["VolumesDeleted"]:
        print("Deleted Volumes:", *answer["VolumesDeleted"], "", sep="\n")
    print(f"Total reclaimed space: {human_size(answer['SpaceReclaimed'])}")
    return 0
