"""/containers: what stays open: attach, wait, logs, stats."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import cast
from urllib.parse import quote_plus

from nagaya.api.docker.errors import message_of
from nagaya.api.docker.respond import (
    detach_keys,
    frame,
    head_taken,
    hijack_head,
    json_line,
    json_response,
    primed,
    stream_type,
    tell_and_close,
)
from nagaya.api.docker.types.stats import Machine, Reading, stats_document
from nagaya.api.docker.types.times import parse_timestamp, rfc3339_fixed
from nagaya.api.http import websocket
from nagaya.api.http.messages import Answer, Request, Stream
from nagaya.api.http.router import Route
from nagaya.engine.model import AttachRequest, Container, LogLine, WaitResult
from nagaya.engine.service import EngineService, WaitCondition
from nagaya.errors import FailedPrecondition, InvalidArgument, Unimplemented


def _attachable(engine: EngineService, request: Request) -> Container:
    """The container of an attach request. Raises FailedPrecondition in a state without streams."""
    container = engine.inspect_container(request.params["id"])
    if container.state == "paused":
        raise FailedPrecondition(
            f"container {request.params['id']} is paused, unpause the container before attach"
        )
    if container.state == "restarting":
        raise FailedPrecondition(
            f"container {request.params['id']} is restarting, wait until the container is running"
        )
    detach_keys(request.get("detachKeys"), "detach")
    return container


def _attachment(request: Request, preface: bytes = b"", *, frames: bool = True) -> AttachRequest:
    return AttachRequest(
        stdin=request.flag("stdin"),
        stdout=request.flag("stdout"),
        stderr=request.flag("stderr"),
        stream=request.flag("stream"),
        logs=request.flag("logs"),
        detach_keys=request.get("detachKeys"),
        preface=preface,
        frames=frames,
    )


async def attach(engine: EngineService, request: Request) -> Answer:
    """POST /containers/{id}/attach: the connection becomes the container's stdio."""
    container = _attachable(engine, request)
    await request.body()
    tty = container.config.tty
    fd, preface = await request.hijack(hijack_head(request, stream_type(request.version, tty)))
    spare = os.dup(fd)
    if request.flag("logs"):
        await head_taken(fd)
    try:
        await engine.attach_container(container.id, _attachment(request, preface), fd)
    except Exception as error:
        await tell_and_close(spare, error, tty)
    else:
        os.close(spare)
    return None


async def attach_ws(engine: EngineService, request: Request) -> Answer:
    """GET /containers/{id}/attach/ws: the same through a websocket, both streams in one."""
    container = _attachable(engine, request)
    fd, preface = await request.hijack(websocket.accept_head(request))
    client = socket.socket(fileno=fd)
    ours, theirs = socket.socketpair()
    try:
        await engine.attach_container(container.id, _attachment(request, frames=False), theirs.detach())
    except Exception as error:
        ours.close()
        client.setblocking(False)
        data = websocket.encode(websocket.TEXT, message_of(error).encode())
        await asyncio.get_running_loop().sock_sendall(client, data)
        client.close()
    else:
        opcode = websocket.TEXT if request.version < (1, 28) else websocket.BINARY
        await websocket.pump(client, preface, ours, opcode)
    return None


async def wait(engine: EngineService, request: Request) -> Answer:
    """POST /containers/{id}/wait: the header goes out now, the exit code when there is one. The CLI
    sends /start only after it has seen the header."""
    condition = request.get("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise InvalidArgument(f'invalid condition: "{condition}"', subject="condition")
    results = engine.begin_wait(request.params["id"], cast(WaitCondition, condition))

    async def items() -> AsyncIterator[bytes]:
        async for result in results():
            yield json_line(_wait_document(result))
            return

    return Stream(
        items(),
        render_error=lambda error: json_line({"StatusCode": -1, "Error": {"Message": message_of(error)}}),
    )


def _wait_document(result: WaitResult) -> dict[str, object]:
    document: dict[str, object] = {"StatusCode": result.exit_code}
    if result.error:
        document["Error"] = {"Message": result.error}
    return document


async def logs(engine: EngineService, request: Request) -> Answer:
    """GET /containers/{id}/logs"""
    container = engine.inspect_container(request.params["id"])
    stdout, stderr = request.flag("stdout"), request.flag("stderr")
    if not (stdout or stderr):
        raise InvalidArgument("Bad parameters: you must choose at least one stream")
    if container.config.log.driver == "none":
        raise Unimplemented("configured logging driver does not support reading")
    now = time.time_ns()
    batches = engine.logs(
        container.id,
        stdout=stdout,
        stderr=stderr,
        since=parse_timestamp(request.get("since"), "since", now),
        until=parse_timestamp(request.get("until"), "until", now),
        tail=_tail(request.get("tail")),
        follow=request.flag("follow"),
    )
    tty, stamps, details = container.config.tty, request.flag("timestamps"), request.flag("details")

    def shown(line: LogLine) -> bytes:
        data = line.data
        if details:
            data = _details(line) + b" " + data
        if stamps:
            data = rfc3339_fixed(line.time_ns).encode() + b" " + data
        return data if tty else frame(2 if line.stream == "stderr" else 1, data)

    async def items() -> AsyncIterator[bytes]:
        async for lines in batches:
            yield b"".join([shown(line) for line in lines])

    def render_error(error: Exception) -> bytes:
        text = b"Error grabbing logs: " + message_of(error).encode() + b"\n"
        return text if tty else frame(2, text)

    return Stream(items(), content_type=stream_type(request.version, tty), render_error=render_error)


def _details(line: LogLine) -> bytes:
    """The attributes of a line: sorted, each escaped as in a query."""
    pairs = sorted(line.attributes.items())
    return ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs).encode()


def _tail(text: str) -> int | None:
    """A number of lines; "all", "" and, as dockerd, whatever is no number: all."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number >= 0 else None


async def stats(engine: EngineService, request: Request) -> Answer:
    """GET /containers/{id}/stats: one reading a second, or one (`stream=false`)."""
    container = engine.inspect_container(request.params["id"])
    machine = Machine(os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

    async def read() -> Reading:
        return Reading(await engine.stats(container.id), _system_cpu_ns(), time.time_ns())

    empty = Reading({}, 0, 0)
    running = container.state in ("running", "paused")
    if not request.flag("stream", True):
        if not running:
            return json_response(stats_document(container, empty, empty, machine))
        before = empty
        if not request.flag("one-shot"):
            before = await read()
            await asyncio.sleep(1)
        return json_response(stats_document(container, before, await read(), machine))

    async def items() -> AsyncIterator[bytes]:
        before = empty
        while True:
            now = engine.inspect_container(container.id)
            if now.state in ("running", "paused"):
                reading = await read()
                yield json_line(stats_document(now, before, reading, machine))
                before = reading
            else:
                before = empty
                yield json_line(stats_document(now, empty, empty, machine))
            await asyncio.sleep(1)

    return Stream(await primed(items()), render_error=lambda error: b"")


def _system_cpu_ns() -> int:
    """CPU time of the whole machine, all states, as dockerd sums /proc/stat (proc(5): USER_HZ)."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = file.readline().split()
    return sum(int(field) for field in fields[1:9]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


ROUTES = (
    Route("POST", "/containers/{id:path}/attach", attach),
    Route("GET", "/containers/{id:path}/attach/ws", attach_ws),
    Route("POST", "/containers/{id:path}/wait", wait, cancel=True),
    Route("GET", "/containers/{id:path}/logs", logs),
    Route("GET", "/containers/{id:path}/stats", stats),
)
