"""`nagaya network create`: make a network."""

from __future__ import annotations

from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.values import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] NETWORK"
SUMMARY = "Create a network"
FLAGS = (
    Flag("attachable", "Allow containers to be attached by hand"),
    Flag("aux-address", "Addresses that are in use by others: NAME=ADDRESS", kind="list"),
    Flag("config-from", "The network of settings that it has", kind="text"),
    Flag("config-only", "Only settings for others, that no container can be in"),
    Flag("driver", "bridge or macvlan", short="d", kind="text", default="bridge"),
    Flag("gateway", "Gateway of the subnet", kind="list"),
    Flag("internal", "Without a way out"),
    Flag("ip-range", "Part of the subnet that addresses are taken from", kind="list"),
    Flag("ipam-driver", "Driver of the addresses", kind="text", default="default"),
    Flag("ipam-opt", "Options of that driver", kind="list"),
    Flag("ipv4", "With IPv4", default=True),
    Flag("ipv6", "With IPv6"),
    Flag("label", "Set a label: NAME=VALUE", kind="list"),
    Flag("opt", "Set an option of the driver", short="o", kind="list"),
    Flag("subnet", "Subnet in CIDR notation", kind="list"),
)
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Print its id."""
    body: dict[str, Any] = {
        "Name": given.args[0],
        "Driver": given["driver"],
        "Internal": given["internal"],
        "Attachable": given["attachable"],
        "CheckDuplicate": True,
        "Options": pairs(given["opt"]),
        "Labels": pairs(given["label"]),
        "IPAM": {
            "Driver": given["ipam-driver"],
            "Options": pairs(given["ipam-opt"]),
            "Config": _subnets(given),
        },
    }
    if given["config-only"]:
        body["ConfigOnly"] = True
    if given["config-from"]:
        body["ConfigFrom"] = {"Network": given["config-from"]}
    for flag, key in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if flag in given.changed:
            body[key] = given[flag]
    print(client.call("POST", "/networks/create", {}, body)["Id"])
    return 0


def _subnets(given: Given) -> list[dict[str, Any]]:
    """One entry for each subnet, with what is said to lie in it. Raises UsageError."""
    found: list[dict[str, Any]] = [{"Subnet": subnet} for subnet in given["subnet"]]

    def of(address: str, flag: str) -> dict[str, Any]:
        fitting = [entry for entry in found if (":" in entry["Subnet"]) is (":" in address)]
        if not fitting:
            raise UsageError(f"no matching subnet for {flag} {address}")
        return fitting[0]

    for flag, key, what in (("ip-range", "IPRange", "range"), ("gateway", "Gateway", "gateway")):
        for value in given[flag]:
            entry = of(value, what)
            if key in entry:
                raise UsageError(f"cannot configure multiple {what}s ({value}, {entry[key]}) on one subnet")
            entry[key] = value
    for word in given["aux-address"]:
        name, _, address = word.partition("=")
        of(address, "aux-address").setdefault("AuxiliaryAddresses", {})[name] = address
    return found
