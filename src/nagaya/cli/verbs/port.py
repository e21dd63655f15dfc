"""`nagaya port`: where a container's ports are published."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Flag, Given
    from nagaya.cli.http import Client

USAGE = "CONTAINER [PRIVATE_PORT[/PROTO]]"
SUMMARY = "List a container's published ports"
FLAGS: tuple[Flag, ...] = ()
ARGS = (1, 2)


def run(given: Given, client: Client) -> int:
    """Print one address a line."""
    about = client.call("GET", life.path(given.args[0]) + "/json")
    ports = (about.get("NetworkSettings") or {}).get("Ports") or {}
    if len(given.args) == 1:
        for port in sorted(ports, key=lambda p: (int(p.partition("/")[0]), p)):
            for binding in ports[port] or ():
                print(f"{port} -> {_address(binding)}")
        return 0
    wanted = given.args[1] if "/" in given.args[1] else given.args[1] + "/tcp"
    if not ports.get(wanted):
        raise NotFound(f"Error: No public port '{wanted}' published for {given.args[0]}")
    for binding in ports[wanted]:
        print(_address(binding))
    return 0


def _address(binding: dict[str, str]) -> str:
    host = binding["HostIp"]
    return f"{'[' + host + ']' if ':' in host else host}:{binding['HostPort']}"
