"""A guest made ready for containers: its network, their roots, their files. All of it is asked of the agent.

Everything of ours lies below /run of the guest: /run/nagaya/ID/{0,1,..} the disks of a container's root, rw
what is written, root the overlay of these, files the small files that came as content.
"""

from __future__ import annotations

import _stat as stat
import errno
from _struct import Struct

from nagaya.errors import InvalidArgument, KernelError
from nagaya.linux import mounts as m
from nagaya.linux import netlink as nl
from nagaya.linux import os
from nagaya.vm import network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nagaya.vm import protocol
    from nagaya.vm.link import Guest
    from nagaya.vm.network import Card

    Wanted = list[tuple[str, protocol.Value]]

_NLMSG = Struct("=IHHII")
_ERROR = 2
MAX_FILE = 1 << 20  # what comes as content; larger ones are shared
_RESOLVER = "127.0.0.11"


def directory(container: str) -> str:
    """Where what is of a container lies in the guest."""
    return f"/run/nagaya/{container}"


def root(guest: Guest, container: str, disks: Sequence[str], writable: str) -> str:
    """Lay a container's root over disks of the guest, the topmost first: its path. writable: the disk that
    takes what is written, "" for the guest's memory. Raises the guest's errors."""
    base = directory(container)
    lower = []
    for number, disk in enumerate(disks):
        target = f"{base}/{number}"
        fields: Wanted = [("type", "erofs"), ("source", disk), ("target", target), ("flags", m.MS_RDONLY)]
        guest.post("mount", fields)
        lower.append(target)
    if writable:
        fields = [("type", "ext4"), ("source", writable), ("target", f"{base}/rw"), ("flags", m.MS_NOATIME)]
        guest.post("mount", [*fields, ("data", "commit=1")])
    else:
        tmpfs(guest, f"{base}/rw", "mode=755")
    for name in ("upper", "work"):
        guest.post("mkdir", [("path", f"{base}/rw/{name}"), ("mode", 0o755)])
    options = f"lowerdir={':'.join(lower)},upperdir={base}/rw/upper,workdir={base}/rw/work"
    target = f"{base}/root"
    guest.post(
        "mount",
        [("type", "overlay"), ("source", "root"), ("target", target), ("flags", 0), ("data", options)],
    )
    return target


def tmpfs(guest: Guest, target: str, options: str) -> None:
    """A new tmpfs there."""
    fields: Wanted = [("type", "tmpfs"), ("source", "tmpfs"), ("target", target), ("flags", 0)]
    guest.post("mount", [*fields, ("data", options)])


def take_away(guest: Guest, container: str, disks: int) -> None:
    """The reverse, of a container that has ended: what is still used goes when it is used no longer."""
    base = directory(container)
    for name in ("root", "rw", *map(str, range(disks))):
        fields: Wanted = [("target", f"{base}/{name}"), ("flags", m.MNT_DETACH)]
        guest.call("unmount", fields, lambda _answer, _error: None)  # one that is not there is gone


def is_content(info: os.stat_result) -> bool:
    """Does this source of a bind mount come as content?"""
    return stat.S_ISREG(info.st_mode) and info.st_size <= MAX_FILE


def file(guest: Guest, container: str, index: int, source: str, info: os.stat_result) -> str:
    """A small file of the host, by content: its path in the guest. Raises InvalidArgument."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f"open {source}: {reason}", subject=f"mounts[{index}].source") from None
    try:
        data = b""
        while chunk := os.read(fd, 1 << 18):
            data += chunk
            if len(data) > MAX_FILE:
                raise InvalidArgument(f"{source} grows while it is read", subject=f"mounts[{index}].source")
    finally:
        os.close(fd)
    path = f"{directory(container)}/files/{index}"
    owner = [("uid", info.st_uid), ("gid", info.st_gid)]
    guest.post("write", [("path", path), ("data", data), ("mode", info.st_mode & 0o7777), *owner])
    return path


def connect(guest: Guest, cards: Sequence[Card], macs: Sequence[str]) -> None:
    """Give the guest's cards what the sandbox's interfaces had. macs: those that the machine's cards were
    made with, by which the guest tells which is which. Raises KernelError."""
    if not cards:
        return
    links = {link.address: link for link in _links(guest)}
    requests: list[nl.Request] = []
    for card, mac in zip(cards, macs, strict=False):
        link = links.get(mac) or links.get(card.mac)
        if link is None:
            raise KernelError("the guest has no such card", subject=mac, errno=errno.ENODEV)
        if link.address != card.mac:
            requests.append(nl.link_set(index=link.index, address=card.mac))
        requests.append(nl.link_set(index=link.index, mtu=card.mtu))
        requests.append(nl.link_set(index=link.index, up=True))
        requests += [nl.address_add(link.index, a, p, exist_ok=True) for a, p in card.addresses]
        requests += [network.route_request(route, link.index) for route in card.routes]
    first = next((card for card in cards if any(":" not in a for a, _ in card.addresses)), None)
    if first is not None:
        link = links.get(macs[list(cards).index(first)]) or links[first.mac]
        requests += _resolver(first, link.index)
        guest.post("write", [("path", f"/proc/sys/net/ipv4/conf/{link.name}/route_localnet"), ("data", "1")])
    _batch(guest, requests)


def _resolver(card: Card, index: int) -> list[nl.Request]:
    """127.0.0.11 by this card; 127/8 as such is nobody's then, but 127.0.0.1 stays lo's."""
    source = next(address for address, _ in card.addresses if ":" not in address)
    return [
        network.local_route_del("127.0.0.0", 8),
        network.route_request(network.Route(_RESOLVER, 32, "", source), index),
    ]


def _links(guest: Guest) -> list[nl.Link]:
    body = nl.IFINFO.pack(0, 0, 0, 0, 0)
    head = _NLMSG.pack(_NLMSG.size + len(body), nl.RTM_GETLINK, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, 1, 0)
    data = _answer(guest, head + body)
    return [nl.parse_link(body) for kind, _, _, body in nl.parse_messages(data) if kind == nl.RTM_NEWLINK]


def _batch(guest: Guest, requests: Sequence[nl.Request]) -> None:
    parts = []
    for number, request in enumerate(requests, 1):
        length = _NLMSG.size + len(request.body)
        flags = request.flags | nl.NLM_F_REQUEST | nl.NLM_F_ACK
        parts += [_NLMSG.pack(length, request.kind, flags, number, 0), request.body, bytes(-length & 3)]
    if not parts:
        return
    for kind, flags, number, body in nl.parse_messages(_answer(guest, b"".join(parts))):
        failed, words = nl.parse_acknowledgement(flags, body) if kind == _ERROR else (0, "")
        if failed and 0 < number <= len(requests) and failed not in requests[number - 1].tolerate:
            request = requests[number - 1]
            text = os.strerror(failed).lower() + (f": {words}" if words else "")
            raise KernelError(text, subject=request.subject, step=f"guest's {request.step}", errno=failed)


def _answer(guest: Guest, data: bytes) -> bytes:
    return b"".join(value for key, value in guest.ask("netlink", [("data", data)]) if key == "data")


def read(guest: Guest, paths: Sequence[str]) -> list[bytes | None]:
    """The contents of files of the guest, None of those that cannot be read."""
    found = guest.ask("read", [("path", path) for path in paths])
    return [value if key == "data" else None for key, value in found if key in ("data", "error")]
