"""Default routes taken away again, by rtnetlink (rtnetlink(7), RTM_DELROUTE)."""

from __future__ import annotations

import errno
from _struct import pack

from nagaya.linux.netlink import (
    RT_TABLE_MAIN,
    RTA_GATEWAY,
    RTA_OIF,
    RTM_DELROUTE,
    RTMSG,
    Request,
    attribute,
    ip_bytes,
)


def route_del(gateway: str, *, index: int) -> Request:
    """Remove the default route by gateway over the link with that index; none there is no error."""
    family, raw = ip_bytes(gateway)
    return Request(
        RTM_DELROUTE,
        0,
        RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
        + attribute(RTA_GATEWAY, raw)
        + attribute(RTA_OIF, pack("=I", index)),
        f"netlink: delete route default via {gateway}",
        "default",
        (errno.ESRCH, errno.ENODEV),
    )
