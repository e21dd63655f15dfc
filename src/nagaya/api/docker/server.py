"""The Docker Engine API on a Unix socket: version negotiation, routes, errors.

What is served and how it differs from dockerd: docs/docker-api.md.
"""

from __future__ import annotations

import asyncio
import re

import nagaya
from nagaya.api.docker import (
    archive,
    build,
    containers,
    execs,
    images,
    metrics,
    networks,
    streams,
    swarm,
    system,
    unserved,
    volumes,
)
from nagaya.api.docker.errors import error_response, message_response
from nagaya.api.docker.version import API_VERSION, MIN_API_VERSION, parse_version
from nagaya.api.http.messages import Answer, Request
from nagaya.api.http.router import Router
from nagaya.api.http.server import HttpServer, serve
from nagaya.engine.service import EngineService

_PREFIX = re.compile(r"/v([0-9]+)\.([0-9]+)(/.*)")

_ROUTES = (
    *system.ROUTES,
    *containers.ROUTES,
    *streams.ROUTES,
    *execs.ROUTES,
    *archive.ROUTES,
    *images.ROUTES,
    *build.ROUTES,
    *networks.ROUTES,
    *volumes.ROUTES,
    *metrics.ROUTES,
    *swarm.ROUTES,
    *unserved.ROUTES,
)

COMMON_HEADERS = (
    (b"Api-Version", API_VERSION.encode()),
    (b"Docker-Experimental", b"false"),
    (b"Ostype", b"linux"),
    (b"Server", f"nagaya/{nagaya.__version__} (linux)".encode()),
)


class DockerApplication:
    """Callable for `api.http`: finds the handler, and turns every error into an answer."""

    def __init__(self, engine: EngineService) -> None:
        self._engine = engine
        self._router: Router[EngineService] = Router(_ROUTES)
        self._newest = parse_version(API_VERSION)
        self._oldest = parse_version(MIN_API_VERSION)

    async def __call__(self, request: Request) -> Answer:
        try:
            path = request.path
            request.version = self._newest
            prefix = _PREFIX.fullmatch(path)
            if prefix is not None:
                version = (int(prefix[1][:6]), int(prefix[2][:6]))
                refused = self._refuse_version(version)
                if refused:
                    return message_response(400, refused)
                request.version = version
                path = prefix[3]
            found = self._router.find(request.method, path)
            if found is None:
                return message_response(404, "page not found")
            route, request.params = found
            request.shielded = request.method not in ("GET", "HEAD") and not route.cancel
            return await route.handler(self._engine, request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            return error_response(error)

    def _refuse_version(self, version: tuple[int, int]) -> str:
        text = f"{version[0]}.{version[1]}"
        if version > self._newest:
            return f"client version {text} is too new. Maximum supported API version is {API_VERSION}"
        if version < self._oldest:
            return (
                f"client version {text} is too old. Minimum supported API version is {MIN_API_VERSION}, "
                "please upgrade your client to a newer version"
            )
        return ""


async def start_server(engine: EngineService, path: str, *, group: str = "nagaya") -> HttpServer:
    """Serve `engine` at the Unix socket `path`, 0660 root:`group` when that group exists, else 0600.

    Returns the server: `close()` stops accepting, `await wait_closed()` waits for what runs.
    Raises FailedPrecondition when something else listens there."""
    return await serve(DockerApplication(engine), path, group=group, headers=COMMON_HEADERS)
