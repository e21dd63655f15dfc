"""`nagaya rename`: give a container another name."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.http import ApiError
from nagaya.cli.output import note
from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Flag, Given
    from nagaya.cli.http import Client

USAGE = "CONTAINER NEW_NAME"
SUMMARY = "Rename a container"
FLAGS: tuple[Flag, ...] = ()
ARGS = (2, 2)


def run(given: Given, client: Client) -> int:
    """Nothing is printed."""
    old, new = given.args
    if not new.strip():
        raise InvalidArgument("Error: Neither old nor new names may be empty")
    try:
        client.call("POST", life.path(old) + "/rename", {"name": new})
    except ApiError as error:
        note(str(error))
        raise InvalidArgument(f"Error: failed to rename container named {old}") from None
    return 0
