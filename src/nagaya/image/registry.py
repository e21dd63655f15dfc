"""A client of OCI distribution registries (distribution-spec 1.1; Docker's token authentication).

One `Registry` serves one repository: it knows its endpoints (mirrors first, the registry last) and
holds the credentials. These go to the endpoint's own host, or to the token server that host names,
and nowhere else: not along a redirect, not to a foreign layer's URL (CVE-2020-15157), not to a mirror.

Nothing here is believed: bodies are bounded, a manifest is checked against its digest, blobs are
checked where they are written (`image.content`).
"""

from __future__ import annotations

import base64
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import msgspec

from nagaya.errors import (
    DataLoss,
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from nagaya.image import auth as auths
from nagaya.image.auth import RegistryAuth
from nagaya.image.transport import Answer, NetworkError, RegistryConfig, Transport
from nagaya.oci import digest as digests
from nagaya.oci import manifest as manifests
from nagaya.oci.reference import Reference, valid_tag

_HUB_ENDPOINT = "https://registry-1.docker.io"
_MAX_BODY = 1 << 20  # of token answers and error documents
_MAX_WAIT = 30.0  # a Retry-After beyond this is an answer, not a pause
_MAX_TAGS = 10_000
_LINK = re.compile(r"<[^<>?]*\?([^<>\s]{1,2000})>\s*;\s*rel=\"?next\"?")
_REDIRECTS = 10
_PIECE = 256 << 10
_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))
_REDIRECT = frozenset((301, 302, 303, 307, 308))
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_TOKEN_LIFE = 60.0  # when the server does not say

T = TypeVar("T")


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class Fetched(msgspec.Struct, frozen=True):
    """A manifest as it came, verified against its digest."""

    data: bytes
    digest: str
    media_type: str


class _Endpoint:
    """One base URL with its own credentials and token."""

    def __init__(self, url: str, credentials: Callable[[], RegistryAuth]) -> None:
        self.url = url.rstrip("/")
        self.lock = threading.Lock()
        self.authorization = ""  # value of the header, "" before the first challenge
        self.expires = 0.0
        self.dead = False
        self._credentials = credentials
        self._known: RegistryAuth | None = None

    def credentials(self) -> RegistryAuth:
        """Found out when first needed: a helper may be slow, and many registries never ask."""
        if self._known is None:
            self._known = self._credentials()
        return self._known


class Registry:
    """The repository that `reference` names. Thread-safe.

    auth None: what the docker_config file says. check is called before each request and while
    waiting; it may raise.
    """

    def __init__(
        self,
        reference: Reference,
        config: RegistryConfig,
        transport: Transport,
        auth: RegistryAuth | None,
        check: Callable[[], None],
    ) -> None:
        self._reference = reference
        self._config = config
        self._transport = transport
        self._check = check
        domain = reference.domain
        home = _HUB_ENDPOINT if domain == auths.DOCKER_HUB else f"https://{domain}"

        def from_file(host: str) -> Callable[[], RegistryAuth]:
            return lambda: auths.from_docker_config(config.docker_config, host)

        self._endpoints = [
            _Endpoint(mirror, from_file(urlsplit(mirror).netloc)) for mirror in config.mirrors.get(domain, ())
        ]
        self._endpoints.append(_Endpoint(home, from_file(domain) if auth is None else lambda: auth))

    @property
    def name(self) -> str:
        """The repository, canonical."""
        return self._reference.name

    @property
    def mirrored(self) -> bool:
        """Is a mirror asked before the registry?"""
        return any(not endpoint.dead for endpoint in self._endpoints[:-1])

    def distrust_mirrors(self) -> None:
        """A blob was broken or wrong: from now on only the registry itself is asked."""
        for endpoint in self._endpoints[:-1]:
            endpoint.dead = True

    def manifest(self, target: str) -> Fetched:
        """The manifest or index of a tag or digest.

        Raises NotFound, Unauthenticated, PermissionDenied, Unavailable, DataLoss (a digest that
        does not match), InvalidArgument (too big).
        """

        def fetch(endpoint: _Endpoint) -> Fetched:
            path = f"manifests/{target}"
            answer = self._request(endpoint, path, {"Accept": manifests.ACCEPT})
            if answer.status != 200:
                raise self._failure(answer, endpoint, path)
            data = self._read(answer, manifests.MAX_MANIFEST)
            if len(data) > manifests.MAX_MANIFEST:
                raise InvalidArgument(
                    f"the manifest is over the limit of {manifests.MAX_MANIFEST} bytes", subject="manifest"
                )
            said = answer.headers.get("Docker-Content-Digest", "")
            wanted = target if digests.is_digest(target) else digests.of(data)
            for claimed in (wanted, said if said.startswith("sha256:") else wanted):
                if not digests.matches(data, claimed):
                    raise DataLoss(
                        f"the registry's manifest has digest {digests.of(data)}, not {claimed}",
                        subject=claimed,
                        step="fetch manifest",
                    )
            return Fetched(data, wanted, answer.headers.get("Content-Type", ""))

        return self._each(fetch)

    def tags(self) -> Sequence[str]:
        """The repository's tags (distribution-spec, "Listing Tags"), page by page.

        Raises like `manifest`, and InvalidArgument when they are no tags or too many.
        """

        def fetch(endpoint: _Endpoint) -> list[str]:
            found: dict[str, None] = {}
            path = "tags/list"
            while path:
                answer = self._request(endpoint, path, {})
                if answer.status != 200:
                    raise self._failure(answer, endpoint, path)
                body = self._read(answer, _MAX_BODY)
                try:
                    page = msgspec.json.decode(body, type=_Tags).tags or []
                except (msgspec.MsgspecError, RecursionError):
                    raise InvalidArgument(
                        "the registry's list of tags is not valid", subject="tags"
                    ) from None
                before = len(found)
                found.update(dict.fromkeys(page))
                if len(found) > _MAX_TAGS or not all(map(valid_tag, page)):
                    raise InvalidArgument(
                        f"the registry's list of tags is not valid, or has more than {_MAX_TAGS}",
                        subject="tags",
                    )
                next_page = _LINK.fullmatch(answer.headers.get("Link", "").strip())
                # a page without news would be asked for ever
                path = f"tags/list?{next_page[1]}" if next_page and len(found) > before else ""
            return list(found)

        return self._each(fetch)

    def blob(self, descriptor: manifests.Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The blob's bytes from offset on, in pieces, unverified.

        Raises like `manifest`; a connection that breaks while iterating is Unavailable: ask again
        with a new offset.
        """
        path = f"blobs/{descriptor.digest}"

        def fetch(endpoint: _Endpoint) -> Iterator[bytes]:
            answer = self._request(endpoint, path, {"Range": f"bytes={offset}-"} if offset else {})
            if offset and answer.status == 416:
                answer.close()
                answer = self._request(endpoint, path, {})
            if answer.status not in (200, 206):
                raise self._failure(answer, endpoint, path)
            return self._body(answer, offset, descriptor)

        try:
            return self._each(fetch)
        except NotFound:
            if not manifests.is_foreign(descriptor):
                raise
        return self._foreign(descriptor, offset)

    # endpoints

    def _each(self, fetch: Callable[[_Endpoint], T]) -> T:
        """Mirrors first. Whatever a mirror says, the registry itself has the last word; but a
        broken credential store is the user's to repair, not a reason to ask somebody else."""
        for endpoint in self._endpoints[:-1]:
            if endpoint.dead:
                continue
            try:
                return fetch(endpoint)
            except (NotFound, Unauthenticated, PermissionDenied, DataLoss):
                continue
            except Unavailable:
                endpoint.dead = True
        return fetch(self._endpoints[-1])

    def _request(self, endpoint: _Endpoint, path: str, headers: dict[str, str]) -> Answer:
        """GET below /v2/REPOSITORY/, with credentials, redirects and retries."""

        def attempt() -> Answer:
            url = f"{self._transport.base(endpoint.url)}/v2/{self._reference.path}/{path}"
            return self._authorized(endpoint, url, headers)

        return self._retry(attempt)

    def _retry(self, attempt: Callable[[], Answer]) -> Answer:
        pause = self._config.backoff
        for left in range(self._config.retries, -1, -1):
            self._check()
            try:
                answer = attempt()
            except NetworkError as error:
                self._check()  # it may be we who cut the line
                if not left or not error.transient:
                    raise Unavailable(str(error), step="pull") from None
                wait = 0.0
            else:
                if answer.status not in _RETRIED:
                    return answer
                wait = _retry_after(answer.headers.get("Retry-After", ""))
                if not left or wait > _MAX_WAIT:
                    return answer
                answer.close()
            self._sleep(max(wait, pause * random.uniform(0.5, 1.0)))
            pause = min(pause * 2, _MAX_WAIT)
        raise Unavailable("the registry did not answer", step="pull")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.2))

    def _follow(self, url: str, headers: dict[str, str], authorization: str) -> Answer:
        """GET along redirects. Authorization stays behind as soon as the origin changes."""
        origin = urlsplit(url)[:2]
        away = False
        for _ in range(_REDIRECTS + 1):
            extra = {"Authorization": authorization} if authorization and not away else {}
            answer = self._transport.request("GET", url, {**headers, **extra})
            answer.away = away
            if answer.status not in _REDIRECT or not answer.headers.get("Location"):
                return answer
            location = _join(url, answer.headers["Location"])
            answer.close()
            before, after = urlsplit(url), urlsplit(location)
            if after.scheme not in ("http", "https") or not after.netloc:
                raise Unavailable(f"redirect to {location[:200]!r} refused", step="pull")
            if (
                before.scheme == "https"
                and after.scheme == "http"
                and not self._transport.is_insecure(after.netloc)
            ):
                raise Unavailable(f"redirect from https to {location[:200]!r} refused", step="pull")
            away = away or after[:2] != origin
            url = location
        raise Unavailable(
            f'Get "{url.partition("?")[0][:200]}": stopped after {_REDIRECTS} redirects', step="pull"
        )

    # authentication

    def _authorized(self, endpoint: _Endpoint, url: str, headers: dict[str, str]) -> Answer:
        with endpoint.lock:
            if endpoint.expires and time.monotonic() > endpoint.expires:
                endpoint.authorization, endpoint.expires = "", 0.0
            used = endpoint.authorization
        answer = self._follow(url, headers, used)
        if answer.status != 401 or answer.away:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        with endpoint.lock:
            if endpoint.authorization == used and not self._login(endpoint, url, challenge):
                return answer
            used = endpoint.authorization
        answer.close()
        return self._follow(url, headers, used)

    def _login(self, endpoint: _Endpoint, url: str, challenge: str) -> bool:
        """Answer a challenge (RFC 9110, 11.6.1); False when there is nothing to answer with."""
        scheme, _, rest = challenge.strip().partition(" ")
        parameters = {k.lower(): q or plain for k, q, plain in _PARAMETER.findall(rest[:8192])}
        credentials = endpoint.credentials()
        if credentials.registry_token:
            wanted = f"Bearer {credentials.registry_token}"
            changed = endpoint.authorization != wanted
            endpoint.authorization = wanted
            return changed
        if scheme.lower() == "basic":
            if not credentials.username:
                return False
            wanted = _basic(credentials)
            changed = endpoint.authorization != wanted
            endpoint.authorization = wanted
            return changed
        if scheme.lower() != "bearer" or "realm" not in parameters:
            return False
        token, life = self._token(url, parameters, credentials)
        endpoint.authorization = f"Bearer {token}"
        endpoint.expires = time.monotonic() + max(life * 0.9, 5.0)
        return True

    def _token(self, url: str, parameters: dict[str, str], credentials: RegistryAuth) -> tuple[str, float]:
        """Docker's token flow (distribution, spec/auth/token.md and oauth.md)."""
        realm = _join(url, parameters["realm"])
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Unauthenticated(f"token server {realm[:200]!r} is not a URL", step="log in")
        if parts.scheme == "http" and not (
            self._transport.is_insecure(parts.netloc) or urlsplit(url).scheme == "http"
        ):
            raise Unauthenticated(f"token server {realm[:200]!r} is not https: refused", step="log in")
        query = {"scope": parameters.get("scope") or f"repository:{self._reference.path}:pull"}
        if parameters.get("service"):
            query["service"] = parameters["service"]
        if credentials.identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "client_id": "nagaya",
                "refresh_token": credentials.identity_token,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._retry(
                lambda: self._transport.request("POST", realm, headers, urlencode(form).encode())
            )
        else:
            everything = urlencode([*parse_qsl(parts.query), *query.items()])
            asked = parts._replace(query=everything).geturl()
            basic = _basic(credentials) if credentials.username else ""
            answer = self._retry(lambda: self._follow(asked, {}, basic))
        body = self._read(answer, _MAX_BODY)
        if answer.status in (401, 403) and credentials:
            raise Unauthenticated(
                f'Get "{realm[:200]}": unauthorized: incorrect username or password', step="log in"
            )
        if answer.status != 200:
            raise self._error(answer, body, "token")
        try:
            token = msgspec.json.decode(body, type=_Token)
        except msgspec.MsgspecError:
            raise Unauthenticated("the token server's answer holds no token", step="log in") from None
        value = token.token or token.access_token
        if not _TOKEN.fullmatch(value):
            raise Unauthenticated("the token server's answer holds no token", step="log in")
        return value, min(token.expires_in or _TOKEN_LIFE, 86400.0)

    # bodies

    def _read(self, answer: Answer, limit: int) -> bytes:
        try:
            return answer.read(limit)
        except NetworkError as error:
            raise Unavailable(str(error), step="pull") from None

    def _body(self, answer: Answer, offset: int, descriptor: manifests.Descriptor) -> Iterator[bytes]:
        first = 0
        if answer.status == 206:
            match = re.fullmatch(r"bytes (\d{1,19})-\d*/(?:\d+|\*)", answer.headers.get("Content-Range", ""))
            if match is None or int(match[1]) > offset:
                answer.close()
                raise DataLoss(
                    "the registry answered with a range that was not asked for",
                    subject=descriptor.digest,
                    step="download",
                )
            first = int(match[1])
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and first + int(length[:20]) != descriptor.size:
            answer.close()
            raise DataLoss(
                f"the registry's blob has {first + int(length[:20])} bytes, its descriptor says "
                f"{descriptor.size}",
                subject=descriptor.digest,
                step="download",
            )

        def run() -> Iterator[bytes]:
            skip = offset - first
            try:
                for piece in answer.pieces(_PIECE):
                    if skip:
                        cut = min(skip, len(piece))
                        skip -= cut
                        piece = piece[cut:]
                    if piece:
                        yield piece
            except NetworkError as error:
                raise Unavailable(str(error), subject=descriptor.digest, step="download") from None
            finally:
                answer.close()

        return run()

    def _foreign(self, descriptor: manifests.Descriptor, offset: int) -> Iterator[bytes]:
        """A layer that registries may not carry: from its own URLs, as anybody would fetch it."""
        last: NagayaError = NotFound(f"layer {descriptor.digest} is nowhere", subject=descriptor.digest)
        for url in (descriptor.urls or ())[:4]:
            url = _join(url, "")
            parts = urlsplit(url)
            if parts.scheme != "https" and not (
                parts.scheme == "http" and self._transport.is_insecure(parts.netloc)
            ):
                last = InvalidArgument(f"layer URL {url[:200]!r} is not https", subject="layers.urls")
                continue
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                answer = self._follow(url, headers, "")
            except NetworkError as error:
                last = Unavailable(str(error), step="download")
                continue
            if answer.status in (200, 206):
                return self._body(answer, offset, descriptor)
            answer.close()
            last = NotFound(
                f'Get "{url[:200]}": HTTP status {answer.status}', subject=descriptor.digest, step="download"
            )
        raise last

    # errors

    def _failure(self, answer: Answer, endpoint: _Endpoint, path: str) -> NagayaError:
        """dockerd's words for what the registry said."""
        try:
            body = answer.read(_MAX_BODY)
        except NetworkError:
            body = b""
        if answer.away:
            url, status = answer.url.partition("?")[0][:200], _status(answer.status)
            return Unavailable(f'Get "{url}": {status} after a redirect', step="download")
        return self._error(answer, body, path, logged_in=bool(endpoint.credentials()))

    def _error(self, answer: Answer, body: bytes, path: str, *, logged_in: bool = False) -> NagayaError:
        code, message = _parse_errors(body)
        name, status = self._reference.familiar_name, answer.status
        text = ": ".join(t for t in (code.lower().replace("_", " "), message) if t)
        if status in (401, 403) or code in ("DENIED", "UNAUTHORIZED"):
            text = text or (
                "unauthorized: authentication required"
                if status == 401
                else "denied: requested access to the resource is denied"
            )
            line = f"pull access denied for {name}, repository does not exist or may require 'docker login'"
            # dockerd answers 404 where it cannot tell a missing repository from a hidden one
            kind: type[NagayaError] = NotFound
            if logged_in and code != "DENIED":
                kind = Unauthenticated if status == 401 else PermissionDenied
            return kind(f"{line}: {text}", subject=name)
        if status == 404:
            if code == "NAME_UNKNOWN":
                return NotFound(f"repository {name} not found: {text}", subject=name)
            if path.startswith("manifests/"):
                reference = self._reference.familiar
                return NotFound(
                    f"manifest for {reference} not found: {text or 'manifest unknown: manifest unknown'}",
                    subject=reference,
                )
            return NotFound(f"{path} of {name} not found: {text or 'blob unknown to registry'}", subject=name)
        if status == 429:
            return Unavailable(
                f"toomanyrequests: {message or 'the registry limits the rate of requests'}", subject=name
            )
        said = f": {text}" if text else ""
        return Unavailable(f"received unexpected HTTP status: {_status(status)}{said}", subject=name)


def _join(url: str, other: str) -> str:
    """A URL that a stranger gave, relative to where we are; "invalid:" when it cannot be taken apart,
    so that its scheme is what it is refused for."""
    try:
        joined = urljoin(url, other)
        urlsplit(joined).port  # noqa: B018  both raise
    except ValueError:
        return f"invalid:{other or url}"
    return joined


def _basic(credentials: RegistryAuth) -> str:
    text = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(text).decode()


def _retry_after(value: str) -> float:
    """Seconds; dates (which no registry sends) count as none."""
    return float(value) if value.isdigit() and len(value) < 10 else 0.0


def _parse_errors(body: bytes) -> tuple[str, str]:
    """(code, message) of the first error of an error document; made printable and bounded."""
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.MsgspecError, RecursionError):
        return "", ""
    first = errors[0] if errors else _Error()
    clean = [
        "".join(c if c.isprintable() else " " for c in t[:500]).strip() for t in (first.code, first.message)
    ]
    return clean[0][:64], clean[1]


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
