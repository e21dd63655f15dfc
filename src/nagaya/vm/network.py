"""The network of a sandbox, handed to its guest.

What made the network namespace (the daemon, CNI, podman) has put interfaces with addresses and routes into
it. The guest takes them over: each interface becomes a port of a bridge of its own, the other port is a tap,
and the guest's card has the interface's MAC, MTU, addresses and routes. So everything outside - names,
published ports, policies - goes on meaning the same. A bridge, and not traffic control's redirection, for
every kernel with containers has bridges.

127.0.0.11, where the daemon's names are answered, is a socket in the namespace, out of the guest's reach as
any loopback address. The guest sends that one address to its card (`route_localnet`, the kernel's
Documentation/networking/ip-sysctl.rst), and the bridge hands what comes for it to the socket: no NAT, no
relay.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6, inet_ntop
from _struct import Struct, pack, unpack_from

from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import netlink as nl
from nagaya.linux import os, tap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_CARDS = 4  # as many as a saved machine has
_PREFIX = "nagvm"  # bridges; taps are nagtap
_IFF_LOOPBACK = 8
_RTM_F_CLONED, _RTPROT_KERNEL = 0x200, 2
_RTA_PRIORITY, _RTA_PREFSRC = 6, 7
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255
_RT_TABLE_LOCAL, _RTN_LOCAL = 255, 2
_LINK_LOCAL = "fe80:"
_IFLA_BRPORT_LEARNING = 8
_NDMSG = Struct("=BxxxiHBB")  # ndmsg: family, link, state, flags, type (rtnetlink(7))
_RTM_NEWNEIGH, _AF_BRIDGE, _NUD_NOARP, _NTF_MASTER, _NDA_LLADDR = 28, 7, 0x40, 0x4, 2


class Route:
    """One route: destination "" is the default one; gateway "" is the link itself; source "" for any."""

    __slots__ = ("destination", "gateway", "prefix", "source")

    def __init__(self, destination: str, prefix: int, gateway: str, source: str) -> None:
        self.destination = destination
        self.prefix = prefix
        self.gateway = gateway
        self.source = source


class Card:
    """An interface of the sandbox, and of its guest."""

    __slots__ = ("addresses", "index", "mac", "mtu", "name", "routes", "tap")

    def __init__(self, name: str, index: int, mac: str, mtu: int) -> None:
        self.name = name
        self.index = index
        self.mac = mac
        self.mtu = mtu
        self.addresses: list[tuple[str, int]] = []
        self.routes: list[Route] = []
        self.tap = -1  # the descriptor, once it is the guest's

    def to_wire(self) -> dict[str, Any]:
        """As plain data, for the record by which it is given back."""
        routes = [[r.destination, r.prefix, r.gateway, r.source] for r in self.routes]
        addresses = [list(pair) for pair in self.addresses]
        own = {"name": self.name, "index": self.index, "mac": self.mac, "mtu": self.mtu}
        return {**own, "addresses": addresses, "routes": routes}


def from_wire(data: dict[str, Any]) -> Card:
    """The card of such a record."""
    card = Card(data["name"], data["index"], data["mac"], data["mtu"])
    card.addresses = [(address, prefix) for address, prefix in data["addresses"]]
    card.routes = [Route(*route) for route in data["routes"]]
    return card


def cards(route: nl.Netlink) -> list[Card]:
    """The interfaces, but lo, that are there for a guest, in the order in which they were made. Raises
    InvalidArgument when there are more than a machine has room for."""
    found = {}
    for link in route.links():
        if link.flags & nl.IFF_UP and not link.flags & _IFF_LOOPBACK and not link.name.startswith(_PREFIX):
            found[link.index] = Card(link.name, link.index, link.address, link.mtu)
    if len(found) > MAX_CARDS:
        raise InvalidArgument(f"{len(found)} network interfaces: a microVM has room for {MAX_CARDS}")
    for family in (AF_INET, AF_INET6):
        for index, address, prefix in route.addresses(family=family):
            if index in found and not address.startswith(_LINK_LOCAL):
                found[index].addresses.append((address, prefix))
        for index, one in _routes(route, family):
            if index in found:
                found[index].routes.append(one)
    return [found[index] for index in sorted(found)]


def _routes(route: nl.Netlink, family: int) -> list[tuple[int, Route]]:
    """(link, route) of the routes that somebody has set, those by the link first: the others need them."""
    found = []
    for data in route.dump(nl.RTM_GETROUTE, nl.RTMSG.pack(family, *[0] * 8), "netlink: list routes"):
        _, prefix, _, _, table, protocol, _, kind, flags = nl.RTMSG.unpack_from(data)
        members = nl.attributes(data, nl.RTMSG.size)
        if nl.RTA_TABLE in members:
            table = unpack_from("=I", members[nl.RTA_TABLE])[0]
        if table != nl.RT_TABLE_MAIN or kind != nl.RTN_UNICAST or flags & _RTM_F_CLONED:
            continue
        if protocol == _RTPROT_KERNEL or nl.RTA_OIF not in members:
            continue
        texts = [
            inet_ntop(family, members[number]) if number in members else ""
            for number in (nl.RTA_DST, nl.RTA_GATEWAY, _RTA_PREFSRC)
        ]
        found.append((unpack_from("=I", members[nl.RTA_OIF])[0], Route(texts[0], prefix, texts[1], texts[2])))
    return sorted(found, key=lambda pair: pair[1].gateway != "")


def hand_over(found: list[Card]) -> None:
    """In the sandbox's network namespace: give the guest its cards; each then has the descriptor of its tap,
    which is the caller's. What was done before a failure, `give_back` undoes. Raises KernelError."""
    with nl.Netlink() as route:
        for number, card in enumerate(found):
            bridge, name = f"{_PREFIX}{number}", f"nagtap{number}"
            route.batch(
                [
                    # down: its routes and addresses of IPv6 go, and the MAC may change
                    nl.link_set(index=card.index, up=False),
                    *(nl.address_del(card.index, a, p, missing_ok=True) for a, p in card.addresses),
                    nl.link_set(index=card.index, address=_other(card.mac)),
                    nl.bridge_add(bridge, mtu=card.mtu),
                    nl.link_no_ipv6_autoconf(bridge),
                    nl.link_no_ipv6_autoconf(index=card.index),
                ]
            )
            card.tap = tap.open_tap(name)
            made, ours = route.link(bridge), route.link(name)
            if made is None or ours is None:
                raise KernelError("it has gone again", subject=bridge, errno=errno.ENODEV)
            ports = (ours.index, card.index)
            route.batch(
                [
                    nl.link_set(index=ours.index, mtu=card.mtu),
                    nl.link_no_ipv6_autoconf(index=ours.index),
                    *(nl.link_set(index=port, master=made.index, up=True) for port in ports),
                    *(_no_learning(port) for port in ports),
                    _station(ours.index, card.mac),
                    nl.link_set(index=made.index, up=True),
                    *(_to_guest(a, made.index) for a, _ in card.addresses if ":" not in a),
                ]
            )
            _set(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet", "1")


def _other(mac: str) -> str:
    """A MAC for the interface itself: a bridge keeps what comes for the addresses of its ports."""
    raw = os.urandom(6)
    text = ":".join(f"{b:02x}" for b in bytes([raw[0] & 0xFC | 2]) + raw[1:])
    return text if text != mac else _other(mac)


def _no_learning(index: int) -> nl.Request:
    """A port of which the bridge learns nothing (IFLA_BRPORT_LEARNING): the host's bridge may send a frame of
    the guest's back by the port that it came from, and the guest would seem to be outside."""
    port = nl.attribute(_IFLA_BRPORT_LEARNING, b"\0")
    info = nl.attribute(nl.IFLA_INFO_SLAVE_KIND, b"bridge\0") + nl.attribute(nl.IFLA_INFO_SLAVE_DATA, port)
    body = nl.IFINFO.pack(0, 0, index, 0, 0) + nl.attribute(nl.IFLA_LINKINFO, info)
    return nl.Request(nl.RTM_NEWLINK, 0, body, f"netlink: set bridge port {index}", str(index))


def _station(index: int, mac: str) -> nl.Request:
    """The guest is behind this port: said once and for all (bridge(8), "fdb add ... master static")."""
    body = _NDMSG.pack(_AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER, 0) + nl.attribute(
        _NDA_LLADDR, nl.mac_bytes(mac)
    )
    flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
    return nl.Request(_RTM_NEWNEIGH, flags, body, f"netlink: add station {mac}", mac)


def _to_guest(address: str, index: int) -> nl.Request:
    """The way back for answers of 127.0.0.11."""
    return route_request(Route(address, 32, "", ""), index)


def route_request(route: Route, index: int) -> nl.Request:
    """Add that route by the link with that index."""
    family, _ = nl.ip_bytes(route.destination or route.gateway)
    data = nl.attribute(nl.RTA_OIF, pack("=I", index))
    for number, text in (
        (nl.RTA_DST, route.destination),
        (nl.RTA_GATEWAY, route.gateway),
        (_RTA_PREFSRC, route.source),
    ):
        data += nl.attribute(number, nl.ip_bytes(text)[1]) if text else b""
    scope = _RT_SCOPE_UNIVERSE if route.gateway or family == AF_INET6 else _RT_SCOPE_LINK
    head = nl.RTMSG.pack(family, route.prefix, 0, 0, nl.RT_TABLE_MAIN, 4, scope, nl.RTN_UNICAST, 0)
    where = f"{route.destination or 'default'}/{route.prefix}"
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return nl.Request(
        nl.RTM_NEWROUTE, flags, head + data, f"netlink: add route {where}", where, (errno.EEXIST,)
    )


def local_route_del(destination: str, prefix: int) -> nl.Request:
    """Take an address from the local table (ip-route(8), "table local"): it is this machine's no longer."""
    family, raw = nl.ip_bytes(destination)
    head = nl.RTMSG.pack(family, prefix, 0, 0, _RT_TABLE_LOCAL, 0, _RT_SCOPE_NOWHERE, _RTN_LOCAL, 0)
    body = head + nl.attribute(nl.RTA_DST, raw)
    where = f"local {destination}/{prefix}"
    return nl.Request(nl.RTM_DELROUTE, 0, body, f"netlink: delete route {where}", where, (errno.ESRCH,))


def _set(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def give_back(found: list[Card]) -> None:
    """Make the sandbox's namespace, in which we are, what it was before `hand_over`; interfaces that are gone
    stay gone. Raises KernelError."""
    with nl.Netlink() as route:
        for number, card in enumerate(found):
            route.batch([nl.link_del(f"{_PREFIX}{number}", missing_ok=True)])
            link = route.link(card.name)
            if link is None or link.index != card.index:
                continue
            route.batch(
                [
                    nl.link_set(index=card.index, up=False),
                    nl.link_set(index=card.index, address=card.mac),
                    nl.link_set(index=card.index, up=True),
                    *(nl.address_add(card.index, a, p, exist_ok=True) for a, p in card.addresses),
                    *(route_request(one, card.index) for one in card.routes),
                ]
            )
