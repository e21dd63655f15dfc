"""Attaching by websocket, on dockerd and on nagayad."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from dockerd import Dockerd
from house import House, wait_for
from rawhttp import Connection, call

pytestmark = pytest.mark.root

API = "/v1.41"
OPENING = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
    "Origin": "http://d",
}
BINARY, CLOSE, PING, PONG = 2, 8, 9, 10
Server = Dockerd | House


@pytest.fixture(autouse=True)
def tidy(server: Server) -> Iterator[None]:
    yield
    for item in call(server.socket, "GET", f"{API}/containers/json?all=1").json:
        assert call(server.socket, "DELETE", f"{API}/containers/{item['Id']}?force=1&v=1").status == 204


def make(server: Server, *command: str, **body: Any) -> str:
    wish = {"Image": "nagaya/busybox", "Cmd": list(command), "OpenStdin": True, "StdinOnce": True, **body}
    answer = call(server.socket, "POST", f"{API}/containers/create", wish)
    assert answer.status == 201, answer
    return str(answer.json["Id"])


class Socket:
    """A client after the opening handshake."""

    def __init__(self, connection: Connection, identity: str) -> None:
        self._connection = connection
        query = "stream=1&stdin=1&stdout=1&stderr=1"
        connection.send("GET", f"{API}/containers/{identity}/attach/ws?{query}", b"", OPENING)
        status, headers = connection.head()
        assert (status, headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")

    def send(self, data: bytes, opcode: int = BINARY) -> None:
        mask = os.urandom(4)
        size = bytes((128 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self._connection.sock.sendall(bytes((128 | opcode,)) + size + mask + body)

    def _take(self, count: int) -> bytes:
        while len(self._connection.buffer) < count:
            more = self._connection.sock.recv(65536)
            assert more, "ended in the middle of a frame"
            self._connection.buffer += more
        found, self._connection.buffer = self._connection.buffer[:count], self._connection.buffer[count:]
        return found

    def receive(self) -> tuple[int, bytes]:
        first, size = self._take(2)
        if size > 125:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        return first & 15, self._take(size)

    def read(self, wanted: int) -> bytes:
        """So many bytes of output."""
        found = b""
        while len(found) < wanted:
            opcode, data = self.receive()
            assert opcode == BINARY, (opcode, data)
            found += data
        return found


def test_both_ways_and_the_end(server: Server) -> None:
    identity = make(server, "sh", "-c", "read line; echo got $line; echo err >&2; head -c 100000 /dev/zero")
    with Connection(server.socket) as connection:
        client = Socket(connection, identity)
        assert call(server.socket, "POST", f"{API}/containers/{identity}/start").status == 204
        client.send(b"x" * 300 + b"\n")
        found = client.read(304 + 1 + 4 + 100_000)
        assert b"got " + b"x" * 300 + b"\n" in found and b"err\n" in found
        opcode, data = client.receive()
        assert (opcode, data) == (CLOSE, (1000).to_bytes(2, "big"))


def test_a_ping_and_a_good_bye_which_ends_stdin(server: Server) -> None:
    identity = make(server, "sh", "-c", "cat; sleep 600")
    assert call(server.socket, "POST", f"{API}/containers/{identity}/start").status == 204
    with Connection(server.socket) as connection:
        client = Socket(connection, identity)
        client.send(b"hello\n")
        assert client.read(6) == b"hello\n"
        client.send(b"there?", PING)
        assert client.receive() == (PONG, b"there?")
        client.send((1000).to_bytes(2, "big"), CLOSE)
    top = f"{API}/containers/{identity}/top"
    wait_for(
        lambda: "cat" not in str(call(server.socket, "GET", top).json["Processes"][1:]), 60, "end of cat"
    )
    assert call(server.socket, "GET", f"{API}/containers/{identity}/json").json["State"]["Running"]


def test_what_is_no_websocket(server: Server) -> None:
    identity = make(server, "true")
    answer = call(server.socket, "GET", f"{API}/containers/{identity}/attach/ws?stream=1")
    assert answer.status == 400
    with Connection(server.socket) as connection:
        connection.send("GET", f"{API}/containers/nosuch/attach/ws?stream=1", b"", OPENING)
        assert connection.head()[0] == 404
