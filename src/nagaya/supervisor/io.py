"""io: the keeper's restartable child that reads what containers write, logs it, and serves clients.

It holds nothing that cannot be lost: descriptors are the keeper's, half-done work is in the journal.
Killed, it is started again and goes on with the byte where it stopped; attached clients end with it.
One thread, level-triggered epoll: each turn moves at most one chunk of each ready stream, so that one
loud container does not keep the others waiting.
"""

from __future__ import annotations

import os
import time
from _socket import socket
from fcntl import LOCK_EX, flock
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll

from nagaya.errors import FailedPrecondition, NagayaError
from nagaya.linux import json, seqpacket, splice
from nagaya.supervisor.attach import PATIENCE, PATIENCE_SHARED, Client, Input, make_client
from nagaya.supervisor.format import RECORDS
from nagaya.supervisor.journal import Journal
from nagaya.supervisor.logfile import LogFile
from nagaya.supervisor.streams import STDERR, STDOUT, Pump, Stream
from nagaya.wire.messages import FROM_IO, TO_IO, check, message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.wire.messages import Message

_REPORT = 1.0  # seconds between reports of dropped lines


class _Container:
    """What io knows of one entry of the keeper."""

    __slots__ = ("clients", "input", "log", "paused", "streams", "token", "tty")

    def __init__(self, token: str, tty: bool, log: LogFile | None) -> None:
        self.token = token
        self.tty = tty
        self.log = log
        self.streams: tuple[Stream, ...] = ()
        self.input: Input | None = None
        self.clients: list[Client] = []
        self.paused: set[int] = set()  # numbers of streams that are not read, as a client is full

    @property
    def input_waits(self) -> bool:
        """The container has not read yet what was typed."""
        return self.input is not None and self.input.waiting


class Io:
    """The loop. `serve` returns when the keeper has gone."""

    def __init__(self, keeper: socket, journal: int, stage_out: int, stage_in: int) -> None:
        self._keeper = keeper
        # A lock of our own on the memfd: a predecessor that is still dying must not work beside us.
        # It is another open file than the keeper's, so it ends with this process and no other.
        self._lock = os.open(f"/proc/self/fd/{journal}", os.O_RDWR | os.O_CLOEXEC)
        flock(self._lock, LOCK_EX)
        self._pump = Pump(Journal(journal), stage_out, stage_in)
        self._journal = Journal(journal)
        self._epoll = epoll()
        self._epoll.register(keeper.fileno(), EPOLLIN)
        self._containers: dict[str, _Container] = {}
        self._waiting: dict[str, list[Client]] = {}  # attached before their container was there
        self._streams: dict[int, tuple[_Container, Stream]] = {}
        self._inputs: dict[int, _Container] = {}
        self._clients: dict[int, Client] = {}
        self._masks: dict[int, int] = {}
        self._ending: list[Client] = []
        self._stalling: list[Client] = []  # too much waits for them: their streams wait too
        self._faulty: list[tuple[str, Stream]] = []
        self._next_report = 0.0

    def resume(self, entries: list[tuple[Message, list[int]]]) -> None:
        """Take over the entries of the keeper, and finish what a killed predecessor was doing."""
        for entry, fds in entries:
            self._open(entry, fds)
        by_slot = {s.slot: s for _, s in self._streams.values()}
        self._pump.recover(by_slot.get)

    def serve(self) -> None:
        """Work until the keeper closes its end."""
        keeper = self._keeper.fileno()
        while True:
            told = False
            for fd, events in self._epoll.poll(self._timeout()):
                if fd == keeper:
                    told = True
                elif fd in self._streams:
                    self._readable(*self._streams[fd])
                elif fd in self._inputs:
                    self._input_ready(self._inputs[fd], events)
                elif fd in self._clients:
                    self._client_ready(self._clients[fd], events)
            # Last: a new descriptor may have the number of one with an event in this turn.
            if told and not self._from_keeper():
                return
            self._periodic()

    # what must happen by time

    def _timeout(self) -> float:
        times = [c.deadline or c.moved + PATIENCE for c in self._ending]
        times += [c.moved + self._patience(c) for c in self._stalling]
        if self._faulty:
            times.append(self._next_report)
        return max(0.0, min(times) - time.monotonic()) if times else -1

    def _periodic(self) -> None:
        if not self._ending and not self._faulty and not self._stalling:
            return
        now = time.monotonic()
        for client in self._ending[:]:
            if (client.deadline or client.moved + PATIENCE) <= now:
                self._remove(client)
        for client in self._stalling[:]:
            if client.moved + self._patience(client) <= now:
                # epoll tells of room only when most of the socket's buffer is free: try
                self._client_ready(client, EPOLLOUT)
                if client.moved < now:
                    self._remove(client, "slow")
        if self._faulty and now >= self._next_report:
            self._next_report = now + _REPORT
            faulty, self._faulty = self._faulty, []
            for token, stream in faulty:
                self._report(token, stream)

    def _patience(self, client: Client) -> float:
        container = self._containers.get(client.token)
        others = container.clients if container else []
        shared = any(c is not client and set(c.wants) & set(client.wants) for c in others)
        return PATIENCE_SHARED if shared else PATIENCE

    def _report(self, token: str, stream: Stream) -> None:
        if stream.dropped:
            self._tell("dropped", token=token, lines=stream.dropped, errno=stream.error)
            stream.dropped = 0

    # the keeper

    def _tell(self, kind: str, **fields: Any) -> None:
        # It may wait: the keeper always reads.
        try:
            seqpacket.send(self._keeper, json.dumps(message(FROM_IO, kind, **fields)).encode(), wait=True)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended, and so do we when that is read

    def _from_keeper(self) -> bool:
        packet = seqpacket.receive(self._keeper)
        if packet is None:
            return True
        if not packet.data:
            return False
        request = check(TO_IO, json.loads(packet.data))
        kind, token = request["kind"], request.get("token", "")
        if kind == "open":
            self._open(request, packet.fds)
        elif kind == "attach":
            self._attach(request, packet.fds)
        elif kind == "drop":
            self._drop(token)
        elif kind == "drain":
            self._drain(token)
        elif kind == "close_stdin":
            container = self._containers.get(token)
            if container:
                self._close_when_written(container)
                self._settle(container)
        return True

    def _open(self, entry: Message, fds: list[int]) -> None:
        names = dict(zip(entry["fds"], fds, strict=True))
        settings = entry["log"]
        log = LogFile(settings) if settings and settings.get("driver") in RECORDS else None
        tty = "tty" in names
        container = _Container(entry["token"], tty, log)
        slots = list(entry["slots"])
        outputs = [(STDOUT, "tty" if tty else "stdout")] + ([] if tty else [(STDERR, "stderr")])
        container.streams = tuple(
            Stream(names[name], number, slots[i] if i < len(slots) else -1, log, tty)
            for i, (number, name) in enumerate(outputs)
            if name in names
        )
        for stream in container.streams:
            if log is not None:
                self._pump.adopt(stream)
            self._streams[stream.fd] = (container, stream)
            self._watch(stream.fd, EPOLLIN)
        # A terminal is both; epoll knows a descriptor only once.
        end = os.dup(names["tty"]) if tty else names.get("stdin", -1)
        if end >= 0:
            container.input = Input(end)
            self._inputs[end] = container
        self._containers[container.token] = container
        for client in self._waiting.pop(container.token, ()):
            self._join(container, client)

    def _drop(self, token: str) -> None:
        for client in self._waiting.pop(token, []):
            # the daemon may hold the connection, too, to say into it why nothing ran
            self._remove(client, "end", shut=False)
        container = self._containers.pop(token, None)
        if container is None:
            return
        for stream in container.streams:
            self._report(token, stream)
            self._unwatch(stream.fd)
            del self._streams[stream.fd]
            os.close(stream.fd)
        self._close_input(container)
        if container.log:
            container.log.close()
        for client in container.clients[:]:
            self._finish(client)

    def _drain(self, token: str) -> None:
        container = self._containers.get(token)
        if container is not None:
            for stream in container.streams:
                # What was written until now, and no more: another process may go on writing.
                left = max(1, splice.pending(stream.fd)) if not stream.ended else 0
                while left > 0 and (moved := self._move(container, stream)):
                    left -= moved
                self._pump.flush(stream)
                self._report(token, stream)
            for client in container.clients[:]:
                self._finish(client)
        self._tell("drained", token=token)

    # output

    def _readable(self, container: _Container, stream: Stream) -> None:
        if stream.number in container.paused:
            return
        self._move(container, stream)
        if all(s.ended for s in container.streams):
            for client in container.clients[:]:
                self._finish(client)

    def _move(self, container: _Container, stream: Stream) -> int:
        """Move one chunk; how many bytes it was (1 when they were dropped unseen), 0 for none."""
        watching = [c for c in container.clients if stream.number in c.wants]
        data = self._pump.move(stream, bool(watching))
        if stream.dropped and (container.token, stream) not in self._faulty:
            self._faulty.append((container.token, stream))
        if data is None:
            self._unwatch(stream.fd)
            return 0
        if not data:
            return 0
        for client in watching:
            try:
                client.send(stream.number, data)
            except OSError:
                self._remove(client, "gone")
                continue
            self._arm(client)
            if client.full:
                if client not in self._stalling:
                    self._stalling.append(client)
                for number in client.wants:
                    self._pause(container, number)
        return len(data)

    def _pause(self, container: _Container, number: int) -> None:
        if number not in container.paused:
            container.paused.add(number)
            for stream in container.streams:
                if stream.number == number:
                    self._unwatch(stream.fd)

    def _unpause(self, container: _Container) -> None:
        """Read again what no client holds up any more."""
        for stream in container.streams:
            if stream.number in container.paused and all(
                c.roomy for c in container.clients if stream.number in c.wants
            ):
                container.paused.discard(stream.number)
                if not stream.ended:
                    self._watch(stream.fd, EPOLLIN)

    # clients

    def _attach(self, request: Message, fds: list[int]) -> None:
        error: dict[str, object] | None = None
        try:
            if not fds:
                raise FailedPrecondition("attach came without a socket")
            client = make_client(fds, request)
        except NagayaError as failure:
            error = failure.to_wire()
        except OSError as failure:
            error = FailedPrecondition(str(failure), step="attach", errno=failure.errno or 0).to_wire()
        else:
            self._clients[client.sock.fileno()] = client
            container = self._containers.get(client.token)
            if container:
                self._join(container, client)
            else:
                self._waiting.setdefault(client.token, []).append(client)
                self._watch(client.sock.fileno(), 0)
        self._tell("attached", serial=request["serial"], error=error)

    def _join(self, container: _Container, client: Client) -> None:
        if container.tty:
            client.use_terminal()
        container.clients.append(client)
        self._arm(client)
        if client.preface and client.input_open:
            data, detached = client.typed(client.preface)
            client.preface = b""
            self._typed(container, client, data, detached, False)
        if all(s.ended for s in container.streams):
            self._finish(client)

    def _client_ready(self, client: Client, events: int) -> None:
        container = self._containers.get(client.token)
        try:
            if events & EPOLLOUT:
                client.push()
                if client.roomy and client in self._stalling:
                    self._stalling.remove(client)
                if container:
                    self._unpause(container)
            if events & EPOLLIN:
                data, detached, ended = client.receive()
                if client.finishing:
                    if ended:
                        self._remove(client)
                        return
                elif container:
                    self._typed(container, client, data, detached, ended)
            elif events & (EPOLLHUP | EPOLLERR):
                if container and client.input_open:
                    self._last_input(container, client)
                self._remove(client, "gone")
                return
        except OSError:
            self._remove(client, "gone")
            return
        self._arm(client)

    def _typed(self, container: _Container, client: Client, data: bytes, detached: bool, ended: bool) -> None:
        if data and container.input:
            container.input.write(data)
        if detached:
            self._finish(client, "keys")
        elif ended:
            client.input_open = False
            if client.stdin_once:
                self._close_when_written(container)
        self._settle(container)

    def _last_input(self, container: _Container, client: Client) -> None:
        """Its input had to wait for the container, and it has gone: what it had sent is not lost."""
        ended = False
        while not ended and client.input_open:
            data, detached, ended = client.receive()
            if not data and not ended:
                return
            self._typed(container, client, data, detached, ended)

    def _close_when_written(self, container: _Container) -> None:
        # A terminal has no end of file of its own: dockerd leaves it open as well.
        if container.input and not container.tty:
            container.input.closing = True

    def _input_ready(self, container: _Container, events: int) -> None:
        if container.input:
            container.input.push()
            self._settle(container)

    def _settle(self, container: _Container) -> None:
        """After input came or went: who is waited for now."""
        sink = container.input
        if sink is None or sink.fd < 0:
            return
        if sink.done:
            self._close_input(container)
            self._tell("stdin_closed", token=container.token)
        elif sink.waiting:
            self._watch(sink.fd, EPOLLOUT)
        else:
            self._unwatch(sink.fd)
        for client in container.clients:
            self._arm(client)

    def _close_input(self, container: _Container) -> None:
        sink = container.input
        if sink is not None and sink.fd >= 0:
            self._unwatch(sink.fd)
            del self._inputs[sink.fd]
            sink.close()

    def _finish(self, client: Client, reason: str = "end") -> None:
        """No more output for this client: what waits, then end of file."""
        if client.finishing:
            return
        container = self._containers.get(client.token)
        if container and client in container.clients:
            container.clients.remove(client)
        if client in self._stalling:
            self._stalling.remove(client)
        self._ending.append(client)
        self._tell("detached", serial=client.serial, token=client.token, reason=reason)
        try:
            client.finish()
        except OSError:
            self._remove(client)
            return
        self._arm(client)
        if container:
            self._unpause(container)

    def _remove(self, client: Client, reason: str = "gone", *, shut: bool = True) -> None:
        fd = client.sock.fileno()
        if self._clients.pop(fd, None) is None:
            return
        self._unwatch(fd)
        client.close(shut=shut)
        container = self._containers.get(client.token)
        if client in self._stalling:
            self._stalling.remove(client)
        if client in self._ending:
            self._ending.remove(client)
            return
        waiting = self._waiting.get(client.token, [])
        if client in waiting:
            waiting.remove(client)
            if not waiting:
                del self._waiting[client.token]
        if container and client in container.clients:
            container.clients.remove(client)
            if client.input_open and client.stdin_once:
                self._close_when_written(container)
            self._unpause(container)
            self._settle(container)
        self._tell("detached", serial=client.serial, token=client.token, reason=reason)

    # epoll

    def _arm(self, client: Client) -> None:
        """Wait for what this client can give or take now."""
        fd = client.sock.fileno()
        if fd < 0 or fd not in self._clients:
            return
        events = client.events
        container = self._containers.get(client.token)
        if container and container.input_waits and not client.finishing:
            events &= ~EPOLLIN  # the container reads slowly: so do we
        self._watch(fd, events)

    def _watch(self, fd: int, events: int) -> None:
        known = self._masks.get(fd)
        if known is None:
            self._epoll.register(fd, events)
        elif known != events:
            self._epoll.modify(fd, events)
        self._masks[fd] = events

    def _unwatch(self, fd: int) -> None:
        if self._masks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
