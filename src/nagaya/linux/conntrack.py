"""Connection tracking by ctnetlink: forget flows.

A flow keeps the address translation it was born with. UDP flows that a chatty client keeps alive would
lead to a dead container, or to nowhere, for as long as it talks.

include/uapi/linux/netfilter/nfnetlink{,_conntrack}.h. The kernel filters the dump (CTA_FILTER,
Linux >= 5.8); older kernels ignore the filter's flags, so what comes back is checked again.
"""

from __future__ import annotations

import errno
from _socket import AF_INET
from _struct import pack, unpack_from

from nagaya.errors import KernelError
from nagaya.linux.netlink import Netlink, Request, attribute, attributes

NETLINK_NETFILTER = 12
IPPROTO_UDP = 17

_CT_GET, _CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | message
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_ID, _CTA_FILTER = 1, 2, 12, 25
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP_V4_SRC = 1
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_CTA_FILTER_ORIG_FLAGS, _CTA_FILTER_REPLY_FLAGS = 1, 2
_FILTER_PROTO_NUM, _FILTER_PROTO_DST_PORT = 1 << 3, 1 << 5
_NESTED = 0x8000

_HEAD = pack("=BBH", AF_INET, 0, 0)  # nfgenmsg


def forget(protocol: int, destination_port: int) -> int:
    """Forget every IPv4 flow to that port, of whatever address; return how many.

    Raises KernelError; a kernel without conntrack has no flows.
    """
    step = f"conntrack: forget flows to port {destination_port}"
    proto = attribute(_CTA_PROTO_NUM, bytes((protocol,)))
    proto += attribute(_CTA_PROTO_DST_PORT, pack(">H", destination_port))
    body = _HEAD + attribute(_CTA_TUPLE_ORIG | _NESTED, attribute(_CTA_TUPLE_PROTO | _NESTED, proto))
    flags = attribute(_CTA_FILTER_ORIG_FLAGS, pack("=I", _FILTER_PROTO_NUM | _FILTER_PROTO_DST_PORT))
    flags += attribute(_CTA_FILTER_REPLY_FLAGS, pack("=I", 0))
    body += attribute(_CTA_FILTER | _NESTED, flags)
    try:
        with Netlink(protocol=NETLINK_NETFILTER) as nl:
            found = [attributes(data, len(_HEAD)) for data in nl.dump(_CT_GET, body, step)]
            requests = [
                Request(
                    _CT_DELETE,
                    0,
                    _HEAD
                    + attribute(_CTA_TUPLE_ORIG | _NESTED, flow[_CTA_TUPLE_ORIG])
                    + attribute(_CTA_ID, flow[_CTA_ID]),
                    step,
                    "",
                    (errno.ENOENT,),
                )
                for flow in found
                if _is_to(flow[_CTA_TUPLE_ORIG], protocol, destination_port)
            ]
            nl.batch(requests)
            return len(requests)
    except KernelError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
            return 0
        raise


def _is_to(flow: bytes, protocol: int, port: int) -> bool:
    found = attributes(attributes(flow).get(_CTA_TUPLE_PROTO, b""))
    number = found.get(_CTA_PROTO_DST_PORT, b"")
    return (
        found.get(_CTA_PROTO_NUM) == bytes((protocol,))
        and len(number) == 2
        and unpack_from(">H", number)[0] == port
    )
