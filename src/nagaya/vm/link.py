"""The monitor's line to its guest's agent: a connected socket, the protocol, and who waits for what.

A guest may stop reading, stop answering, or lie: what it owes for long, or says against the rules, ends it.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT, MSG_NOSIGNAL
from time import monotonic

from nagaya.errors import DeadlineExceeded, NagayaError, Unavailable
from nagaya.vm import protocol
from nagaya.vm.loop import POLLIN, POLLOUT, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterable
    from typing import Protocol

    Fields = list[tuple[str, bytes]]
    Then = Callable[[Fields | None, NagayaError | None], None]

    class Listener(Protocol):
        """Who hears of a process."""

        def output(self, stream: int, data: bytes) -> None:
            """It has written."""

        def ended(self, stream: int) -> None:
            """A stream has ended."""

        def exited(self, status: int, oom: int) -> None:
            """It has."""

        def taken(self) -> None:
            """It has read from its stream 0."""


def _nothing(_error: NagayaError) -> None:
    """Who has ended a guest is told nothing of its end."""


_READ = 1 << 18
_MOST_WAITING = 16 << 20  # bytes to the guest that it does not take
PATIENCE = 30.0  # seconds for an answer; a busy host's guest may be slow, but not dead for so long


class Guest:
    """A guest's agent. `lost` is called once, with the reason, when there is no agent any more."""

    def __init__(self, loop: Loop, sock: socket, lost: Callable[[NagayaError], None], *, ready: bool) -> None:
        self._loop = loop
        self._socket = sock
        self._lost: Callable[[NagayaError], None] | None = lost
        self._connection = protocol.Connection(ready=ready)
        self._waiting: dict[int, Then] = {}
        self._listeners: dict[int, Listener] = {}
        self._out = bytearray()
        self._processes = 0
        self._failure: NagayaError | None = None
        self.kernel = ""
        self.up = ready
        loop.watch(sock.fileno(), POLLIN, self._event)

    def new_process(self, listener: Listener) -> int:
        """The number of a process to come, and who hears of it."""
        self._processes += 1
        self._listeners[self._processes] = listener
        return self._processes

    def forget(self, process: int) -> None:
        """Nobody hears of it any more."""
        self._listeners.pop(process, None)

    def call(self, verb: str, fields: Iterable[tuple[str, protocol.Value]], then: Then) -> None:
        """Call, and tell `then` (fields, None) or (None, error). Raises InvalidArgument."""
        if self._lost is None:
            then(None, Unavailable("the microVM has ended"))
            return
        number, data = self._connection.call(verb, fields)
        self._waiting[number] = then
        self._send(data)

    def ask(
        self, verb: str, fields: Iterable[tuple[str, protocol.Value]] = (), *, patience: float = PATIENCE
    ) -> Fields:
        """Call and wait for the answer; meanwhile the loop turns. Raises the guest's error, or that of what
        was posted before, Unavailable, DeadlineExceeded."""
        got: list[tuple[Fields | None, NagayaError | None]] = []
        self.call(verb, fields, lambda answer, error: got.append((answer, error)))
        self._until(lambda: bool(got), patience, verb)
        answer, error = got[0]
        failure, self._failure = self._failure or error, None
        if failure is not None:
            raise failure
        return answer or []

    def last_call(self, verb: str) -> None:
        """Call what ends the guest; nothing is heard of it after that."""
        if self._lost is not None:
            self._lost = _nothing
            self._send(self._connection.call(verb)[1])

    def await_ready(self, patience: float) -> None:
        """Wait until the agent of a machine that boots says that it is there. Raises Unavailable,
        DeadlineExceeded."""
        self._until(lambda: self.up or self._lost is None, patience, "boot")
        if not self.up:
            raise Unavailable("the microVM ended while it booted", step="boot")

    def post(self, verb: str, fields: Iterable[tuple[str, protocol.Value]]) -> None:
        """Call without waiting for the answer: the agent takes one call after the other, so the next `ask`
        raises what went wrong. An emulated machine takes long to answer, and no longer for many calls."""
        self.call(verb, fields, self._posted)

    def _posted(self, _answer: Fields | None, error: NagayaError | None) -> None:
        self._failure = self._failure or error

    def _until(self, condition: Callable[[], bool], patience: float, step: str) -> None:
        deadline = monotonic() + patience
        while not condition():
            left = deadline - monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the guest's agent did not answer for {patience:.0f} s", step=step)
            self._loop.turn(left)

    def sendable(self, process: int) -> int:
        """How many bytes of its stream 0 it takes now."""
        return 0 if len(self._out) > _READ else self._connection.sendable(process)

    def send(self, process: int, data: bytes) -> None:
        """Bytes for its stream 0: at most `sendable`."""
        self._send(self._connection.send(process, data))

    def end(self, process: int) -> None:
        """No more of them."""
        self._send(self._connection.end(process))

    def grant(self, process: int, stream: int, count: int) -> None:
        """So many bytes of its output were disposed of."""
        self._send(self._connection.grant(process, stream, count))

    def _send(self, data: bytes) -> None:
        if self._lost is None or not data:
            return
        self._out += data
        if len(self._out) > _MOST_WAITING:
            self.fail(Unavailable("the guest's agent does not read any more"))
        elif len(self._out) == len(data):
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                done = self._socket.send(memoryview(self._out)[: 1 << 18], MSG_DONTWAIT | MSG_NOSIGNAL)
                del self._out[:done]
        except BlockingIOError:
            pass
        except OSError:
            self.fail(Unavailable("the microVM has ended"))
            return
        self._loop.watch(self._socket.fileno(), POLLIN | (POLLOUT if self._out else 0), self._event)

    def _event(self, events: int) -> None:
        if events & POLLOUT:
            self._flush()
        if self._lost is None or not events & ~POLLOUT:
            return
        try:
            data = self._socket.recv(_READ, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.fail(Unavailable("the microVM has ended"))
            return
        try:
            for event in self._connection.receive(data):
                self._tell(event)
        except NagayaError as error:
            self.fail(error)

    def _tell(self, event: protocol.Event) -> None:
        if isinstance(event, protocol.Reply):
            self._waiting.pop(event.number)(event.fields, None)
        elif isinstance(event, protocol.Failure):
            self._waiting.pop(event.number)(None, event.error)
        elif isinstance(event, protocol.Ready):
            self.up, self.kernel = True, event.kernel
        elif isinstance(event, protocol.Output):
            listener = self._listeners.get(event.process)
            if listener is None:
                self.grant(event.process, event.stream, len(event.data))
            else:
                listener.output(event.stream, event.data)
        elif isinstance(event, protocol.End) and event.process in self._listeners:
            self._listeners[event.process].ended(event.stream)
        elif isinstance(event, protocol.Exit) and event.process in self._listeners:
            self._listeners[event.process].exited(event.status, event.oom)
        elif isinstance(event, protocol.Taken) and event.process in self._listeners:
            self._listeners[event.process].taken()

    def fail(self, error: NagayaError) -> None:
        """There is no agent any more: everybody who waits is told. May be repeated."""
        lost, self._lost = self._lost, None
        if lost is None:
            return
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        waiting, self._waiting = list(self._waiting.values()), {}
        for then in waiting:
            then(None, error)
        lost(error)
