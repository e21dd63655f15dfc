"""`nagaya volume rm`: remove volumes that no container has."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.http import quote
from nagaya.cli.output import note
from nagaya.errors import InvalidArgument, NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] VOLUME [VOLUME...]"
SUMMARY = "Remove volumes"
FLAGS = (Flag("force", "No error for what is not there", short="f"),)
ARGS = (1, None)


def run(given: Given, client: Client) -> int:
    """Print the names of those that are gone; 1 when one is not."""
    status = 0
    for name in given.args:
        try:
            if not name:
                raise InvalidArgument("invalid volume name: value is empty")
            client.call("DELETE", "/volumes/" + quote(name).replace("/", "%2F"), {"force": given["force"]})
            print(name, flush=True)
        except NagayaError as error:
            note(str(error))
            status = 1
    return status
