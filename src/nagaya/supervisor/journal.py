"""What io must not forget when it is killed: the intent, and the beginnings of unfinished lines.

They lie in a memfd that keeper and daemon hold too. Each is a few bytes written by one pwrite(2), so
that a kill leaves the old or the new state. docs/adr/0002-lossless-stdio.md has the argument.

Layout: at 0 the intent (one: io works on one stream at a time); from _HEADERS one (half, length) per
slot; from _CARRIES two halves per slot, of which one is the current beginning of a line and the other
may be written.
"""

from __future__ import annotations

import os
from _struct import pack, unpack

from nagaya.supervisor.format import LIMIT

# States of the intent
IDLE = 0
MOVING = 1  # bytes may be on their way from the slot's stream into the stage; none were logged
LOGGING = 2  # the bytes in the stage are being appended to the log, then dropped from the stage
FLUSHING = 3  # the slot's unfinished line is being appended to the log; the stage is empty

# Decisions
NOTHING = 0
COMMIT = 1  # the log has it all: take over the slot's new carry, empty the stage
REDO = 2  # the log has nothing or a part: cut that off, log the stage again

_INTENT = "=IIqqII"
_INTENT_SIZE = 32
_HEADERS = 4096
_HEADER_SIZE = 8
_CARRIES = 1 << 20
MAX_SLOTS = (_CARRIES - _HEADERS) // _HEADER_SIZE


class Intent:
    """What io was about to do: append `length` bytes to the log of `slot`, which had `before` bytes;
    then the slot's carry is `carry` bytes in `half`."""

    __slots__ = ("before", "carry", "half", "length", "slot", "state")

    def __init__(
        self,
        state: int = IDLE,
        slot: int = 0,
        before: int = 0,
        length: int = 0,
        half: int = 0,
        carry: int = 0,
    ) -> None:
        self.state = state
        self.slot = slot
        self.before = before
        self.length = length
        self.half = half
        self.carry = carry


def decide(staged: int, intent: Intent, log_size: int) -> tuple[int, int | None]:
    """What a new io does first: (decision, size to cut the log to or None).

    staged: bytes in the stage; log_size: size of the log of the intent's slot now. Pure.
    """
    if (intent.state == LOGGING and staged) or intent.state == FLUSHING:
        if log_size >= intent.before + intent.length:
            return COMMIT, None
        return REDO, intent.before if log_size > intent.before else None
    # MOVING: whatever arrived in the stage was not logged. LOGGING with an empty stage was finished.
    return (REDO if staged else NOTHING), None


class Journal:
    """The memfd, read and written by fixed places."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def intent(self) -> Intent:
        """The last intent that was written."""
        data = os.pread(self.fd, _INTENT_SIZE, 0)
        return Intent(*unpack(_INTENT, data)) if len(data) == _INTENT_SIZE else Intent()

    def write_intent(
        self, state: int, slot: int, before: int = 0, length: int = 0, half: int = 0, carry: int = 0
    ) -> None:
        """Replace the intent."""
        os.pwrite(self.fd, pack(_INTENT, state, slot, before, length, half, carry), 0)

    def clear(self, slot: int) -> None:
        """A new stream begins without an unfinished line."""
        self.write_header(slot, 0, 0)

    def header(self, slot: int) -> tuple[int, int]:
        """(half, length) of the slot's carry."""
        data = os.pread(self.fd, _HEADER_SIZE, _HEADERS + slot * _HEADER_SIZE)
        return unpack("=II", data) if len(data) == _HEADER_SIZE else (0, 0)

    def write_header(self, slot: int, half: int, length: int) -> None:
        """Make `length` bytes of `half` the slot's carry."""
        os.pwrite(self.fd, pack("=II", half, length), _HEADERS + slot * _HEADER_SIZE)

    def carry(self, slot: int, half: int, length: int) -> bytes:
        """The bytes of a carry."""
        return os.pread(self.fd, length, _CARRIES + (slot * 2 + half) * LIMIT) if length else b""

    def write_carry(self, slot: int, half: int, data: bytes) -> None:
        """Write the half that is not current."""
        os.pwrite(self.fd, data, _CARRIES + (slot * 2 + half) * LIMIT)
