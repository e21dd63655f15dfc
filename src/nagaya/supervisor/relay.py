"""Published ports that cannot be translated, or must pass the host's own INPUT rules: what comes to the
reserving socket is carried to the container and back. Its owner's loop calls it, as the resolver.

RUN/dns/relay-CONTAINER says which sockets are meant: [{"protocol", "host", "port", "target", "target_port"}].
Connections and UDP flows are bounded for each container and in all; who does not read makes the other side
wait, nobody else.
"""

from __future__ import annotations

import os
import time
from _socket import (
    AF_INET,
    AF_INET6,
    SHUT_RDWR,
    SHUT_WR,
    SO_ERROR,
    SO_LINGER,
    SO_PROTOCOL,
    SO_RCVBUF,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from _struct import pack
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll

from nagaya.errors import InvalidArgument
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_CHUNK = 65536
_FULL = 256 << 10  # bytes that wait for one side until the other is not read any more
_CONNECTIONS, _CONNECTIONS_EACH = 4096, 1024
_FLOWS, _FLOWS_EACH = 4096, 1024
_IDLE = 90.0  # seconds of silence that end a UDP flow
_CONNECT = 10.0  # seconds for the container to accept
_TURN = 32
_BUFFER = 1 << 20


class _Port:
    """One reserving socket that is served."""

    __slots__ = ("flows", "sock", "target", "token", "tunnels", "udp")

    def __init__(self, token: str, sock: socket, udp: bool, target: tuple[str, int]) -> None:
        self.token = token
        self.sock = sock
        self.udp = udp
        self.target = target
        self.tunnels: set[_Tunnel] = set()
        self.flows: dict[Any, _Flow] = {}


class _Side:
    """One end of a tunnel."""

    __slots__ = ("ended", "mask", "out", "shut", "sock")

    def __init__(self, sock: socket) -> None:
        self.sock = sock
        self.out = bytearray()  # to be sent to it
        self.ended = False  # it sends no more
        self.shut = False  # we send no more
        self.mask = 0


class _Tunnel:
    """A connection and the one that goes on to the container."""

    __slots__ = ("deadline", "port", "sides")

    def __init__(self, port: _Port, client: socket, target: socket) -> None:
        self.port = port
        self.sides = (_Side(client), _Side(target))
        self.deadline = time.monotonic() + _CONNECT  # 0: connected


class _Flow:
    """A UDP client's socket to the container."""

    __slots__ = ("client", "deadline", "port", "sock")

    def __init__(self, port: _Port, client: Any, sock: socket) -> None:
        self.port = port
        self.client = client
        self.sock = sock
        self.deadline = time.monotonic() + _IDLE


class Relay:
    """All relayed ports."""

    def __init__(self, poll: epoll, directory: int) -> None:
        self._epoll = poll
        self._directory = directory
        self._ports: dict[str, list[_Port]] = {}
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._connecting: set[_Tunnel] = set()
        self._tunnels = 0
        self._flows: set[_Flow] = set()

    def add(self, token: str, fds: list[int]) -> None:
        """Serve those of the sockets that the container's file names; they are ours."""
        self.remove(token)
        wanted = self._wanted(token)
        ports = self._ports[token] = []
        for fd in fds:
            sock = socket(-1, -1, -1, fileno=fd)
            protocol = _PROTOCOLS.get(sock.getsockopt(SOL_SOCKET, SO_PROTOCOL), "")
            host, number = sock.getsockname()[:2]
            entry = wanted.get((protocol, host, number))
            if entry is None:
                sock.close()
                continue
            os.set_blocking(fd, False)
            port = _Port(token, sock, protocol == "udp", (entry["target"], entry["target_port"]))
            ports.append(port)
            if port.udp:
                sock.setsockopt(SOL_SOCKET, SO_RCVBUF, _BUFFER)
                self._listen(fd, lambda _, port=port: self._datagrams(port))  # type: ignore[misc]
            else:
                sock.listen(128)
                self._listen(fd, lambda _, port=port: self._accept(port))  # type: ignore[misc]

    def _wanted(self, token: str) -> dict[tuple[str, str, int], dict[str, Any]]:
        try:
            fd = os.open(token, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory)
            try:
                entries = json.loads(os.read(fd, 4 << 20))
            finally:
                os.close(fd)
        except (OSError, InvalidArgument):
            return {}
        return {(e["protocol"], e["host"], e["port"]): e for e in entries}

    def remove(self, token: str) -> None:
        """Serve them no more. The sockets stay bound, as they are the keeper's too; nobody listens."""
        for port in self._ports.pop(token, ()):
            for tunnel in list(port.tunnels):
                self._close(tunnel)
            for flow in list(port.flows.values()):
                self._end(flow)
            self._ignore(port.sock.fileno())
            try:
                if not port.udp:
                    port.sock.shutdown(SHUT_RDWR)
            except OSError:
                pass
            port.sock.close()

    # the loop's part

    def _listen(self, fd: int, handler: Callable[[int], None], events: int = EPOLLIN) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def _ignore(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def __contains__(self, fd: int) -> bool:
        return fd in self._handlers

    def handles(self, fd: int, events: int) -> None:
        """Do what is to be done about a descriptor of ours."""
        handler = self._handlers.get(fd)
        if handler is not None:
            handler(events)

    def timeout(self) -> float:
        """Seconds until `expire` must be called; -1: nothing waits."""
        if not self._connecting and not self._flows:
            return -1
        now = time.monotonic()
        nearest = min((t.deadline for t in self._connecting), default=now + _IDLE)
        return max(0.0, min(nearest - now, _IDLE / 10 if self._flows else _IDLE))

    def expire(self) -> None:
        """End what was silent too long."""
        now = time.monotonic()
        for tunnel in [t for t in self._connecting if t.deadline <= now]:
            self._close(tunnel)
        for flow in [f for f in self._flows if f.deadline <= now]:
            self._end(flow)

    # TCP

    def _accept(self, port: _Port) -> None:
        for _ in range(_TURN):
            try:
                fd, _ = port.sock._accept()  # type: ignore[attr-defined]
            except OSError:
                return
            client = socket(-1, -1, -1, fileno=fd)
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)
            if self._tunnels >= _CONNECTIONS or len(port.tunnels) >= _CONNECTIONS_EACH:
                client.close()
                continue
            target: socket | None = None
            try:
                family = AF_INET6 if ":" in port.target[0] else AF_INET
                protocol = port.sock.getsockopt(SOL_SOCKET, SO_PROTOCOL)
                target = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol)
                try:
                    target.connect(port.target)
                except BlockingIOError:
                    pass
            except OSError:
                client.close()
                if target is not None:
                    target.close()
                continue
            tunnel = _Tunnel(port, client, target)
            port.tunnels.add(tunnel)
            self._tunnels += 1
            self._connecting.add(tunnel)
            for index, side in enumerate(tunnel.sides):
                side.mask = EPOLLOUT if index else 0
                self._listen(side.sock.fileno(), self._handler(tunnel, index), side.mask)

    def _handler(self, tunnel: _Tunnel, index: int) -> Callable[[int], None]:
        return lambda events: self._ready(tunnel, index, events)

    def _ready(self, tunnel: _Tunnel, index: int, events: int) -> None:
        side, other = tunnel.sides[index], tunnel.sides[1 - index]
        try:
            if tunnel in self._connecting:
                if index == 0 or side.sock.getsockopt(SOL_SOCKET, SO_ERROR):
                    self._close(tunnel)  # the container does not listen, or the client has gone
                    return
                self._connecting.discard(tunnel)
            elif events & (EPOLLIN | EPOLLHUP | EPOLLERR) and not side.ended and len(other.out) < _FULL:
                data = side.sock.recv(_CHUNK)
                if data:
                    other.out += data
                else:
                    side.ended = True
            for one in (other, side):
                self._send(one)
            for one, peer in ((side, other), (other, side)):
                if one.ended and not peer.out and not peer.shut:
                    peer.shut = True
                    peer.sock.shutdown(SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._close(tunnel)
            return
        if side.shut and other.shut:
            self._close(tunnel)
            return
        for one, peer in ((side, other), (other, side)):
            mask = (EPOLLIN if not one.ended and len(peer.out) < _FULL else 0) | (EPOLLOUT if one.out else 0)
            if mask != one.mask:
                one.mask = mask
                self._epoll.modify(one.sock.fileno(), mask)

    def _send(self, side: _Side) -> None:
        while side.out:
            try:
                sent = side.sock.send(side.out)
            except BlockingIOError:
                return
            del side.out[:sent]

    def _close(self, tunnel: _Tunnel) -> None:
        if tunnel not in tunnel.port.tunnels:
            return
        tunnel.port.tunnels.discard(tunnel)
        self._tunnels -= 1
        refused = tunnel in self._connecting
        self._connecting.discard(tunnel)
        for side in tunnel.sides:
            self._ignore(side.sock.fileno())
            if refused or side.out:
                side.sock.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))  # a reset, not an end
            side.sock.close()

    # UDP

    def _datagrams(self, port: _Port) -> None:
        for _ in range(_TURN):
            try:
                data, client = port.sock.recvfrom(_CHUNK)
            except OSError:
                return
            flow = port.flows.get(client) or self._new_flow(port, client)
            if flow is None:
                continue
            flow.deadline = time.monotonic() + _IDLE
            try:
                flow.sock.send(data)
            except OSError:
                pass  # as a datagram that is lost

    def _new_flow(self, port: _Port, client: Any) -> _Flow | None:
        if len(self._flows) >= _FLOWS or len(port.flows) >= _FLOWS_EACH:
            return None
        try:
            family = AF_INET6 if ":" in port.target[0] else AF_INET
            sock = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
            sock.connect(port.target)
        except OSError:
            return None
        flow = port.flows[client] = _Flow(port, client, sock)
        self._flows.add(flow)
        self._listen(sock.fileno(), lambda _: self._answers(flow))
        return flow

    def _answers(self, flow: _Flow) -> None:
        for _ in range(_TURN):
            try:
                data = flow.sock.recv(_CHUNK)
                flow.deadline = time.monotonic() + _IDLE
                flow.port.sock.sendto(data, flow.client)
            except OSError:
                return

    def _end(self, flow: _Flow) -> None:
        flow.port.flows.pop(flow.client, None)
        self._flows.discard(flow)
        self._ignore(flow.sock.fileno())
        flow.sock.close()
