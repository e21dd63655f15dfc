"""Ports: "80/tcp" and bindings of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Literal, cast

from nagaya.api.docker.types.structs import PortBindingBody
from nagaya.engine.model import PortBinding
from nagaya.errors import InvalidArgument

Protocol = Literal["tcp", "udp", "sctp"]


def parse_port(text: str) -> tuple[int, Protocol]:
    """ "80/tcp" -> (80, "tcp"); the protocol defaults to tcp. Raises InvalidArgument."""
    number, _, protocol = text.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidArgument(f'invalid port specification: "{text}": invalid proto: {protocol}')
    if not (number.isascii() and number.isdigit()) or len(number) > 5 or not 0 < int(number) <= 65535:
        raise InvalidArgument(f'invalid port specification: "{text}"')
    return int(number), cast(Protocol, protocol)


def exposed_ports(ports: Mapping[str, object] | None) -> tuple[str, ...]:
    """Config.ExposedPorts, normalised and sorted."""
    parsed = sorted({parse_port(text) for text in ports or ()})
    return tuple(f"{number}/{protocol}" for number, protocol in parsed)


def port_bindings(
    bindings: Mapping[str, list[PortBindingBody] | None] | None,
) -> tuple[PortBinding, ...]:
    """HostConfig.PortBindings, in the order of the request. Raises InvalidArgument."""
    result: list[PortBinding] = []
    for port, hosts in (bindings or {}).items():
        number, protocol = parse_port(port)
        for host in hosts or ():
            first, last = _host_ports(host.HostPort or "")
            result.append(PortBinding(number, protocol, _host_ip(host.HostIp or ""), first, last))
    return tuple(result)


def _host_ip(text: str) -> str:
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise InvalidArgument(f"invalid IP address: {text}", subject="HostConfig.PortBindings") from None


def _host_ports(text: str) -> tuple[int, int]:
    """(port, 0) of "80", or (first, last) of a range; 0 for "" and "0", which leave the choice to us."""
    first, dash, last = text.partition("-")
    numbers = []
    for word in (first, last) if dash else (first or "0",):
        if not (word.isascii() and word.isdigit()) or int(word[:6]) > 65535:
            raise InvalidArgument(f'invalid port specification: "{text}"', subject="HostConfig.PortBindings")
        numbers.append(int(word))
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        raise InvalidArgument(f'invalid port specification: "{text}"', subject="HostConfig.PortBindings")
    return numbers[0], numbers[1] if len(numbers) == 2 and numbers[0] != numbers[1] else 0
