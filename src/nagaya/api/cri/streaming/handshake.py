"""The HTTP/1.1 head of a streaming request, and the change to SPDY/3.1 or WebSocket (RFC 9110, RFC 6455)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nagaya.api.cri.streaming.channels import Channels
from nagaya.api.cri.streaming.spdy_channels import SpdyChannels
from nagaya.api.cri.streaming.tunnel import PREFIX, Tunnel
from nagaya.api.cri.streaming.ws_channels import WebSocketChannels

_MOST_HEAD = 64 << 10
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_REASONS = {400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Header Fields Too Large"}


class Upgrade(NamedTuple):
    """What a session speaks: protocols over SPDY and over WebSocket, best first, and the channels that a
    client must open, by their numbers over WebSocket; None: as it likes (port forwarding)."""

    spdy: Sequence[str]
    websocket: Sequence[str]
    channels: Mapping[int, str] | None
    ports: Sequence[int] = ()


class Request(NamedTuple):
    """A head that was read; names of fields in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class Refused(Exception):
    """The request is answered with an error and nothing else."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self._status = status
        self._why = why

    def response(self) -> bytes:
        """What the client gets."""
        body = self._why.encode() + b"\n"
        head = f"HTTP/1.1 {self._status} {_REASONS[self._status]}\r\nContent-Type: text/plain\r\n"
        return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Raises Refused, IncompleteReadError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refused(431, f"the head is larger than {_MOST_HEAD} bytes") from None
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(400, "not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon:
            raise Refused(400, "a header line without a colon")
        key = name.strip().lower()
        # a list may come in several lines (RFC 9110, 5.3)
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return Request(words[0], words[1].partition("?")[0], headers)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def accept(
    request: Request, upgrade: Upgrade, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Channels:
    """Change the protocol as the client asks. Raises Refused."""
    if request.method not in ("GET", "POST"):
        raise Refused(405, f"{request.method} is no way to open a stream")
    connection = [word.lower() for word in _words(request.headers.get("connection", ""))]
    wanted = request.headers.get("upgrade", "")
    if "upgrade" not in connection:
        raise Refused(400, "a stream needs an upgrade to SPDY/3.1 or WebSocket")
    if wanted.lower() == "spdy/3.1":
        offered = _words(request.headers.get("x-stream-protocol-version", ""))
        chosen = _choose(upgrade.spdy, offered)
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            + f"X-Stream-Protocol-Version: {chosen}\r\n\r\n".encode()
        )
        return SpdyChannels(reader, writer, upgrade.channels)
    if wanted.lower() == "websocket":
        key = request.headers.get("sec-websocket-key", "")
        if request.method != "GET" or request.headers.get("sec-websocket-version") != "13" or not key:
            raise Refused(400, "not a WebSocket handshake of version 13")
        chosen = _choose(upgrade.websocket, _words(request.headers.get("sec-websocket-protocol", "")))
        answer = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            + f"Sec-WebSocket-Accept: {answer}\r\nSec-WebSocket-Protocol: {chosen}\r\n\r\n".encode()
        )
        if chosen.startswith(PREFIX):
            tunnel = Tunnel(reader, writer)
            return SpdyChannels(tunnel, tunnel, upgrade.channels)
        return WebSocketChannels(reader, writer, chosen, upgrade.channels, upgrade.ports)
    raise Refused(400, f"no upgrade to {wanted!r}: SPDY/3.1 or WebSocket")


def _choose(known: Sequence[str], offered: Sequence[str]) -> str:
    for protocol in known:
        if protocol in offered:
            return protocol
    raise Refused(400, f"none of the protocols {', '.join(offered) or '(none)'}: {', '.join(known)}")
