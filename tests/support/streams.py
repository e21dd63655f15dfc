"""Clients of the CRI's streaming server, as far as tests need them: SPDY/3.1 and WebSocket on a plain
socket. The address is in the house's network namespace, and so is whoever connects: see `connect`."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from house import House

from nagaya.api.cri.streaming import spdy, websocket
from nagaya.linux.namespaces import CLONE_NEWNET, setns


def connect(house: House, address: tuple[str, int]) -> socket.socket:
    """A connection made inside the house's network namespace, by a thread that ends with it."""
    found: list[socket.socket] = []

    def inside() -> None:
        fd = os.open(f"/proc/{house.netns.pid}/ns/net", os.O_RDONLY)
        setns(fd, CLONE_NEWNET)
        os.close(fd)
        found.append(socket.create_connection(address, 20))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    return found[0]


class Client:
    """One stream. `got` collects bytes by channel; `ended` the channels that the server has closed."""

    def __init__(self, house: House, url: str, head: Sequence[str]) -> None:
        parts = urlsplit(url)
        self.sock = connect(house, (str(parts.hostname), parts.port or 80))
        lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade", *head]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        self.got: dict[str, bytes] = {}
        self.ended: set[str] = set()
        self.gone = False
        self._held = b""
        while b"\r\n\r\n" not in self._held:
            data = self.sock.recv(65536)
            if not data:
                break
            self._held += data
        self.head, _, self._held = self._held.partition(b"\r\n\r\n")

    @property
    def status(self) -> int:
        return int(self.head.split(b" ")[1])

    def note(self, channel: str, data: bytes) -> None:
        self.got[channel] = self.got.get(channel, b"") + data

    def take(self, data: bytes) -> None:
        """Bytes that came, to channels."""
        raise NotImplementedError

    def read(self) -> None:
        """Take what has come; `gone` when the server has ended."""
        data, self._held = (self._held, b"") if self._held else (self.sock.recv(65536), b"")
        if not data:
            self.gone = True
            return
        self.take(data)

    def until(self, channel: str, text: bytes) -> None:
        """Read until the channel has had the text."""
        deadline = time.monotonic() + 20
        while text not in self.got.get(channel, b""):
            assert not self.gone and time.monotonic() < deadline, (channel, text, self.got)
            self.read()

    def all(self) -> dict[str, bytes]:
        """Read to the end."""
        while not self.gone:
            self.read()
        self.sock.close()
        return self.got


class WebSocket(Client):
    """Channels by number."""

    NAMES = ("stdin", "stdout", "stderr", "error", "resize")

    def __init__(
        self, house: House, url: str, protocol: str = "v5.channel.k8s.io", names: Sequence[str] = NAMES
    ) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
        super().__init__(house, url, [*upgrade, f"Sec-WebSocket-Protocol: {protocol}"])
        self.names = names
        self._in = b""

    def send(self, channel: str, data: bytes) -> None:
        self.message(bytes((self.names.index(channel),)) + data)

    def message(self, data: bytes, kind: int = websocket.BINARY) -> None:
        mask = os.urandom(4)
        plain = websocket.frame(kind, data)
        head = bytearray(plain[: len(plain) - len(data)])
        head[1] |= 0x80
        self.sock.sendall(bytes(head) + mask + websocket.masked(data, mask))

    def end(self, channel: str) -> None:
        self.message(bytes((255, self.names.index(channel))))

    def take(self, data: bytes) -> None:
        self._in += data
        while len(self._in) >= 2:
            size, start = self._in[1], 2
            if size == 126:
                size, start = int.from_bytes(self._in[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(self._in[2:10], "big"), 10
            if len(self._in) < start + size:
                return
            kind, payload = self._in[0] & 15, self._in[start : start + size]
            self._in = self._in[start + size :]
            if kind == websocket.CLOSE:
                self.gone = True
            elif kind == websocket.BINARY and payload[0] == 255 and self.names != ("spdy",):
                self.ended.add(self.names[payload[1]])
            elif kind == websocket.BINARY and self.names == ("spdy",):
                self.note("spdy", payload)
            elif kind == websocket.BINARY:
                self.note(self.names[payload[0]], payload[1:])
            else:
                self.note("control", payload)


class Spdy(Client):
    """Channels that `open` opens."""

    def __init__(self, house: House, url: str, protocol: str = "v4.channel.k8s.io") -> None:
        head = ["Upgrade: SPDY/3.1", f"X-Stream-Protocol-Version: {protocol}"]
        super().__init__(house, url, head)
        self._framer = spdy.Framer()
        self._streams: dict[str, int] = {}
        self.replies: set[str] = set()

    def put(self, data: bytes) -> None:
        self.sock.sendall(data)

    def open(self, name: str, **headers: str) -> None:
        stream = 2 * len(self._streams) + 1
        self._streams[name] = stream
        self.put(self._framer.syn_stream(stream, headers or {"streamtype": name}))

    def send(self, channel: str, data: bytes) -> None:
        self.put(spdy.data_frame(self._streams[channel], data))

    def end(self, channel: str) -> None:
        self.put(spdy.data_frame(self._streams[channel], b"", fin=True))

    def take(self, data: bytes) -> None:
        names = {stream: name for name, stream in self._streams.items()}
        for frame in self._framer.feed(data):
            if frame.kind == spdy.SYN_REPLY:
                self.replies.add(names[frame.stream])
            elif frame.kind == spdy.PING:
                self.note("ping", frame.stream.to_bytes(4, "big"))
            elif frame.kind == 0:
                self.note(names[frame.stream], frame.data)
                if frame.fin:
                    self.ended.add(names[frame.stream])


class Tunnelled(Spdy):
    """SPDY within WebSocket messages."""

    def __init__(self, house: House, url: str) -> None:
        self._outer = WebSocket(house, url, "SPDY/3.1+portforward.k8s.io", ("spdy",))
        self._framer = spdy.Framer()
        self._streams = {}
        self.replies = set()
        self.got, self.ended, self.gone = {}, set(), False
        self.sock, self.head = self._outer.sock, self._outer.head
        self._outer.note = self._inner  # type: ignore[method-assign, assignment]

    def _inner(self, _: str, data: bytes) -> None:
        super().take(data)

    def put(self, data: bytes) -> None:
        self._outer.message(data)

    def read(self) -> None:
        self._outer.read()
        self.gone = self._outer.gone
