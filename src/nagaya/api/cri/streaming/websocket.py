"""WebSocket messages of a server (RFC 6455), sans-IO: masked frames in, plain frames out."""

from __future__ import annotations

from typing import NamedTuple

from nagaya.errors import InvalidArgument

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_MOST = 32 << 20


class Message(NamedTuple):
    """A whole message; fragments are joined."""

    kind: int
    data: bytes


class Decoder:
    """Bytes of a client to its messages."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._kind = 0
        self._parts = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Bytes came: the messages that are whole now. Raises InvalidArgument for what is no WebSocket."""
        self._held += data
        found: list[Message] = []
        while (frame := self._frame()) is not None:
            final, kind, payload = frame
            if kind >= CLOSE:
                found.append(Message(kind, payload))
                continue
            if bool(kind) == bool(self._kind):
                raise InvalidArgument("a WebSocket message within another")
            self._kind = self._kind or kind
            self._parts += payload
            if len(self._parts) > _MOST:
                raise InvalidArgument(f"a WebSocket message of more than {_MOST} bytes")
            if final:
                found.append(Message(self._kind, bytes(self._parts)))
                self._kind, self._parts = 0, bytearray()
        return found

    def _frame(self) -> tuple[bool, int, bytes] | None:
        held = self._held
        if len(held) < 2:
            return None
        size, start = held[1] & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(held[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(held[2:10], "big"), 10
        if held[0] & 0x70 or not held[1] & 0x80 or size > _MOST:
            raise InvalidArgument("a WebSocket frame that is unmasked, too large or of an unknown kind")
        if len(held) < start + 4 + size:
            return None
        mask, payload = bytes(held[start : start + 4]), bytes(held[start + 4 : start + 4 + size])
        head = held[0]
        del held[: start + 4 + size]
        return bool(head & 0x80), head & 0x0F, masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """The payload with the mask put on, or off."""
    if not payload:
        return b""
    whole = (mask * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")
    return mixed.to_bytes(len(payload), "big")


def frame(kind: int, payload: bytes) -> bytes:
    """A whole message as one frame."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | kind, size))
    elif size < 1 << 16:
        head = bytes((0x80 | kind, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | kind, 127)) + size.to_bytes(8, "big")
    return head + payload
