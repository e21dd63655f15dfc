"""What the handlers of RPCs get: the engine, its pods, and the streaming server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

from nagaya.api.cri.streaming import StreamingServer
from nagaya.engine.engine import Engine
from nagaya.engine.pods_containers import PodService

# seconds until the caller's deadline, None without one
time_left: ContextVar[float | None] = ContextVar("time_left", default=None)


class Context:
    """One for the life of the server."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pods: PodService = engine.pods
        self.streaming = StreamingServer()


Unary = Callable[[Context, Any], Coroutine[Any, Any, Any]]
Lister = Callable[[Context, Any], Coroutine[Any, Any, Sequence[Any]]]
Watcher = Callable[[Context, Any], AsyncGenerator[Any, None]]
