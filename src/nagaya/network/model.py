"""What the network room is asked and what it answers: plain data, stored by the engine in its ledger.

An `EndpointPlan` holds all that is needed to undo the endpoint after a crash: every name and address
is decided before anything is done.
"""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address
from typing import Literal

import msgspec

from nagaya.errors import InvalidArgument, Unimplemented

Protocol = Literal["tcp", "udp", "sctp"]


class PublishedPort(msgspec.Struct, frozen=True):
    """One published port. host_ip "": all IPv4 addresses. host_port 0: `NetworkService.reserve` chooses."""

    container_port: int
    protocol: Protocol = "tcp"
    host_ip: str = ""
    host_port: int = 0


class EndpointPlan(msgspec.Struct, frozen=True):
    """A container's place in the bridge network, as decided and before, or after, it exists.

    ports have their real host ports.
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


# What the engine stored of an endpoint and gives back at start-up: a plan that was carried out.
EndpointState = EndpointPlan


class Subnet(msgspec.Struct, frozen=True):
    """A bridge's network: the gateway's address with the prefix length, "10.231.0.1/24"."""

    gateway: str
    prefix: int

    @property
    def network(self) -> IPv4Network:
        """10.231.0.0/24"""
        return IPv4Network(f"{self.gateway}/{self.prefix}", strict=False)

    def __str__(self) -> str:
        return f"{self.gateway}/{self.prefix}"


def check_ports(ports: tuple[PublishedPort, ...]) -> None:
    """Raise InvalidArgument when a port number, protocol or host address cannot be, Unimplemented for
    IPv6. What passes is safe inside nft's language."""
    for port in ports:
        if not 0 < port.container_port < 65536:
            raise InvalidArgument(f"invalid container port {port.container_port}", subject="ports")
        if not 0 <= port.host_port < 65536:
            raise InvalidArgument(f"invalid host port {port.host_port}", subject="ports")
        if port.protocol not in ("tcp", "udp", "sctp"):
            raise InvalidArgument(f"invalid protocol {port.protocol!r} of a published port", subject="ports")
        if not port.host_ip:
            continue
        try:
            address = ip_address(port.host_ip)
        except ValueError:
            raise InvalidArgument(
                f"{port.host_ip!r} is not an address to publish a port on", subject="ports"
            ) from None
        if address.version == 6:
            raise Unimplemented(
                f"publishing a port on the IPv6 address {address} is not offered; use an IPv4 address",
                subject="ports",
            )
