"""What the network room is asked and what it answers: plain data, stored by the engine in its ledger.

An `EndpointPlan` holds all that is needed to undo the endpoint after a crash: every name and address
is decided before anything is done.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

import msgspec

from nagaya.errors import InvalidArgument

Protocol = Literal["tcp", "udp", "sctp"]

DEFAULT = "bridge"  # the key of the network that containers are in unless they say otherwise


class PublishedPort(msgspec.Struct, frozen=True):
    """One published port. host_ip "": all IPv4 addresses. host_port 0: `NetworkService.reserve` chooses; with
    last_port it takes the first free one from host_port to that."""

    container_port: int
    protocol: Protocol = "tcp"
    host_ip: str = ""
    host_port: int = 0
    last_port: int = 0


class EndpointPlan(msgspec.Struct, frozen=True):
    """A container's place in a network, as decided and before, or after, it exists.

    ports have their real host ports. gateway "": none, the network is internal; default_route: is it the
    container's way out (of several networks one is)?
    """

    endpoint_id: str
    address: str  # dotted IPv4
    prefix: int
    gateway: str
    mac: str
    host_interface: str
    interface: str = "eth0"
    mtu: int = 1500
    ports: tuple[PublishedPort, ...] = ()
    network: str = DEFAULT
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    default_route: bool = True


# What the engine stored of an endpoint and gives back at start-up: a plan that was carried out.
EndpointState = EndpointPlan


class Subnet(msgspec.Struct, frozen=True):
    """A bridge's network: the gateway's address with the prefix length, "10.231.0.1/24"."""

    gateway: str
    prefix: int

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """10.231.0.0/24"""
        return ip_network(f"{self.gateway}/{self.prefix}", strict=False)

    def __str__(self) -> str:
        return f"{self.gateway}/{self.prefix}"


class NetworkPlan(msgspec.Struct, frozen=True):
    """A network as it was decided. interface: its bridge, or the parent that its macvlans lie on.

    subnet None: no IPv4 (or, for the default bridge, not chosen yet). ip_range: where addresses are given
    out, "": in all of the subnet. reserved: addresses that are never given out. host_ip: where its ports
    are published unless they say so themselves.
    """

    id: str
    interface: str
    kind: Literal["bridge", "macvlan"] = "bridge"
    subnet: Subnet | None = None
    subnet6: Subnet | None = None
    ip_range: str = ""
    ip_range6: str = ""
    reserved: tuple[str, ...] = ()
    mtu: int = 1500
    icc: bool = True
    internal: bool = False
    masquerade: bool = True
    host_ip: str = ""
    mode: str = ""  # of macvlan

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """Those it has."""
        return tuple(subnet for subnet in (self.subnet, self.subnet6) if subnet is not None)


def check_ports(ports: tuple[PublishedPort, ...]) -> None:
    """Raise InvalidArgument when a port number, protocol or host address cannot be. What passes is safe
    inside nft's language."""
    for port in ports:
        if not 0 < port.container_port < 65536:
            raise InvalidArgument(f"invalid container port {port.container_port}", subject="ports")
        if not 0 <= port.host_port < 65536 or not 0 <= port.last_port < 65536:
            raise InvalidArgument(f"invalid host port {port.host_port}", subject="ports")
        if port.protocol not in ("tcp", "udp", "sctp"):
            raise InvalidArgument(f"invalid protocol {port.protocol!r} of a published port", subject="ports")
        if not port.host_ip:
            continue
        try:
            ip_address(port.host_ip)
            if "%" in port.host_ip:  # what follows as an IPv6 scope may be any text
                raise ValueError
        except ValueError:
            raise InvalidArgument(
                f"{port.host_ip!r} is not an address to publish a port on", subject="ports"
            ) from None
