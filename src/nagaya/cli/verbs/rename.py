"""`nagaya rename`: give a container another name."""

from __future__ import annotations

from nagaya.cli import life
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
    client.call("POST", life.path(old) + "/rename", {"name": new})
    return 0
