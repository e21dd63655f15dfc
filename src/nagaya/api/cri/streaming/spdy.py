"""SPDY/3.1 frames, as far as Kubernetes' clients use them (sans-IO).

Source: draft-mbelshe-httpbis-spdy-00 and its 3.1 revision: streams that the client opens, their headers
compressed with the draft's dictionary, data, half-close, pings. There is no flow control by windows:
the Go library at the other end knows none, and TCP holds back who is too fast.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from nagaya.errors import InvalidArgument

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FLAG_FIN = 1
MOST_DATA = 1 << 16
_MOST_FRAME = 1 << 24
_MOST_HEADERS = 1 << 16
_VERSION = 0x8003

# Draft, 2.6.10.1: words with their lengths, then text.
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges"
    " age allow authorization cache-control connection content-base content-encoding content-language"
    " content-length content-location content-md5 content-range content-type date etag expect expires from"
    " host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location"
    " max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer"
    " transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version"
    " HTTP/1.1 url public set-cookie keep-alive origin"
)
_TEXT = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 "
    b"Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 "
    b"Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar "
    b"Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,"
    b"image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,public"
    b"privatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    words = [word.replace("_", " ").encode() for word in _WORDS.split()]
    return b"".join(len(word).to_bytes(4, "big") + word for word in words) + _TEXT


DICTIONARY = _dictionary()


class Frame(NamedTuple):
    """kind 0: data. stream: its id, for a ping the ping's."""

    kind: int
    stream: int
    flags: int
    data: bytes = b""
    headers: dict[str, str] = {}

    @property
    def fin(self) -> bool:
        """The peer has no more for the stream."""
        return bool(self.flags & FLAG_FIN)


class Framer:
    """One connection: bytes to frames, and frames to bytes."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(level=1, zdict=DICTIONARY)

    def feed(self, data: bytes) -> list[Frame]:
        """Bytes came: the frames that are whole now. Raises InvalidArgument for what is not SPDY."""
        self._held += data
        frames: list[Frame] = []
        while len(self._held) >= 8:
            length = int.from_bytes(self._held[5:8], "big")
            if length > _MOST_FRAME:
                raise InvalidArgument(f"a SPDY frame of {length} bytes")
            if len(self._held) < 8 + length:
                break
            head, body = bytes(self._held[:8]), bytes(self._held[8 : 8 + length])
            del self._held[: 8 + length]
            frame = self._frame(head, body)
            if frame is not None:
                frames.append(frame)
        return frames

    def _frame(self, head: bytes, body: bytes) -> Frame | None:
        first, flags = int.from_bytes(head[:4], "big"), head[4]
        if not first >> 31:
            return Frame(0, first, flags, body)
        if first >> 16 != _VERSION:
            raise InvalidArgument(f"SPDY version {first >> 16 & 0x7FFF}, not 3")
        kind = first & 0xFFFF
        if kind not in (SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, HEADERS):
            return None
        if len(body) < 4:
            raise InvalidArgument("a SPDY frame that is too short")
        stream = int.from_bytes(body[:4], "big") & (0xFFFFFFFF if kind == PING else 0x7FFFFFFF)
        if kind in (SYN_STREAM, SYN_REPLY, HEADERS):
            block = body[10:] if kind == SYN_STREAM else body[4:]
            return Frame(kind, stream, flags, headers=self._headers(block))
        return Frame(kind, stream, flags)

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            text = self._inflate.decompress(block, _MOST_HEADERS)
        except zlib.error as error:
            raise InvalidArgument(f"SPDY headers: {error}") from None
        if self._inflate.unconsumed_tail:
            raise InvalidArgument(f"SPDY headers of more than {_MOST_HEADERS} bytes")
        position = 4

        def take() -> str:
            nonlocal position
            size = int.from_bytes(text[position : position + 4], "big")
            if position + 4 + size > len(text):
                raise InvalidArgument("SPDY headers that are cut short")
            word = text[position + 4 : position + 4 + size]
            position += 4 + size
            return word.decode("latin-1")

        found: dict[str, str] = {}
        for _ in range(min(int.from_bytes(text[:4], "big"), _MOST_HEADERS)):
            name = take().lower()
            found[name] = take()
        return found

    def syn_stream(self, stream: int, headers: dict[str, str], *, fin: bool = False) -> bytes:
        """Open a stream (a client's part: for tests)."""
        body = stream.to_bytes(4, "big") + bytes(6) + self._block(headers)
        return _control(SYN_STREAM, FLAG_FIN if fin else 0, body)

    def syn_reply(self, stream: int) -> bytes:
        """Accept a stream, without headers."""
        return _control(SYN_REPLY, 0, stream.to_bytes(4, "big") + self._block({}))

    def _block(self, headers: dict[str, str]) -> bytes:
        parts = [len(headers).to_bytes(4, "big")]
        for name, value in headers.items():
            parts += [len(word).to_bytes(4, "big") + word for word in (name.encode(), value.encode())]
        return self._deflate.compress(b"".join(parts)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def data_frame(stream: int, data: bytes, *, fin: bool = False) -> bytes:
    """Bytes of a stream, at most 16 MiB."""
    head = stream.to_bytes(4, "big") + bytes((FLAG_FIN if fin else 0,)) + len(data).to_bytes(3, "big")
    return head + data


def ping(number: int) -> bytes:
    """The answer to a ping."""
    return _control(PING, 0, number.to_bytes(4, "big"))


def goaway(last: int) -> bytes:
    """No more streams are taken."""
    return _control(GOAWAY, 0, last.to_bytes(4, "big") + bytes(4))


def _control(kind: int, flags: int, body: bytes) -> bytes:
    head = _VERSION.to_bytes(2, "big") + kind.to_bytes(2, "big") + bytes((flags,))
    return head + len(body).to_bytes(3, "big") + body
