"""A connection on which the keeper never waits: what does not go now is queued."""

from __future__ import annotations

import os
from _socket import MSG_DONTWAIT, MSG_PEEK, socket

from nagaya.linux import seqpacket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST = 20000  # queued messages after which the peer counts as dead


class Link:
    """One SEQPACKET peer. `arm(fd, writing)` is told when to wait for room."""

    __slots__ = ("_arm", "_queue", "fd", "greeted", "sock")

    def __init__(self, sock: socket, arm: Callable[[int, bool], None]) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.greeted = False
        self._arm = arm
        self._queue: list[tuple[bytes, list[int]]] = []

    def send(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """Send or queue a packet; False when the peer does not read any more. One that has gone is
        noticed where it is read, after its last words."""
        try:
            if not self._queue and seqpacket.send(self.sock, data, fds):
                return True
        except (BrokenPipeError, ConnectionResetError):
            return True
        except OSError:
            return False
        if len(self._queue) >= _MOST:
            return False
        # duplicates: the caller may close its own before there is room
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError:
            seqpacket.close_all(copies)
            return False
        self._queue.append((data, copies))
        self._arm(self.fd, True)
        return True

    @property
    def idle(self) -> bool:
        """The peer is there, and nothing waits in either direction."""
        try:
            self.sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except BlockingIOError:
            return not self._queue
        except OSError:
            pass
        return False

    def flush(self) -> None:
        """There is room: send on."""
        try:
            while self._queue:
                data, fds = self._queue[0]
                if not seqpacket.send(self.sock, data, fds):
                    return
                seqpacket.close_all(fds)
                del self._queue[0]
        except OSError:
            self._clear()
        self._arm(self.fd, False)

    def _clear(self) -> None:
        for _, fds in self._queue:
            seqpacket.close_all(fds)
        self._queue = []

    def close(self) -> None:
        """Close the connection, and what was queued."""
        self._clear()
        self.sock.close()
