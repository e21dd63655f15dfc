"""The little HTTP/1.1 that a client of the daemon needs (RFC 9112), over `_socket`.

`http.client` costs 24 ms of start-up and cannot hand over a hijacked connection with the bytes it
has already read; h11 costs 22.
"""

from __future__ import annotations

import _socket
import os

from nagaya.errors import InvalidArgument, NagayaError, Unavailable
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

_HEAD_LIMIT = 1 << 20
_UNRESERVED = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~/:")


class ApiError(NagayaError):
    """The daemon refused; `status` is HTTP's, the message the daemon's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __str__(self) -> str:
        return f"Error response from daemon: {self.message}"


def quote(text: str) -> str:
    """Percent-encode for a path segment or a query value; "/" and ":" stay, as names of images have them."""
    return "".join(chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in os.fsencode(text))


def target(path: str, query: Mapping[str, object] | None = None) -> str:
    """The request target: values that are None or "" are left out, booleans become 1 or are left out."""
    pairs = []
    for key, value in (query or {}).items():
        if value is None or value is False or value == "":
            continue
        pairs.append(f"{key}={quote('1' if value is True else str(value)).replace('+', '%2B')}")
    return path + ("?" + "&".join(pairs) if pairs else "")


def named(path: str, query: Mapping[str, object], name: str, values: Sequence[str]) -> str:
    """The request target with a variable that may come several times."""
    whole = target(path, query)
    joint = "&" if "?" in whole else "?"
    more = "&".join(f"{name}={quote(value).replace('+', '%2B')}" for value in values)
    return f"{whole}{joint}{more}" if more else whole


class Stream:
    """A connection with a read buffer. After a hijack `take()` gives what was read too far."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def _fill(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def line(self) -> bytes:
        """Up to the next newline, without it. Raises Unavailable at an early end."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > _HEAD_LIMIT or not self._fill():
                raise Unavailable("the daemon closed the connection in the middle of an answer")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def some(self, limit: int = 65536) -> bytes:
        """What is there, at least one byte; b"" at the end of the stream."""
        if not self._buffer and not self._fill():
            return b""
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    def take(self) -> bytes:
        """Empty the buffer."""
        data, self._buffer = self._buffer, b""
        return data


class Response:
    """An answer whose body is read as it comes."""

    def __init__(self, stream: Stream, status: int, headers: dict[str, str], *, empty: bool) -> None:
        self.stream = stream
        self.status = status
        self.headers = headers
        self.done = empty

    def chunks(self) -> Iterator[bytes]:
        """The body's bytes as they arrive."""
        if self.done:
            return
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                size = int(self.stream.line().split(b";")[0], 16)
                if size == 0:
                    while self.stream.line():  # trailers
                        pass
                    break
                yield from self._exactly(size)
                self.stream.line()
        elif "content-length" in self.headers:
            yield from self._exactly(int(self.headers["content-length"]))
        else:
            while data := self.stream.some():
                yield data
        self.done = True

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.stream.some(size)
            if not data:
                raise Unavailable("the daemon closed the connection in the middle of an answer")
            size -= len(data)
            yield data

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks())

    def json(self) -> Any:
        """The body as JSON; None when it is empty."""
        body = self.read()
        if not body:
            return None
        try:
            return json.loads(body)
        except InvalidArgument:
            raise Unavailable(f"the daemon answered with something that is no JSON: {body[:80]!r}") from None

    def objects(self) -> Iterator[Any]:
        """The body as a stream of JSON objects, one a line."""
        rest = b""
        for data in self.chunks():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield json.loads(line)
        if rest.strip():
            yield json.loads(rest)


class Client:
    """Requests to one daemon. `address` is a path of a Unix socket or (host, port).

    An idle connection is used again; a streamed or hijacked one belongs to its caller.
    """

    def __init__(self, address: str | tuple[str, int]) -> None:
        self.address = address
        self._idle: Stream | None = None

    def connect(self) -> Stream:
        """A new connection. Raises Unavailable with what to do about it."""
        family = _socket.AF_UNIX if isinstance(self.address, str) else _socket.AF_INET
        sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            sock.connect(self.address)
        except OSError as error:
            sock.close()
            where = self.address if isinstance(self.address, str) else "{}:{}".format(*self.address)
            raise Unavailable(
                f"Cannot connect to the daemon at {where}: {error.strerror}. Is nagayad running?",
                errno=error.errno or 0,
            ) from None
        return Stream(sock)

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        hijack: bool = False,
        upload: Iterable[bytes] | None = None,
    ) -> Response:
        """Send a request and read the answer's head. `body` becomes JSON unless it is None; upload is
        sent as it is, piece by piece.

        Raises ApiError for a status of 400 and more, Unavailable when nobody answers.
        """
        payload = b""
        lines = [f"{method} {target(path, query)} HTTP/1.1", "Host: nagaya", "User-Agent: nagaya"]
        if body is not None:
            # an argument that is no UTF-8 loses its odd bytes, as in Go's encoder
            payload = json.dumps(body).encode("utf-8", "replace")
            lines.append("Content-Type: application/json")
        if upload is not None:
            lines.append("Transfer-Encoding: chunked")
        elif method in ("POST", "PUT") or payload:
            lines.append(f"Content-Length: {len(payload)}")
        if hijack:
            lines += ["Connection: Upgrade", "Upgrade: tcp"]
        lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
        if any("\n" in line or "\r" in line for line in lines):
            raise InvalidArgument("a name or value for the request has a line break in it")
        raw = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + payload
        stream, self._idle = self._idle, None
        if stream is not None:
            try:
                if upload is not None:
                    raise _Stale("what is uploaded cannot be sent twice")
                stream.sock.sendall(raw)
                return self._answer(stream, method)
            except (OSError, _Stale):
                stream.sock.close()  # the daemon had closed the idle connection
        stream = self.connect()
        try:
            stream.sock.sendall(raw)
            if upload is not None:
                _upload(stream.sock, upload)
            return self._answer(stream, method)
        except (OSError, _Stale) as error:
            raise Unavailable(f"the daemon did not answer: {error}") from None

    def _answer(self, stream: Stream, method: str) -> Response:
        while True:
            if not stream._buffer and not stream._fill():
                raise _Stale("it closed the connection")
            status = int(stream.line().split(b" ", 2)[1])
            headers: dict[str, str] = {}
            while line := stream.line():
                key, _, value = line.decode("latin-1").partition(":")
                headers[key.strip().lower()] = value.strip()
            if status >= 200 or status == 101:
                break
        response = Response(stream, status, headers, empty=method == "HEAD" or status in (204, 304))
        if status >= 400:
            raise ApiError(status, _message(response))
        return response

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """A request with a short answer: its JSON, or None. The connection is kept for the next one."""
        response = self.send(method, path, query, body, headers)
        answer = response.json()
        if response.headers.get("connection", "").lower() == "close":
            response.stream.sock.close()
        else:
            self._idle = response.stream
        return answer

    def hijack(self, path: str, query: Mapping[str, object] | None = None, body: object = None) -> Response:
        """POST and take the connection over (101, or 200 from old servers): a raw stream both ways."""
        return self.send("POST", path, query, body, hijack=True)


class _Stale(Exception):
    """The other side had closed the connection before it saw the request."""


def _upload(sock: _socket.socket, pieces: Iterable[bytes]) -> None:
    """Send a chunked body, to its end or until the daemon has heard enough: it then has answered."""
    try:
        for piece in pieces:
            if piece:
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass


def _message(response: Response) -> str:
    body = response.read()
    try:
        return str(json.loads(body)["message"])
    except (InvalidArgument, KeyError, TypeError):
        return body.decode(errors="replace").strip() or f"HTTP status {response.status}"
