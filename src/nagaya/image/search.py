"""Which repositories a registry has for a word (`docker search`).

Docker Hub, and registries that imitate it, answer GET /v1/search?q=WORD&n=LIMIT, which no specification has;
what can be told of it is in moby's registry/search.go. One that has no such thing may list what it has:
GET /v2/_catalog (distribution, spec/api.md, "Listing Repositories"); the word is then sought in the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import msgspec

from nagaya.errors import (
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from nagaya.image import auth as auths
from nagaya.image.auth import RegistryAuth
from nagaya.image.complaints import status_line
from nagaya.image.registry import NEXT_PAGE
from nagaya.image.session import HUB_ENDPOINT, MAX_BODY, Endpoint, Session
from nagaya.image.transport import NetworkError, RegistryConfig, Transport
from nagaya.oci import reference
from nagaya.oci.reference import Reference

_HUB_SEARCH = "https://index.docker.io"  # which its registry's own address does not do
_PAGE = 1000
_MAX_PAGES = 100  # of a catalog


class Found(msgspec.Struct, frozen=True):
    """A repository. name: as one pulls it."""

    name: str
    description: str = ""
    stars: int = 0
    official: bool = False
    automated: bool = False


class _Result(msgspec.Struct):
    name: str = ""
    description: str | None = None
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Results(msgspec.Struct):
    results: list[_Result] | None = None


class _Catalog(msgspec.Struct):
    repositories: list[str] | None = None


def search(
    term: str,
    limit: int,
    auth: RegistryAuth | None,
    config: RegistryConfig,
    schemes: dict[str, str],
    check: Callable[[], None],
) -> list[Found]:
    """At most `limit` repositories for "HOST/WORD", or of Docker Hub for "WORD".

    Raises InvalidArgument (no word, no host), NotFound for a registry that cannot be searched,
    Unauthenticated, PermissionDenied, Unavailable.
    """
    domain, word = split(term)
    transport = Transport(config, schemes)
    try:
        session = Session(Reference(domain, ""), config, transport, auth, check)
        return session.each(lambda endpoint: _ask(session, endpoint, domain, word, limit), "resolve")
    except Unavailable as error:
        raise Unavailable(error.message, step="search", subject=domain) from None
    finally:
        transport.cut()


def split(term: str) -> tuple[str, str]:
    """(registry, word) of a search, as dockerd takes it apart. Raises InvalidArgument."""
    if "://" in term:
        raise InvalidArgument(
            f"invalid repository name: repository name ({term[:200]}) should not have a scheme",
            subject="term",
        )
    first, slash, rest = term.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = auths.DOCKER_HUB, term.removeprefix("library/")
    elif first in ("index.docker.io", "docker.io"):
        first = auths.DOCKER_HUB
    if not rest or len(rest) > 255 or not rest.isprintable():
        raise InvalidArgument(f"{term[:200]!r} is nothing to search for", subject="term")
    if reference.parse(f"{first}/x").domain != first:
        raise InvalidArgument(f"{first[:200]!r} is no address of a registry", subject="term")
    return first, rest


def _ask(session: Session, endpoint: Endpoint, domain: str, word: str, limit: int) -> list[Found]:
    try:
        root = session.root(endpoint)
    except NetworkError as error:
        raise Unavailable(str(error), step="search") from None
    base = _HUB_SEARCH if endpoint.url == HUB_ENDPOINT else root.removesuffix("/v2")
    answer = session.request(endpoint, "GET", f"{base}/v1/search?{urlencode({'q': word, 'n': limit})}", {})
    if answer.status == 200:
        body = session.read(answer, MAX_BODY)
        try:
            results = msgspec.json.decode(body, type=_Results).results or []
        except (msgspec.MsgspecError, RecursionError):
            pass  # somebody's web page: not an answer to what was asked
        else:
            return [_found(domain, result) for result in results[:limit] if result.name]
    answer.close()
    if answer.status in (401, 403, 429) or answer.status >= 500:
        raise _refused(domain, answer.status)
    found = []
    for name in _catalog(session, endpoint, root, domain):
        if word in name:
            found.append(Found(_named(domain, name)))
            if len(found) >= limit:
                break
    return found


def _catalog(session: Session, endpoint: Endpoint, root: str, domain: str) -> Iterator[str]:
    query = f"n={_PAGE}"
    for _ in range(_MAX_PAGES):
        answer = session.request(endpoint, "GET", f"{root}/_catalog?{query}", {})
        if answer.status != 200:
            answer.close()
            raise _refused(domain, answer.status)
        try:
            names = msgspec.json.decode(session.read(answer, MAX_BODY), type=_Catalog).repositories or []
        except (msgspec.MsgspecError, RecursionError):
            raise _refused(domain, 404) from None
        yield from names
        following = NEXT_PAGE.fullmatch(answer.headers.get("Link", "").strip())
        if not names or following is None:
            return
        query = following[1]


def _refused(domain: str, status: int) -> NagayaError:
    line = f"registry {domain} cannot be searched"
    if status == 401:
        return Unauthenticated(f"{line}: authentication required (docker login {domain})", subject=domain)
    if status == 403:
        return PermissionDenied(f"{line}: denied", subject=domain)
    if status == 404:
        return NotFound(f"{line}: it has neither /v1/search nor /v2/_catalog", subject=domain)
    return Unavailable(f"{line}: {status_line(status)}", subject=domain)


def _found(domain: str, result: _Result) -> Found:
    description = _line(result.description or "", 1000)
    return Found(
        _named(domain, result.name), description, result.star_count, result.is_official, result.is_automated
    )


def _named(domain: str, name: str) -> str:
    name = _line(name, 300)
    return name if domain == auths.DOCKER_HUB or name.startswith(f"{domain}/") else f"{domain}/{name}"


def _line(text: str, most: int) -> str:
    """A stranger's text, for one line of a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:most])
