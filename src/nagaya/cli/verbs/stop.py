"""`nagaya stop`: end containers: their signal first, a kill later."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] CONTAINER [CONTAINER...]"
SUMMARY = "Stop running containers"
FLAGS = (
    Flag("signal", "Signal to send instead of the container's own", short="s", kind="text"),
    Flag("timeout", "Seconds to wait before killing", short="t", kind="int"),
    Flag("time", "The same as --timeout", kind="int"),
)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print each name once it is done."""
    chosen = given.changed & {"timeout", "time"}
    query = {"signal": given["signal"], "t": given[chosen.pop()] if chosen else None}
    return life.each(given.args, lambda name: client.call("POST", life.path(name) + "/stop", query))
