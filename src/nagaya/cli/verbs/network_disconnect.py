"""`nagaya network disconnect`: take a container out of a network."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.http import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] NETWORK CONTAINER"
SUMMARY = "Disconnect a container from a network"
FLAGS = (Flag("force", "Also when there is no such container any more", short="f"),)
ARGS = (2, 2)


def run(given: Given, client: Client) -> int:
    """Print nothing."""
    network, container = given.args
    body = {"Container": container, "Force": given["force"]}
    client.call("POST", f"/networks/{quote(network)}/disconnect", {}, body)
    return 0
