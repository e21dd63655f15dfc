"""HTTP by hand over a Unix socket: what a client library would refuse to send, and what it would hide."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

TIMEOUT = 60.0
JSON = MappingProxyType({"Content-Type": "application/json"})
UPGRADE = MappingProxyType({"Connection": "Upgrade", "Upgrade": "tcp"})


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The error's one line, as JSON or (dockerd's about versions) as text."""
        if self.headers.get("content-type") != "application/json":
            return self.body.decode()
        message = self.json["message"]
        assert isinstance(message, str)
        return message


class Connection:
    """A socket and what was read from it. Use as a context manager."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(str(path))
        self.buffer = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """A request with a length."""
        lines = [f"{method} {path} HTTP/1.1", "Host: d"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        """Up to and without the mark."""
        while mark not in self.buffer:
            assert self._more(), f"ended with {self.buffer!r}"
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers (lower case) of the next answer."""
        line, *rest = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in rest)}
        return int(line.split()[1]), headers

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" at its end."""
        size = int(self.until(b"\r\n"), 16)
        while len(self.buffer) < size + 2:
            assert self._more()
        data, self.buffer = self.buffer[:size], self.buffer[size + 2 :]
        return data

    def rest(self) -> bytes:
        """Everything until the other side closes."""
        while self._more():
            pass
        data, self.buffer = self.buffer, b""
        return data

    def reply(self, method: str = "GET") -> Reply:
        """A whole answer."""
        status, headers = self.head()
        if status in (204, 304) or method == "HEAD":
            return Reply(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while data := self.chunk():
                parts.append(data)
            return Reply(status, headers, b"".join(parts))
        if "content-length" not in headers:
            return Reply(status, headers, self.rest())
        size = int(headers["content-length"])
        while len(self.buffer) < size:
            assert self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return Reply(status, headers, body)


def call(path: Path, method: str, target: str, body: Any = None) -> Reply:
    """One request on a connection of its own; a body that is no bytes is sent as JSON."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    with Connection(path) as connection:
        connection.send(method, target, data, JSON if data else MappingProxyType({}))
        return connection.reply(method)


def shape(value: Any) -> Any:
    """The types of a document: what a client's decoder depends on."""
    if isinstance(value, Mapping):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__
