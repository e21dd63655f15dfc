"""Requests to one repository of one registry: endpoints, retries, redirects, credentials.

The endpoints are mirrors first, the registry last. Credentials go to the endpoint's own host, or to
the token server that host names, and nowhere else: not along a redirect, not to a foreign layer's URL
(CVE-2020-15157), not to a mirror.
"""

from __future__ import annotations

import base64
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import msgspec

from nagaya.errors import DataLoss, NagayaError, NotFound, PermissionDenied, Unauthenticated, Unavailable
from nagaya.image import auth as auths
from nagaya.image import hosts
from nagaya.image.auth import RegistryAuth
from nagaya.image.complaints import refused_pull
from nagaya.image.hosts import Host, Hosts
from nagaya.image.transport import Answer, NetworkError, RegistryConfig, Transport
from nagaya.oci.reference import Reference

MAX_BODY = 1 << 20  # of token answers and error documents
HUB_ENDPOINT = "https://registry-1.docker.io"
_MAX_WAIT = 30.0  # a Retry-After beyond this is an answer, not a pause
_REDIRECTS = 10
_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))
_REDIRECT = frozenset((301, 302, 303, 307, 308))
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_TOKEN_LIFE = 60.0  # when the server does not say

T = TypeVar("T")
Body = Callable[[], bytes | Iterable[bytes]]  # made anew for each try


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class Endpoint:
    """One base URL with its own credentials and token."""

    def __init__(self, host: Host, credentials: Callable[[], RegistryAuth]) -> None:
        self.host = host
        self.url = host.url.rstrip("/")
        self.lock = threading.Lock()
        self.authorization = ""  # value of the header, "" before the first challenge
        self.expires = 0.0
        self.dead = False
        self._credentials = credentials
        self._known: RegistryAuth | None = None

    def secrets(self, authorization: str) -> dict[str, str]:
        """Headers for this host alone."""
        return {**dict(self.host.headers), **({"Authorization": authorization} if authorization else {})}

    def credentials(self) -> RegistryAuth:
        """Found out when first needed: a helper may be slow, and many registries never ask."""
        if self._known is None:
            self._known = self._credentials()
        return self._known


class Session:
    """Requests about the repository that `reference` names. Thread-safe.

    auth None: what the docker_config file says. check is called before each request and while
    waiting; it may raise. scopes: what tokens are asked for besides what the registry wants
    ("repository:a/b:pull,push"). refused: the words for what a token server answers.
    """

    def __init__(
        self,
        reference: Reference,
        config: RegistryConfig,
        transport: Transport,
        auth: RegistryAuth | None,
        check: Callable[[], None],
        scopes: Sequence[str] = (),
        refused: Callable[[Reference, int, bytes], NagayaError] = refused_pull,
    ) -> None:
        self.reference = reference
        self.transport = transport
        self._config = config
        self._check = check
        self._scopes = scopes
        self._refused = refused
        domain = reference.domain
        places = _hosts(config, domain)
        transport.trust((*places.mirrors, places.server))

        def from_file(host: str) -> Callable[[], RegistryAuth]:
            return lambda: auths.from_docker_config(config.docker_config, host)

        self._endpoints = [Endpoint(mirror, from_file(mirror.netloc)) for mirror in places.mirrors]
        self._endpoints.append(Endpoint(places.server, from_file(domain) if auth is None else lambda: auth))

    @property
    def home(self) -> Endpoint:
        """The registry itself, or what takes pushes for it."""
        takes = [endpoint for endpoint in self._endpoints if "push" in endpoint.host.capabilities]
        return takes[0] if takes else self._endpoints[-1]

    @property
    def mirrored(self) -> bool:
        """Is a mirror asked before the registry?"""
        return any(not endpoint.dead for endpoint in self._endpoints[:-1])

    def distrust_mirrors(self) -> None:
        """A blob was broken or wrong: from now on only the registry itself is asked."""
        for endpoint in self._endpoints[:-1]:
            endpoint.dead = True

    def each(self, fetch: Callable[[Endpoint], T], capability: str = "pull") -> T:
        """Mirrors that can do that first. Whatever a mirror says, the registry itself has the last word; but
        a broken credential store is the user's to repair, not a reason to ask somebody else."""
        for endpoint in self._endpoints[:-1]:
            if endpoint.dead or capability not in endpoint.host.capabilities:
                continue
            try:
                return fetch(endpoint)
            except (NotFound, Unauthenticated, PermissionDenied, DataLoss):
                continue
            except Unavailable:
                endpoint.dead = True
        return fetch(self._endpoints[-1])

    def ping(self) -> Answer:
        """What the registry itself answers to GET /v2/, asked with the credentials. Raises Unavailable,
        Unauthenticated (the token server's)."""
        return self.retry(
            lambda: self._authorized(self.home, "GET", f"{self.transport.base(self.home.url)}/v2/", {}, None)
        )

    def get(self, endpoint: Endpoint, path: str, headers: dict[str, str]) -> Answer:
        """GET below /v2/REPOSITORY/, with credentials, redirects and retries."""
        return self.request(endpoint, "GET", path, headers)

    def request(
        self,
        endpoint: Endpoint,
        method: str,
        target: str,
        headers: dict[str, str],
        body: Body | None = None,
        retries: int | None = None,
    ) -> Answer:
        """A request to a path below /v2/REPOSITORY/, or a URL that the registry named, with credentials
        and retries (default: as configured), a GET with redirects. Raises Unavailable when nobody answers."""

        def attempt() -> Answer:
            root = self.root(endpoint)
            url = target if "://" in target else f"{root}/{self.reference.path}/{target}"
            if urlsplit(url)[:2] != urlsplit(root)[:2]:  # what it is to be there, the URL itself says
                return self._once(method, url, headers, {}, body)
            return self._authorized(endpoint, method, url, headers, body)

        return self.retry(attempt, retries)

    def retry(self, attempt: Callable[[], Answer], retries: int | None = None) -> Answer:
        """attempt, again after what may pass. Raises Unavailable."""
        pause = self._config.backoff
        for left in range(self._config.retries if retries is None else retries, -1, -1):
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
            self.sleep(max(wait, pause * random.uniform(0.5, 1.0)))
            pause = min(pause * 2, _MAX_WAIT)
        raise Unavailable("the registry did not answer", step="pull")

    def sleep(self, seconds: float) -> None:
        """Wait, and look whether that is still wanted."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.2))

    def root(self, endpoint: Endpoint) -> str:
        """The URL that the paths of distribution-spec lie below, "…/v2". Raises NetworkError."""
        base = self.transport.base(endpoint.url)
        return base if endpoint.host.own_path else f"{base}/v2"

    # authentication

    def _authorized(
        self, endpoint: Endpoint, method: str, url: str, headers: dict[str, str], body: Body | None
    ) -> Answer:
        with endpoint.lock:
            if endpoint.expires and time.monotonic() > endpoint.expires:
                endpoint.authorization, endpoint.expires = "", 0.0
            used = endpoint.authorization
        answer = self._once(method, url, headers, endpoint.secrets(used), body)
        if answer.status != 401 or answer.away:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        with endpoint.lock:
            if endpoint.authorization == used and not self._login(endpoint, url, challenge):
                return answer
            used = endpoint.authorization
        answer.close()
        return self._once(method, url, headers, endpoint.secrets(used), body)

    def _once(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        secrets: Mapping[str, str],
        body: Body | None,
    ) -> Answer:
        if method in ("GET", "HEAD"):
            return follow(self.transport, url, headers, secrets, method)
        return self.transport.request(method, url, {**headers, **secrets}, body() if body else None)

    def _login(self, endpoint: Endpoint, url: str, challenge: str) -> bool:
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
        realm = join(url, parameters["realm"])
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise Unauthenticated(f"token server {realm[:200]!r} is not a URL", step="log in")
        if parts.scheme == "http" and not (
            self.transport.is_insecure(parts.netloc) or urlsplit(url).scheme == "http"
        ):
            raise Unauthenticated(f"token server {realm[:200]!r} is not https: refused", step="log in")
        path = self.reference.path
        wanted = parameters.get("scope") or (f"repository:{path}:pull" if path else "")
        scopes = list(dict.fromkeys((*self._scopes, *(() if wanted in self._scopes else wanted.split()))))
        query = {"scope": " ".join(scopes)}  # as oauth.md has it
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
            answer = self.retry(
                lambda: self.transport.request("POST", realm, headers, urlencode(form).encode())
            )
        else:
            query.pop("scope")  # token.md: once for each
            asked_for = [*query.items(), *(("scope", scope) for scope in scopes)]
            everything = urlencode([*parse_qsl(parts.query), *asked_for])
            asked = parts._replace(query=everything).geturl()
            basic = {"Authorization": _basic(credentials)} if credentials.username else {}
            answer = self.retry(lambda: follow(self.transport, asked, {}, basic))
        body = self.read(answer, MAX_BODY)
        if answer.status in (401, 403) and credentials:
            raise Unauthenticated(
                f'Get "{realm[:200]}": unauthorized: incorrect username or password', step="log in"
            )
        if answer.status != 200:
            raise self._refused(self.reference, answer.status, body)
        try:
            token = msgspec.json.decode(body, type=_Token)
        except msgspec.MsgspecError:
            raise Unauthenticated("the token server's answer holds no token", step="log in") from None
        value = token.token or token.access_token
        if not _TOKEN.fullmatch(value):
            raise Unauthenticated("the token server's answer holds no token", step="log in")
        return value, min(token.expires_in or _TOKEN_LIFE, 86400.0)

    def read(self, answer: Answer, limit: int) -> bytes:
        """The body, at most limit + 1 bytes. Raises Unavailable."""
        try:
            return answer.read(limit)
        except NetworkError as error:
            raise Unavailable(str(error), step="pull") from None


def follow(
    transport: Transport,
    url: str,
    headers: dict[str, str],
    secrets: Mapping[str, str],
    method: str = "GET",
) -> Answer:
    """GET (or HEAD) along redirects. secrets: headers that stay behind as soon as the origin
    changes. Raises NetworkError, Unavailable for redirects that are refused."""
    origin = urlsplit(url)[:2]
    away = False
    for _ in range(_REDIRECTS + 1):
        answer = transport.request(method, url, {**headers, **({} if away else secrets)})
        answer.away = away
        if answer.status not in _REDIRECT or not answer.headers.get("Location"):
            return answer
        location = join(url, answer.headers["Location"])
        answer.close()
        before, after = urlsplit(url), urlsplit(location)
        if after.scheme not in ("http", "https") or not after.netloc:
            raise Unavailable(f"redirect to {location[:200]!r} refused", step="pull")
        if before.scheme == "https" and after.scheme == "http" and not transport.is_insecure(after.netloc):
            raise Unavailable(f"redirect from https to {location[:200]!r} refused", step="pull")
        away = away or after[:2] != origin
        url = location
    raise Unavailable(
        f'Get "{url.partition("?")[0][:200]}": stopped after {_REDIRECTS} redirects', step="pull"
    )


def join(url: str, other: str) -> str:
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


def pause_asked(answer: Answer) -> float:
    """Seconds that the registry wants us to wait, no more than we are ready to."""
    return min(_retry_after(answer.headers.get("Retry-After", "")), _MAX_WAIT)


def _hosts(config: RegistryConfig, domain: str) -> Hosts:
    """Where to find the registry: by its own file, else by the configuration."""
    home = HUB_ENDPOINT if domain == auths.DOCKER_HUB else f"https://{domain}"
    found = hosts.load(config.hosts_dir, domain, home)
    return found or Hosts(tuple(map(Host, config.mirrors.get(domain, ()))), Host(home))


def _retry_after(value: str) -> float:
    """Seconds (RFC 9110, 10.2.3: a number of them, or a date); what is neither counts as none."""
    if value.isdigit() and len(value) < 10:
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return 0.0
    return max(moment.timestamp() - time.time(), 0.0)
