"""`nagaya diff`: what a container has changed in its root."""

from __future__ import annotations

from nagaya.cli import life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "CONTAINER"
SUMMARY = "Show what a container has changed in its root file system"
FLAGS = ()
ARGS = (1, 1)

_KINDS = "CAD"


def run(given: Given, client: Client) -> int:
    """Print one line a path: C changed, A added, D deleted."""
    for item in client.call("GET", life.path(given.args[0]) + "/changes") or ():
        print(_KINDS[item["Kind"]], item["Path"])
    return 0
