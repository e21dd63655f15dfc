"""`nagaya network rm`: remove networks."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag
from nagaya.cli.http import quote
from nagaya.cli.output import note
from nagaya.errors import NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "NETWORK [NETWORK...]"
SUMMARY = "Remove networks"
FLAGS = (Flag("force", "No error when there is none", short="f"),)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print the names of what has gone."""
    status = 0
    for name in given.args:
        try:
            client.call("DELETE", f"/networks/{quote(name)}")
            print(name, flush=True)
        except NagayaError as error:
            if given["force"] and life.is_missing(error):
                continue
            note(str(error))
            status = 1
    return status
