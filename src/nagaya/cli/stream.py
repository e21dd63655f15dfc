"""A person at a container's streams: raw terminal, resizing, signals passed on, stdin's end, demultiplexing.

The stream is a hijacked connection: raw bytes for a container with a terminal, else frames of an 8-byte
header (stream number, three zeros, length big-endian) and that many bytes.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` imports enum: 3 ms
import _socket
import os
import select
import sys
import termios

from nagaya.cli.flags import UsageError
from nagaya.cli.output import write
from nagaya.errors import DataLoss, NagayaError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from nagaya.cli.http import Client, Response

DETACH_KEYS = "ctrl-p,ctrl-q"
_CHUNK = 32768
_FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGABRT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGTERM", "SIGCONT")


def keys(text: str) -> bytes:
    """The bytes of detach keys: "ctrl-p,ctrl-q", "a", "ctrl-@,x". Raises UsageError."""
    found = bytearray()
    for key in text.split(",") if text else ():
        control = key.removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            found.append(ord(key))
        elif control != key and len(control) == 1 and ("a" <= control <= "z" or control in "@[\\]^_"):
            found.append(ord(control.upper()) - 64)
        else:
            raise UsageError(f"invalid detach keys ({text}): Unknown character: '{key}'")
    return bytes(found)


class Matcher:
    """Notices the detach keys in what a person types, across reads."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._matched = 0

    def feed(self, data: bytes) -> int:
        """How many bytes of data belong to the session when the sequence ends within it, else -1."""
        for position, byte in enumerate(data):
            if self._sequence and byte == self._sequence[self._matched]:
                self._matched += 1
                if self._matched == len(self._sequence):
                    return position + 1
            else:
                self._matched = 1 if self._sequence and byte == self._sequence[0] else 0
        return -1


class Frames:
    """Demultiplexes frames as their bytes arrive."""

    def __init__(self) -> None:
        self._header = b""
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """[(stream number, bytes)] of this piece. Raises DataLoss for what is no such stream."""
        found = []
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                found.append((self._stream, piece))
                continue
            need = 8 - len(self._header)
            self._header, data = self._header + data[:need], data[need:]
            if len(self._header) == 8:
                self._stream, self._left = self._header[0], int.from_bytes(self._header[4:], "big")
                if self._stream > 3 or self._header[1:4] != b"\0\0\0":
                    raise DataLoss(f"Unrecognized input header: {self._header[0]}", step="read the stream")
                self._header = b""
        return found


def show(chunks: Iterable[bytes], *, raw: bool) -> None:
    """Write a stream to our stdout and stderr as it arrives. Frames of stream 3 are the daemon's errors."""
    frames = Frames()
    for data in chunks:
        if raw:
            write(data)
            continue
        for stream, piece in frames.feed(data):
            write(piece, 2 if stream >= 2 else 1)


def size(fd: int = 1) -> tuple[int, int] | None:
    """(rows, columns) of a terminal; None when fd is none or does not know."""
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        return None
    return (lines, columns) if lines and columns else None


def require_terminal(tty: bool, interactive: bool) -> None:
    """A terminal in the container needs one on this side when stdin is attached. Raises UsageError."""
    if tty and interactive and not os.isatty(0):
        raise NagayaError("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")


class Session:
    """One attachment. Use as a context manager: it puts the terminal back whatever happens."""

    def __init__(self, tty: bool, stdin: bool, detach_keys: str = "") -> None:
        self._tty = tty
        self._stdin = stdin
        self._matcher = Matcher(keys(detach_keys or DETACH_KEYS))
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Session:
        if self._tty and self._stdin and os.isatty(0):
            self._saved = termios.tcgetattr(0)
            raw = termios.tcgetattr(0)
            # cfmakeraw(3)
            raw[0] &= ~(
                termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
                | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
            )  # fmt: skip
            raw[1] &= ~termios.OPOST
            raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
            raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
            raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
            termios.tcsetattr(0, termios.TCSADRAIN, raw)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)

    def forward_signals(self, send: Callable[[str], object]) -> None:
        """Pass our signals on to the container: send("INT") and so on, errors ignored: it may be gone."""
        for name in _FORWARDED:
            number = getattr(signal, name)
            self._handle(number, lambda name=name: send(name.removeprefix("SIG")))  # type: ignore[misc]

    def follow_size(self, resize: Callable[[int, int], object]) -> None:
        """Tell the container our terminal's size, now and whenever it changes."""

        def tell() -> None:
            now = size(1) or size(0)
            if now:
                resize(*now)

        if self._tty and (os.isatty(0) or os.isatty(1)):
            self._handle(signal.SIGWINCH, tell)
            _quietly(tell)

    def _handle(self, number: int, action: Callable[[], object]) -> None:
        self._handlers[number] = signal.signal(number, lambda *_: _quietly(action))

    def copy(self, response: Response) -> bool:
        """Move bytes both ways until the container's side ends (False) or the person detaches (True)."""
        sock = response.stream.sock
        frames = None if self._tty else Frames()
        self._show(response.stream.take(), frames)
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        reading = self._stdin
        pending = b""
        if self._stdin:
            poller.register(0, select.POLLIN)
        else:
            _half_close(sock)
        while True:
            for fd, event in poller.poll():
                if fd == 0:
                    data = _read_stdin(event)
                    reading = bool(data)
                    if not data:
                        _half_close(sock)
                    end = self._matcher.feed(data) if self._tty else -1
                    if end >= 0:
                        # the daemon sees the same keys, and closes its side for it
                        sock.setblocking(True)
                        sock.sendall(data[:end])
                        return True
                    pending = data
                elif event & select.POLLOUT and pending:
                    pending = _send(sock, pending)
                elif event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    received = _receive(sock)
                    if received is None:
                        continue
                    if not received:
                        return False
                    self._show(received, frames)
            # what was typed goes out before more is read: the daemon's pace is ours
            poller.modify(sock, select.POLLIN | (select.POLLOUT if pending else 0))
            if reading and not pending:
                poller.register(0, select.POLLIN)
            elif self._stdin:
                _forget_stdin(poller)

    def _show(self, data: bytes, frames: Frames | None) -> None:
        if frames is None:
            write(data)
            return
        for stream, piece in frames.feed(data):
            write(piece, 2 if stream >= 2 else 1)


def _forget_stdin(poller: select.poll) -> None:
    try:
        poller.unregister(0)
    except KeyError:
        pass


def _read_stdin(event: int) -> bytes:
    if event & select.POLLNVAL:
        return b""
    try:
        return os.read(0, _CHUNK)
    except OSError:  # our terminal is gone
        return b""


def _half_close(sock: _socket.socket) -> None:
    """Tell the container that its stdin has ended; its output still comes."""
    try:
        sock.shutdown(_socket.SHUT_WR)
    except OSError:
        pass


def _send(sock: _socket.socket, data: bytes) -> bytes:
    """Send what goes without waiting; what is left. A peer that reads no more gets no more."""
    try:
        return data[sock.send(data, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL) :]
    except BlockingIOError:
        return data
    except OSError:
        return b""


def _receive(sock: _socket.socket) -> bytes | None:
    try:
        return sock.recv(65536, _socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def _quietly(action: Callable[[], object]) -> None:
    try:
        action()
    except (NagayaError, OSError):
        pass


def container_session(
    session: Session, client: Client, path: str, *, sig_proxy: bool, tty: bool, kill: str = ""
) -> None:
    """Wire a session to a container (or, without `kill`, to an exec): POST path/resize and path/kill.

    Each call has a connection of its own, for a signal may interrupt another call.
    """
    fresh = type(client)

    def resize(height: int, width: int) -> None:
        fresh(client.address).call("POST", f"{path}/resize", {"h": height, "w": width})

    if tty:
        session.follow_size(resize)
    elif sig_proxy and kill:
        session.forward_signals(
            lambda name: fresh(client.address).call("POST", f"{path}/kill", {"signal": name})
        )
    sys.stdout.flush()
