"""`nagaya top`: the processes of a container."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.output import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Flag, Given
    from nagaya.cli.http import Client

USAGE = "CONTAINER [ps OPTIONS]"
SUMMARY = "Show the running processes of a container"
FLAGS: tuple[Flag, ...] = ()
ARGS = (1, None)
INTERSPERSED = False


def run(given: Given, client: Client) -> int:
    """Print ps's table."""
    query = {"ps_args": " ".join(given.args[1:])}
    answer = client.call("GET", life.path(given.args[0]) + "/top", query)
    print(table([answer["Titles"], *answer["Processes"]], narrowest=20))
    return 0
