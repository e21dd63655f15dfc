"""`nagaya unpause`: let paused containers go on."""

from __future__ import annotations

from nagaya.cli import life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "CONTAINER [CONTAINER...]"
SUMMARY = "Unpause all processes within containers"
FLAGS = ()
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print each name once it is done."""
    return life.each(given.args, lambda name: client.call("POST", life.path(name) + "/unpause"))
