"""--network, --ip, --link and their kin as the API takes them (pure)."""

from __future__ import annotations

from nagaya.cli.flags import Given, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PREDEFINED = ("default", "bridge", "host", "none")
_CLASHES = (("network-alias", "Aliases", "alias"), ("ip", "IPv4Address", "IPv4 address"),
            ("ip6", "IPv6Address", "IPv6 address"), ("mac-address", "MacAddress", "MAC address"))  # fmt: skip


def wishes(given: Given) -> dict[str, Any]:
    """{"mode": NetworkMode, "endpoints": EndpointsConfig, "links": HostConfig's Links}. Raises UsageError."""
    chosen = [_network(word) for word in given["network"] + given["net"]] or [("default", {})]
    names = [name for name, _ in chosen]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f'network "{twice}" is specified multiple times')
    mode, first = chosen[0]
    user_defined = mode not in _PREDEFINED and not mode.startswith("container:")
    ipam = dict(first.get("IPAMConfig", {}))
    for flag, key, what in _CLASHES:
        if given[flag] and (key in first or key in ipam):
            raise UsageError(f"conflicting options: cannot specify both --{flag} and per-network {what}")
    if (given["network-alias"] or first.get("Aliases")) and not user_defined:
        raise UsageError("network-scoped aliases are only supported for user-defined networks")
    if given["network-alias"]:
        first["Aliases"] = list(given["network-alias"])
    for flag, key in (("ip", "IPv4Address"), ("ip6", "IPv6Address")):
        if given[flag]:
            ipam[key] = given[flag]
    if ipam:
        first["IPAMConfig"] = ipam
    if given["mac-address"]:
        first["MacAddress"] = given["mac-address"]
    links = list(given["link"])
    if links and user_defined:
        first["Links"] = links
        links = []
    endpoints = {name: settings for name, settings in chosen if settings or len(chosen) > 1}
    return {"mode": mode, "endpoints": endpoints, "links": links}


def _network(word: str) -> tuple[str, dict[str, Any]]:
    """(name, endpoint settings) of NAME or name=NAME,alias=A,ip=..."""
    if "name=" not in word:
        return word, {}
    name = ""
    settings: dict[str, Any] = {}
    for field in word.split(","):
        key, _, value = field.partition("=")
        if key == "name":
            name = value
        elif key == "alias":
            settings.setdefault("Aliases", []).append(value)
        elif key in ("ip", "ip6"):
            settings.setdefault("IPAMConfig", {})["IPv4Address" if key == "ip" else "IPv6Address"] = value
        elif key == "mac-address":
            settings["MacAddress"] = value
        elif key == "gw-priority":
            settings["GwPriority"] = number(value, "gw-priority")
        elif key == "driver-opt":
            option, _, chosen = value.partition("=")
            settings.setdefault("DriverOpts", {})[option] = chosen
        else:
            raise UsageError(f"invalid field {key} in --network")
    return name, settings


def number(text: str, what: str) -> int:
    """A whole number, perhaps a negative one. Raises UsageError."""
    if not text.removeprefix("-").isdecimal():
        raise UsageError(f"invalid {what}: {text}")
    return int(text)
