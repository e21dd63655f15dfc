"""`nagaya wait`: wait until containers stop, and print their exit codes."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.output import note
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Flag, Given
    from nagaya.cli.http import Client

USAGE = "CONTAINER [CONTAINER...]"
SUMMARY = "Wait until containers stop, then print their exit codes"
FLAGS: tuple[Flag, ...] = ()
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print one exit code a line."""
    status = 0
    for name in given.args:
        try:
            print(life.outcome(client.call("POST", life.path(name) + "/wait")), flush=True)
        except NagayaError as error:
            note(str(error))
            status = 1
    return status
