"""rtnetlink(7) in batches: links, addresses and routes without the ip command.

Many requests go out in one sendmsg(2); the kernel answers each with one acknowledgement, and
carries out the later ones even when an earlier one failed. Requests are made by the pure functions
below (`bridge_add`, `address_add` ...) and sent by `Netlink.batch`; `Netlink.links` and its kin dump.
A socket stays in the network namespace it was opened in, so one that a builder opened inside a
container's namespace configures that namespace from anywhere.

Numbers: include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,if_bridge}.h; extended
acknowledgements: Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import errno
import time
from _socket import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_UNSPEC,
    SO_RCVTIMEO,
    SOCK_CLOEXEC,
    SOCK_RAW,
    SOL_SOCKET,
    inet_ntop,
    inet_pton,
    socket,
)
from _struct import Struct, pack, unpack_from

from nagaya.errors import DeadlineExceeded, InternalError, InvalidArgument, KernelError
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NETLINK_ROUTE = 0

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200  # of acknowledgements
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 26, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_IFLA_BRPORT_MODE, _IFLA_BRPORT_ISOLATED = 4, 33
_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE = 8, 1
_RTEXT_FILTER_SKIP_STATS = 8
IFA_ADDRESS, IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 4, 0, 1
_RT_SCOPE_LINK = 253

IFF_UP = 1
_IFNAMSIZ = 16

_HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
IFINFO = Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
IFADDR = Struct("=BBBBI")  # ifaddrmsg: family, prefix, flags, scope, index
RTMSG = Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = Struct("=HH")
_NLA_TYPE_MASK = 0x3FFF

_BATCH = 64  # acknowledgements must fit the receive buffer: 64 take about 50 KB of its 208
_RECEIVE = 65536
_TIMEOUT = 10  # seconds; the kernel acknowledges before sendmsg returns, so this is never reached
_DUMP_ATTEMPTS = 16


class Request:
    """One request of a batch: message type, flags, body; `step` names it in errors; an errno of
    `tolerate` counts as success (EEXIST for an idempotent add)."""

    __slots__ = ("body", "flags", "kind", "step", "subject", "tolerate")

    def __init__(
        self, kind: int, flags: int, body: bytes, step: str, subject: str, tolerate: tuple[int, ...] = ()
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.body = body
        self.step = step
        self.subject = subject
        self.tolerate = tolerate


class Link:
    """A network interface as RTM_GETLINK tells it. kind: "veth", "bridge", "" for hardware."""

    __slots__ = ("address", "alias", "flags", "index", "kind", "master", "mtu", "name")

    def __init__(
        self,
        index: int,
        name: str,
        kind: str = "",
        flags: int = 0,
        mtu: int = 0,
        master: int = 0,
        address: str = "",
        alias: str = "",
    ) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.flags = flags
        self.mtu = mtu
        self.master = master
        self.address = address
        self.alias = alias


def attribute(number: int, payload: bytes) -> bytes:
    """One netlink attribute, padded to 4 bytes.

    Raises InvalidArgument when its 16-bit length would wrap (CVE-2021-43784: a wrapped length
    smuggles attributes).
    """
    length = 4 + len(payload)
    if length > 0xFFFF:
        raise InvalidArgument(f"netlink attribute {number} of {len(payload)} bytes is too long")
    return _ATTRIBUTE.pack(length, number) + payload + bytes(-length & 3)


def _text(number: int, value: str) -> bytes:
    return attribute(number, os.fsencode(value) + b"\0")


def _u32(number: int, value: int) -> bytes:
    return attribute(number, pack("=I", value))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes in data from offset on, by number (of repeated ones the last)."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, number = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            raise InternalError("malformed netlink attribute", step="netlink")
        found[number & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _name(value: str) -> str:
    # dev_valid_name() in net/core/dev.c, and no percent sign: it would make the kernel pick a number
    raw = os.fsencode(value)
    if not 0 < len(raw) < _IFNAMSIZ or value in (".", "..") or any(c <= 32 or c in b"/:%\x7f" for c in raw):
        raise InvalidArgument(f"{value!r} is not the name of a network interface", subject=value)
    return value


def mac_bytes(text: str) -> bytes:
    """The six bytes of "02:42:0a:e7:00:02". Raises InvalidArgument."""
    parts = text.split(":")
    try:
        if len(parts) == 6 and all(0 < len(p) <= 2 for p in parts):
            return bytes(int(p, 16) for p in parts)
    except ValueError:
        pass
    raise InvalidArgument(f"{text!r} is not a MAC address", subject=text)


def ip_bytes(text: str) -> tuple[int, bytes]:
    """(family, bytes) of an address. Raises InvalidArgument."""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        return family, inet_pton(family, text)
    except OSError:
        raise InvalidArgument(f"{text!r} is not an IP address", subject=text) from None


def _addressing(name: str, address: str, mtu: int) -> bytes:
    data = _text(IFLA_IFNAME, _name(name))
    if address:
        data += attribute(IFLA_ADDRESS, mac_bytes(address))
    if mtu:
        data += _u32(IFLA_MTU, mtu)
    return data


def bridge_add(name: str, *, address: str = "", mtu: int = 0, exist_ok: bool = False) -> Request:
    """Make a bridge (down). address: its MAC, "" for a random one that follows its ports."""
    info = attribute(IFLA_LINKINFO, _text(IFLA_INFO_KIND, "bridge"))
    return Request(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _addressing(name, address, mtu) + info,
        f"netlink: add bridge {name}",
        name,
        (errno.EEXIST,) if exist_ok else (),
    )


def veth_add(
    name: str,
    peer: str,
    *,
    netns_fd: int = -1,
    master: int = 0,
    mtu: int = 0,
    address: str = "",
    peer_address: str = "",
) -> Request:
    """Make a veth pair (both down): `name` here, a port of the bridge with index `master`; `peer` in
    the namespace of netns_fd (-1: here too)."""
    other = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _addressing(peer, peer_address, mtu)
    if netns_fd >= 0:
        other += _u32(IFLA_NET_NS_FD, netns_fd)
    info = _text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, other))
    data = _addressing(name, address, mtu) + attribute(IFLA_LINKINFO, info)
    if master:
        data += _u32(IFLA_MASTER, master)
    return Request(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + data,
        f"netlink: add veth {name}",
        name,
    )


def bridge_port_set(name: str, *, alias: str = "", hairpin: bool = True, isolated: bool = False) -> Request:
    """Set a bridge's port (by name): hairpin mode, isolation from other isolated ports, an alias,
    and no IPv6 link-local address (a port carries frames, it is no host)."""
    port = attribute(_IFLA_BRPORT_MODE, pack("=B", hairpin))
    port += attribute(_IFLA_BRPORT_ISOLATED, pack("=B", isolated))
    info = _text(IFLA_INFO_SLAVE_KIND, "bridge") + attribute(IFLA_INFO_SLAVE_DATA, port)
    data = _text(IFLA_IFNAME, _name(name)) + attribute(IFLA_LINKINFO, info)
    if alias:
        # without NUL: the kernel shows the alias as given
        data += attribute(IFLA_IFALIAS, os.fsencode(alias))
    return Request(
        RTM_NEWLINK, 0, IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + data, f"netlink: set bridge port {name}", name
    )


def link_set(
    name: str = "",
    *,
    index: int = 0,
    up: bool | None = None,
    master: int | None = None,
    mtu: int = 0,
    address: str = "",
    alias: str = "",
) -> Request:
    """Change a link, given by index or by name: state, master (0: none), MTU, MAC, alias."""
    subject = name or str(index)
    data = b"" if index else _text(IFLA_IFNAME, _name(name))
    if address:
        data += attribute(IFLA_ADDRESS, mac_bytes(address))
    if mtu:
        data += _u32(IFLA_MTU, mtu)
    if master is not None:
        data += _u32(IFLA_MASTER, master)
    if alias:
        data += attribute(IFLA_IFALIAS, os.fsencode(alias))
    head = IFINFO.pack(AF_UNSPEC, 0, index, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    return Request(RTM_SETLINK, 0, head + data, f"netlink: set link {subject}", subject)


def link_no_ipv6_autoconf(name: str = "", *, index: int = 0, tolerate_missing: bool = True) -> Request:
    """No IPv6 link-local address of the kernel's making on this link (IN6_ADDR_GEN_MODE_NONE).

    tolerate_missing: a kernel without IPv6 refuses; that is what was wanted.
    """
    subject = name or str(index)
    data = b"" if index else _text(IFLA_IFNAME, _name(name))
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, pack("=B", _IN6_ADDR_GEN_MODE_NONE))
    data += attribute(IFLA_AF_SPEC, attribute(AF_INET6, mode))
    return Request(
        RTM_SETLINK,
        0,
        IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + data,
        f"netlink: set IPv6 address generation of {subject}",
        subject,
        (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL) if tolerate_missing else (),
    )


def link_del(name: str = "", *, index: int = 0, missing_ok: bool = False) -> Request:
    """Delete a link, given by index or by name; a veth takes its peer along."""
    subject = name or str(index)
    data = b"" if index else _text(IFLA_IFNAME, _name(name))
    return Request(
        RTM_DELLINK,
        0,
        IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + data,
        f"netlink: delete link {subject}",
        subject,
        (errno.ENODEV,) if missing_ok else (),
    )


def address_add(index: int, address: str, prefix: int, *, exist_ok: bool = False) -> Request:
    """Add an address to the link with that index, an IPv6 one to be used at once: no duplicate of it is
    looked for."""
    family, raw = ip_bytes(address)
    return Request(
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_EXCL,
        IFADDR.pack(family, prefix, _IFA_F_NODAD * (family == AF_INET6), 0, index)
        + attribute(IFA_LOCAL, raw)
        + attribute(IFA_ADDRESS, raw),
        f"netlink: add address {address}/{prefix}",
        address,
        (errno.EEXIST,) if exist_ok else (),
    )


def address_del(index: int, address: str, prefix: int, *, missing_ok: bool = False) -> Request:
    """Remove an address from the link with that index."""
    family, raw = ip_bytes(address)
    return Request(
        RTM_DELADDR,
        0,
        IFADDR.pack(family, prefix, 0, 0, index) + attribute(IFA_LOCAL, raw),
        f"netlink: delete address {address}/{prefix}",
        address,
        (errno.EADDRNOTAVAIL, errno.ENODEV) if missing_ok else (),
    )


def route_add(
    gateway: str, *, destination: str = "", prefix: int = 0, index: int = 0, exist_ok: bool = False
) -> Request:
    """Add a unicast route by gateway to the main table; gateway "" is the link itself (IPv4 where there is no
    destination, either), destination "" the default route."""
    family, raw = ip_bytes(gateway or destination or "0.0.0.0")
    data = attribute(RTA_GATEWAY, raw) if gateway else b""
    if destination:
        data = attribute(RTA_DST, ip_bytes(destination)[1]) + data
    if index:
        data += _u32(RTA_OIF, index)
    scope = _RT_SCOPE_UNIVERSE if gateway else _RT_SCOPE_LINK
    head = RTMSG.pack(family, prefix, 0, 0, RT_TABLE_MAIN, _RTPROT_STATIC, scope, RTN_UNICAST, 0)
    where = f"{destination}/{prefix}" if destination else "default"
    return Request(
        RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_EXCL,
        head + data,
        f"netlink: add route {where} via {gateway or 'the link'}",
        where,
        (errno.EEXIST,) if exist_ok else (),
    )


def _c_string(raw: bytes) -> str:
    return os.fsdecode(raw.split(b"\0", 1)[0])


def parse_link(data: bytes) -> Link:
    """A Link of the body of an RTM_NEWLINK message."""
    _, _, index, flags, _ = IFINFO.unpack_from(data)
    found = attributes(data, IFINFO.size)
    info = attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        index,
        _c_string(found.get(IFLA_IFNAME, b"")),
        _c_string(info.get(IFLA_INFO_KIND, b"")),
        flags,
        unpack_from("=I", found[IFLA_MTU])[0] if IFLA_MTU in found else 0,
        unpack_from("=I", found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0,
        ":".join(f"{b:02x}" for b in found.get(IFLA_ADDRESS, b"")),
        _c_string(found.get(IFLA_IFALIAS, b"")),
    )


def _parse_address(data: bytes) -> tuple[int, str, int]:
    family, prefix, _, _, index = IFADDR.unpack_from(data)
    found = attributes(data, IFADDR.size)
    raw = found.get(IFA_LOCAL) or found[IFA_ADDRESS]  # IFA_ADDRESS is the peer's on point-to-point links
    return index, inet_ntop(family, raw), prefix


def _parse_route(data: bytes) -> tuple[str, int] | None:
    family, prefix, _, _, table, _, _, kind, _ = RTMSG.unpack_from(data)
    found = attributes(data, RTMSG.size)
    if RTA_TABLE in found:
        table = unpack_from("=I", found[RTA_TABLE])[0]
    if table != RT_TABLE_MAIN or kind != RTN_UNICAST or RTA_DST not in found:
        return None
    return inet_ntop(family, found[RTA_DST]), prefix


def parse_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise InternalError("malformed netlink message", step="netlink")
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def parse_acknowledgement(flags: int, body: bytes) -> tuple[int, str]:
    """(errno, the kernel's own words or "") of the body of an NLMSG_ERROR or NLMSG_DONE message."""
    if len(body) < 4:
        return 0, ""
    number = -unpack_from("=i", body)[0]
    if not flags & _NLM_F_ACK_TLVS or len(body) < 4 + _HEADER.size:
        return number, ""
    # the request follows: its header alone (NETLINK_CAP_ACK) or, on errors of old kernels, all of it
    echoed = _HEADER.size if flags & _NLM_F_CAPPED else unpack_from("=I", body, 4)[0]
    found = attributes(body, 4 + ((echoed + 3) & ~3))
    return number, _c_string(found.get(_NLMSGERR_ATTR_MSG, b""))


def _failure(number: int, words: str, step: str, subject: str) -> KernelError:
    text = os.strerror(number).lower()
    return KernelError(f"{text}: {words}" if words else text, subject=subject, step=step, errno=number)


class Netlink:
    """A netlink socket. With fd: one that is open already, perhaps in another network namespace;
    it is duplicated and stays the caller's. Use as a context manager, from one thread at a time."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self, fd: int | None = None, *, protocol: int = NETLINK_ROUTE) -> None:
        try:
            if fd is None:
                self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
                self._socket.bind((0, 0))
            else:
                self._socket = socket(fileno=os.dup(fd))
        except OSError as error:
            raise _failure(error.errno or 0, "", "netlink: open socket", "") from None
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            self._socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, pack("=qq", _TIMEOUT, 0))
        except OSError as error:
            self._socket.close()
            raise _failure(error.errno or 0, "", "netlink: set up socket", "") from None
        # answers that an earlier user of a passed socket left unread must not look like ours
        self._sequence = time.monotonic_ns() & 0x3FFFFFFF

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close our duplicate of the socket."""
        self._socket.close()

    def _receive(self, step: str) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data, sender = self._socket.recvfrom(_RECEIVE)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise DeadlineExceeded("the kernel did not answer", step=step) from None
            raise _failure(error.errno or 0, "", step, "") from None
        # a process with CAP_NET_ADMIN in the socket's namespace could write to us: only port 0 is the kernel
        return parse_messages(data) if sender[0] == 0 else iter(())

    def batch(self, requests: Sequence[Request]) -> None:
        """Send the requests, wait for all acknowledgements.

        Raises KernelError of the first that failed; those after it were tried as well.
        """
        failed: KernelError | None = None
        for start in range(0, len(requests), _BATCH):
            error = self._batch(requests[start : start + _BATCH])
            failed = failed or error
        if failed is not None:
            raise failed

    def _batch(self, requests: Sequence[Request]) -> KernelError | None:
        pending: dict[int, Request] = {}
        parts: list[bytes] = []
        for request in requests:
            self._sequence += 1
            pending[self._sequence] = request
            length = _HEADER.size + len(request.body)
            flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
            parts += (
                _HEADER.pack(length, request.kind, flags, self._sequence, 0),
                request.body,
                bytes(-length & 3),
            )
        step = requests[0].step
        try:
            self._socket.sendall(b"".join(parts))
        except OSError as error:
            return _failure(error.errno or 0, "", step, requests[0].subject)
        errors: dict[int, KernelError] = {}
        while pending:
            for kind, flags, sequence, body in self._receive(step):
                if kind != _NLMSG_ERROR or sequence not in pending:
                    continue
                request = pending.pop(sequence)
                number, words = parse_acknowledgement(flags, body)
                if number and number not in request.tolerate:
                    errors[sequence] = _failure(number, words, request.step, request.subject)
        return errors[min(errors)] if errors else None

    def dump(self, kind: int, body: bytes, step: str) -> list[bytes]:
        """The bodies of all answers to a dump request; again when the kernel says that what it listed
        changed meanwhile. Raises KernelError."""
        for _ in range(_DUMP_ATTEMPTS):
            found, interrupted = self._dump(kind, body, step)
            if not interrupted:
                break
        return found

    def _dump(self, kind: int, body: bytes, step: str) -> tuple[list[bytes], bool]:
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_DUMP
        try:
            self._socket.sendall(
                _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body
            )
        except OSError as error:
            raise _failure(error.errno or 0, "", step, "") from None
        found: list[bytes] = []
        interrupted = False
        while True:
            for answer, answer_flags, sequence, data in self._receive(step):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(answer_flags & NLM_F_DUMP_INTR)
                if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                    number, words = parse_acknowledgement(answer_flags, data)
                    if number:
                        raise _failure(number, words, step, "")
                    return found, interrupted
                found.append(data)

    def get(self, kind: int, body: bytes, step: str, subject: str) -> bytes:
        """The body of the one answer to a request. Raises KernelError."""
        self._sequence += 1
        try:
            self._socket.sendall(
                _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST, self._sequence, 0) + body
            )
        except OSError as error:
            raise _failure(error.errno or 0, "", step, subject) from None
        while True:
            for answer, flags, sequence, data in self._receive(step):
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    raise _failure(*parse_acknowledgement(flags, data), step, subject)
                return data

    def link(self, name: str) -> Link | None:
        """The link of that name, None when there is none."""
        body = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, _name(name))
        body += _u32(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
        try:
            return parse_link(self.get(RTM_GETLINK, body, f"netlink: get link {name}", name))
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def links(self, *, master: int = 0) -> list[Link]:
        """All links; with master the ports of that bridge only."""
        body = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _u32(IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
        if master:
            body += _u32(IFLA_MASTER, master)
        return [parse_link(data) for data in self.dump(RTM_GETLINK, body, "netlink: list links")]

    def addresses(self, *, index: int = 0, family: int = AF_INET) -> list[tuple[int, str, int]]:
        """(link index, address, prefix length) of all addresses of that family, or of one link."""
        body = IFADDR.pack(family, 0, 0, 0, index)
        return [_parse_address(data) for data in self.dump(RTM_GETADDR, body, "netlink: list addresses")]

    def routes(self, *, family: int = AF_INET) -> list[tuple[str, int]]:
        """(destination, prefix length) of the unicast routes of the main table, without default routes."""
        body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        found = self.dump(RTM_GETROUTE, body, "netlink: list routes")
        return [route for route in map(_parse_route, found) if route is not None]
