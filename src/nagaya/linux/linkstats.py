"""A network interface's counters by RTM_GETSTATS (linux/if_link.h, rtnetlink(7)): one link is asked, and
nothing of its description comes along."""

from __future__ import annotations

import errno
from _socket import AF_UNSPEC, if_nametoindex
from struct import Struct

from nagaya.errors import KernelError
from nagaya.linux.netlink import Netlink, attributes

_RTM_GETSTATS = 94
_IFLA_STATS_LINK_64 = 1
_MESSAGE = Struct("=BxxxII")  # if_stats_msg: family, interface, filter
_COUNTERS = Struct("=8Q")  # the beginning of rtnl_link_stats64, receiving and sending in turn


class Traffic:
    """One direction's counters since the interface was made."""

    __slots__ = ("bytes", "dropped", "errors", "packets")

    def __init__(self, packets: int, size: int, errors: int, dropped: int) -> None:
        self.packets = packets
        self.bytes = size
        self.errors = errors
        self.dropped = dropped


def link_counters(netlink: Netlink, name: str) -> tuple[Traffic, Traffic] | None:
    """(received, sent) by our interface of that name; None when there is none. Raises KernelError."""
    try:
        index = if_nametoindex(name)
    except OSError:
        return None
    return counters_of(netlink, index, name)


def counters_of(netlink: Netlink, index: int, name: str) -> tuple[Traffic, Traffic] | None:
    """The same of the interface of that index in the socket's network namespace."""
    body = _MESSAGE.pack(AF_UNSPEC, index, 1 << (_IFLA_STATS_LINK_64 - 1))
    try:
        answer = netlink.get(_RTM_GETSTATS, body, f"netlink: get counters of {name}", name)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    found = _COUNTERS.unpack_from(attributes(answer, _MESSAGE.size)[_IFLA_STATS_LINK_64])
    return Traffic(*found[0::2]), Traffic(*found[1::2])
