"""The guest's vsock, as Unix sockets of the host in Firecracker's manner.

Who connects to `uds_path` and says "CONNECT 52" is connected to the guest's port 52, and hears "OK" and the
host's port first. A guest that connects to port 52 of the host (CID 2) gets what listens on `uds_path_52`.
The packets are virtio 1.2, 5.10; QEMU brings the rings (vhostuser.py), a thread of its own serves them.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

from nagaya.api.firecracker.server import Loop
from nagaya.api.firecracker.vhostuser import Backend, ProtocolError
from nagaya.api.firecracker.virtqueue import BrokenRing

_HEADER = struct.Struct("<QQIIIHHIII")
_CID = struct.Struct("<Q")
_HOST = 2
_STREAM = 1
_REQUEST, _RESPONSE, _RST, _SHUTDOWN, _RW, _CREDIT_UPDATE, _CREDIT_REQUEST = range(1, 8)
_NO_RECEIVE, _NO_SEND = 1, 2
_RX, _TX = 0, 1

_BUFFER = 256 << 10  # of what the guest sent and the host's side has not read
_PACKET = 64 << 10
_CONNECTIONS = 1023  # Firecracker's bound
_PENDING = 256  # packets that wait for a buffer of the guest's; of the guest's nothing is read meanwhile
_FIRST_PORT = 1 << 30  # of the host's, for connections from its side
_PATIENCE = 10.0  # for a word of the peer's: CONNECT, or the guest's answer to it
_LINE = 32
_ROUNDS = 16


class _Stream:
    """One connection between a socket of the host and a port of the guest."""

    def __init__(self, client: socket.socket, host_port: int, guest_port: int) -> None:
        self.socket = client
        self.host_port = host_port
        self.guest_port = guest_port
        self.open = False
        self.to_host = b""
        self.forwarded = 0  # bytes taken from the guest and passed on
        self.told = 0  # the last such count that the guest knows
        self.sent = 0  # bytes given to the guest
        self.peer_room = 0
        self.peer_forwarded = 0
        self.host_ended = False  # it sends no more
        self.guest_ended = False

    def credit(self) -> int:
        """How many bytes the guest can take."""
        room = self.peer_room - ((self.sent - self.peer_forwarded) & 0xFFFFFFFF)
        return max(0, min(room, _PACKET))


class Vsock:
    """The device's back end, in its thread from the beginning; `is_ours` is vhostuser's."""

    def __init__(
        self,
        cid: int,
        path: str,
        vhost: socket.socket,
        is_ours: Callable[[int], bool],
        count: Callable[[str, int], None],
        complain: Callable[[str], None],
    ) -> None:
        """Listen at `path`, whose file is made, and for QEMU on the listening socket `vhost`, which is taken
        over. Raises OSError."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(path)
            self._listener.listen(64)
        except BaseException:
            self._listener.close()
            vhost.close()
            raise
        self._cid = cid
        self._path = path
        self._count = count
        self._complain = complain
        self._loop = Loop()
        self._vhost = vhost
        self._qemu: socket.socket | None = None
        self._backend = Backend(2, _CID.pack(cid), is_ours, self._watch_kick, self._loop.forget)
        self._streams: dict[tuple[int, int], _Stream] = {}
        self._greeting: dict[int, tuple[socket.socket, bytes]] = {}
        self._pending: deque[bytes] = deque()
        self._ready: deque[tuple[int, int]] = deque()  # streams whose host has something, in turn
        self._next_port = _FIRST_PORT
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.watch(self._wake, select.EPOLLIN, lambda _: self._loop.stop(0))
        self._loop.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        vhost.setblocking(False)
        self._loop.watch(vhost.fileno(), select.EPOLLIN, self._accept_qemu)
        self._thread = threading.Thread(target=self._run, name="vsock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run()
        except Exception as error:  # a defect of ours must not leave anybody waiting
            self._complain(f"The vsock device ends by a defect: {error!r}")
            for one in (self._listener, self._vhost, *self._peers()):
                one.close()

    def _peers(self) -> list[socket.socket]:
        greeted = [client for client, _ in self._greeting.values()]
        return greeted + [stream.socket for stream in self._streams.values()]

    def close(self) -> None:
        """End all connections, and remove the socket's file."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._backend.close()
        for one in (self._listener, self._vhost, *([self._qemu] if self._qemu else []), *self._peers()):
            one.close()
        os.close(self._wake)
        self._loop.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass

    # QEMU

    def _accept_qemu(self, _: int) -> None:
        try:
            peer, _address = self._vhost.accept()
        except OSError:
            return
        if self._qemu:
            peer.close()
            return
        peer.settimeout(_PATIENCE)
        self._qemu = peer
        self._loop.watch(peer.fileno(), select.EPOLLIN, self._serve_qemu)

    def _serve_qemu(self, _: int) -> None:
        if self._qemu is None:
            return
        why = ""
        try:
            alive = self._backend.serve(self._qemu)
        except (ProtocolError, BrokenRing, OSError) as error:
            alive, why = False, str(error)
        if alive:
            self._work()
            return
        self._loop.forget(self._qemu.fileno())
        self._qemu.close()
        self._qemu = None
        self._end_device(why)

    def _end_device(self, why: str) -> None:
        """There is no guest any more that anybody could be connected with. Called when no exception is held,
        whose frames would know pieces of the memory."""
        if why:
            self._count("rx_queue_event_fails", 1)
            self._complain(f"The guest's vsock device ends here: {why}")
        self._backend.close()
        for stream in list(self._streams.values()):
            self._drop(stream, tell=False)
        self._pending.clear()

    def _watch_kick(self, fd: int) -> None:
        def kicked(_: int) -> None:
            try:
                os.read(fd, 8)
            except OSError:
                pass
            self._work()

        self._loop.watch(fd, select.EPOLLIN, kicked)

    def _work(self) -> None:
        """Take what the guest sent and give it what there is, as far as its buffers go; then others' turn."""
        why = ""
        try:
            for _ in range(_ROUNDS):
                received, sent = self._receive(), self._send()
                if not received and not sent:
                    return
        except BrokenRing as error:
            why = str(error)
        if why:
            self._end_device(why)
        else:
            self._loop.after(0, self._work)

    def _receive(self) -> bool:
        queue = self._backend.queue(_TX)
        taken = 0
        while queue and taken < _PENDING and len(self._pending) < _PENDING:
            if not (chain := queue.take(writable=False)):
                break
            if chain.size > _HEADER.size + _PACKET + 4096:
                raise BrokenRing(f"a packet of {chain.size} bytes")
            packet = chain.read()
            queue.give_back(chain, 0)
            taken += 1
            if len(packet) >= _HEADER.size:
                self._packet(packet)
        if taken:
            self._backend.call(_TX)
        return taken > 0

    def _send(self) -> bool:
        queue = self._backend.queue(_RX)
        given = 0
        while queue and given < _PENDING and queue.waiting():
            chain = queue.take(writable=True)
            if chain is None or chain.size <= _HEADER.size:
                raise BrokenRing("a buffer without room for a packet")
            room = min(chain.size - _HEADER.size, _PACKET)
            packet = self._pending.popleft() if self._pending else self._next_data(room)
            if packet is None:
                queue.untake()
                break
            chain.write(packet)
            queue.give_back(chain, len(packet))
            given += 1
        if given:
            self._backend.call(_RX)
            self._count("tx_packets_count", given)
        return given > 0

    # the guest's packets

    def _packet(self, packet: bytes) -> None:
        source, target, guest_port, host_port, size, kind, operation, flags, room, forwarded = (
            _HEADER.unpack_from(packet)
        )
        self._count("rx_packets_count", 1)
        key = host_port, guest_port
        stream = self._streams.get(key)
        if (source, target, kind) != (self._cid, _HOST, _STREAM) or size != len(packet) - _HEADER.size:
            if operation != _RST and source == self._cid:
                self._control(key, _RST)
            return
        if stream is None:
            if operation == _REQUEST:
                self._connect(key, room, forwarded)
            elif operation != _RST:
                self._control(key, _RST)
            return
        stream.peer_room, stream.peer_forwarded = room, forwarded
        if operation in (_RST, _REQUEST):
            self._drop(stream, tell=operation == _REQUEST)
        elif operation == _RESPONSE and not stream.open:
            stream.open = True
            self._to_host(stream, b"OK %d\n" % host_port, count=False)
        elif operation == _RW and stream.open:
            self._count("rx_bytes_count", size)
            if len(stream.to_host) + size > _BUFFER or stream.guest_ended:
                self._drop(stream, tell=True)  # it was told how much there is room for
            else:
                self._to_host(stream, packet[_HEADER.size :])
        elif operation == _SHUTDOWN:
            self._shut(stream, flags)
        elif operation == _CREDIT_REQUEST:
            self._control(key, _CREDIT_UPDATE)
        if key in self._streams:
            self._watch(stream)

    def _shut(self, stream: _Stream, flags: int) -> None:
        if flags & _NO_RECEIVE:
            stream.host_ended = True
        if flags & _NO_SEND:
            stream.guest_ended = True
            if not stream.to_host:
                self._end_to_host(stream)
        if stream.host_ended and stream.guest_ended and not stream.to_host:
            self._drop(stream, tell=True)

    def _connect(self, key: tuple[int, int], room: int, forwarded: int) -> None:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if len(self._streams) >= _CONNECTIONS:
                raise OSError
            client.connect(f"{self._path}_{key[0]}")
        except OSError:  # also a path that is too long, or a listener that is busy (EAGAIN)
            client.close()
            self._control(key, _RST)
            return
        stream = _Stream(client, *key)
        stream.open, stream.peer_room, stream.peer_forwarded = True, room, forwarded
        self._add(stream)
        self._control(key, _RESPONSE)

    # packets to the guest

    def _control(self, key: tuple[int, int], operation: int, flags: int = 0) -> None:
        self._pending.append(self._header(key, 0, operation, flags))

    def _header(self, key: tuple[int, int], size: int, operation: int, flags: int = 0) -> bytes:
        stream = self._streams.get(key)
        forwarded = 0
        if stream:
            forwarded = stream.told = stream.forwarded & 0xFFFFFFFF
        return _HEADER.pack(
            _HOST, self._cid, key[0], key[1], size, _STREAM, operation, flags, _BUFFER, forwarded
        )

    def _next_data(self, most: int) -> bytes | None:
        """Some of what hosts have to say, each in its turn."""
        while self._ready:
            key = self._ready.popleft()
            stream = self._streams.get(key)
            if stream is None or stream.host_ended or not stream.open or not (room := stream.credit()):
                if stream:
                    self._watch(stream)
                continue
            try:
                data = stream.socket.recv(min(room, most))
            except BlockingIOError:
                self._watch(stream)
                continue
            except OSError:
                self._drop(stream, tell=True)
                return self._pending.popleft()
            if not data:
                stream.host_ended = True
                self._watch(stream)
                return self._header(key, 0, _SHUTDOWN, _NO_SEND)
            stream.sent = (stream.sent + len(data)) & 0xFFFFFFFF
            self._count("tx_bytes_count", len(data))
            self._ready.append(key)
            return self._header(key, len(data), _RW) + data
        return None

    # the host's side

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError:
            return
        if len(self._streams) + len(self._greeting) >= _CONNECTIONS:
            client.close()
            return
        client.setblocking(False)
        fd = client.fileno()
        self._greeting[fd] = client, b""
        self._loop.watch(fd, select.EPOLLIN, lambda _: self._greet(fd))
        self._loop.after(_PATIENCE, lambda: self._silent(fd, client))

    def _silent(self, fd: int, client: socket.socket) -> None:
        if self._greeting.get(fd, (None, b""))[0] is client:
            self._turn_away(fd)

    def _turn_away(self, fd: int) -> None:
        self._loop.forget(fd)
        self._greeting.pop(fd)[0].close()

    def _greet(self, fd: int) -> None:
        client, line = self._greeting[fd]
        try:
            while len(line) < _LINE and not line.endswith(b"\n"):
                # not a byte beyond the line: what follows is the guest's
                if not (byte := client.recv(1)):
                    break
                line += byte
        except BlockingIOError:
            self._greeting[fd] = client, line
            return
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self._turn_away(fd)
            return
        words = line.split()
        if len(words) != 2 or words[0].upper() != b"CONNECT" or not words[1].isdigit():
            self._turn_away(fd)
            return
        port = int(words[1])
        if port > 0xFFFFFFFF:
            self._turn_away(fd)
            return
        self._loop.forget(fd)
        del self._greeting[fd]
        while any(key[0] == self._next_port for key in self._streams):
            self._next_port += 1
        stream = _Stream(client, self._next_port, port)
        self._next_port = self._next_port + 1 if self._next_port < (1 << 31) - 1 else _FIRST_PORT
        self._add(stream)
        self._control((stream.host_port, port), _REQUEST)
        self._loop.after(_PATIENCE, lambda: self._unanswered(stream))
        self._work()

    def _unanswered(self, stream: _Stream) -> None:
        if not stream.open and self._streams.get((stream.host_port, stream.guest_port)) is stream:
            self._drop(stream, tell=True)
            self._work()

    def _add(self, stream: _Stream) -> None:
        self._count("conns_added", 1)
        self._streams[stream.host_port, stream.guest_port] = stream
        self._watch(stream)

    def _drop(self, stream: _Stream, *, tell: bool) -> None:
        key = stream.host_port, stream.guest_port
        if tell:
            self._control(key, _RST)
        self._loop.forget(stream.socket.fileno())
        stream.socket.close()
        del self._streams[key]
        self._count("conns_removed", 1)

    def _watch(self, stream: _Stream) -> None:
        """Wait for what can be done with the host's socket now."""
        key = stream.host_port, stream.guest_port
        events = select.EPOLLOUT if stream.to_host else 0
        if stream.open and not stream.host_ended and key not in self._ready and stream.credit():
            events |= select.EPOLLIN
        fd = stream.socket.fileno()
        if events:
            self._loop.watch(fd, events, lambda got: self._host_ready(stream, got))
        else:
            # not even for its end, which epoll would tell again and again
            self._loop.forget(fd)

    def _host_ready(self, stream: _Stream, events: int) -> None:
        key = stream.host_port, stream.guest_port
        if events & select.EPOLLOUT:
            self._to_host(stream, b"")
        if self._streams.get(key) is not stream:
            return
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and key not in self._ready:
            self._ready.append(key)
        self._watch(stream)
        self._work()

    def _to_host(self, stream: _Stream, data: bytes, *, count: bool = True) -> None:
        if not count:  # our own words, before any of the guest's
            stream.forwarded -= len(data)
        stream.to_host += data
        try:
            while stream.to_host:
                sent = stream.socket.send(stream.to_host, socket.MSG_NOSIGNAL)
                stream.to_host = stream.to_host[sent:]
                stream.forwarded += sent
        except BlockingIOError:
            pass
        except OSError:
            self._drop(stream, tell=True)
            return
        key = stream.host_port, stream.guest_port
        if ((stream.forwarded - stream.told) & 0xFFFFFFFF) >= _BUFFER // 4 and stream.forwarded >= 0:
            self._control(key, _CREDIT_UPDATE)
        if not stream.to_host and stream.guest_ended:
            self._end_to_host(stream)
            if stream.host_ended:
                self._drop(stream, tell=True)

    def _end_to_host(self, stream: _Stream) -> None:
        try:
            stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
