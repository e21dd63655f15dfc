"""`nagaya kill`: send a signal to containers."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
SUMMARY = "Kill running containers"
FLAGS = (Flag("signal", "Signal to send", short="s", kind="text", default="KILL"),)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print each name once it is done."""
    query = {"signal": given["signal"]}
    return life.each(given.args, lambda name: client.call("POST", life.path(name) + "/kill", query))
