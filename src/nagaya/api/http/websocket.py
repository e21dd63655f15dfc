"""The server's side of a websocket (RFC 6455) as a byte stream: messages' borders mean nothing.

`Decoder` is the protocol without I/O; `pump` moves bytes between a client and a socket of ours.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import struct
from contextlib import suppress
from typing import Literal, NamedTuple

from nagaya.api.http.messages import Request
from nagaya.errors import InvalidArgument

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUED, TEXT, BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_KINDS: dict[int, Literal["data", "close", "ping", "pong"]] = {
    _CONTINUED: "data",
    TEXT: "data",
    BINARY: "data",
    _CLOSE: "close",
    _PING: "ping",
    _PONG: "pong",
}
_NORMAL, _PROTOCOL_ERROR = 1000, 1002
_CHUNK = 32768
_LINGER = 2.0  # seconds for the client's answer to our good-bye


class Piece(NamedTuple):
    """Data comes in any pieces; what the others carry, whole."""

    kind: Literal["data", "close", "ping", "pong"]
    data: bytes


class Decoder:
    """Frames as a client sends them, masked."""

    def __init__(self) -> None:
        self._buffer = b""
        self._kind: Literal["data", "close", "ping", "pong"] = "data"
        self._mask = b""
        self._left = 0
        self._seen = 0

    def feed(self, data: bytes) -> list[Piece]:
        """What these bytes complete. Raises InvalidArgument for what is no frame of a client."""
        self._buffer += data
        found: list[Piece] = []
        while True:
            if not self._mask and not self._head():
                return found
            wanted = self._left if self._kind != "data" else min(self._left, len(self._buffer))
            if len(self._buffer) < wanted or (self._left and not wanted):
                return found
            piece, self._buffer = self._buffer[:wanted], self._buffer[wanted:]
            found.append(Piece(self._kind, self._unmask(piece)))
            self._left -= wanted
            self._seen += wanted
            if not self._left:
                self._mask = b""

    def _head(self) -> bool:
        """Take a frame's head from the buffer, when it is there."""
        head = self._buffer
        if len(head) < 2:
            return False
        kind, length = _KINDS.get(head[0] & 15), head[1] & 127
        if kind is None or head[0] & 0x70 or not head[1] & 128 or (kind != "data" and length > 125):
            raise InvalidArgument("not a websocket frame of a client")
        end = 2 + {126: 2, 127: 8}.get(length, 0)
        if len(head) < end + 4:
            return False
        self._left = int.from_bytes(head[2:end], "big") if end > 2 else length
        self._kind, self._mask, self._seen = kind, head[end : end + 4], 0
        self._buffer = head[end + 4 :]
        return True

    def _unmask(self, piece: bytes) -> bytes:
        if not piece:
            return b""
        turn = self._seen % 4
        key = (self._mask[turn:] + self._mask[:turn]) * (len(piece) // 4 + 1)
        size = len(piece)
        return (int.from_bytes(piece, "big") ^ int.from_bytes(key[:size], "big")).to_bytes(size, "big")


def encode(opcode: int, data: bytes) -> bytes:
    """One whole frame of a server."""
    size = len(data)
    if size < 126:
        return bytes((128 | opcode, size)) + data
    if size < 65536:
        return bytes((128 | opcode, 126)) + struct.pack(">H", size) + data
    return bytes((128 | opcode, 127)) + struct.pack(">Q", size) + data


def accept_head(request: Request) -> bytes:
    """The answer to a client's opening. Raises InvalidArgument when it is none."""
    key = request.header(b"sec-websocket-key")
    if request.header(b"upgrade").lower() != b"websocket" or not key:
        raise InvalidArgument("not a websocket request")
    if request.header(b"sec-websocket-version") != b"13":
        raise InvalidArgument("websocket version 13 is the one that is served")
    proof = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n\r\n" % proof
    )


async def pump(client: socket.socket, preface: bytes, ours: socket.socket, opcode: int) -> None:
    """Move bytes both ways until one side ends; both sockets are closed then. opcode: of what we send."""
    loop = asyncio.get_running_loop()
    saying = asyncio.Lock()

    async def say(code: int, data: bytes) -> None:
        async with saying:
            await loop.sock_sendall(client, encode(code, data))

    async def inward() -> None:
        decoder, data = Decoder(), preface
        try:
            while True:
                for piece in decoder.feed(data):
                    if piece.kind == "data":
                        await loop.sock_sendall(ours, piece.data)
                    elif piece.kind == "ping":
                        await say(_PONG, piece.data)
                    elif piece.kind == "close":
                        await say(_CLOSE, piece.data[:2])
                        return
                data = await loop.sock_recv(client, _CHUNK)
                if not data:
                    return
        except InvalidArgument:
            await say(_CLOSE, struct.pack(">H", _PROTOCOL_ERROR))

    async def outward() -> None:
        while data := await loop.sock_recv(ours, _CHUNK):
            await say(opcode, data)
        await say(_CLOSE, struct.pack(">H", _NORMAL))

    for sock in (client, ours):
        sock.setblocking(False)
    ways = [loop.create_task(inward()), loop.create_task(outward())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if ways[1].done():
            await asyncio.wait(ways, timeout=_LINGER)
        else:  # what it typed last is read, and who reads its stdin sees the end
            with suppress(OSError):
                ours.shutdown(socket.SHUT_WR)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        client.close()
        ours.close()
