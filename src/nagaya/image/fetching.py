"""A file from the web, for `import`: fetched once, handed on as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from nagaya.errors import InvalidArgument, NotFound, Unavailable
from nagaya.image.complaints import status_line
from nagaya.image.jobs import Check, watched
from nagaya.image.pull import Progress, Report
from nagaya.image.session import follow, join
from nagaya.image.transport import Answer, NetworkError, RegistryConfig, Transport

_PIECE = 512 << 10
_REPORT = 0.1  # seconds between two progress reports at least


@contextmanager
def fetched(url: str, config: RegistryConfig, report: Report, check: Check) -> Iterator[Iterator[bytes]]:
    """The bytes at a URL (http or https; the first is meant when it says neither), told as dockerd does.

    check is called now and then and may raise to stop. Raises InvalidArgument for what is no URL,
    NotFound and Unavailable when it cannot be had, also while iterating.
    """
    whole = url if "://" in url else f"http://{url}"
    parts = urlsplit(join(whole, ""))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(f"{url[:200]!r} is no URL of http or https", subject="fromSrc")
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()[:400]
    transport = Transport(config)
    with watched(check, transport.cut):
        try:
            answer = follow(transport, whole, {}, {})
        except NetworkError as error:
            check()  # it may be we who cut the line
            raise Unavailable(str(error), step="import") from None
        try:
            if answer.status != 200:
                kind = NotFound if answer.status in (404, 410) else Unavailable
                raise kind(f"failed to GET {shown} with status {status_line(answer.status)}", subject=shown)
            report(Progress(f"Downloading from {shown}"))
            yield _pieces(answer, report, check)
        finally:
            answer.close()


def _pieces(answer: Answer, report: Report, check: Check) -> Iterator[bytes]:
    length = answer.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() and len(length) < 20 else 0
    done, told = 0, 0.0
    try:
        for piece in answer.pieces(_PIECE):
            check()
            done += len(piece)
            if time.monotonic() >= told:
                told = time.monotonic() + _REPORT
                report(Progress("Importing", "", done, total))
            yield piece
    except NetworkError as error:
        check()
        raise Unavailable(str(error), step="import") from None
    if total and done < total:
        raise Unavailable(f"the server ended the file after {done} of {total} bytes", step="import")
