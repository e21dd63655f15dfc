"""/exec: further processes in a running container."""

from __future__ import annotations

import os

from nagaya.api.docker.containers import terminal_size
from nagaya.api.docker.respond import detach_keys, hijack_head, json_response, stream_type, tell_and_close
from nagaya.api.docker.types.create import exec_config
from nagaya.api.docker.types.structs import ExecCreateBody, ExecStartBody, decode_body
from nagaya.api.http.messages import Answer, Request, Response
from nagaya.api.http.router import Route
from nagaya.engine.service import EngineService
from nagaya.errors import FailedPrecondition, InvalidArgument


async def create(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/exec"""
    config = exec_config(decode_body(await request.body(), ExecCreateBody))
    detach_keys(config.detach_keys, "escape")
    return json_response({"Id": await engine.create_exec(request.params["id"], config)}, 201)


async def start(engine: EngineService, request: Request) -> Answer:
    """POST /exec/{id}/start: detached, or the connection becomes the process's stdio."""
    body = decode_body(await request.body(), ExecStartBody)
    session = engine.inspect_exec(request.params["id"])
    if session.running:
        raise FailedPrecondition(f"Error: Exec command {session.id} is already running")
    if session.exit_code is not None:
        raise FailedPrecondition(f"Error: Exec command {session.id} has already run")
    console = _console(body.ConsoleSize, session.config.tty)
    if body.Detach:
        await engine.start_exec(session.id, None, console=console)
        return Response(200, content_type=b"")
    container = engine.inspect_container(session.container_id)
    if container.state != "running":
        raise FailedPrecondition(f"container {container.id} is not running")
    tty = bool(body.Tty)  # of the stream: a terminal's output comes in frames, too, where this is not said
    fd, preface = await request.hijack(hijack_head(request, stream_type(request.version, tty)))
    spare = os.dup(fd)
    try:
        await engine.start_exec(session.id, fd, preface=preface, console=console, frames=not tty)
    except Exception as error:
        await tell_and_close(spare, error, tty)
    else:
        os.close(spare)
    return None


async def inspect(engine: EngineService, request: Request) -> Response:
    """GET /exec/{id}/json"""
    session = await engine.settled_exec(request.params["id"])
    config = session.config
    return json_response(
        {
            "ID": session.id,
            "Running": session.running,
            "ExitCode": session.exit_code,
            "ProcessConfig": {
                "tty": config.tty,
                "entrypoint": config.command[0],
                "arguments": list(config.command[1:]),
                "privileged": config.privileged,
                **({"user": config.user} if config.user else {}),
            },
            "OpenStdin": config.attach_stdin,
            "OpenStderr": config.attach_stderr,
            "OpenStdout": config.attach_stdout,
            "CanRemove": session.exit_code is not None,
            "ContainerID": session.container_id,
            "DetachKeys": config.detach_keys,
            "Pid": session.pid,
        }
    )


async def resize(engine: EngineService, request: Request) -> Response:
    """POST /exec/{id}/resize"""
    height, width = terminal_size(request)
    await engine.resize_exec(request.params["id"], height, width)
    return Response(200, content_type=b"")


def _console(size: list[int] | None, tty: bool) -> tuple[int, int] | None:
    if not size or not any(size):
        return None
    if len(size) != 2 or not all(0 <= number <= 65535 for number in size):
        raise InvalidArgument(f"invalid console size: {size}", subject="ConsoleSize")
    if not tty:
        raise InvalidArgument("console size is only supported with a TTY", subject="ConsoleSize")
    return size[0], size[1]


ROUTES = (
    Route("POST", "/containers/{id:path}/exec", create),
    Route("POST", "/exec/{id}/start", start),
    Route("GET", "/exec/{id}/json", inspect),
    Route("POST", "/exec/{id}/resize", resize),
)
