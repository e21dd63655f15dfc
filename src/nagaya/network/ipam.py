"""Addresses: which subnet a bridge gets and which address an endpoint gets. Pure: it reads no system.

Docker's habits are kept where programs rely on them: bip names the gateway with the subnet's length,
default pools are cut in order, the MAC is 02:42 and the four bytes of the address.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    NetmaskValueError,
    ip_address,
    ip_network,
)

from nagaya.errors import InvalidArgument, ResourceExhausted
from nagaya.network.model import Subnet

# (pool, prefix length of the subnets cut from it); dockerd's list, so that both avoid each other's
DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)
_SMALLEST = 30  # gateway and one container
_SMALLEST6 = 126


def parse_bip(text: str) -> Subnet:
    """The Subnet of a --bip value such as "10.231.0.1/24". Raises InvalidArgument."""
    address, slash, length = text.partition("/")
    try:
        gateway, network = IPv4Address(address), IPv4Network(text, strict=False)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise InvalidArgument(
            f"bip {text!r} is not an IPv4 address with a prefix length, as 10.231.0.1/24", subject="bip"
        ) from None
    if not slash or not length.isdigit() or not 8 <= network.prefixlen <= _SMALLEST:
        raise InvalidArgument(f"bip {text!r} needs a prefix length from 8 to {_SMALLEST}", subject="bip")
    if gateway in (network.network_address, network.broadcast_address):
        raise InvalidArgument(f"bip {text!r} is the network's own or its broadcast address", subject="bip")
    if not _unicast(gateway):
        raise InvalidArgument(f"bip {text!r} is not a unicast address", subject="bip")
    return Subnet(str(gateway), network.prefixlen)


def parse_cidr6(text: str) -> Subnet:
    """The Subnet of a --fixed-cidr-v6 value such as "fd00:1::/64": its first address is the gateway.
    Raises InvalidArgument."""
    try:
        network = IPv6Network(text)
    except ValueError:
        network = IPv6Network("::/0")
    if "/" not in text or not 8 <= network.prefixlen <= _SMALLEST6 or network.is_multicast:
        raise InvalidArgument(
            f"fixed-cidr-v6 {text!r} is not an IPv6 subnet such as fd00:1::/64", subject="fixed-cidr-v6"
        )
    return Subnet(str(network.network_address + 1), network.prefixlen)


def _unicast(address: IPv4Address) -> bool:
    return not (
        address.is_loopback or address.is_multicast or address.is_unspecified or int(address) >> 28 == 15
    )


def parse_pool(text: str) -> tuple[str, int]:
    """A --default-address-pool value as Docker writes it: "base=10.10.0.0/16,size=24".

    Raises InvalidArgument.
    """
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        base, size = IPv4Network(fields.pop("base", "")), int(fields.pop("size", ""))
    except ValueError:
        base, size = IPv4Network("0.0.0.0/0"), -1
    if fields or not max(base.prefixlen, 8) <= size <= _SMALLEST:
        raise InvalidArgument(
            f"address pool {text!r} is not as base=10.10.0.0/16,size=24", subject="default-address-pool"
        )
    return str(base), size


def choose_subnet(
    pools: Sequence[tuple[str, int]], occupied: Iterable[IPv4Network | IPv6Network], version: int = 4
) -> Subnet:
    """The first subnet of the pools that overlaps nothing occupied; its gateway is its first address.

    occupied: networks the host routes to or whose resolvers it uses, without its default route.
    Raises ResourceExhausted.
    """
    spans = sorted(
        (int(n.network_address), int(n.broadcast_address))
        for n in occupied
        if n.version == version and n.prefixlen > 0
    )
    for base, size in pools:
        pool = ip_network(base)
        if pool.version != version:
            continue
        width = 1 << (pool.max_prefixlen - size)
        start, end = int(pool.network_address), int(pool.broadcast_address)
        while start + width - 1 <= end:
            behind = [last for first, last in spans if first <= start + width - 1 and last >= start]
            if not behind:
                return Subnet(str(IPv4Address(start + 1) if version == 4 else IPv6Address(start + 1)), size)
            start = (max(behind) // width + 1) * width  # no walk through what is taken
    raise ResourceExhausted(
        "all address pools overlap with routes of this host; set bip or default-address-pool"
        if version == 4
        else "could not find an available, non-overlapping IPv6 address pool among the defaults to assign "
        "to the network",
        subject="default-address-pool",
    )


def pool6(seed: bytes) -> tuple[str, int]:
    """The pool of IPv6 subnets of this host: a unique local /48 (RFC 4193) that its seed decides."""
    prefix = b"\xfd" + hashlib.sha256(b"nagaya" + seed).digest()[:5]
    return f"{IPv6Address(prefix.ljust(16, bytes(1)))}/48", 64


def next_address(subnet: Subnet, taken: Iterable[str], after: str = "", within: str = "") -> str:
    """The next free address behind `after`, around the subnet, or the part of it called within: never the
    network's, the broadcast's or the gateway's. Going round keeps an address out of use as long as
    possible, so that late packets of a dead container's peers do not meet a new one.
    Raises ResourceExhausted.
    """
    network = subnet.network
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - (network.version == 4)
    if within:
        part = ip_network(within)
        first, last = max(first, int(part.network_address)), min(last, int(part.broadcast_address))
    used = {int(ip_address(address)) for address in taken}
    used.add(int(ip_address(subnet.gateway)))
    start = int(ip_address(after)) + 1 if after else first
    if not first <= start <= last:
        start = first
    # at most len(used) candidates are taken: no walk through a /8
    candidate = start
    for _ in range(min(len(used), last - first) + 1):
        if candidate not in used:
            return str(IPv4Address(candidate) if network.version == 4 else IPv6Address(candidate))
        candidate = candidate + 1 if candidate < last else first
    raise ResourceExhausted(f"no free address left in {within or network}", subject=str(network))


def mac_of(address: str) -> str:
    """02:42 and the address: locally administered, unicast, stable for a reused address."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *IPv4Address(address).packed))


def random_mac() -> str:
    """02:42 and four random bytes: for what has no IPv4 address to take it from."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *os.urandom(4)))
