"""/volumes: made, listed, inspected, removed, pruned."""

from __future__ import annotations

from collections import Counter

from nagaya.api.docker.respond import json_response, no_content
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.structs import VolumeCreateBody, decode_body
from nagaya.api.docker.types.times import rfc3339_nano
from nagaya.api.http.messages import Request, Response
from nagaya.api.http.router import Route
from nagaya.engine.model import VolumeSummary
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument, NotFound

_FILTERS = frozenset({"dangling", "driver", "label", "name"})
_PRUNE_FILTERS = frozenset({"label", "label!", "all"})
_ANONYMOUS_ONLY = (1, 42)  # since this version a prune takes named volumes only when it is told to


async def create(engine: EngineService, request: Request) -> Response:
    """POST /volumes/create"""
    body = decode_body(await request.body(), VolumeCreateBody)
    if body.ClusterVolumeSpec:
        raise InvalidArgument("ClusterVolumeSpec is not supported: cluster volumes are Swarm's")
    made = await engine.create_volume(
        body.Name or "",
        driver=body.Driver or "",
        labels=body.Labels or {},
        options=body.DriverOpts or {},
    )
    return json_response(volume_document(made), 201)


async def listing(engine: EngineService, request: Request) -> Response:
    """GET /volumes"""
    filters = Filters.parse(request.get("filters"))
    filters.check(_FILTERS)
    dangling = filters.boolean("dangling")
    used = volume_users(engine)
    chosen = [
        volume_document(volume)
        for volume in engine.volumes()
        if (dangling is None or dangling is (volume.name not in used))
        and filters.matches_any("driver", lambda value: value == "local")
        and filters.matches_any("name", lambda value, name=volume.name: value in name)  # type: ignore[misc]
        and filters.matches_labels(volume.labels)
    ]
    return json_response({"Volumes": chosen, "Warnings": None})


async def inspect(engine: EngineService, request: Request) -> Response:
    """GET /volumes/{name}"""
    name = request.params["name"]
    for volume in engine.volumes():
        if volume.name == name:
            return json_response(volume_document(volume))
    raise NotFound(f"get {name}: no such volume", subject=name)


async def remove(engine: EngineService, request: Request) -> Response:
    """DELETE /volumes/{name}"""
    await engine.remove_volume(request.params["name"], force=request.flag("force"))
    return no_content()


async def prune(engine: EngineService, request: Request) -> Response:
    """POST /volumes/prune"""
    filters = Filters.parse(request.get("filters"))
    old = request.version < _ANONYMOUS_ONLY
    filters.check(_PRUNE_FILTERS - {"all"} if old else _PRUNE_FILTERS)
    everything = old or filters.boolean("all") is True

    def chosen(volume: VolumeSummary) -> bool:
        return (
            not volume.options  # what is mounted there is somebody's, even when nobody uses it now
            and (everything or volume.anonymous)
            and filters.matches_labels(volume.labels)
            and filters.lacks_labels(volume.labels)
        )

    removed, freed = await engine.prune_volumes(chosen)
    return json_response({"VolumesDeleted": list(removed), "SpaceReclaimed": freed})


def volume_users(engine: EngineService) -> Counter[str]:
    """How many containers use each volume."""
    return Counter(
        mount.source
        for container in engine.list_containers()
        for mount in container.mount_points
        if mount.type == "volume"
    )


def volume_document(volume: VolumeSummary) -> dict[str, object]:
    """A volume as Docker's Volume resource."""
    return {
        "CreatedAt": rfc3339_nano(volume.created // 10**9 * 10**9),
        "Driver": "local",
        "Labels": dict(volume.labels) or None,
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": "local",
    }


ROUTES = (
    Route("POST", "/volumes/create", create),
    Route("GET", "/volumes", listing),
    Route("GET", "/volumes/{name}", inspect),
    Route("DELETE", "/volumes/{name}", remove),
    Route("POST", "/volumes/prune", prune),
)
