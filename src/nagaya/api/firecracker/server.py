"""HTTP on a Unix socket for one machine's API: one thread, one request at a time, as Firecracker has it.

Not api/http's server: asyncio costs 40 ms of start-up and 10 MB, for a process of which there is one per
machine and whose clients are one or two. The protocol is h11's here, too.
"""

from __future__ import annotations

import errno
import heapq
import http
import json
import select
import socket
import time
from collections.abc import Callable, Mapping

import h11

from nagaya.api.firecracker.faults import Fault

_CONNECTIONS = 10  # Firecracker's bound
_CHUNK = 65536
_PENDING = 1 << 20  # of an answer to a client that does not read; more of a request is not read until then


class Loop:
    """Calls back when a descriptor is ready, or a time has come; until it is told to stop."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self.result: int | None = None

    def close(self) -> None:
        """Nothing is waited for any more."""
        self._epoll.close()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events that came; again for the same descriptor changes what is waited for."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """No longer; before the descriptor is closed."""
        if self._callbacks.pop(fd, None):
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once, then."""
        self._serial += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._serial, callback))

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back again and again."""

        def tick() -> None:
            self.after(seconds, tick)
            callback()

        self.after(seconds, tick)

    def stop(self, result: int) -> None:
        """Let `run` return that; the first word counts."""
        if self.result is None:
            self.result = result

    def run(self) -> int:
        """Until someone says stop."""
        while self.result is None:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1
            for fd, events in self._epoll.poll(timeout):
                if callback := self._callbacks.get(fd):
                    callback(events)
            while self._timers and self._timers[0][0] <= time.monotonic() and self.result is None:
                heapq.heappop(self._timers)[2]()
        return self.result


class Reply:
    """An answer: a status and, but for 204, a body; with more headers, if there are any."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.kind = kind
        self.headers = dict(headers or {})


def fault_reply(fault: Fault) -> Reply:
    """The answer to what was refused."""
    return Reply(fault.status, json.dumps({"fault_message": str(fault)}, ensure_ascii=False).encode())


Handler = Callable[[str, str, bytes | None, Mapping[str, str]], Reply]


class Connection:
    """One client: its bytes to requests, and answers to bytes. `limit`: of a body."""

    def __init__(self, handler: Handler, limit: int, server: str) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
        self._handler = handler
        self._limit = limit
        self._server = server
        self._request: h11.Request | None = None
        self._body = b""
        self.output = b""
        self.ending = False

    def feed(self, data: bytes) -> None:
        """What came; b"" when no more will. Answers go to `output`; `ending` says to close after them."""
        if self.ending:
            return
        try:
            self._http.receive_data(data)
        except h11.RemoteProtocolError as error:
            self._refuse(Fault(f"Invalid request: {error}", error.error_status_hint))
        self.proceed()
        if not data:
            self.ending = True

    def proceed(self) -> None:
        """Answer what has come, until there is enough output."""
        try:
            while not self.ending and len(self.output) < _PENDING and self._step():
                pass
        except h11.RemoteProtocolError as error:
            self._refuse(Fault(f"Invalid request: {error}", error.error_status_hint))

    def _step(self) -> bool:
        event = self._http.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            if self._http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self.output += self._http.send(go_on) or b""
            return False
        if isinstance(event, h11.Request):
            self._request, self._body = event, b""
            size = dict(event.headers).get(b"content-length", b"0")
            if int(size) > self._limit:
                self._too_large(int(size))
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > self._limit:
                self._too_large(len(self._body))
        elif isinstance(event, h11.EndOfMessage) and self._request:
            self._answer(self._request)
        else:
            self.ending = True
        return not self.ending

    def _too_large(self, size: int) -> None:
        words = (
            f"Request payload with size {size} is larger than the limit of {self._limit} allowed by server."
        )
        self._refuse(Fault(f"{words}\nAll previous unanswered requests will be dropped.", 413))

    def _refuse(self, fault: Fault) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(fault_reply(fault), close=True)
        self.ending = True

    def _answer(self, request: h11.Request) -> None:
        path = request.target.decode("latin-1")
        if path.startswith("http://"):
            path = "/" + path[7:].partition("/")[2]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        reply = self._handler(request.method.decode("latin-1"), path, self._body or None, headers)
        self._send(reply)
        if self._http.our_state is h11.MUST_CLOSE:
            self.ending = True
        else:
            self._http.start_next_cycle()

    def _send(self, reply: Reply, *, close: bool = False) -> None:
        headers = [("Server", self._server), ("Connection", "close" if close else "keep-alive")]
        if reply.status != 204:
            headers += [("Content-Type", reply.kind), ("Content-Length", str(len(reply.body)))]
        headers += reply.headers.items()
        # 413's words differ between versions of Python
        words = "Payload Too Large" if reply.status == 413 else http.HTTPStatus(reply.status).phrase
        reason = words.encode()
        begin = h11.Response(status_code=reply.status, headers=headers, reason=reason)
        self.output += self._http.send(begin) or b""
        self.output += self._http.send(h11.Data(data=reply.body)) or b""
        self.output += self._http.send(h11.EndOfMessage()) or b""


def listen_unix(path: str) -> socket.socket:
    """A listening socket, whose file is made. Raises OSError (EADDRINUSE: it is there)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


class Server:
    """Answers who connects to the listening socket, which it takes over."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        handler: Handler,
        limit: int,
        name: str = "Firecracker API",
    ) -> None:
        self._loop = loop
        self._name = name
        self._handler = handler
        self._limit = limit
        self._clients: dict[int, tuple[socket.socket, Connection]] = {}
        self._socket = listener
        listener.setblocking(False)
        loop.watch(listener.fileno(), select.EPOLLIN, self._accept)

    def close(self) -> None:
        """Hang up."""
        for fd in list(self._clients):
            self._drop(fd)
        self._loop.forget(self._socket.fileno())
        self._socket.close()

    def _accept(self, _: int) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.01)  # it stays readable: not in a circle
            return
        client.setblocking(False)
        if len(self._clients) == _CONNECTIONS:
            words = b'{"fault_message": "Too many open connections."}'
            head = (
                b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\n"
            )
            try:
                client.send(head + b"Content-Length: %d\r\n\r\n%s" % (len(words), words))
            except OSError:
                pass
            client.close()
            return
        fd = client.fileno()
        self._clients[fd] = client, Connection(self._handler, self._limit, self._name)
        self._loop.watch(fd, select.EPOLLIN, lambda events: self._serve(fd))

    def _serve(self, fd: int) -> None:
        client, connection = self._clients[fd]
        try:
            if not connection.output and not connection.ending:
                connection.feed(client.recv(_CHUNK))
            while connection.output:
                connection.output = connection.output[client.send(connection.output) :]
                if not connection.output:
                    connection.proceed()
        except BlockingIOError:
            pass
        except OSError:
            connection.output, connection.ending = b"", True
        if connection.ending and not connection.output:
            self._drop(fd)
            return
        wanted = select.EPOLLOUT if connection.output else select.EPOLLIN
        self._loop.watch(fd, wanted, lambda events: self._serve(fd))

    def _drop(self, fd: int) -> None:
        client, _ = self._clients.pop(fd)
        self._loop.forget(fd)
        client.close()
