"""ttrpc messages in a multiplexed connection (sans-IO).

A plugin's one connection carries two: frames with the number of a connection and a length
(containerd/nri, pkg/net/multiplex), in them ttrpc's own, with a length, a stream, a type and flags
(containerd/ttrpc, PROTOCOL.md). Only unary calls are made.
"""

from __future__ import annotations

from typing import NamedTuple

from nagaya.errors import InvalidArgument

PLUGIN, RUNTIME = 1, 2  # whose service a connection is for
REQUEST, RESPONSE = 1, 2
_HEAD = 10
_MOST = 4 << 20
_NO_DATA = 4


class Message(NamedTuple):
    """A whole ttrpc message. connection: PLUGIN or RUNTIME."""

    connection: int
    stream: int
    kind: int
    data: bytes


class Decoder:
    """Bytes of the socket to messages."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._inner: dict[int, bytearray] = {PLUGIN: bytearray(), RUNTIME: bytearray()}

    def feed(self, data: bytes) -> list[Message]:
        """Bytes came: the messages that are whole now. Raises InvalidArgument for what is none."""
        self._held += data
        found: list[Message] = []
        while len(self._held) >= 8:
            number = int.from_bytes(self._held[:4], "big")
            size = int.from_bytes(self._held[4:8], "big")
            if size > _HEAD + _MOST:
                raise InvalidArgument(f"a frame of {size} bytes")
            if len(self._held) < 8 + size:
                break
            inner = self._inner.get(number)
            if inner is not None:
                inner += self._held[8 : 8 + size]
            del self._held[: 8 + size]
            if inner is not None:
                found += _messages(number, inner)
        return found


def _messages(number: int, held: bytearray) -> list[Message]:
    found = []
    while len(held) >= _HEAD:
        size, stream = int.from_bytes(held[:4], "big"), int.from_bytes(held[4:8], "big")
        kind, flags = held[8], held[9]
        if size > _MOST:
            raise InvalidArgument(f"a ttrpc message of {size} bytes")
        if len(held) < _HEAD + size:
            break
        data = b"" if flags & _NO_DATA else bytes(held[_HEAD : _HEAD + size])
        del held[: _HEAD + size]
        found.append(Message(number, stream, kind, data))
    return found


def encode(message: Message) -> bytes:
    """A message in one frame. Raises InvalidArgument when it is too large."""
    if len(message.data) > _MOST:
        raise InvalidArgument(f"a ttrpc message of {len(message.data)} bytes is too large for a plugin")
    inner = len(message.data).to_bytes(4, "big") + message.stream.to_bytes(4, "big")
    inner += bytes((message.kind, 0)) + message.data
    return message.connection.to_bytes(4, "big") + len(inner).to_bytes(4, "big") + inner
