"""What sessions see of their client, whichever protocol it speaks: named channels of bytes."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Piece(NamedTuple):
    """Bytes of a channel; None: the client has no more for it."""

    channel: str
    data: bytes | None


class Channels(Protocol):
    """A connection. Channels of a command: stdin, stdout, stderr, error, resize. Of port forwarding:
    "data N:PORT" and "error N:PORT" of the N-th connection to PORT."""

    async def open(self) -> None:
        """Wait until the client has opened what it must. Raises TimeoutError, ConnectionError."""
        ...

    async def receive(self) -> Piece | None:
        """The next piece of any channel; None when the client has gone."""
        ...

    async def send(self, channel: str, data: bytes) -> None:
        """Send; waits while the client does not read. A channel that the client did not open, or has
        closed, takes nothing. Raises ConnectionError."""
        ...

    async def end(self, channel: str) -> None:
        """There is no more for the channel."""
        ...

    async def close(self) -> None:
        """End the connection, after what was sent."""
        ...
