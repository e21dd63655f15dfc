"""QEMU's monitor: JSON lines on a socket (QEMU's docs/interop/qmp-spec.rst), one command at a time.

Synchronous: a call waits for its answer, events that come meanwhile are kept for `events`. The peer is a
process that a guest may have taken over: its lines are bounded, its answers waited for so long and no
longer, and what is no answer is an error.
"""

from __future__ import annotations

from select import POLLIN, POLLOUT, poll
from time import monotonic

from nagaya.errors import DataLoss, DeadlineExceeded, InvalidArgument, NagayaError, Unavailable
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

_MAX_LINE = 1 << 20  # query-qmp-schema, the longest answer there is, has 200 KB
_MAX_EVENTS = 256  # kept: of more the oldest go
_CHUNK = 65536


class QmpError(NagayaError):
    """QEMU refused a command; `subject` is the command, `kind` QEMU's class of the error."""

    code = "failed_precondition"

    def __init__(self, message: str, *, command: str, kind: str) -> None:
        super().__init__(message, subject=command)
        self.kind = kind


class Qmp:
    """A monitor on a connected socket, which is closed with it. `greet` comes first."""

    __slots__ = ("_buffer", "_events", "_socket", "_timeout", "version")

    def __init__(self, end: socket, *, timeout: float = 30) -> None:
        end.setblocking(False)
        self._socket = end
        self._timeout = timeout
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self.version = ""

    def fileno(self) -> int:
        """For poll(2): readable when an event may have come."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up; QEMU goes on."""
        self._socket.close()

    def greet(self, *, timeout: float | None = None) -> None:
        """Wait for QEMU's greeting and leave the negotiation of capabilities.

        Raises Unavailable when it ended first, DeadlineExceeded, DataLoss.
        """
        until = monotonic() + (timeout or self._timeout)
        hello = self._next(until, "greeting").get("QMP")
        try:
            parts = hello["version"]["qemu"]  # type: ignore[index]  # None, too, is no greeting
            self.version = f"{int(parts['major'])}.{int(parts['minor'])}.{int(parts['micro'])}"
        except (KeyError, TypeError, ValueError):
            raise DataLoss("not a greeting of QEMU's monitor", step="qmp greeting") from None
        self.call("qmp_capabilities")

    def call(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        fd: int = -1,
    ) -> Any:
        """The command's answer; fd: a descriptor that goes with it (getfd, add-fd).

        Raises QmpError (refused), Unavailable (QEMU ended), DeadlineExceeded, DataLoss (no JSON, too long).
        """
        until = monotonic() + (timeout or self._timeout)
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._send(json.dumps(message).encode() + b"\n", until, command, fd)
        while True:
            answer = self._next(until, command)
            if "return" in answer:
                return answer["return"]
            error = answer.get("error")
            if isinstance(error, dict):
                words = str(error.get("desc", "no reason given"))[:1000]
                raise QmpError(words, command=command, kind=str(error.get("class", ""))[:100])
            self._keep(answer)

    def events(self) -> list[dict[str, Any]]:
        """The events since the last call, without waiting. Raises Unavailable when QEMU ended and all events
        were given, DataLoss."""
        try:
            while len(self._buffer) < _MAX_LINE and self._receive(0, "events"):
                pass
        except Unavailable:
            if not self._events and b"\n" not in self._buffer:
                raise
        while b"\n" in self._buffer:
            self._keep(self._parse("events"))
        events, self._events = self._events, []
        return events

    def wait_event(self, name: str, *, timeout: float | None = None) -> dict[str, Any]:
        """The next event of that name; others that come before stay for `events`. Raises as `call`."""
        until = monotonic() + (timeout or self._timeout)
        while True:
            for index, event in enumerate(self._events):
                if event.get("event") == name:
                    return self._events.pop(index)
            self._keep(self._next(until, name))

    def _keep(self, message: dict[str, Any]) -> None:
        if "event" not in message:
            raise DataLoss("an answer that nobody asked for", step="qmp")
        self._events = [*self._events[1 - _MAX_EVENTS :], message]

    def _send(self, data: bytes, until: float, step: str, fd: int) -> None:
        import _socket

        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, "little"))] if fd >= 0 else []
        while data:
            try:
                data = data[self._socket.sendmsg([data], rights, _socket.MSG_NOSIGNAL) :]
                rights = []
            except BlockingIOError:
                self._wait(POLLOUT, until, step)
            except OSError:
                raise Unavailable("QEMU has ended", step=f"qmp {step}") from None

    def _wait(self, what: int, until: float, step: str) -> None:
        poller = poll()
        poller.register(self._socket.fileno(), what)
        if not poller.poll(max(0, until - monotonic()) * 1000):
            raise DeadlineExceeded("QEMU does not answer", step=f"qmp {step}")

    def _receive(self, until: float, step: str) -> bool:
        """Read what is there; wait for something until then, or not at all when it is 0."""
        while True:
            try:
                data = self._socket.recv(_CHUNK)
            except BlockingIOError:
                if not until:
                    return False
                self._wait(POLLIN, until, step)
                continue
            except OSError:
                data = b""
            if not data:
                raise Unavailable("QEMU has ended", step=f"qmp {step}")
            self._buffer += data
            if len(self._buffer) > _MAX_LINE and b"\n" not in self._buffer[:_MAX_LINE]:
                raise DataLoss(f"a line of more than {_MAX_LINE} bytes", step=f"qmp {step}")
            return True

    def _parse(self, step: str) -> dict[str, Any]:
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except (InvalidArgument, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise DataLoss("not a message of QEMU's monitor", step=f"qmp {step}")
        return message

    def _next(self, until: float, step: str) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._receive(until, step)
        return self._parse(step)
