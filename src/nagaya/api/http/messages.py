"""Requests and answers as the handlers see them.

A handler gets a `Request` and returns a `Response` (whole), a `Stream` (chunked, one flush per item)
or None after `Request.hijack` took the connection over. HTTP/1.1 is RFC 9112.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from urllib.parse import parse_qsl

from nagaya.errors import InvalidArgument, NagayaError

Headers = Sequence[tuple[bytes, bytes]]

MAX_JSON_BODY = 4 << 20
"""A container's create body is some kilobytes; environment and labels may make it large."""


class PayloadTooLarge(NagayaError):
    """The request's body is over its bound (HTTP 413)."""

    code = "payload_too_large"


class RequestTimeout(NagayaError):
    """The client stopped in the middle of its request (HTTP 408)."""

    code = "request_timeout"


class Request:
    """One request. `params` are the route's variables; `version` is the negotiated API version.

    A handler is cancelled when its client disconnects unless `shielded`: an operation that changes
    something runs to its end, so that a client's timeout never leaves it half done.
    """

    __slots__ = (
        "_chunks",
        "_hijack",
        "_query",
        "headers",
        "method",
        "params",
        "path",
        "query_string",
        "shielded",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        chunks: Callable[[], Awaitable[bytes]],
        hijack: Callable[[bytes], Awaitable[tuple[int, bytes]]],
    ) -> None:
        path, _, query = target.partition(b"?")
        self.method = method
        self.path = path.decode("ascii", "replace")
        self.query_string = query
        self.headers = headers
        self.params: dict[str, str] = {}
        self.version: tuple[int, int] = (0, 0)
        self.shielded = False
        self._query: dict[str, list[str]] | None = None
        self._chunks = chunks
        self._hijack = hijack

    def header(self, name: bytes) -> bytes:
        """The first value of a header (name in lower case), b"" when absent."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    @property
    def query(self) -> dict[str, list[str]]:
        """The query's variables, blank ones included."""
        if self._query is None:
            query: dict[str, list[str]] = {}
            if self.query_string:
                try:
                    pairs = parse_qsl(
                        self.query_string.decode("ascii", "replace"),
                        keep_blank_values=True,
                        max_num_fields=1000,
                    )
                except ValueError as error:
                    raise InvalidArgument(f"invalid query: {error}") from None
                for key, value in pairs:
                    query.setdefault(key, []).append(value)
            self._query = query
        return self._query

    def get(self, name: str, default: str = "") -> str:
        """The first value of a query variable."""
        values = self.query.get(name)
        return values[0] if values else default

    def flag(self, name: str, default: bool = False) -> bool:
        """A query variable as Docker reads booleans: anything but "", 0, no, false, none is true."""
        values = self.query.get(name)
        if not values:
            return default
        return values[0].strip().lower() not in ("", "0", "no", "false", "none")

    def integer(self, name: str, default: int = 0) -> int:
        """A query variable as a decimal number. Raises InvalidArgument."""
        text = self.get(name)
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise InvalidArgument(
                f"invalid value {text!r} for query parameter {name!r}: not a number"
            ) from None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Sends "100 Continue" first when the client waits for it."""
        while chunk := await self._chunks():
            yield chunk

    async def body(self, limit: int = MAX_JSON_BODY) -> bytes:
        """The whole body. Raises PayloadTooLarge over `limit` bytes."""
        length = self.header(b"content-length")
        if length and int(length) > limit:
            raise PayloadTooLarge(f"request body too large: more than {limit} bytes")
        parts: list[bytes] = []
        size = 0
        while chunk := await self._chunks():
            size += len(chunk)
            if size > limit:
                raise PayloadTooLarge(f"request body too large: more than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    @property
    def wants_upgrade(self) -> bool:
        """True when the client asked for `Upgrade: tcp` (it then gets 101 instead of 200)."""
        return bool(self.header(b"upgrade"))

    async def hijack(self, head: bytes) -> tuple[int, bytes]:
        """Send `head` (status line and headers) and leave HTTP: returns a duplicate of the socket, now
        the caller's to close, and the bytes that arrived after the request."""
        return await self._hijack(head)


class Response:
    """A whole answer."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: bytes = b"application/json",
        headers: Headers = (),
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


class Stream:
    """An answer whose items are sent, each in a write of its own, as they come. The header goes out
    at once, before the first item. `render_error` turns an error after that into a last item."""

    __slots__ = ("content_type", "headers", "items", "render_error", "status")

    def __init__(
        self,
        items: AsyncIterator[bytes],
        *,
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Headers = (),
        render_error: Callable[[Exception], bytes] | None = None,
    ) -> None:
        self.items = items
        self.status = status
        self.content_type = content_type
        self.headers = headers
        self.render_error = render_error


Answer = Response | Stream | None
Application = Callable[[Request], Awaitable[Answer]]
