"""/_ping, /version, /info, /events, /system/df, /auth."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import nagaya
from nagaya.api.docker import build
from nagaya.api.docker.containers import summaries
from nagaya.api.docker.metrics import open_descriptors
from nagaya.api.docker.respond import json_line, json_response
from nagaya.api.docker.types import history
from nagaya.api.docker.types.events import EVENT_FILTERS, event_document, event_matches
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.image import summary
from nagaya.api.docker.types.info import info_document
from nagaya.api.docker.types.structs import AuthBody, decode_body
from nagaya.api.docker.types.times import parse_timestamp
from nagaya.api.docker.version import API_VERSION, MIN_API_VERSION
from nagaya.api.docker.volumes import volume_document, volume_users
from nagaya.api.http.messages import Request, Response, Stream
from nagaya.api.http.router import Route
from nagaya.engine.model import RegistryAuth
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_PING_HEADERS = (
    (b"Builder-Version", b"1"),
    (b"Swarm", b"inactive"),
    (b"Cache-Control", b"no-cache, no-store, must-revalidate"),
    (b"Pragma", b"no-cache"),
)


async def ping(engine: EngineService, request: Request) -> Response:
    """GET and HEAD /_ping"""
    return Response(200, b"OK", content_type=b"text/plain; charset=utf-8", headers=_PING_HEADERS)


async def version(engine: EngineService, request: Request) -> Response:
    """GET /version"""
    kernel = os.uname()
    architecture = _ARCHITECTURES.get(kernel.machine, kernel.machine)
    details = {
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "Os": "linux",
        "Arch": architecture,
        "KernelVersion": kernel.release,
        "Experimental": "false",
        "Python": platform.python_version(),
    }
    return json_response(
        {
            "Platform": {"Name": "nagaya"},
            "Components": [
                {"Name": "nagaya", "Version": nagaya.__version__, "Details": details},
                {"Name": "nagaya-oci", "Version": nagaya.__version__, "Details": {}},
            ],
            "Version": nagaya.__version__,
            "ApiVersion": API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GitCommit": "",
            "GoVersion": f"python{sys.version_info.major}.{sys.version_info.minor}",
            "Os": "linux",
            "Arch": architecture,
            "KernelVersion": kernel.release,
            "BuildTime": "",
        }
    )


async def info(engine: EngineService, request: Request) -> Response:
    """GET /info"""
    images = len(await engine.list_images())
    facts = {**engine.info(), "cdi_devices": await engine.cdi_devices()}
    shown = info_document(facts, engine.list_containers(), images, _host())
    history.informed(shown, request.version)
    return json_response(shown)


def _host() -> Mapping[str, Any]:
    """Facts about the machine."""
    kernel = os.uname()
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return {
        "Name": kernel.nodename,
        "KernelVersion": kernel.release,
        "OperatingSystem": release.get("PRETTY_NAME", "Linux"),
        "OSVersion": release.get("VERSION_ID", ""),
        "NFd": open_descriptors(),
        "BridgeNfIptables": _is_on("bridge/bridge-nf-call-iptables"),
        "BridgeNfIp6tables": _is_on("bridge/bridge-nf-call-ip6tables"),
        "Tasks": len(asyncio.all_tasks()),
        "Architecture": kernel.machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "SystemTimeNs": time.time_ns(),
    }


def _is_on(name: str) -> bool:
    """A sysctl of the network's; one that the kernel has not is off."""
    try:
        with open(f"/proc/sys/net/{name}", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


async def events(engine: EngineService, request: Request) -> Stream:
    """GET /events"""
    now = time.time_ns()
    since = parse_timestamp(request.get("since"), "since", now)
    until = parse_timestamp(request.get("until"), "until", now)
    filters = Filters.parse(request.get("filters"))
    filters.check(EVENT_FILTERS)
    found = engine.events(since, until)

    async def items() -> AsyncIterator[bytes]:
        async for event in found:
            if event_matches(event, filters):
                yield json_line(event_document(event))

    return Stream(items(), render_error=lambda error: b"")


async def disk_usage(engine: EngineService, request: Request) -> Response:
    """GET /system/df: LayersSize counts a layer once, whoever has it; what an image has for itself is
    its Size without its SharedSize. Since 1.42 only the kinds that `type` names are looked at."""
    kinds = request.query.get("type", []) if request.version >= (1, 42) else []
    for kind in kinds:
        if kind not in _DISK:
            raise InvalidArgument(f"unknown object type: {kind}", subject="type")
    found: dict[str, Any] = {}
    for kind, look in _DISK.items():
        if not kinds or kind in kinds:
            found |= await look(engine, request)
    if request.version < (1, 42):
        found["BuilderSize"] = 0  # of the builder before BuildKit, which kept images only
    return json_response(found)


async def _images_on_disk(engine: EngineService, request: Request) -> dict[str, Any]:
    layers, shared = await engine.image_usage()
    used = Counter(container.image_digest for container in engine.list_containers())
    shown = [
        {
            **summary(image, 0, request.version),
            "Containers": used[image.id],
            "SharedSize": shared.get(image.id, 0),
        }
        for image in await engine.list_images()
    ]
    return {"LayersSize": layers, "Images": shown}


async def _containers_on_disk(engine: EngineService, request: Request) -> dict[str, Any]:
    return {"Containers": await summaries(engine, engine.list_containers(), size=True)}


async def _volumes_on_disk(engine: EngineService, request: Request) -> dict[str, Any]:
    users = volume_users(engine)
    shown = []
    for volume in engine.volumes():
        usage = {"Size": await engine.volume_size(volume.name), "RefCount": users[volume.name]}
        shown.append({**volume_document(volume), "UsageData": usage})
    return {"Volumes": shown}


_DISK: Mapping[str, Callable[[EngineService, Request], Awaitable[dict[str, Any]]]] = {
    "image": _images_on_disk,
    "container": _containers_on_disk,
    "volume": _volumes_on_disk,
    "build-cache": build.disk_usage,
}


async def check(engine: EngineService, request: Request) -> Response:
    """GET /nagaya/check, and POST to repair: our own, for `nagaya system check`."""
    found = await engine.check(repair=request.method == "POST")
    return json_response(
        {
            "Findings": [
                {
                    "Kind": finding.kind,
                    "Subject": finding.subject,
                    "Problem": finding.problem,
                    "Repairable": finding.repairable,
                    "Repaired": finding.repaired,
                    "Note": finding.note,
                }
                for finding in found
            ]
        }
    )


async def auth(engine: EngineService, request: Request) -> Response:
    """POST /auth: nothing is kept here; the client stores what the registry took."""
    body = decode_body(await request.body(), AuthBody)
    username, password = body.username or "", body.password or ""
    given = RegistryAuth(username, password, body.identitytoken or "", body.registrytoken or "")
    await engine.try_login(body.serveraddress or "", given)
    return json_response({"IdentityToken": "", "Status": "Login Succeeded"})


ROUTES = (
    Route("GET", "/system/df", disk_usage),
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/events", events),
    Route("POST", "/auth", auth),
    Route("GET", "/nagaya/check", check),
    Route("POST", "/nagaya/check", check),
)
