"""Macvlan interfaces by rtnetlink (linux/if_link.h, ip-link(8)): several machines on one interface."""

from __future__ import annotations

from _socket import AF_UNSPEC
from _struct import pack

from nagaya.errors import InvalidArgument
from nagaya.linux.netlink import (
    IFINFO,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_NEWLINK,
    Request,
    attribute,
    mac_bytes,
)

MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IFLA_LINK, _IFLA_MACVLAN_MODE = 5, 1


def macvlan_add(name: str, parent: int, *, netns_fd: int, mode: str, mtu: int, address: str) -> Request:
    """Make a macvlan (down) on the link with index `parent`, in the namespace of netns_fd. Raises
    InvalidArgument for an unknown mode."""
    if mode not in MODES:
        raise InvalidArgument(f"unknown macvlan mode {mode!r}", subject="macvlan_mode")
    data = attribute(_IFLA_MACVLAN_MODE, pack("=I", MODES[mode]))
    body = b"".join(
        (
            attribute(IFLA_IFNAME, name.encode() + b"\0"),
            attribute(IFLA_ADDRESS, mac_bytes(address)),
            attribute(IFLA_MTU, pack("=I", mtu)),
            attribute(_IFLA_LINK, pack("=I", parent)),
            attribute(IFLA_NET_NS_FD, pack("=I", netns_fd)),
            attribute(
                IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"macvlan\0") + attribute(IFLA_INFO_DATA, data)
            ),
        )
    )
    head = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, head + body, f"netlink: add macvlan {name}", name)
