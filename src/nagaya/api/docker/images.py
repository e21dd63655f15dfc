"""/images: pull, list, inspect, history, tag, delete."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial

from nagaya.api.docker.errors import message_of
from nagaya.api.docker.respond import json_line, json_response, primed
from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.image import (
    decode_config,
    error_document,
    inspect,
    progress_document,
    prunable,
    pull_reference,
    registry_auth,
    search_limit,
    searched,
    select,
    summary,
)
from nagaya.api.http.messages import Answer, Request, Response, Stream
from nagaya.api.http.router import Route
from nagaya.build import changes
from nagaya.engine.making import Edit
from nagaya.engine.model import PullProgress
from nagaya.engine.service import EngineService
from nagaya.errors import InvalidArgument


async def create(engine: EngineService, request: Request) -> Answer:
    """POST /images/create: pull, all tags when none is named. Errors before the first progress are an
    HTTP status, later ones the stream's last line. The client's going away ends the pull."""
    if request.get("fromSrc"):
        return await import_files(engine, request)
    await request.body()
    image, tag = request.get("fromImage"), request.get("tag")
    if not image:
        raise InvalidArgument("invalid reference format: no image named (fromImage)", subject="fromImage")
    reference = pull_reference(image, tag)
    pull = engine.pull_image(
        reference,
        request.get("platform"),
        registry_auth(request.header(b"x-registry-auth")),
        all_tags="@" not in reference and ":" not in reference.rpartition("/")[2],
    )
    return await _progress(pull)


async def import_files(engine: EngineService, request: Request) -> Stream:
    """POST /images/create?fromSrc=: an archive of files, the body ("-") or at a URL, becomes an image. Errors
    are an HTTP status; of a URL's those before the first progress."""
    source = request.get("fromSrc")
    repository, tag = request.get("repo"), request.get("tag")
    name = pull_reference(repository, tag) if repository else ""
    edit, message, platform = _edit(request), request.get("message"), request.get("platform")
    if source != "-":
        await request.body()
        return await _progress(engine.import_url(source, name, edit, message, platform))
    image_id = await engine.import_image(request.chunks(), name, edit, message, platform)

    async def items() -> AsyncIterator[bytes]:
        yield json_line({"status": image_id})

    return Stream(items())


async def _progress(reports: AsyncIterator[PullProgress]) -> Stream:
    """Errors before the first report are an HTTP status, later ones the stream's last line."""

    async def items() -> AsyncIterator[bytes]:
        async for progress in reports:
            yield json_line(progress_document(progress))

    return Stream(await primed(items()), render_error=_last_line)


async def commit(engine: EngineService, request: Request) -> Response:
    """POST /commit"""
    body = await request.body()
    given = decode_config(body)
    repository, tag = request.get("repo"), request.get("tag")
    image_id = await engine.commit_container(
        request.get("container"),
        pull_reference(repository, tag) if repository else "",
        _edit(request),
        given,
        author=request.get("author"),
        comment=request.get("comment"),
        pause=request.flag("pause", True),
    )
    return json_response({"Id": image_id}, 201)


def _edit(request: Request) -> Edit:
    """What the query's `changes`, Dockerfile instructions, make of a configuration."""
    return partial(changes.apply, changes=[text for text in request.query.get("changes", ()) if text])


async def push(engine: EngineService, request: Request) -> Stream:
    """POST /images/{name}/push: a tag, or all of the repository. The client's going away ends it."""
    await request.body()
    name, tag = request.params["name"], request.get("tag")
    if not request.header(b"x-registry-auth"):
        raise InvalidArgument("Bad parameters and missing X-Registry-Auth: EOF", subject="X-Registry-Auth")
    pushing = engine.push_image(pull_reference(name, tag), registry_auth(request.header(b"x-registry-auth")))

    async def items() -> AsyncIterator[bytes]:
        async for progress in pushing:
            yield json_line(progress_document(progress))

    return Stream(items(), render_error=_last_line)


async def distribution(engine: EngineService, request: Request) -> Response:
    """GET /distribution/{name}/json: what the registry has, without pulling it."""
    auth = registry_auth(request.header(b"x-registry-auth"))
    return json_response(await engine.describe_image(request.params["name"], auth))


async def search(engine: EngineService, request: Request) -> Response:
    """GET /images/search"""
    filters = Filters.parse(request.get("filters"))
    chosen = searched(filters)
    limit = search_limit(request.get("limit"))
    auth = registry_auth(request.header(b"x-registry-auth"))
    found = await engine.search_images(request.get("term"), limit, auth)
    return json_response([dict(item) for item in found if chosen(item)])


async def load(engine: EngineService, request: Request) -> Stream:
    """POST /images/load: every error is the stream's last line, as dockerd has it."""
    body = request.chunks()
    first = await anext(body, b"")  # before the answer begins: a client may wait for its "100 Continue"
    loading = engine.load_images(_again(first, body))
    quiet = request.flag("quiet")

    async def items() -> AsyncIterator[bytes]:
        async for progress in loading:
            if progress.stream or not quiet:
                yield json_line(progress_document(progress))

    return Stream(items(), render_error=_last_line)


async def _again(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
        async for piece in rest:
            yield piece


async def save(engine: EngineService, request: Request) -> Stream:
    """GET /images/get and /images/{name}/get"""
    name = request.params.get("name")
    names = [name] if name else [n for n in request.query.get("names", ()) if n]
    if not names:
        raise InvalidArgument("no image named (names)", subject="names")
    return Stream(await primed(engine.save_images(names)), content_type=b"application/x-tar")


def _last_line(error: Exception) -> bytes:
    return json_line(error_document(message_of(error)))


async def listing(engine: EngineService, request: Request) -> Response:
    """GET /images/json"""
    filters = Filters.parse(request.get("filters"))
    chosen = select(await engine.list_images(), filters)
    used = Counter(container.image_digest for container in engine.list_containers())
    return json_response([summary(image, used[image.id], request.version) for image in chosen])


async def layers(engine: EngineService, request: Request) -> Response:
    """GET /nagaya/images/layers: our own extension, for `nagaya image ls --tree`."""
    return json_response(await engine.image_layers())


async def inspect_one(engine: EngineService, request: Request) -> Response:
    """GET /images/{name}/json"""
    return json_response(inspect(await engine.inspect_image(request.params["name"]), request.version))


async def history(engine: EngineService, request: Request) -> Response:
    """GET /images/{name}/history"""
    return json_response([dict(entry) for entry in await engine.image_history(request.params["name"])])


async def tag(engine: EngineService, request: Request) -> Response:
    """POST /images/{name}/tag"""
    repository = request.get("repo")
    if not repository:
        raise InvalidArgument("invalid reference format: no repository named (repo)", subject="repo")
    if "@" in repository:
        raise InvalidArgument("refusing to create a tag with a digest reference", subject="repo")
    await engine.tag_image(request.params["name"], pull_reference(repository, request.get("tag")))
    return Response(201, content_type=b"")


async def prune(engine: EngineService, request: Request) -> Response:
    """POST /images/prune"""
    filters = Filters.parse(request.get("filters"))
    dangling, wanted = prunable(filters, time.time_ns())
    lines, freed = await engine.prune_images(wanted, dangling=dangling)
    return json_response({"ImagesDeleted": [dict(line) for line in lines] or None, "SpaceReclaimed": freed})


async def remove(engine: EngineService, request: Request) -> Response:
    """DELETE /images/{name}. `noprune` changes nothing: an image here has no parents that go with it."""
    done = await engine.remove_image(request.params["name"], force=request.flag("force"))
    return json_response([dict(entry) for entry in done])


ROUTES = (
    Route("POST", "/images/create", create, cancel=True),
    Route("GET", "/nagaya/images/layers", layers),
    Route("POST", "/commit", commit),
    Route("GET", "/distribution/{name:path}/json", distribution),
    Route("GET", "/images/json", listing),
    Route("GET", "/images/search", search, cancel=True),
    Route("POST", "/images/load", load, cancel=True),
    Route("POST", "/images/{name:path}/push", push, cancel=True),
    Route("POST", "/images/prune", prune),
    Route("GET", "/images/get", save),
    Route("GET", "/images/{name:path}/get", save),
    Route("GET", "/images/{name:path}/json", inspect_one),
    Route("GET", "/images/{name:path}/history", history),
    Route("POST", "/images/{name:path}/tag", tag),
    Route("DELETE", "/images/{name:path}", remove),
)
