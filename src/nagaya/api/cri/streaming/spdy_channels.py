"""Channels over SPDY/3.1: each a stream that the client opens and names in its headers.

Commands: "streamtype" is stdin, stdout, stderr, error or resize (k8s.io/apimachinery, remotecommand).
Port forwarding: "streamtype" data or error, "port", and "requestid" that makes pairs of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from nagaya.api.cri.streaming import spdy
from nagaya.api.cri.streaming.channels import Piece
from nagaya.api.cri.streaming.tunnel import Tunnel
from nagaya.errors import InvalidArgument

_OPENING = 30.0  # seconds that a client has to open its channels
_MOST_STREAMS = 10_000


class SpdyChannels:
    """See `Channels`."""

    def __init__(
        self,
        reader: asyncio.StreamReader | Tunnel,
        writer: asyncio.StreamWriter | Tunnel,
        channels: Mapping[int, str] | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._awaited = set(channels.values()) if channels is not None else set()
        self._command = channels is not None
        self._framer = spdy.Framer()
        self._names: dict[int, str] = {}
        self._streams: dict[str, int] = {}
        self._ended: set[str] = set()
        self._pieces: deque[Piece] = deque()
        self._last = 0
        self._gone = False

    async def open(self) -> None:
        """Wait for the streams of a command, all of them."""
        async with asyncio.timeout(_OPENING):
            while self._awaited - self._streams.keys():
                if not await self._read():
                    raise ConnectionResetError("the client has gone")

    async def _read(self) -> bool:
        data = await self._reader.read(65536)
        if not data:
            self._gone = True
            return False
        for frame in self._framer.feed(data):
            self._take(frame)
        return True

    def _take(self, frame: spdy.Frame) -> None:
        match frame.kind:
            case spdy.SYN_STREAM:
                self._opened(frame)
            case 0 | spdy.HEADERS | spdy.RST_STREAM:
                name = self._names.get(frame.stream)
                if name is None:
                    return
                if frame.data:
                    self._pieces.append(Piece(name, frame.data))
                if frame.kind == spdy.RST_STREAM:
                    self._ended.add(name)
                if frame.fin or frame.kind == spdy.RST_STREAM:
                    self._pieces.append(Piece(name, None))
            case spdy.PING:
                if frame.stream & 1:  # the client's own; even ones would be answers to ours
                    self._writer.write(spdy.ping(frame.stream))
            case spdy.GOAWAY:
                self._gone = True

    def _opened(self, frame: spdy.Frame) -> None:
        kind = frame.headers.get("streamtype", "")
        if self._command:
            name = kind
            if name not in self._awaited:
                raise InvalidArgument(f"a stream of type {kind!r}", subject="streamtype")
        else:
            port, number = frame.headers.get("port", ""), frame.headers.get("requestid", "")
            if kind not in ("data", "error") or not port.isdigit():
                raise InvalidArgument("a stream without type and port", subject="streamtype")
            if not number:  # old clients have none: the error stream, opened first, has an id two less
                number = str(frame.stream if kind == "error" else frame.stream - 2)
            name = f"{kind} {number}:{int(port[:5])}"
        if name in self._streams or len(self._names) >= _MOST_STREAMS:
            raise InvalidArgument(f"a second stream {name!r}, or too many", subject="streamtype")
        self._last = max(self._last, frame.stream)
        self._names[frame.stream] = name
        self._streams[name] = frame.stream
        self._writer.write(self._framer.syn_reply(frame.stream))
        if kind in ("data", "error") and not self._command:
            self._pieces.append(Piece(name, b""))
        if frame.fin:
            self._pieces.append(Piece(name, None))

    async def receive(self) -> Piece | None:
        """The next piece."""
        while not self._pieces:
            if self._gone or not await self._read():
                return None
        return self._pieces.popleft()

    async def send(self, channel: str, data: bytes) -> None:
        """Send on an open stream."""
        stream = self._streams.get(channel)
        if stream is None or channel in self._ended:
            return
        for begin in range(0, len(data), spdy.MOST_DATA):
            self._writer.write(spdy.data_frame(stream, data[begin : begin + spdy.MOST_DATA]))
            await self._writer.drain()

    async def end(self, channel: str) -> None:
        """Half-close a stream."""
        stream = self._streams.get(channel)
        if stream is not None and channel not in self._ended:
            self._ended.add(channel)
            self._writer.write(spdy.data_frame(stream, b"", fin=True))
            await self._writer.drain()
        if not self._command and channel in self._streams:
            del self._names[self._streams.pop(channel)]
            self._ended.discard(channel)

    async def close(self) -> None:
        """End all."""
        for name in tuple(self._streams):
            if name not in self._ended:
                self._ended.add(name)
                self._writer.write(spdy.data_frame(self._streams[name], b"", fin=True))
        self._writer.write(spdy.goaway(self._last))
        try:
            await self._writer.drain()
        except ConnectionError:
            return
        self._writer.close()
