"""The Container Runtime Interface on a Unix socket: every RPC of the descriptor, the served ones by their
handlers, the others with UNIMPLEMENTED and one line that says so.

A handler runs to its end whether its caller waits or not, and the same request again joins it: a kubelet
that gave up too early finds the work done, not a name that is taken (docs/cri.md). Commands
alone are each caller's own, and end with him.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpclib import GRPCError
from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

from nagaya.api.cri import checkpoints, commands, containers, events, images, metrics, pods, runtime, stats
from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Lister, Unary, Watcher, time_left
from nagaya.api.cri.wire import failure
from nagaya.api.http.server import listen_unix
from nagaya.engine.engine import Engine

_GRACE = 5.0

UNARY: Mapping[str, Unary] = {
    **runtime.UNARY,
    **pods.UNARY,
    **containers.UNARY,
    **commands.UNARY,
    **images.UNARY,
    **stats.UNARY,
    **metrics.UNARY,
    **checkpoints.UNARY,
}
WATCHERS: Mapping[str, Watcher] = events.WATCHERS
LISTERS: Mapping[str, Lister] = {
    **pods.LISTERS,
    **containers.LISTERS,
    **images.LISTERS,
    **stats.LISTERS,
    **metrics.LISTERS,
}

_BATCH = 256  # items in a message of a streamed list: far below the 16 MiB that clients take


class _Service:
    """One gRPC service of the descriptor, for grpclib."""

    def __init__(self, service: ServiceDescriptor, context: Context) -> None:
        self._service = service
        self._context = context
        self._running: dict[tuple[str, bytes], asyncio.Task[Any]] = {}

    def __mapping__(self) -> dict[str, Handler]:
        return {f"/{self._service.full_name}/{m.name}": self._handler(m) for m in self._service.methods}

    def _handler(self, method: MethodDescriptor) -> Handler:
        name = method.name
        streams = method.server_streaming
        serve: Callable[[Any], Any]
        if name in UNARY:
            serve = self._unary(name, UNARY[name])
        elif name in WATCHERS:
            serve = self._watcher(WATCHERS[name])
        else:
            serve = self._lister(LISTERS[name], GetMessageClass(method.output_type))
        return Handler(
            serve,
            Cardinality.UNARY_STREAM if streams else Cardinality.UNARY_UNARY,
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
        )

    def _unary(self, name: str, handler: Unary) -> Callable[[Stream[Any, Any]], Any]:
        async def serve(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            if request is None:
                return
            time_left.set(stream.deadline.time_remaining() if stream.deadline else None)
            try:
                if name in commands.UNARY:
                    reply = await handler(self._context, request)
                else:
                    reply = await asyncio.shield(self._join(name, handler, request))
            except asyncio.CancelledError:
                raise
            except Exception as error:
                raise failure(error) from None
            await stream.send_message(reply)

        return serve

    def _join(self, name: str, handler: Unary, request: Any) -> asyncio.Task[Any]:
        """The work of this very request: what runs already, or begins now."""
        key = (name, request.SerializeToString(deterministic=True))
        task = self._running.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(handler(self._context, request), name=name)
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: tuple[str, bytes], task: asyncio.Task[Any]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, also when nobody waits any more

    def _watcher(self, handler: Watcher) -> Callable[[Stream[Any, Any]], Any]:
        async def serve(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            await stream.send_initial_metadata()  # the subscription begins before the first event
            try:
                async with aclosing(handler(self._context, request)) as replies:
                    async for reply in replies:
                        await stream.send_message(reply)
            except (asyncio.CancelledError, GRPCError):
                raise
            except Exception as error:
                raise failure(error) from None

        return serve

    def _lister(self, handler: Lister, kind: Any) -> Callable[[Stream[Any, Any]], Any]:
        field = kind.DESCRIPTOR.fields[0].name

        async def serve(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            try:
                items = await handler(self._context, request)
            except Exception as error:
                raise failure(error) from None
            await stream.send_initial_metadata()
            for begin in range(0, len(items), _BATCH):
                await stream.send_message(kind(**{field: items[begin : begin + _BATCH]}))

        return serve

    async def finish(self) -> None:
        """Let what runs come to its end."""
        if self._running:
            await asyncio.wait(tuple(self._running.values()), timeout=_GRACE)


class CriServer:
    """The listening server."""

    def __init__(self, context: Context, path: str) -> None:
        services = cri.DESCRIPTOR.services_by_name
        self._services = [_Service(s, context) for s in services.values()]
        self._server = Server(self._services)
        self._context = context
        self._path = path

    async def start(self, group: str) -> None:
        """Listen. Raises FailedPrecondition when something else does."""
        await self._context.streaming.start()
        sock = listen_unix(self._path, group)
        await self._server.start(sock=sock)

    async def close(self) -> None:
        """Stop accepting, end idle connections and streams, wait for what runs."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        for service in self._services:
            await service.finish()
        self._server.close()
        await self._context.streaming.close()


async def start_server(engine: Engine, path: str, *, group: str) -> CriServer:
    """Serve the engine's pods at the Unix socket `path`. Raises FailedPrecondition, InvalidArgument."""
    server = CriServer(Context(engine), path)
    await server.start(group)
    return server
