"""A container's files: archive (`docker cp`), export, changes."""

from __future__ import annotations

import base64
import stat

from nagaya.api.docker.respond import json_line, json_response
from nagaya.api.docker.types.times import rfc3339_nano
from nagaya.api.http.messages import Headers, Request, Response, Stream
from nagaya.api.http.router import Route
from nagaya.engine.copying import PathStat
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument

# Go's os.FileMode keeps what is not a permission in high bits of its own
_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))
_TAR = b"application/x-tar"
_OCTETS = b"application/octet-stream"
_CHANGES = {"modified": 0, "added": 1, "deleted": 2}


def go_mode(mode: int) -> int:
    """st_mode as Go's os.FileMode."""
    found = mode & 0o777 | _KINDS.get(stat.S_IFMT(mode), 0)
    for ours, theirs in _BITS:
        found |= theirs if mode & ours else 0
    return found


def stat_headers(found: PathStat) -> Headers:
    """X-Docker-Container-Path-Stat: base64 of JSON."""
    document = {
        "name": found.name,
        "size": found.info.st_size,
        "mode": go_mode(found.info.st_mode),
        "mtime": rfc3339_nano(found.info.st_mtime_ns),
        "linkTarget": found.link,
    }
    return ((b"X-Docker-Container-Path-Stat", base64.b64encode(json_line(document).rstrip())),)


def _path(request: Request) -> str:
    path = request.get("path")
    if not path:
        raise InvalidArgument("bad parameter: path cannot be empty", subject="path")
    return path


async def head(engine: EngineService, request: Request) -> Response:
    """HEAD /containers/{id}/archive"""
    found = await engine.look_at(request.params["id"], _path(request))
    return Response(200, content_type=b"", headers=stat_headers(found))


async def get(engine: EngineService, request: Request) -> Stream:
    """GET /containers/{id}/archive"""
    found, archive = await engine.read_archive(request.params["id"], _path(request))
    return Stream(archive, content_type=_TAR, headers=stat_headers(found))


async def put(engine: EngineService, request: Request) -> Response:
    """PUT /containers/{id}/archive"""
    await engine.write_archive(
        request.params["id"],
        _path(request),
        request.chunks(),
        strict=request.flag("noOverwriteDirNonDir"),
        as_user=request.flag("copyUIDGID"),
    )
    return Response(200, content_type=b"")


async def export(engine: EngineService, request: Request) -> Stream:
    """GET /containers/{id}/export"""
    return Stream(await engine.export_container(request.params["id"]), content_type=_OCTETS)


async def changes(engine: EngineService, request: Request) -> Response:
    """GET /containers/{id}/changes"""
    found = await engine.container_changes(request.params["id"])
    return json_response([{"Path": c.path, "Kind": _CHANGES[c.kind]} for c in found] or None)


ROUTES = (
    Route("GET", "/containers/{id:path}/export", export),
    Route("GET", "/containers/{id:path}/changes", changes),
    Route("HEAD", "/containers/{id:path}/archive", head),
    Route("GET", "/containers/{id:path}/archive", get),
    Route("PUT", "/containers/{id:path}/archive", put),
)
