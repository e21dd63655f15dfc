"""What Docker has and this daemon does not: 501 and one line; and bodies over the bound."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from house import House
from rawhttp import Connection, call

from nagaya.api.docker.unserved import UNSERVED

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def test_each_is_501_with_one_line(house: House) -> None:
    for method, pattern, what in UNSERVED:
        path = pattern.replace("{name:path}", "a/b").replace("{rest:path}", "x").replace("{id}", "x").replace(
            "{name}", "x").replace("{verb}", "init")  # fmt: skip
        answer = call(house.socket, method, "/v1.47" + path)
        assert answer.status == 501, (method, path, answer)
        if method != "HEAD":
            assert what in answer.message and "\n" not in answer.message
    assert house.leaks() == []


def test_swarm_and_plugins_are_not_offered(house: House) -> None:
    """What is asked without meaning it is answered as dockerd does (tests/api/test_tour.py)."""
    for path in ("/swarm/init", "/swarm/join", "/plugins/pull?remote=x", "/plugins/create?name=x"):
        answer = call(house.socket, "POST", path, {})
        assert answer.status == 501 and "offered" in answer.message, path
    for method, path in (
        ("GET", "/plugins/a/b/json"),
        ("POST", "/plugins/a/b/enable"),
        ("DELETE", "/plugins/a/b"),
    ):
        answer = call(house.socket, method, path)
        assert (answer.status, answer.message) == (404, 'plugin "a/b" not found')
    for method, path in (("GET", "/nodes/x"), ("POST", "/services/create"), ("DELETE", "/secrets/x")):
        answer = call(house.socket, method, path)
        assert answer.status == 503 and answer.message.startswith("This node is not a swarm manager.")


def test_huge_bodies_are_413(house: House) -> None:
    body = b'{"Image": "' + b"x" * (6 << 20) + b'"}'
    answer = call(house.socket, "POST", "/containers/create", body)
    assert answer.status == 413 and "too large" in answer.message
    with Connection(house.socket) as connection:
        connection.sock.sendall(
            b"POST /containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            for _ in range(100):
                connection.sock.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert connection.head()[0] == 413
    deep = b'{"Image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert call(house.socket, "POST", "/containers/create", deep).status == 400
    many = {"Image": "nagaya/busybox", "Env": [f"A{n}={'x' * 1000}" for n in range(3000)]}
    answer = call(house.socket, "POST", "/containers/create", many)
    assert answer.status == 201
    assert call(house.socket, "DELETE", f"/containers/{answer.json['Id']}").status == 204
    assert house.leaks() == []
