"""Every route of a living daemon, asked with nonsense of every kind: an answer in time, and never a 500.

Names, query variables and bodies are drawn from what the routes know and from what nobody should send.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from house import House
from rawhttp import Connection, call
from vocabulary import FIELDS, VARIABLES

from nagaya.api.docker.server import _ROUTES

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
EACH = 25  # requests a route and seed
TIMEOUT = 60.0

REAL = ("alive", "idle", "data", "lan", IMAGE)
NAMES = (
    *("alive", "idle", "data", "lan", "none", IMAGE, "nagaya/busybox:latest", "nosuch", "0" * 64, "a" * 12),
    *(
        "",
        " ",
        ".",
        "..",
        "../../etc",
        "%",
        "%00",
        "\0",
        "\n",
        "ä",
        "\ud7ff",
        "x" * 5000,
        "-1",
        "a:b:c",
        "@",
        "sha256:",
    ),
    *("host", "bridge", "default", "container:alive", "UPPER/case", "127.0.0.1:1/x", "*", "{}", "<script>"),
)
VALUES = (
    *(
        "",
        "0",
        "1",
        "-1",
        "true",
        "x",
        "99999999999999999999",
        "1.5",
        "NaN",
        "\0",
        "ä",
        "[]",
        "{}",
        "{",
        "null",
    ),
    *('{"name":["alive"]}', '{"name":{"alive":true}}', '{"label":[""]}', '{"x":1}', '{"dangling":["x"]}'),
    *(
        "2020-01-01T00:00:00Z",
        "-1h",
        "1e400",
        "9" * 400,
        "/",
        "../..",
        "/nosuch",
        "ps -ef",
        "-o pid",
        "alive",
    ),
)
LEAVES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**63 - 1,
        -(2**63),
        2**64,
        1.5,
        1e308,
        "",
        "x",
        "alive",
        "data",
        "\0",
    ),
    *(
        "a=b",
        "ä",
        "x" * 3000,
        "80/tcp",
        "80-90",
        "none",
        "host",
        "container:alive",
        "container:",
        "0:0:0",
        "SIGKILL",
    ),
    *(
        [],
        {},
        [None],
        [""],
        ["x"],
        [["x"]],
        [{}],
        {"x": None},
        {"": ""},
        {"x": {}},
        {"80/tcp": [{}]},
        {"Name": "x"},
    ),
)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        started.ok("run", "-d", "--name", "alive", "--network", "none", IMAGE, "sleep", "6000")
        started.ok("create", "--name", "idle", "-v", "data:/d", IMAGE, "true")
        started.ok("network", "create", "lan")
        yield started
        for network in started.ok("network", "ls", "-q", "--filter", "type=custom").split():
            started.docker("network", "rm", network)


class Nonsense:
    """Draws requests for a pattern."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def path(self, pattern: str) -> str:
        parts = pattern.split("/")
        for index, part in enumerate(parts):
            if part.startswith("{"):
                name = self.random.choice(REAL if self.random.random() < 0.6 else NAMES)
                parts[index] = quote(
                    name.encode("utf-8", "surrogatepass"), safe="/" if ":path" in part else ""
                )
        version = self.random.choice(
            ("", "/v1.24", "/v1.41", "/v1.51", "/v1.51", "/v1.51", "/v1.44", "/v1.99")
        )
        return version + "/".join(parts)

    def query(self) -> str:
        chosen = self.random.sample(VARIABLES, self.random.randrange(4))
        return "&".join(f"{name}={quote(self.random.choice(VALUES))}" for name in chosen)

    def body(self) -> bytes:
        kind = self.random.random()
        if kind < 0.1:
            return self.random.choice(
                (b"{", b"[]", b"null", b"\xff\xfe", b'"', b"{}" * 5000, b"[" * 60_000, b"0")
            )
        if kind < 0.2:
            return b""
        return json.dumps(self.document(2)).encode("utf-8", "surrogatepass")

    def document(self, depth: int) -> dict[str, Any]:
        fields = self.random.sample(FIELDS, self.random.randrange(1, 7))
        return {name: self.value(depth) for name in fields}

    def value(self, depth: int) -> Any:
        kind = self.random.random()
        if depth and kind < 0.25:
            return self.document(depth - 1)
        if depth and kind < 0.35:
            return [self.value(depth - 1)]
        return self.random.choice(LEAVES)


def status_of(house: House, method: str, target: str, body: bytes) -> int:
    """The status of the answer; the rest is not waited for."""
    with Connection(house.socket, TIMEOUT) as connection:
        connection.send(method, target, body, {"Content-Type": "application/json"})
        if body:
            connection.sock.shutdown(socket.SHUT_WR)
        status, _ = connection.head()
        return status


ROUTES = sorted({(route.method, route.pattern) for route in _ROUTES})


@pytest.mark.parametrize(("method", "pattern"), ROUTES, ids=[f"{m} {p}" for m, p in ROUTES])
def test_any_request_is_answered(house: House, method: str, pattern: str) -> None:
    if "alive" not in house.ok("ps", "--format", "{{.Names}}").split():  # that was no nonsense
        house.docker("rm", "-f", "alive")
        house.ok("run", "-d", "--name", "alive", "--network", "none", IMAGE, "sleep", "6000")
    nonsense = Nonsense(sum(map(ord, method + pattern)))
    for _ in range(EACH):
        target, body = nonsense.path(pattern), nonsense.body() if method != "GET" else b""
        query = nonsense.query()
        try:
            status = status_of(house, method, f"{target}?{query}", body)
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"{method} {target}?{query} {body[:300]!r}: {error!r}") from None
        assert 100 <= status < 600 and status != 500, (method, target, query, body[:2000], house.tail())


def test_there_are_words() -> None:
    assert {"Image", "HostConfig", "Env", "Name", "Labels"} <= set(FIELDS)
    assert {"all", "force", "signal", "since", "until", "tail", "path", "v"} <= set(VARIABLES)


def test_it_is_well_afterwards(house: House) -> None:
    assert call(house.socket, "GET", "/_ping").body == b"OK"
    assert "defect while serving" not in house.log.read_text()
    assert house.ok("run", "--rm", IMAGE, "echo", "well") == "well"
