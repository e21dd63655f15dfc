"""What dockerd answers that is no member of a swarm and has no plugins: so are we, and remain.

Clients ask these questions without meaning them (`docker info`, Compose, IDEs): they get dockerd's
answers, and only what would make a node a manager, or install a plugin, is refused as not offered.
"""

from __future__ import annotations

from nagaya.api.docker.respond import json_response
from nagaya.api.http.messages import Answer, Request, Response
from nagaya.api.http.router import Route
from nagaya.engine.service import EngineService
from nagaya.errors import NotFound, Unavailable, Unimplemented


async def no_manager(engine: EngineService, request: Request) -> Answer:
    """Whatever only a manager knows"""
    raise Unavailable(
        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this '
        "node to swarm and try again."
    )


async def leave(engine: EngineService, request: Request) -> Answer:
    """POST /swarm/leave"""
    raise Unavailable("This node is not part of a swarm")


async def join(engine: EngineService, request: Request) -> Answer:
    """POST /swarm/init and /swarm/join"""
    raise Unimplemented(f"Swarm is not offered ({request.method} {request.path})")


async def plugins(engine: EngineService, request: Request) -> Response:
    """GET /plugins"""
    return json_response([])


async def no_plugin(engine: EngineService, request: Request) -> Answer:
    """Anything about a plugin"""
    name = request.params["name"]
    raise NotFound(f'plugin "{name}" not found', subject=name)


async def no_new_plugin(engine: EngineService, request: Request) -> Answer:
    """Installing one"""
    raise Unimplemented(f"plugins are not offered ({request.method} {request.path})")


ROUTES = (
    Route("POST", "/swarm/init", join),
    Route("POST", "/swarm/join", join),
    Route("POST", "/swarm/leave", leave),
    Route("GET", "/swarm", no_manager),
    Route("GET", "/swarm/unlockkey", no_manager),
    Route("POST", "/swarm/update", no_manager),
    Route("POST", "/swarm/unlock", no_manager),
    *(
        Route(method, pattern, no_manager)
        for kind in ("nodes", "services", "tasks", "secrets", "configs")
        for method in ("GET", "POST", "DELETE")
        for pattern in (f"/{kind}", f"/{kind}/{{rest:path}}")
    ),
    Route("GET", "/plugins", plugins),
    Route("GET", "/plugins/privileges", no_new_plugin),
    Route("POST", "/plugins/pull", no_new_plugin),
    Route("POST", "/plugins/create", no_new_plugin),
    Route("GET", "/plugins/{name:path}/json", no_plugin),
    *(
        Route("POST", f"/plugins/{{name:path}}/{verb}", no_plugin)
        for verb in ("enable", "disable", "push", "set", "upgrade")
    ),
    Route("DELETE", "/plugins/{name:path}", no_plugin),
)
