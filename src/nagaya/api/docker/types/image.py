"""Images as the API shows them, pull progress, and registry credentials."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.inspect import DRIVER
from nagaya.api.docker.types.pruning import PRUNE_FILTERS, criterion
from nagaya.api.docker.types.structs import AuthBody
from nagaya.api.docker.types.times import ZERO, rfc3339_nano
from nagaya.engine.model import ImageSummary, PullProgress, RegistryAuth
from nagaya.errors import InvalidArgument, NotFound
from nagaya.oci.imageconfig import ContainerDefaults

Json = dict[str, Any]

IMAGE_FILTERS = frozenset({"before", "dangling", "label", "reference", "since", "until"})
SEARCH_FILTERS = frozenset({"is-automated", "is-official", "stars"})
_RESULTS = 25  # of a search, as many as dockerd gives
_BAR = 50


def image_labels(image: ImageSummary) -> dict[str, str]:
    """The labels of the image's configuration."""
    return dict(container_defaults(image).get("Labels") or {})


def container_defaults(image: ImageSummary) -> Mapping[str, Any]:
    """The "config" of the image's document: what its containers start with."""
    config = image.config.get("config")
    return config if isinstance(config, Mapping) else {}


def summary(image: ImageSummary, containers: int, version: tuple[int, int]) -> Json:
    """One element of GET /images/json."""
    shown: Json = {
        "Containers": containers if version >= (1, 51) else -1,  # "not counted"
        "Created": image.created // 1_000_000_000,
        "Id": image.id,
        "Labels": image_labels(image) or None,
        "ParentId": image.parent,
        "RepoDigests": list(image.digests),
        "RepoTags": list(image.tags),
        "SharedSize": -1,
        "Size": image.size,
    }
    if version < (1, 43) and not image.tags:
        shown["RepoTags"] = ["<none>:<none>"]
        shown["RepoDigests"] = list(image.digests) or ["<none>@<none>"]
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    return shown


def inspect(image: ImageSummary, version: tuple[int, int]) -> Json:
    """GET /images/{name}/json"""
    defaults = container_defaults(image)
    shown: Json = {
        "Id": image.id,
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Parent": image.parent,
        "Comment": _comment(image.config),
        "Created": str(image.config.get("created") or "") or rfc3339_nano(image.created),
        "DockerVersion": str(image.config.get("docker_version") or ""),
        "Author": str(image.config.get("author") or ""),
        "Config": {
            "Hostname": "",
            "Domainname": "",
            "User": "",
            "AttachStdin": False,
            "AttachStdout": False,
            "AttachStderr": False,
            "Tty": False,
            "OpenStdin": False,
            "StdinOnce": False,
            "Env": None,
            "Cmd": None,
            "Image": "",
            "Volumes": None,
            "WorkingDir": "",
            "Entrypoint": None,
            "OnBuild": None,
            "Labels": None,
            **defaults,
        },
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Data": None, "Name": DRIVER},
        "RootFS": {"Type": "layers", "Layers": list(image.layers)},
        "Metadata": {"LastTagTime": ZERO},
    }
    if image.variant:
        shown["Variant"] = image.variant
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    return shown


def _comment(document: Mapping[str, Any]) -> str:
    history = document.get("history")
    if isinstance(history, list) and history and isinstance(history[-1], Mapping):
        return str(history[-1].get("comment") or "")
    return ""


def select(images: Iterable[ImageSummary], filters: Filters) -> list[ImageSummary]:
    """The images that the filters mean, newest first, of a `reference` filter with the names that match.
    Raises InvalidArgument, NotFound."""
    filters.check(IMAGE_FILTERS)
    found = sorted(images, key=lambda image: image.created, reverse=True)
    dangling = filters.boolean("dangling")
    before = [_named(found, value).created for value in filters.values("before")]
    since = [_named(found, value).created for value in filters.values("since")]
    return [
        image
        for image in map(_named_so(filters), found)
        if image is not None
        and (dangling is None or dangling is not bool(image.tags))
        and all(image.created < moment for moment in before)
        and all(image.created > moment for moment in since)
        and filters.matches_labels(image_labels(image))
    ]


def prunable(filters: Filters, now_ns: int) -> tuple[bool, Callable[[ImageSummary], bool]]:
    """(those without a tag only?, the images that a prune request means). Raises InvalidArgument."""
    filters.check(PRUNE_FILTERS | {"dangling"})
    dangling = filters.boolean("dangling")
    meant = criterion(filters, now_ns)
    return dangling is not False, lambda image: meant(image.created, image_labels(image))


def _named_so(filters: Filters) -> Callable[[ImageSummary], ImageSummary | None]:
    """An image with those of its names that a `reference` filter means; None when there are none."""
    patterns = filters.values("reference")
    for pattern in patterns:
        _path_pattern(pattern)  # says so when it is none, whatever images are here

    def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for n in names if any(reference_matches(pattern, n) for pattern in patterns))

    def restrict(image: ImageSummary) -> ImageSummary | None:
        if not patterns:
            return image
        tags, digests = chosen(image.tags), chosen(image.digests)
        return msgspec.structs.replace(image, tags=tags, digests=digests) if tags or digests else None

    return restrict


def reference_matches(pattern: str, reference: str) -> bool:
    """Docker's reference filter: a path pattern over the familiar name, with or without its tag.
    Raises InvalidArgument for a pattern that is none."""
    wanted = _path_pattern(pattern)
    name = reference.partition("@")[0]
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository = name
    return any(wanted.fullmatch(text) for text in {reference, name, repository})


@lru_cache(64)
def _path_pattern(pattern: str) -> re.Pattern[str]:
    """Go's path.Match as a regular expression: `*` and `?` stay within a component. What follows a star
    is matched where it first fits and never tried elsewhere, which keeps hostile patterns cheap."""
    runs, at = [""], 0
    while at < len(pattern):
        char, at = pattern[at], at + 1
        if char == "*":
            runs.append("")
        elif char == "?":
            runs[-1] += "[^/]"
        elif char == "[":
            piece, at = _class(pattern, at)
            runs[-1] += piece
        else:
            char, at = _literal(pattern, at - 1)
            runs[-1] += re.escape(char)
    if len(runs) == 1:
        return re.compile(runs[0])
    return re.compile(
        runs[0] + "".join(f"(?>[^/]*?{run})" for run in runs[1:-1] if run) + f"[^/]*{runs[-1]}", re.DOTALL
    )


def _class(pattern: str, at: int) -> tuple[str, int]:
    """(regular expression, end) of the class whose "[" lies before `at`."""
    inverted = pattern[at : at + 1] == "^"
    at += inverted
    found = ""
    while not found or pattern[at : at + 1] != "]":
        if pattern[at : at + 1] in ("-", "]"):
            raise _bad_pattern()
        low, at = _literal(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _literal(pattern, at + 1)
        if low > high:
            raise _bad_pattern()
        found += f"{re.escape(low)}-{re.escape(high)}"
    return f"[{'^' * inverted}{found}]", at + 1


def _literal(pattern: str, at: int) -> tuple[str, int]:
    """(character, end) at a place of the pattern, a backslash taken away."""
    at += pattern[at : at + 1] == "\\"
    if at >= len(pattern):
        raise _bad_pattern()
    return pattern[at], at + 1


def _bad_pattern() -> InvalidArgument:
    return InvalidArgument("syntax error in pattern", subject="reference")


def search_limit(text: str) -> int:
    """How many results are wanted. Raises InvalidArgument as dockerd does."""
    try:
        limit = int(text or "0")
    except ValueError:
        raise InvalidArgument(f"invalid limit {text[:40]!r}", subject="limit") from None
    if not limit:
        return _RESULTS
    if not 1 <= limit <= 100:
        raise InvalidArgument(f"limit {limit} is outside the range of [1, 100]", subject="limit")
    return limit


def searched(filters: Filters) -> Callable[[Mapping[str, Any]], bool]:
    """Which elements of GET /images/search are wanted. Raises InvalidArgument."""
    filters.check(SEARCH_FILTERS)
    official, automated = filters.boolean("is-official"), filters.boolean("is-automated")
    stars = [_stars(text) for text in filters.values("stars")]

    def wanted(item: Mapping[str, Any]) -> bool:
        return (
            official in (None, item["is_official"])
            and automated in (None, item["is_automated"])
            and item["star_count"] >= max(stars, default=0)
        )

    return wanted


def _stars(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(f"invalid filter 'stars=[{text[:40]}]'", subject="stars") from None


def _named(images: Iterable[ImageSummary], ref: str) -> ImageSummary:
    for image in images:
        if ref in image.tags or ref + ":latest" in image.tags or ref in image.digests:
            return image
        if ref and (image.id == ref or image.id.removeprefix("sha256:").startswith(ref)):
            return image
    shown = ref if ":" in ref.rpartition("/")[2] else ref + ":latest"
    raise NotFound(f"No such image: {shown}", subject=ref)


_CONFIG = frozenset(
    "User ExposedPorts Env Entrypoint Cmd Volumes WorkingDir Labels StopSignal Healthcheck OnBuild".split()
)


def decode_config(body: bytes) -> Json | None:
    """A container's configuration, of which an image is to get what images have; None when there is none.
    Raises InvalidArgument."""
    try:
        document = msgspec.json.decode(body.strip() or b"null", type=dict[str, Any] | None)
        found = {key: value for key, value in (document or {}).items() if key in _CONFIG}
        msgspec.convert(found, ContainerDefaults)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"invalid configuration: {error}", subject="body") from None
    return found if any(found.values()) else None


def pull_reference(image: str, tag: str) -> str:
    """fromImage and tag in one reference; the tag may be a digest."""
    if tag:
        return f"{image}@{tag}" if ":" in tag else f"{image}:{tag}"
    return image


def progress_document(progress: PullProgress) -> Json:
    """One line of a pull's stream and the like, as moby's jsonmessage."""
    if progress.stream:
        return {"stream": progress.stream}
    if progress.aux is not None:
        return {"progressDetail": {}, "aux": progress.aux}
    document: Json = {"status": progress.status}
    if progress.layer and not progress.status.startswith("Pulling from "):
        detail: Json = {}
        if progress.current or progress.total:
            detail = {"current": progress.current, "total": progress.total}
            document["progress"] = progress_bar(progress.current, progress.total)
        document["progressDetail"] = detail
        document["id"] = progress.layer
    elif progress.layer:
        document["id"] = progress.layer
    return document


def progress_bar(current: int, total: int) -> str:
    """ "[==>   ]  1.2MB/3MB": what old clients print as it is."""
    if total <= 0:
        return human_size(current)
    filled = min(current, total) * _BAR // total
    arrow = "=" * filled + (">" if filled < _BAR else "")
    return f"[{arrow:<{_BAR}}]  {human_size(current)}/{human_size(total)}"


def human_size(size: float) -> str:
    """Decimal units with four significant digits, as docker/go-units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g}{unit}"
        size /= 1000
    return f"{size:.4g}TB"


def error_document(message: str) -> Json:
    """The line that ends a stream which failed after its header."""
    return {"errorDetail": {"message": message}, "error": message}


def registry_auth(header: bytes) -> RegistryAuth | None:
    """X-Registry-Auth: base64url of JSON. As in dockerd a header nobody can read counts as none."""
    if not header:
        return None
    try:
        data = base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4))
        body = msgspec.json.decode(data, type=AuthBody)
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    username, password = body.username or "", body.password or ""
    if body.auth and not username:
        try:
            username, _, password = base64.b64decode(body.auth).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
    if not (username or password or body.identitytoken or body.registrytoken):
        return None
    return RegistryAuth(username, password, body.identitytoken or "", body.registrytoken or "")
