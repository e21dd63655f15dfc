"""`nagaya login`: credentials for a registry, tried and then kept where docker keeps them."""

from __future__ import annotations

import os
import sys

from nagaya.cli import auth
from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.output import note
from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] [SERVER]"
SUMMARY = "Authenticate to a registry"
FLAGS = (
    Flag("password", "Password or personal access token", short="p", kind="text"),
    Flag("password-stdin", "Take the password from stdin"),
    Flag("username", "Username", short="u", kind="text"),
)
ARGS = (0, 1)


def run(given: Given, client: Client) -> int:
    """Ask for what was not given, let the daemon try it, and keep it."""
    server = given.args[0] if given.args else auth.HUB
    user, password = given["username"], given["password"]
    if given["password-stdin"]:
        if password:
            raise UsageError("conflicting options: cannot specify both --password and --password-stdin")
        if not user:
            raise UsageError("the --password-stdin option requires --username to be set")
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    elif password:
        note("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if not (user and password) and not (os.isatty(0) and os.isatty(1)):
        raise InvalidArgument("cannot perform an interactive login from a non-TTY device")
    if not user:
        print("Username: ", end="", flush=True)
        user = sys.stdin.readline().strip()
    if not password:
        from getpass import getpass

        password = getpass("Password: ")
    answer = client.call(
        "POST", "/auth", body={"username": user, "password": password, "serveraddress": server}
    )
    where = auth.store(server, user, password)
    if where:
        note(f"WARNING! Your credentials are stored unencrypted in '{where}'.")
    print(answer["Status"])
    return 0
