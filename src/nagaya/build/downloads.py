"""ADD's URLs: fetched into the build's directory, checked, and copied as any file."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import urllib3

from nagaya.build.transfer import Item
from nagaya.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from nagaya.image import making, transport
from nagaya.oci import digest as digests

if TYPE_CHECKING:
    from nagaya.build.execute import Build

MAX_SIZE = 64 << 30
_TIMEOUT = urllib3.Timeout(connect=30, read=60)
_PIECE = 1 << 20


async def fetch(build: Build, url: str, destination: str, checksum: str) -> Item:
    """The file that a URL names. Raises InvalidArgument (no name, a wrong checksum), Unavailable."""
    name = posixpath.basename(unquote(urlsplit(url).path))
    if not name and destination.endswith("/"):
        raise InvalidArgument(f"cannot determine filename from url: {url[:200]}", subject=url[:200])
    if checksum and not digests.is_digest(checksum):
        raise InvalidArgument(f"invalid checksum digest format: {checksum[:100]}", subject="checksum")
    name = name or posixpath.basename(destination)
    if "/" in name or name in (".", "..") or "\0" in name:
        raise InvalidArgument(f"cannot determine filename from url: {url[:200]}", subject=url[:200])

    def work() -> Item:
        path = f"{build.directory}/{os.urandom(8).hex()}"
        os.mkdir(path, 0o700)
        _download(build, url, f"{path}/{name}", checksum)
        return Item(build.hold(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)), name, name)

    return await build.workshop.work(work)


@contextmanager
def stream(url: str, limit: int = MAX_SIZE) -> Iterator[Iterator[bytes]]:
    """The bytes at a URL as they come. Raises Unavailable, ResourceExhausted."""
    with _opened(url) as response:
        yield _bounded(response, url, limit)


def _download(build: Build, url: str, path: str, checksum: str) -> None:
    seen = digests.hasher(checksum) if checksum else hashlib.sha256()
    with _opened(url) as response:

        def pieces() -> Iterator[bytes]:
            for piece in _bounded(response, url, MAX_SIZE):
                build.check()
                seen.update(piece)
                yield piece

        making.write_new(path, pieces())
        modified = response.headers.get("Last-Modified", "")
    found = f"{checksum.partition(':')[0]}:{seen.hexdigest()}"
    if checksum and found != checksum:
        raise DataLoss(f"digest mismatch {found}: {checksum}", subject=url[:200])
    try:
        time = parsedate_to_datetime(modified).timestamp() if modified else 0.0
    except ValueError:
        time = 0.0
    os.utime(path, (time, time))


def _opened(url: str) -> urllib3.BaseHTTPResponse:
    pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=urllib3.Retry(3, redirect=10))
    try:
        response = pool.request("GET", url, preload_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise _failed(url, error) from None
    if response.status != 200:
        response.close()
        raise Unavailable(
            f"failed to GET {url[:200]} with status {response.status} {response.reason or ''}".rstrip(),
            subject=url[:200],
        )
    return response


def _bounded(response: urllib3.BaseHTTPResponse, url: str, limit: int) -> Iterator[bytes]:
    size = 0
    try:
        for piece in response.stream(_PIECE, decode_content=False):
            size += len(piece)
            if size > limit:
                raise ResourceExhausted(f"{url[:200]} has more than {limit} bytes", subject=url[:200])
            yield piece
    except urllib3.exceptions.HTTPError as error:
        raise _failed(url, error) from None


def _failed(url: str, error: Exception) -> Unavailable:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason is not None:
        error = error.reason
    return Unavailable(str(transport.explain("Get", url, error)), subject=url[:200])
