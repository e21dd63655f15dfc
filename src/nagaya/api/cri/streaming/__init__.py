"""Where clients of Exec, Attach and PortForward connect: a server on loopback, an address for each request.

A kubelet asks over gRPC, gets an address that is good once and for a minute, and connects its client to
it over SPDY/3.1 or WebSocket. Nobody guesses an address: its last part is 128 random bits.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from nagaya.api.cri.streaming.channels import Channels
from nagaya.api.cri.streaming.handshake import Refused, Upgrade, accept, read_request
from nagaya.errors import NagayaError, ResourceExhausted

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_LIFE = 60.0  # seconds that an address is good for
_MOST = 1000  # addresses that wait for their clients
_HEAD = 30.0  # seconds that a client has to say what it wants

Session = Callable[[Channels], Awaitable[None]]


class _Offer(NamedTuple):
    session: Session
    upgrade: Upgrade
    until: float


class StreamingServer:
    """Lives on the event loop."""

    def __init__(self) -> None:
        self._offers: dict[str, _Offer] = {}
        self._server: asyncio.Server | None = None
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening; what streams ends."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def offer(self, kind: str, upgrade: Upgrade, session: Session) -> str:
        """The address where the client of a session is awaited. kind: what its path begins with. Raises
        ResourceExhausted when too many wait."""
        now = time.monotonic()
        for token in [t for t, offer in self._offers.items() if offer.until < now]:
            del self._offers[token]
        if len(self._offers) >= _MOST:
            raise ResourceExhausted(f"{_MOST} addresses for streams wait for their clients")
        token = secrets.token_urlsafe(16)
        self._offers[token] = _Offer(session, upgrade, now + _LIFE)
        return f"http://{HOST}:{self._port}/{kind}/{token}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                await self._converse(reader, writer)
        except Exception:
            log.exception("defect in a stream")
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD):
                request = await read_request(reader)
            token = request.path.rpartition("/")[2]
            offer = self._offers.get(token)
            if offer is None or offer.until < time.monotonic():
                raise Refused(404, "no stream waits at this address: it is used up, or too old")
            channels = accept(request, offer.upgrade, reader, writer)  # a wrong request may be put right
            del self._offers[token]
        except Refused as refusal:
            writer.write(refusal.response())
            await writer.drain()
            return
        try:
            await channels.open()
            await offer.session(channels)
        except NagayaError as error:
            log.warning("a stream ended: %s", error)
        finally:
            await channels.close()
