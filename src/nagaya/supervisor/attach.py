"""Attached clients: output to them, their input to the container.

A client that reads slowly gets a buffer of BUFFER bytes; when it is full, the streams it watches are
not read until it is half empty (dockerd blocks the container in the same way). A client that goes away
frees them at once, and so that nobody waits for ever, one that takes nothing at all is cut off: after
PATIENCE_SHARED when others watch the same stream, after PATIENCE when it alone is waited for, which may
be a person who reads the output page by page.
"""

from __future__ import annotations

import os
import time
from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR, SHUT_WR, socket
from select import EPOLLIN, EPOLLOUT

from nagaya.errors import NagayaError
from nagaya.wire.streams import DEFAULT_DETACH_KEYS, STDERR, STDOUT, Detector, frame, parse_detach_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUFFER = 1 << 20
PATIENCE = 600.0
PATIENCE_SHARED = 10.0
_CHUNK = 32768
_LINGER = 5.0  # seconds that a finished client has to close its side


class Client:
    """One attached client. The socket is ours."""

    __slots__ = (
        "_detector",
        "_keys",
        "_mux",
        "_pending",
        "deadline",
        "finishing",
        "input_open",
        "moved",
        "preface",
        "serial",
        "sock",
        "stdin_once",
        "token",
        "wants",
    )

    def __init__(self, fd: int, request: dict[str, Any], preface: bytes) -> None:
        keys = parse_detach_keys(request["detach_keys"])  # before the socket owns fd: it may raise
        self.sock = socket(-1, -1, -1, fileno=fd)
        self.sock.setblocking(False)
        self.token: str = request["token"]
        self.serial: int = request["serial"]
        self.wants = ((STDOUT,) if request["stdout"] else ()) + ((STDERR,) if request["stderr"] else ())
        self.input_open: bool = request["stdin"]
        self.stdin_once: bool = request["stdin_once"]
        self.preface = preface
        self.finishing = False
        self.deadline = 0.0  # > 0: everything was sent, and the write side shut down
        self.moved = 0.0  # when it last took something, or had nothing to take
        self._mux: bool = request["mux"]
        self._keys = keys
        self._detector = Detector(keys)
        self._pending = bytearray()

    def use_terminal(self) -> None:
        """The process has a terminal: default detach keys. Frames are the client's wish: dockerd has them for
        an exec's terminal whose start did not say that it is one."""
        if not self._keys:
            self._detector = Detector(parse_detach_keys(DEFAULT_DETACH_KEYS))

    @property
    def full(self) -> bool:
        """Too much waits for this client: its streams must wait too."""
        return len(self._pending) > BUFFER and not self.finishing

    @property
    def roomy(self) -> bool:
        """Half of the buffer is free again."""
        return len(self._pending) <= BUFFER // 2 or self.finishing

    @property
    def events(self) -> int:
        """What to wait for, besides its going away."""
        reading = self.input_open or self.deadline > 0
        return (EPOLLIN if reading else 0) | (EPOLLOUT if self._pending else 0)

    def send(self, stream: int, data: bytes) -> None:
        """Queue output, and send what goes. Raises OSError when the client is gone."""
        if self._mux:
            data = frame(stream, data)
        if not self._pending:
            try:
                sent = self.sock.send(data, MSG_DONTWAIT | MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
            self.moved = time.monotonic()
        self._pending += data

    def push(self) -> None:
        """Send what waits, as far as it goes. Raises OSError when the client is gone."""
        try:
            while self._pending:
                del self._pending[: self.sock.send(self._pending, MSG_DONTWAIT | MSG_NOSIGNAL)]
                self.moved = time.monotonic()
        except BlockingIOError:
            return
        if self.finishing and not self.deadline:
            # Not close: with unread input that would be a reset, and the client could lose the end.
            self.sock.shutdown(SHUT_WR)
            self.deadline = time.monotonic() + _LINGER

    def finish(self) -> None:
        """The container's output has ended: end of file follows what waits."""
        self.finishing = True
        self.input_open = False
        self.push()

    def receive(self) -> tuple[bytes, bool, bool]:
        """(input for the container, were the detach keys typed, has the input ended).

        Raises OSError when the client is gone.
        """
        try:
            data = self.sock.recv(_CHUNK, MSG_DONTWAIT)
        except BlockingIOError:
            return b"", False, False
        if not data:
            return self._detector.flush(), False, True
        return *self._detector.feed(data), False

    def typed(self, data: bytes) -> tuple[bytes, bool]:
        """As `receive`, for input that came with the request."""
        return self._detector.feed(data)

    def close(self, *, shut: bool = True) -> None:
        """Let go of the client."""
        try:
            if shut:
                self.sock.shutdown(SHUT_RDWR)  # other duplicates of the socket must not keep it open
        except OSError:
            pass
        self.sock.close()


class Input:
    """The container's stdin: what clients typed and it has not read yet.

    While something waits, clients are not read. What those had sent who have gone is taken at once,
    up to MOST bytes, so that they need not be kept.
    """

    MOST = 4 << 20

    __slots__ = ("_pending", "closing", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._pending = b""
        self.closing = False

    @property
    def waiting(self) -> bool:
        """More input must wait."""
        return bool(self._pending)

    def write(self, data: bytes) -> None:
        """Pass on input. A container that closed its stdin gets nothing, and that is no error."""
        if self.fd < 0 or len(self._pending) > self.MOST:
            return
        self._pending += data
        self.push()

    def push(self) -> None:
        """Write what waits, as far as it goes; close when that was asked for and nothing waits."""
        if self.fd < 0:
            return
        try:
            while self._pending:
                self._pending = self._pending[os.write(self.fd, self._pending) :]
        except BlockingIOError:
            return
        except OSError:  # EPIPE, EIO: nobody reads any more
            self._pending = b""

    @property
    def done(self) -> bool:
        """Time to close: wanted, and everything was written."""
        return self.closing and not self._pending and self.fd >= 0

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._pending = b""


def make_client(fds: list[int], request: dict[str, Any]) -> Client:
    """A client of an attach message and its descriptors. Raises NagayaError or OSError; the
    descriptors are closed then."""
    preface = b""
    try:
        if request["preface"] and len(fds) > 1:
            preface = os.pread(fds[1], request["preface"], 0)
        client = Client(fds[0], request, preface)
    except (NagayaError, OSError):
        os.close(fds[0])
        raise
    finally:
        for fd in fds[1:]:
            os.close(fd)
    return client
