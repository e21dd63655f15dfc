"""`nagaya network connect`: add a container to a network."""

from __future__ import annotations

from nagaya.cli import networks
from nagaya.cli.flags import Flag
from nagaya.cli.http import quote
from nagaya.cli.values import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] NETWORK CONTAINER"
SUMMARY = "Connect a container to a network"
FLAGS = (
    Flag("alias", "Name of the container within the network", kind="list"),
    Flag("driver-opt", "Set an option of the network's driver", kind="list"),
    Flag("gw-priority", "The network with the highest is the way out", kind="text"),
    Flag("ip", "IPv4 address", kind="text"),
    Flag("ip6", "IPv6 address", kind="text"),
    Flag("link", "Add a name of another container: NAME[:ALIAS]", kind="list"),
    Flag("mac-address", "MAC address", kind="text"),
)
ARGS = (2, 2)


def run(given: Given, client: Client) -> int:
    """Print nothing."""
    network, container = given.args
    ipam = {"IPv4Address": given["ip"], "IPv6Address": given["ip6"]}
    endpoint: dict[str, Any] = {
        "IPAMConfig": {key: value for key, value in ipam.items() if value},
        "Aliases": given["alias"],
        "Links": given["link"],
        "DriverOpts": pairs(given["driver-opt"]),
        "MacAddress": given["mac-address"],
    }
    if given["gw-priority"]:
        endpoint["GwPriority"] = networks.number(given["gw-priority"], "gw-priority")
    body = {"Container": container, "EndpointConfig": {k: v for k, v in endpoint.items() if v}}
    client.call("POST", f"/networks/{quote(network)}/connect", {}, body)
    return 0
