"""What an attached client reads and types: Docker's stream frames, and detach keys.

Frames: Docker Engine API, "Attach to a container", stream format: one byte of stream, three zero
bytes, the length as a big-endian 32-bit number, the payload. Keys: docker attach --detach-keys.
"""

from __future__ import annotations

from _struct import pack

from nagaya.errors import InvalidArgument

STDIN, STDOUT, STDERR = 0, 1, 2
DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"

_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def frame(stream: int, payload: bytes) -> bytes:
    """One frame of the multiplexed stream."""
    return pack(">BxxxI", stream, len(payload)) + payload


def parse_detach_keys(text: str) -> bytes:
    """The bytes that "ctrl-a,x" stands for; "" gives none.

    Raises InvalidArgument in dockerd's words.
    """
    keys = bytearray()
    for part in text.split(",") if text else ():
        key = part.strip()
        if len(key) == 1 and key.isascii():
            keys.append(ord(key))
            continue
        name = key[5:].lower() if key[:5].lower() == "ctrl-" else ""
        if len(name) == 1 and "a" <= name <= "z":
            keys.append(ord(name) - 96)
        elif name in _CONTROL:
            keys.append(_CONTROL[name])
        else:
            raise InvalidArgument(
                f"Invalid escape keys ({text}) provided: unknown key {part!r}", subject="detachKeys"
            )
    return bytes(keys)


class Detector:
    """Finds the detach keys in what a client types, over any split of it into reads.

    Bytes that may be the beginning of the keys are held back until it is clear.
    """

    __slots__ = ("_keys", "_matched")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what goes on to the container, were the keys complete). What follows the keys is dropped."""
        keys = self._keys
        if not keys or (not self._matched and keys[0] not in data):
            return data, False
        held = keys[: self._matched] + data
        end = held.find(keys)
        if end >= 0:
            self._matched = 0
            return held[:end], True
        for length in range(min(len(keys) - 1, len(held)), 0, -1):
            if held.endswith(keys[:length]):
                self._matched = length
                return held[:-length], False
        self._matched = 0
        return held, False

    def flush(self) -> bytes:
        """What is still held back, when the client's input has ended."""
        data, self._matched = self._keys[: self._matched], 0
        return data
