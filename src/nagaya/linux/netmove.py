"""A network interface goes to another network namespace, and keeps what it can: MTU, MAC and its
permanent addresses of global scope (rtnetlink(7)); the kernel drops the addresses when it moves."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop
from _struct import pack, unpack_from

from nagaya.errors import NotFound
from nagaya.linux import netlink as nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    # name in the new namespace, [(address, prefix length)]
    Moved = tuple[str, list[tuple[str, int]]]

_IFLA_NET_NS_FD = 28
_IFA_FLAGS = 8
_IFA_F_PERMANENT = 0x80
_RT_SCOPE_UNIVERSE = 0


def move(route: nl.Netlink, name: str, new_name: str, namespace: int) -> Moved:
    """Move the interface to the namespace (an open fd). Raises NotFound, KernelError."""
    link = route.link(name)
    if link is None:
        raise NotFound(f"link not found for interface {name} on runtime namespace", subject=name)
    kept: list[tuple[str, int]] = []
    for family in (AF_INET, AF_INET6):
        body = nl.IFADDR.pack(family, 0, 0, 0, 0)
        for data in route.dump(nl.RTM_GETADDR, body, f"netlink: list addresses of {name}"):
            kept += _global(data, link.index)
    data = nl.attribute(nl.IFLA_IFNAME, new_name.encode() + b"\0")
    data += nl.attribute(_IFLA_NET_NS_FD, pack("=I", namespace))
    head = nl.IFINFO.pack(0, 0, link.index, 0, 0)
    route.batch(
        [
            nl.link_set(index=link.index, up=False),
            nl.Request(nl.RTM_SETLINK, 0, head + data, f"netlink: move link {name}", name),
        ]
    )
    return new_name, kept


def _global(data: bytes, wanted: int) -> list[tuple[str, int]]:
    family, prefix, flags, scope, index = nl.IFADDR.unpack_from(data)
    found = nl.attributes(data, nl.IFADDR.size)
    if _IFA_FLAGS in found:
        flags = unpack_from("=I", found[_IFA_FLAGS])[0]
    if index != wanted or scope != _RT_SCOPE_UNIVERSE or not flags & _IFA_F_PERMANENT:
        return []
    return [(inet_ntop(family, found.get(nl.IFA_LOCAL) or found[nl.IFA_ADDRESS]), prefix)]


def arrive(moved: list[Moved]) -> None:
    """In the new namespace: give the interfaces their addresses back, and set them up. Raises KernelError."""
    with nl.Netlink() as route:
        for name, kept in moved:
            link = route.link(name)
            if link is None:
                raise NotFound(f"link not found for interface {name}", subject=name)
            requests = [nl.address_add(link.index, address, prefix) for address, prefix in kept]
            route.batch([*requests, nl.link_set(index=link.index, up=True)])
