"""What the Docker Engine API has and this daemon does not serve yet: 501 with one line that names it,
so that a client's message says more than "page not found". Listed in docs/docker-api.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nagaya.api.http.messages import Answer, Request
from nagaya.api.http.router import Route
from nagaya.engine.service import EngineService
from nagaya.errors import Unimplemented

UNSERVED = (
    ("POST", "/session", "building images with BuildKit"),
    ("POST", "/grpc", "building images with BuildKit"),
    ("GET", "/containers/{id}/checkpoints", "checkpoints"),
    ("POST", "/containers/{id}/checkpoints", "checkpoints"),
    ("PUT", "/volumes/{name}", "updating cluster volumes"),
)


def _refusal(method: str, pattern: str, what: str) -> Callable[[EngineService, Request], Awaitable[Answer]]:
    async def refuse(engine: EngineService, request: Request) -> Answer:
        raise Unimplemented(f"{what} is not supported yet ({method} {pattern.replace(':path', '')})")

    return refuse


ROUTES = tuple(
    Route(method, pattern, _refusal(method, pattern, what), cancel=True) for method, pattern, what in UNSERVED
)
