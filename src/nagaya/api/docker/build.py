"""/build: the classic builder. BuildKit, which is another protocol (/session, /grpc), is answered as by a
dockerd that does not have it."""

from __future__ import annotations

import base64
import binascii
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from nagaya.api.docker import private
from nagaya.api.docker.errors import message_of
from nagaya.api.docker.respond import json_line, json_response, no_content, primed
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.image import error_document, progress_document
from nagaya.api.docker.types.limits import ulimits
from nagaya.api.docker.types.pruning import criterion
from nagaya.api.docker.types.structs import AuthBody, UlimitBody
from nagaya.api.docker.types.times import rfc3339_nano
from nagaya.api.http.messages import Answer, Request, Stream
from nagaya.api.http.router import Route
from nagaya.build.output import Said
from nagaya.build.request import BuildRequest
from nagaya.build.run import CommandFailed
from nagaya.build.service import Builds, CacheRecord
from nagaya.engine.model import RegistryAuth, Resources
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument, NagayaError, Unimplemented
from nagaya.oci import digest as digests
from nagaya.oci import reference

Json = dict[str, Any]
_UNSAID = 1000  # pieces of output that a quiet build shows when it fails
_GIT = ("git://", "git@", "github.com/")


async def build(engine: EngineService, request: Request) -> Answer:
    """POST /build. Errors before the first line are an HTTP status, later ones the stream's last line.
    The client's going away ends the build."""
    if request.get("version", "1") == "2":
        raise InvalidArgument(
            "this daemon has no BuildKit: set DOCKER_BUILDKIT=0 to build with the classic builder",
            subject="version",
        )
    wanted = build_request(request)
    remote = request.get("remote")
    if remote and (remote.startswith(_GIT) or remote.partition("#")[0].endswith(".git")):
        raise Unimplemented(f"building from a git repository is not supported: {remote[:200]}")
    if remote and not remote.startswith(("http://", "https://")):
        raise InvalidArgument(f"remote is not a URL: {remote[:200]}", subject="remote")
    wanted, archive = await private.taken(wanted, request)
    said = Builds(engine.workshop).build(wanted, None if remote else archive, remote)
    quiet = request.flag("q")

    async def items() -> AsyncIterator[bytes]:
        unsaid: deque[str] = deque(maxlen=_UNSAID)
        try:
            async for item in said:
                if quiet:
                    unsaid.append(item.text)
                for document in _documents(item, wanted, quiet):
                    yield json_line(document)
        except NagayaError:
            if any(unsaid):  # who wanted silence wants to know now
                yield json_line({"stream": "".join(unsaid)})
            raise
        finally:
            await said.aclose()

    return Stream(await primed(items()), render_error=_last_line)


async def prune(engine: EngineService, request: Request) -> Answer:
    """POST /build/prune"""
    await request.body()
    filters = Filters.parse(request.get("filters"))
    filters.check(frozenset(("until", "id", "parent", "type", "description", "inuse", "shared", "private")))
    matches = _matcher(filters)
    gone, freed = await Builds(engine.workshop).prune(
        matches, everything=request.flag("all"), keep=request.integer("keep-storage")
    )
    return json_response({"CachesDeleted": gone or None, "SpaceReclaimed": freed})


async def cancel(engine: EngineService, request: Request) -> Answer:
    """POST /build/cancel: of BuildKit's builds, of which there are none."""
    await request.body()
    if not request.get("id"):
        raise InvalidArgument("build ID not provided", subject="id")
    return no_content()


async def disk_usage(engine: EngineService, request: Request) -> Json:
    """The part of GET /system/df."""
    return {"BuildCache": [_cache_document(record) for record in await Builds(engine.workshop).records()]}


def build_request(request: Request) -> BuildRequest:
    """What the query and the headers ask for. Raises InvalidArgument, Unimplemented."""
    names = tuple(name for name in request.query.get("t", ()) if name)
    for name in names:
        if reference.parse(name).digest:
            raise InvalidArgument("refusing to create a tag with a digest reference", subject=name)
    if request.flag("squash"):
        raise Unimplemented("squash is not supported")
    if _json(request, "outputs", list[Json]):
        raise Unimplemented("outputs need BuildKit, which this daemon has not")
    network = request.get("networkmode")
    limits = _json(request, "ulimits", list[UlimitBody])
    return BuildRequest(
        dockerfile=request.get("dockerfile") or "Dockerfile",
        names=names,
        target=request.get("target"),
        arguments=_json(request, "buildargs", dict[str, str | None]) or {},
        labels=_json(request, "labels", dict[str, str]) or {},
        platform=request.get("platform"),
        use_cache=not request.flag("nocache"),
        cache_from=tuple(_json(request, "cachefrom", list[str]) or ()),
        pull=request.flag("pull"),
        network="" if network == "default" else network,
        resources=Resources(
            memory=request.integer("memory"),
            memory_swap=request.integer("memswap"),
            cpu_shares=request.integer("cpushares"),
            cpu_period=request.integer("cpuperiod"),
            cpu_quota=request.integer("cpuquota"),
            cpuset_cpus=request.get("cpusetcpus"),
            cpuset_mems=request.get("cpusetmems"),
        ),
        shm_size=request.integer("shmsize"),
        cgroup_parent=request.get("cgroupparent"),
        security_opt=tuple(_json(request, "securityopt", list[str]) or ()),
        extra_hosts=tuple(host for host in request.query.get("extrahosts", ()) if host),
        ulimits=ulimits(limits),
        auths=_auths(request.header(b"x-registry-config")),
    )


def _json(request: Request, name: str, kind: Any) -> Any:
    """A query variable that is JSON; None when it is not given."""
    text = request.get(name)
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=kind | None)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"error reading {name}: {error}", subject=name) from None


def _auths(header: bytes) -> dict[str, RegistryAuth]:
    """X-Registry-Config: base64url of JSON, credentials by registry. What nobody can read counts as none."""
    try:
        data = base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4))
        found = msgspec.json.decode(data or b"{}", type=dict[str, AuthBody])
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return {}
    return {
        registry: RegistryAuth(
            body.username or "", body.password or "", body.identitytoken or "", body.registrytoken or ""
        )
        for registry, body in found.items()
    }


def _documents(said: Said, wanted: BuildRequest, quiet: bool) -> list[Json]:
    """The lines of the stream for one thing said."""
    if said.image:
        if quiet:
            return [{"stream": f"{said.image}\n"}]
        tagged = [f"Successfully tagged {reference.parse_tagged(n).familiar}\n" for n in wanted.names]
        return [
            {"aux": {"ID": said.image}},
            {"stream": f"Successfully built {digests.short(said.image)}\n"},
            *({"stream": line} for line in tagged),
        ]
    if quiet:
        return []
    if said.progress is not None:
        return [progress_document(said.progress)]
    return [{"stream": said.text}]


def _last_line(error: Exception) -> bytes:
    document = error_document(message_of(error))
    if isinstance(error, CommandFailed):
        document["errorDetail"] = {"code": error.exit_code, **document["errorDetail"]}
    return json_line(document)


def _cache_document(record: CacheRecord) -> Json:
    return {
        "ID": record.id,
        "Parents": [record.parent] if record.parent else None,
        "Type": record.kind,
        "Description": record.description,
        "InUse": record.in_use,
        "Shared": record.shared,
        "Size": record.size,
        "CreatedAt": rfc3339_nano(record.created),
        "LastUsedAt": rfc3339_nano(record.used),
        "UsageCount": record.uses,
    }


def _matcher(filters: Filters) -> Callable[[CacheRecord], bool]:
    old = criterion(filters, time.time_ns())
    flags = {name: filters.boolean(name) for name in ("inuse", "shared", "private")}

    def matches(record: CacheRecord) -> bool:
        facts = {"inuse": record.in_use, "shared": record.shared, "private": not record.shared}
        values = {
            "id": record.id,
            "parent": record.parent,
            "type": record.kind,
            "description": record.description,
        }
        return (
            old(record.used, {})
            and all(flag is None or facts[name] == flag for name, flag in flags.items())
            and all(not (given := filters.values(n)) or value in given for n, value in values.items())
        )

    return matches


ROUTES = (
    Route("POST", "/build", build, cancel=True),
    Route("POST", "/build/prune", prune),
    Route("POST", "/build/cancel", cancel),
)
