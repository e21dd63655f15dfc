"""/containers: life cycle, inspect, list. What streams is in `streams`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from typing import Any

from nagaya.api.docker.respond import json_response, no_content
from nagaya.api.docker.types import history
from nagaya.api.docker.types.create import container_name, create_request
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.inspect import inspect
from nagaya.api.docker.types.limits import resources, restart_policy
from nagaya.api.docker.types.listing import prunable, select, summary
from nagaya.api.docker.types.structs import CreateBody, UpdateBody, decode_body
from nagaya.api.http.messages import Request, Response
from nagaya.api.http.router import Route
from nagaya.engine.model import Container
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument, NotFound

_PS_ARGUMENTS = re.compile(r"[a-zA-Z0-9=,._ +-]*")


async def create(engine: EngineService, request: Request) -> Response:
    """POST /containers/create"""
    body = decode_body(await request.body(), CreateBody)
    history.as_of(body, request.version, cgroup2=_fact(engine, "cgroup_version") == "2")
    wanted = create_request(body, request.get("name"), request.get("platform"), os.cpu_count() or 1)
    created = await engine.create_container(wanted)
    return json_response({"Id": created.id, "Warnings": list(created.warnings)}, 201)


async def listing(engine: EngineService, request: Request) -> Response:
    """GET /containers/json"""
    filters = Filters.parse(request.get("filters"))
    images: dict[str, str] = {}
    if filters.values("ancestor"):
        for image in await engine.list_images():
            for name in (*image.tags, *image.digests, image.id, image.id.removeprefix("sha256:")):
                images[name] = image.id
                images.setdefault(name.removesuffix(":latest"), image.id)
            images.setdefault(image.id.removeprefix("sha256:")[:12], image.id)
    chosen = select(
        engine.list_containers(),
        filters,
        everything=request.flag("all"),
        limit=request.integer("limit", -1),
        images=images,
    )
    return json_response(await summaries(engine, chosen, size=request.flag("size")))


async def summaries(
    engine: EngineService, containers: Iterable[Container], *, size: bool
) -> list[dict[str, Any]]:
    """The elements of the list, with `size` what their files take."""
    root, now = _fact(engine, "root"), time.time_ns()
    result = []
    for container in containers:
        shown = summary(container, root, now)
        if size:
            try:
                shown |= await _sizes(engine, container.id)
            except NotFound:
                continue  # removed meanwhile
        result.append(shown)
    return result


async def _sizes(engine: EngineService, container_id: str) -> dict[str, int]:
    """SizeRw and SizeRootFs. Raises NotFound."""
    written, whole = await engine.container_size(container_id)
    return {"SizeRw": written, "SizeRootFs": whole}


async def inspect_one(engine: EngineService, request: Request) -> Response:
    """GET /containers/{id}/json"""
    container = engine.inspect_container(request.params["id"])
    shown = inspect(
        container,
        _fact(engine, "root"),
        _fact(engine, "run"),
        apparmor=_fact(engine, "apparmor"),
    )
    history.inspected(shown, request.version)
    if request.flag("size"):
        shown |= await _sizes(engine, container.id)
    return json_response(shown)


async def start(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/start"""
    await engine.start_container(request.params["id"])
    return no_content()


async def stop(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/stop"""
    await engine.stop_container(request.params["id"], _timeout(request), request.get("signal"))
    return no_content()


async def restart(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/restart"""
    await engine.restart_container(request.params["id"], _timeout(request), request.get("signal"))
    return no_content()


async def kill(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/kill"""
    await engine.kill_container(request.params["id"], request.get("signal") or "KILL")
    return no_content()


async def pause(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/pause"""
    await engine.pause_container(request.params["id"])
    return no_content()


async def unpause(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/unpause"""
    await engine.unpause_container(request.params["id"])
    return no_content()


async def rename(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/rename"""
    name = request.get("name")
    if not name.strip("/"):
        raise InvalidArgument("Neither old nor new names may be empty", subject="name")
    await engine.rename_container(request.params["id"], container_name(name))
    return no_content()


async def update(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/update"""
    body = decode_body(await request.body(), UpdateBody)
    policy = body.RestartPolicy
    warnings = await engine.update_container(
        request.params["id"],
        resources(body, os.cpu_count() or 1, ""),
        restart_policy(policy) if policy is not None and policy.Name else None,
    )
    return json_response({"Warnings": list(warnings) or None})


async def remove(engine: EngineService, request: Request) -> Response:
    """DELETE /containers/{id}"""
    if request.flag("link"):
        await engine.remove_link(request.params["id"])
        return no_content()
    await engine.remove_container(
        request.params["id"], force=request.flag("force"), volumes=request.flag("v")
    )
    return no_content()


async def prune(engine: EngineService, request: Request) -> Response:
    """POST /containers/prune"""
    wanted = prunable(Filters.parse(request.get("filters")), time.time_ns())
    found = await engine.prune_containers(wanted)
    return json_response({"ContainersDeleted": list(found.ids) or None, "SpaceReclaimed": found.size})


async def resize(engine: EngineService, request: Request) -> Response:
    """POST /containers/{id}/resize"""
    height, width = terminal_size(request)
    await engine.resize_container(request.params["id"], height, width)
    return Response(200, content_type=b"")


async def top(engine: EngineService, request: Request) -> Response:
    """GET /containers/{id}/top"""
    arguments = request.get("ps_args", "-ef")
    if not _PS_ARGUMENTS.fullmatch(arguments):
        raise InvalidArgument(f"invalid ps arguments: {arguments!r}", subject="ps_args")
    titles, processes = await engine.top(request.params["id"], arguments)
    return json_response({"Titles": titles, "Processes": processes})


async def steps(engine: EngineService, request: Request) -> Response:
    """GET /nagaya/containers/{id}/steps: our own extension, for `nagaya explain`."""
    container = engine.inspect_container(request.params["id"])
    found = engine.container_steps(request.params["id"])
    return json_response(
        {
            "Id": container.id,
            "Name": "/" + container.name,
            "Steps": [
                {
                    "Room": step.room,
                    "Name": step.name,
                    "Detail": step.detail,
                    "StartNs": step.start_ns,
                    "DurationNs": step.duration_ns,
                }
                for step in found
            ],
        }
    )


def terminal_size(request: Request) -> tuple[int, int]:
    """h and w. Raises InvalidArgument."""
    height, width = request.integer("h", -1), request.integer("w", -1)
    if not 0 <= height <= 65535 or not 0 <= width <= 65535:
        raise InvalidArgument(f"invalid terminal size: h={request.get('h')!r} w={request.get('w')!r}")
    return height, width


def _timeout(request: Request) -> int | None:
    return request.integer("t") if request.get("t") else None


def _fact(engine: EngineService, name: str) -> str:
    return str(engine.info().get(name, ""))


ROUTES = (
    Route("POST", "/containers/create", create),
    Route("GET", "/containers/json", listing),
    Route("POST", "/containers/prune", prune),
    Route("GET", "/containers/{id:path}/json", inspect_one),
    Route("POST", "/containers/{id:path}/start", start),
    Route("POST", "/containers/{id:path}/stop", stop),
    Route("POST", "/containers/{id:path}/restart", restart),
    Route("POST", "/containers/{id:path}/kill", kill),
    Route("POST", "/containers/{id:path}/pause", pause),
    Route("POST", "/containers/{id:path}/unpause", unpause),
    Route("POST", "/containers/{id:path}/rename", rename),
    Route("POST", "/containers/{id:path}/update", update),
    Route("DELETE", "/containers/{id:path}", remove),
    Route("POST", "/containers/{id:path}/resize", resize),
    Route("GET", "/containers/{id:path}/top", top),
    Route("GET", "/nagaya/containers/{id}/steps", steps),
)
