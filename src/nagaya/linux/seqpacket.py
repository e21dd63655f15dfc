"""Packets with file descriptors over AF_UNIX: unix(7), SCM_RIGHTS, SO_PEERCRED.

Over `_socket` alone: the public module imports `enum` and `selectors`.
"""

from __future__ import annotations

from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_RIGHTS,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)
from _struct import calcsize, pack, unpack

from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_FDS = 250  # SCM_MAX_FD is 253
MAX_PACKET = 65536
_CONTROL = CMSG_SPACE(MAX_FDS * 4)


class Packet:
    """One received packet. `truncated`: the packet, or some of its descriptors, did not fit (the
    latter also happens when this process has no descriptor left, EMFILE)."""

    __slots__ = ("data", "fds", "truncated")

    def __init__(self, data: bytes, fds: list[int], truncated: bool) -> None:
        self.data = data
        self.fds = fds
        self.truncated = truncated


def pair() -> tuple[socket, socket]:
    """Two connected SEQPACKET sockets, blocking, close-on-exec."""
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)


def send(sock: socket, data: bytes, fds: Sequence[int] = (), *, wait: bool = False) -> bool:
    """Send one packet whole; False when the peer's buffer is full and wait is not wanted.

    Raises OSError (BrokenPipeError, ConnectionResetError) when the peer is gone.
    """
    ancillary = [(SOL_SOCKET, SCM_RIGHTS, pack(f"={len(fds)}i", *fds))] if fds else []
    flags = MSG_NOSIGNAL | (0 if wait else MSG_DONTWAIT)
    try:
        sock.sendmsg([data], ancillary, flags)
    except BlockingIOError:
        return False
    return True


def receive(sock: socket, size: int = MAX_PACKET, *, wait: bool = False) -> Packet | None:
    """Receive one packet; None when there is none now. Empty data means the peer has closed.

    Raises OSError when the connection broke.
    """
    flags = MSG_CMSG_CLOEXEC | (0 if wait else MSG_DONTWAIT)
    try:
        try:
            data, ancillary, flags, _ = sock.recvmsg(size, _CONTROL, flags)
        except ConnectionResetError:
            # The peer closed with something unread: told once, ahead of what it had sent before.
            data, ancillary, flags, _ = sock.recvmsg(size, _CONTROL, flags)
    except BlockingIOError:
        return None
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            count = len(content) // 4
            fds += unpack(f"={count}i", content[: count * 4])
    return Packet(data, fds, bool(flags & (MSG_CTRUNC | MSG_TRUNC)))


def listen(path: str, mode: int = 0o600, backlog: int = 64) -> socket:
    """A listening non-blocking SEQPACKET socket at path; a stale one is replaced.

    The name appears with its final mode: bound under a temporary name, then renamed.
    """
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    temporary = f"{path}.{os.getpid()}"
    try:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        sock.bind(temporary)
        os.chmod(temporary, mode)
        sock.listen(backlog)
        os.rename(temporary, path)
    except OSError:
        sock.close()
        raise
    return sock


def connect(path: str) -> socket:
    """A blocking connection. Raises OSError."""
    sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def peer_uid(sock: socket) -> int:
    """The user id of the process that connected (SO_PEERCRED)."""
    data = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, calcsize("=iII"))
    uid: int = unpack("=iII", data)[1]
    return uid


def close_all(fds: Iterable[int]) -> None:
    """Close every descriptor; those that are closed already do not matter."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass
