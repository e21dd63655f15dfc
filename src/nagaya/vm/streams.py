"""A guest's process and the descriptors of the host that are its stdio: bytes go over, and no faster than the
slower side takes them.

A descriptor that somebody handed us is shared with others: its flags stay as they are. What we read and write
without waiting is opened anew where that can be (a pipe, by /proc/self/fd), else a page at a time when
poll(2) says that there is room (pipe(7): a page is written at once or not at all).
"""

from __future__ import annotations

import _stat as stat
import errno

from nagaya.linux import os, tty
from nagaya.vm.loop import POLLIN, POLLOUT, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nagaya.vm.link import Guest

_PAGE = 4096
_PIECE = 32 << 10
_LINGER = 0.3  # seconds after the exit for streams that others still hold open and leave silent
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET)


class _Output:
    """A stream of the guest's process, on its way to a descriptor."""

    __slots__ = ("data", "ended", "fd", "open", "size")

    def __init__(self, fd: int) -> None:
        self.fd, self.size = _own(fd, os.O_WRONLY)
        self.data = bytearray()
        self.ended = False
        self.open = True


class Bridge:
    """One process's stdio. `done` is called once, with the exit code, when it has ended and all that it
    wrote before was written; streams that its own children hold go on after that."""

    def __init__(self, loop: Loop, guest: Guest, stdio: tuple[int, int, int], *, terminal: bool) -> None:
        """stdio stays the caller's. terminal: all three are one terminal's slave."""
        self._loop = loop
        self._guest = guest
        self._done: Callable[[int], None] | None = None
        self.code: int | None = None
        self.oom = 0
        self._linger = 0
        self.number = guest.new_process(self)
        self._stdin, _ = _own(stdio[0], os.O_RDONLY)
        self._streams = {1: _Output(stdio[1])} if terminal else {n: _Output(stdio[n]) for n in (1, 2)}
        self._terminal = terminal

    def begin(self, done: Callable[[int], None]) -> None:
        """The process is there."""
        self._done = done
        self.taken()
        self._finish()

    def abandon(self) -> None:
        """There is no such process, or nobody cares: let everything go."""
        self._guest.forget(self.number)
        self._close_stdin()
        for stream in self._streams.values():
            self._close(stream)

    # what the guest tells

    def output(self, number: int, data: bytes) -> None:
        """Link's Listener."""
        stream = self._streams.get(number)
        if stream is None or not stream.open:
            self._guest.grant(self.number, number, len(data))
            return
        stream.data += data
        self._write(number)

    def ended(self, number: int) -> None:
        """Link's Listener."""
        if number == 0:
            self._close_stdin()
            return
        if number in self._streams:
            self._streams[number].ended = True
            if not self._streams[number].data:
                self._close(self._streams[number])
        self._finish()

    def exited(self, status: int, oom: int) -> None:
        """Link's Listener."""
        code = os.waitstatus_to_exitcode(status)
        self.code = code if code >= 0 else 128 - code
        self.oom = oom
        self._close_stdin()
        self._linger = self._loop.after(_LINGER, self._lingered)
        self._finish()

    def taken(self) -> None:
        """Link's Listener."""
        if self._stdin >= 0:
            mask = POLLIN if self._guest.sendable(self.number) else 0
            self._loop.watch(self._stdin, mask, self._readable)

    # what the host's side does

    def _readable(self, _events: int) -> None:
        count = min(self._guest.sendable(self.number), _PIECE)
        if not count:
            self.taken()
            return
        try:
            data = os.read(self._stdin, count)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._guest.send(self.number, data)
            self.taken()
            return
        if not self._terminal:  # of a terminal, the end is the hang-up of who looks at it
            self._guest.end(self.number)
        self._close_stdin()

    def _write(self, number: int, _events: int = 0) -> None:
        stream = self._streams[number]
        count = 0
        try:
            while count < len(stream.data):
                if stream.size == _PAGE and not _writable(stream.fd):
                    break
                piece = memoryview(stream.data)[count : count + stream.size]
                try:
                    count += os.write(stream.fd, piece)
                finally:
                    piece.release()
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _GONE:
                raise
            count = len(stream.data)  # who reads it has gone: the process may go on
            self._close(stream)
        del stream.data[:count]
        self._guest.grant(self.number, number, count)
        if not stream.open:
            self._finish()
            return
        if stream.data:
            self._loop.watch(stream.fd, POLLOUT, lambda events: self._write(number, events))
        else:
            self._loop.forget(stream.fd)
            if stream.ended:
                self._close(stream)
            self._finish()

    def _lingered(self) -> None:
        self._linger = -1
        self._finish()

    def _finish(self) -> None:
        if self._done is None or self.code is None:
            return
        if any(stream.data for stream in self._streams.values()):
            return
        if self._linger != -1 and not all(stream.ended for stream in self._streams.values()):
            return
        self._loop.cancel(self._linger)
        done, self._done = self._done, None
        done(self.code)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.forget(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def _close(self, stream: _Output) -> None:
        if stream.open:
            stream.open = False
            self._loop.forget(stream.fd)
            os.close(stream.fd)


def _own(fd: int, mode: int) -> tuple[int, int]:
    """(a descriptor of our own, how much may be written to it at once)."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        try:
            return os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_CLOEXEC), _PIECE
        except OSError:
            pass  # a named one without a reader, or one that we may not open
    return os.dup(fd), _PAGE


def _writable(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, POLLOUT)
    return bool(poll.poll(0))


def open_terminal(size: tuple[int, int]) -> tuple[int, int]:
    """(master, slave) of a new pseudoterminal that passes every byte: the line discipline is the guest's."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    slave = tty.open_peer(master)
    tty.make_raw(slave)
    tty.plain_newlines(slave)
    if any(size):
        tty.set_size(master, *size)
    return master, slave
