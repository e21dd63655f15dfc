"""One HTTP request, made carefully: TLS, private CAs, insecure hosts, proxies, timeouts, plain errors.

No redirect is followed and nothing is retried here: `image.registry` decides both. urllib3 because
it moved 2.0 GB/s over loopback where aiohttp did 0.8; its pools are thread-safe.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # typeshed lacks the second
    getproxies_environment,
    proxy_bypass_environment,
)

import msgspec
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from nagaya import __version__
from nagaya.image.hosts import Host
from nagaya.image.layers import Limits
from nagaya.image.lines import Lines

_PROBE_TIMEOUT = 5.0

# whoever lists a host as insecure has been warned by the documentation; the log need not repeat it
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


class RegistryConfig(msgspec.Struct, frozen=True):
    """How registries are reached. Hosts are "name" or "name:port", as in image references."""

    mirrors: dict[str, list[str]] = {}  # registry's host -> base URLs, tried in this order before it
    insecure: tuple[str, ...] = ()  # hosts, or CIDR ranges, where plain HTTP and bad certificates will do
    ca: dict[str, str] = {}  # host -> PEM file of further certificate authorities
    hosts_dir: str = ""  # directory of files for single registries (image.hosts); "": none
    docker_config: str = "~/.docker/config.json"  # "": none
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    retries: int = 4
    backoff: float = 0.5  # seconds before the first retry; doubled for each further one
    downloads: int = 3  # at a time, over all pulls
    unpacks: int = 3
    uploads: int = 5  # at a time, over all pushes
    limits: Limits = Limits()


class NetworkError(Exception):
    """A request that got no (whole) answer. transient: another try may help."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class Answer:
    """A response whose body has not been read."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self.url = url
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        self.away = False  # it came from another host than was asked

    def pieces(self, size: int) -> Iterator[bytes]:
        """The body as it comes. Raises NetworkError when it breaks off."""
        try:
            while piece := self._response.read1(size, decode_content=False):
                yield piece
        except (HTTPError, OSError) as error:
            raise explain("Get", self.url, error) from None

    def read(self, limit: int) -> bytes:
        """The body, at most limit + 1 bytes of it. Raises NetworkError. The answer is closed."""
        parts, total = [], 0
        try:
            for piece in self.pieces(64 << 10):
                parts.append(piece)
                total += len(piece)
                if total > limit:
                    break
        finally:
            self.close()
        return b"".join(parts)[: limit + 1]

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end."""
        self._response.close()
        self._response.release_conn()


class Transport:
    """The connections of one pull. Thread-safe.

    schemes: what insecure hosts were found to speak, shared with other pulls: asking may cost seconds.
    """

    def __init__(self, config: RegistryConfig, schemes: dict[str, str] | None = None) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._lines = Lines()
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._schemes = {} if schemes is None else schemes
        self._hosts: dict[str, Host] = {}

    def trust(self, hosts: Iterable[Host]) -> None:
        """What the configuration says of these hosts counts from now on."""
        with self._lock:
            self._hosts.update((host.netloc, host) for host in hosts)

    def cut(self) -> None:
        """The pull has ended, or shall: no connection stays, and whoever waits for one is woken."""
        self._lines.cut()
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> Answer:
        """Make one request; any status is an answer. A body in pieces needs a Content-Length. Raises
        NetworkError."""
        return self._send(method, url, headers, body, self._config.connect_timeout, self._config.read_timeout)

    def is_insecure(self, host: str) -> bool:
        """May this host (with port) be spoken to without TLS? Loopback may, as with dockerd."""
        known = self._hosts.get(host)
        if known is not None and known.skip_verify:
            return True
        return host in self._config.insecure or _in_ranges(host, (*_LOOPBACK, *self._config.insecure))

    def base(self, url: str) -> str:
        """The URL with the scheme that its host really speaks; only insecure hosts may get http.

        Raises NetworkError when an insecure host answers neither way.
        """
        parts = urlsplit(url)
        host = parts.netloc
        if not self.is_insecure(host):
            return url
        with self._lock:
            scheme = self._schemes.get(host)
        if scheme is None:
            scheme = self._probe(host)
            with self._lock:
                self._schemes[host] = scheme
        return parts._replace(scheme=scheme).geturl()

    def _probe(self, host: str) -> str:
        # a plain server may sit and wait on a TLS hello: loopback, which rarely has TLS, is asked plainly
        order = ("http", "https") if _in_ranges(host, _LOOPBACK) else ("https", "http")
        first: NetworkError | None = None
        for scheme in order:
            try:
                answer = self._send("GET", f"{scheme}://{host}/v2/", {}, None, _PROBE_TIMEOUT, _PROBE_TIMEOUT)
            except NetworkError as error:
                first = first or error
                continue
            answer.close()
            if answer.status != 400:  # what TLS servers say to plain requests
                return scheme
        raise first or NetworkError(f'Get "https://{host}/v2/": bad request', transient=False)

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        connect: float,
        read: float,
    ) -> Answer:
        everything = {
            "User-Agent": f"nagaya/{__version__}",
            "Accept-Encoding": "identity",
            **headers,
        }
        try:
            response = self._pool(url).urlopen(
                method,
                url,
                body=body,
                headers=everything,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=connect, read=read),
            )
        except (HTTPError, OSError, ValueError) as error:
            raise explain(method.capitalize(), url, error) from None
        return Answer(response, url)

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        host = parts.netloc
        known = self._hosts.get(host)
        ca = (*filter(None, [self._config.ca.get(host)]), *(known.ca if known else ()))
        client = known.client if known else ()
        insecure = self.is_insecure(host) and not ca
        proxy = ""
        if not _in_ranges(host, _LOOPBACK) and not proxy_bypass_environment(parts.hostname or ""):
            proxy = getproxies_environment().get(parts.scheme, "")
        key = f"{parts.scheme} {proxy} {ca} {client} {insecure}"
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                context = None
                if parts.scheme == "https" or proxy.startswith("https"):
                    context = _tls_context(ca, client, insecure)
                pool = (
                    urllib3.ProxyManager(proxy, ssl_context=context, num_pools=16, maxsize=16)
                    if proxy
                    else urllib3.PoolManager(ssl_context=context, num_pools=16, maxsize=16)
                )
                self._lines.adopt(pool)
                self._pools[key] = pool
            return pool


def _tls_context(
    authorities: Sequence[str], client: Sequence[tuple[str, str]], insecure: bool
) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for ca in authorities:
        try:
            context.load_verify_locations(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            raise NetworkError(f"certificate authorities in {ca}: {error}", transient=False) from None
    for certificate, key in client:
        try:
            context.load_cert_chain(certificate, key or None)
        except (OSError, ssl.SSLError) as error:
            raise NetworkError(f"client certificate {certificate}: {error}", transient=False) from None
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


_LOOPBACK = ("127.0.0.0/8", "::1/128")


def _in_ranges(host: str, ranges: tuple[str, ...]) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        name = "127.0.0.1"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    for text in ranges:
        if "/" not in text:
            continue
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        if address.version == network.version and address in network:
            return True
    return False


def explain(method: str, url: str, error: Exception) -> NetworkError:
    """One line with the URL and the innermost reason, worded like Go's net/http where it has words."""
    transient = True
    if isinstance(error, NameResolutionError):
        reason, transient = f"lookup {urlsplit(url).hostname}: no such host", False
    elif isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        reason, transient = "connection timed out", False
    elif isinstance(error, NewConnectionError):
        reason = str(getattr(error.__cause__, "strerror", "") or "cannot connect").lower()
        transient = False
    elif isinstance(error, SSLError):
        reason, transient = f"tls: {_tls(error)}", False
    elif isinstance(error, ReadTimeoutError):
        reason = "no answer in time"
    elif isinstance(error, ValueError) and not isinstance(error, HTTPError):
        reason, transient = f"not a valid URL: {error}", False
    else:
        reason = f"connection broken: {_innermost(error)}"
    return NetworkError(f'{method} "{url.partition("?")[0][:400]}": {reason}', transient=transient)


def _tls(error: SSLError) -> str:
    text = str(error)
    return text.partition("] ")[2].partition(" (_ssl")[0] or text[:200]


def _innermost(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).lower()[:200]
