"""`nagaya logout`: forget the credentials for a registry."""

from __future__ import annotations

from nagaya.cli import auth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Flag, Given
    from nagaya.cli.http import Client

USAGE = "[SERVER]"
SUMMARY = "Log out from a registry"
FLAGS: tuple[Flag, ...] = ()
ARGS = (0, 1)


def run(given: Given, client: Client) -> int:
    """Take them out of docker's configuration, or its helper."""
    server = given.args[0] if given.args else auth.HUB
    print(f"Removing login credentials for {server}")
    auth.erase(server)
    return 0
