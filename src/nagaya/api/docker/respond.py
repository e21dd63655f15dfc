"""Small answers that every resource makes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec

from nagaya.api.docker.errors import message_of
from nagaya.api.http.messages import Request, Response
from nagaya.errors import InvalidArgument
from nagaya.wire.streams import parse_detach_keys

RAW_STREAM = b"application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = b"application/vnd.docker.multiplexed-stream"
WRITE_TIMEOUT = 10.0
_HEAD_PATIENCE = 0.2  # seconds; longer than a client that reads at all takes to read a head


def json_line(document: Any) -> bytes:
    """JSON as dockerd writes it: one line with its end."""
    return msgspec.json.encode(document) + b"\n"


def json_response(document: Any, status: int = 200) -> Response:
    """A whole JSON answer."""
    return Response(status, json_line(document))


def no_content() -> Response:
    """204."""
    return Response(204)


def stream_type(version: tuple[int, int], tty: bool) -> bytes:
    """The content type of a container's output: since 1.42 it says whether frames are inside."""
    return RAW_STREAM if tty or version < (1, 42) else MULTIPLEXED_STREAM


def detach_keys(text: str, kind: str) -> str:
    """The keys of a request, checked before anything is made or taken over. Raises InvalidArgument, in
    dockerd's words for this kind of request."""
    try:
        parse_detach_keys(text)
    except InvalidArgument:
        raise InvalidArgument(f"Invalid {kind} keys ({text}) provided", subject="detachKeys") from None
    return text


def frame(stream: int, data: bytes) -> bytes:
    """One frame of the multiplexed format: stream (1 stdout, 2 stderr), three zeros, length, data."""
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


def hijack_head(request: Request, content_type: bytes) -> bytes:
    """The answer after which the connection is the container's: 101 for clients that asked to upgrade."""
    if request.wants_upgrade:
        return (
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
            % content_type
        )
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n" % content_type


async def tell_and_close(fd: int, error: Exception, tty: bool) -> None:
    """Write an error into a hijacked connection, as dockerd does, and close it."""
    text = message_of(error).encode() + b"\r\n"
    data = text if tty else frame(2, text)
    loop = asyncio.get_running_loop()
    try:
        os.set_blocking(fd, False)
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                writable = asyncio.Event()
                loop.add_writer(fd, writable.set)
                try:
                    await asyncio.wait_for(writable.wait(), WRITE_TIMEOUT)
                finally:
                    loop.remove_writer(fd)
    except (OSError, TimeoutError):
        pass  # the client went away: nobody is left to tell
    finally:
        os.close(fd)


async def primed(items: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`items` with the first one already fetched: an error before it is still an HTTP status."""
    try:
        first = await anext(items)
    except StopAsyncIteration:
        return _chain(None, items)
    return _chain(first, items)


async def _chain(first: bytes | None, items: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        if first is not None:
            yield first
            async for item in items:
                yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def head_taken(fd: int) -> None:
    """Wait, not for long, until the client has read the head it was sent. docker-py would lose what comes in
    the same read as the head: dockerd takes some milliseconds to read a log, and never meets that."""
    deadline = time.monotonic() + _HEAD_PATIENCE
    with suppress(OSError):  # no socket of that kind
        while time.monotonic() < deadline and any(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))):
            await asyncio.sleep(0.001)
