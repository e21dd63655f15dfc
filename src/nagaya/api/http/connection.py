"""One client connection: bytes to requests, answers to bytes, by h11's state machine.

Requests of a connection are answered one after the other; what a client pipelines waits in h11's
buffer, bounded by `READ_AHEAD`. A client that goes away cancels its handler unless the request is
shielded. A half-closed client (`shutdown(SHUT_WR)`) still gets its answer.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import select
from typing import TYPE_CHECKING, cast

import h11

from nagaya.api.http.messages import Answer, Application, Headers, Request, RequestTimeout, Response, Stream
from nagaya.errors import Cancelled, InvalidArgument

if TYPE_CHECKING:
    from socket import socket

log = logging.getLogger(__name__)

MAX_HEADER = 64 << 10
"""X-Registry-Config can hold the credentials of many registries."""
HEAD_TIMEOUT = 30.0
"""Seconds from a request's first byte to the end of its head."""
BODY_TIMEOUT = 60.0
"""Seconds of silence in the middle of a body; an upload that goes on may take as long as it takes."""
READ_AHEAD = 256 << 10
LINGER = 2.0
"""Seconds an answered client may still send the body nobody wanted, so that it sees the answer."""
HALF_CLOSED_POLL = 1.0


class Connection(asyncio.Protocol):
    """See the module. `application` never raises; `peers` is the server's set of connections."""

    def __init__(self, application: Application, peers: set[Connection], common: Headers) -> None:
        self._application = application
        self._peers = peers
        self._common = tuple(common)
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._chunks: collections.deque[bytes] = collections.deque()
        self._queued = 0
        self._ahead = 0
        self._body_complete = False
        self._body_waiter: asyncio.Future[None] | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._writing_paused = False
        self._lost = False
        self._half_closed = False
        self._hijacked = False
        self._discarding = False
        self._closing = False

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._peers.discard(self)
        self._stop_head_timer()
        self._wake_body()
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)
        if not self._hijacked and self._task is not None and not (self._request and self._request.shielded):
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._http.receive_data(data)
        self._ahead += len(data)
        self._advance()

    def eof_received(self) -> bool:
        self._half_closed = True
        if self._task is None or self._discarding:
            return False
        self._http.receive_data(b"")
        self._advance()
        if self._gone():
            return False
        self._watch_half_closed()
        return True

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    # the server's side

    def close(self) -> None:
        """Close when idle, else after the answer that is being made; streams end now."""
        self._closing = True
        if self._task is None:
            self._transport.close()
        elif not (self._request and self._request.shielded):
            self._task.cancel()

    def abort(self) -> None:
        """Drop the client and cancel whatever runs for it."""
        if self._request is not None:
            self._request.shielded = False
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()

    # reading

    def _advance(self) -> None:
        """Take events from h11 until it needs data or the running request is complete."""
        while not self._lost and not self._hijacked:
            if self._task is not None and self._body_complete:
                if self._ahead > READ_AHEAD:
                    self._transport.pause_reading()
                return
            if self._queued > READ_AHEAD:
                self._transport.pause_reading()
                return
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint, str(error))
                return
            if event is h11.NEED_DATA:
                self._ahead = 0
                self._transport.resume_reading()
                if self._task is None and self._head_timer is None and self._http.trailing_data[0]:
                    self._head_timer = self._loop.call_later(HEAD_TIMEOUT, self._head_late)
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                chunk = bytes(event.data)
                self._chunks.append(chunk)
                self._queued += len(chunk)
                self._wake_body()
            elif isinstance(event, h11.EndOfMessage):
                self._body_complete = True
                self._ahead = len(self._http.trailing_data[0])
                self._wake_body()
            else:  # ConnectionClosed or PAUSED without a request of ours: nothing can follow
                if self._task is None:
                    self._transport.close()
                return

    def _head_late(self) -> None:
        self._head_timer = None
        self._refuse(408, f"the request's head took longer than {HEAD_TIMEOUT:.0f} s")

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _begin(self, event: h11.Request) -> None:
        self._stop_head_timer()
        self._body_complete = False
        self._chunks.clear()
        self._queued = 0
        self._request = Request(
            event.method.decode("ascii"), event.target, list(event.headers), self._next_chunk, self._hijack
        )
        self._task = self._loop.create_task(self._serve(self._request))

    async def _next_chunk(self) -> bytes:
        if not self._body_complete and self._http.they_are_waiting_for_100_continue:
            self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        while not self._chunks:
            if self._body_complete:
                return b""
            if self._lost or self._http.their_state in (h11.ERROR, h11.CLOSED):
                raise Cancelled("the client went away while sending its request")
            await self._more_body()
        chunk = self._chunks.popleft()
        before = self._queued
        self._queued -= len(chunk)
        if before > READ_AHEAD >= self._queued:
            self._loop.call_soon(self._advance)
        return chunk

    async def _more_body(self) -> None:
        self._body_waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                await self._body_waiter
        except TimeoutError:
            raise RequestTimeout(f"the request's body stopped for longer than {BODY_TIMEOUT:.0f} s") from None

    def _wake_body(self) -> None:
        if self._body_waiter is not None and not self._body_waiter.done():
            self._body_waiter.set_result(None)

    def _refuse(self, status: int, why: str) -> None:
        """The client does not speak HTTP: one answer, when none has begun, and good-bye."""
        self._stop_head_timer()
        self._wake_body()
        if self._task is not None:
            return
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._half_closed:
            status = status if 400 <= status <= 599 else 400
            body = b'{"message":"bad request: %s"}\n' % why.encode("ascii", "replace").replace(
                b'"', b"'"
            ).replace(b"\\", b"/")
            head = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
            head.append((b"Connection", b"close"))
            try:
                self._write(
                    (self._http.send(h11.Response(status_code=status, headers=head)) or b"")
                    + (self._http.send(h11.Data(data=body)) or b"")
                )
            except h11.LocalProtocolError:
                pass
        self._linger()

    # answering

    async def _serve(self, request: Request) -> None:
        try:
            answer = await self._application(request)
            if not self._hijacked and not self._lost:
                await self._answer(request, answer)
            elif isinstance(answer, Stream):
                await _close(answer)
        except asyncio.CancelledError:
            self._transport.abort()
        except Exception:
            log.exception("%s %s: the answer broke", request.method, request.path)
            self._transport.abort()
        finally:
            self._task = None
            self._request = None
        if self._hijacked or self._lost or self._transport.is_closing():
            return
        self._next()

    def _next(self) -> None:
        """After an answer: wait for the next request, or close as HTTP demands."""
        http = self._http
        if not self._body_complete:
            self._linger()
        elif http.our_state is h11.DONE and http.their_state is h11.DONE and not self._closing:
            http.start_next_cycle()
            self._advance()
            if self._half_closed and self._task is None:
                self._transport.close()
        else:
            self._transport.close()

    def _linger(self) -> None:
        """End our side, read and drop what the client still sends, then close: closing at once would
        break the client's write before it reads our answer."""
        self._discarding = True
        self._chunks.clear()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER, self._transport.close)

    async def _answer(self, request: Request, answer: Answer) -> None:
        if isinstance(answer, Response):
            self._write(self._whole(request, answer))
            await self._drain()
        elif isinstance(answer, Stream):
            request.shielded = False
            await self._stream(request, answer)
        else:
            raise RuntimeError(f"{request.method} {request.path}: handler returned without an answer")

    def _whole(self, request: Request, answer: Response) -> bytes:
        headers = [*self._common, *answer.headers]
        if answer.status != 304 and answer.status != 204:
            if answer.content_type:
                headers.append((b"Content-Type", answer.content_type))
            headers.append((b"Content-Length", b"%d" % len(answer.body)))
        if not self._body_complete or self._closing:
            headers.append((b"Connection", b"close"))
        send = self._http.send
        data = send(h11.Response(status_code=answer.status, headers=headers)) or b""
        if answer.body and request.method != "HEAD" and answer.status not in (204, 304):
            data += send(h11.Data(data=answer.body)) or b""
        return data + (send(h11.EndOfMessage()) or b"")

    async def _stream(self, request: Request, answer: Stream) -> None:
        headers = [*self._common, *answer.headers, (b"Content-Type", answer.content_type)]
        if not self._body_complete:
            headers.append((b"Connection", b"close"))
        try:
            self._write(self._http.send(h11.Response(status_code=answer.status, headers=headers)))
            async for item in answer.items:
                if item:
                    self._write(self._http.send(h11.Data(data=item)))
                    await self._drain()
                if self._lost:
                    return
        except Exception as error:
            if answer.render_error is None or self._lost:
                raise
            self._write(self._http.send(h11.Data(data=answer.render_error(error))))
        finally:
            await _close(answer)
        self._write(self._http.send(h11.EndOfMessage()))
        await self._drain()

    def _write(self, data: bytes | None) -> None:
        if data and not self._lost:
            self._transport.write(data)

    async def _drain(self) -> None:
        while self._writing_paused and not self._lost:
            self._write_waiter = self._loop.create_future()
            await self._write_waiter

    # leaving HTTP

    async def _hijack(self, head: bytes) -> tuple[int, bytes]:
        if not self._body_complete:
            raise InvalidArgument("the request's body must be complete before the connection is hijacked")
        if self._lost:
            raise Cancelled("the client went away")
        # From here on every byte belongs to whoever gets the duplicate: nothing may be read meanwhile.
        self._transport.pause_reading()
        self._transport.set_write_buffer_limits(high=0)
        self._write(head)
        await self._drain()
        if self._lost:
            raise Cancelled("the client went away")
        preface = bytes(self._http.trailing_data[0])
        sock = cast("socket", self._transport.get_extra_info("socket"))
        fd = os.dup(sock.fileno())
        self._hijacked = True
        self._peers.discard(self)
        self._transport.abort()  # closes our descriptor; the connection lives on in the duplicate
        return fd, preface

    # clients that have gone

    def _gone(self) -> bool:
        """True when the peer closed both directions (unix(7): POLLHUP), not only its sending one."""
        sock = cast("socket", self._transport.get_extra_info("socket"))
        number = sock.fileno()
        if number < 0:
            return True
        poll = select.poll()
        poll.register(number, 0)
        return any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))

    def _watch_half_closed(self) -> None:
        """asyncio stops watching a socket after EOF; a full close later is seen by looking."""
        if self._lost or self._hijacked or self._transport.is_closing():
            return
        if self._gone():
            self._transport.abort()
        else:
            self._loop.call_later(HALF_CLOSED_POLL, self._watch_half_closed)


async def _close(answer: Stream) -> None:
    close = getattr(answer.items, "aclose", None)
    if close is not None:
        await close()
