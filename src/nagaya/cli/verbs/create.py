"""`nagaya create`: make a container, and do not start it."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.create import CREATE_FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] IMAGE [COMMAND] [ARG...]"
SUMMARY = "Create a new container"
FLAGS = CREATE_FLAGS
ARGS = (1, None)
INTERSPERSED = False
CREATES = True


def run(given: Given, client: Client) -> int:
    """Print the container's id."""
    print(life.make(client, given, detach=False))
    return 0
