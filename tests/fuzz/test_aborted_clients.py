"""Clients that ask and go, by the thousand: descriptors, tasks, threads and memory are what they were.

CVE-2022-23471 and 2025-64329 were such leaks, of terminals' sizes and of attached clients.
"""

from __future__ import annotations

import random
import re
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from house import House, wait_for
from rawhttp import call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
CLIENTS = 1000


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        started.ok("run", "-d", "-i", "--name", "plain", "--network", "none", IMAGE, "sleep", "600")
        started.ok(
            "run",
            "-d",
            "-it",
            "--name",
            "tty",
            "--network",
            "none",
            IMAGE,
            "sh",
            "-c",
            "while :; do echo x; sleep 1; done",
        )
        yield started


def held(house: House) -> dict[str, int]:
    """What the daemon, keeper and io hold."""
    text = call(house.socket, "GET", "/metrics").body.decode()
    found = {"tasks": int(re.findall(r"^nagaya_tasks (\d+)$", text, re.M)[0])}
    pids = {"daemon": int((house.run_dir / "nagayad.pid").read_text()), "keeper": house.supervisor_pid()}
    for name, pid in {**pids, "io": house.io_pid()}.items():
        found[f"{name} descriptors"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        found[f"{name} threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
    return found


def memory(house: House) -> int:
    """KiB of the daemon."""
    pid = (house.run_dir / "nagayad.pid").read_text().strip()
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def settled(house: House, before: dict[str, int]) -> None:
    """Nothing more is held than before; pools keep threads, of which there is a fixed number."""

    def more() -> dict[str, int]:
        now = held(house)
        return {k: now[k] - before[k] for k in before if "daemon threads" not in k and now[k] > before[k] + 2}

    wait_for(lambda: not more(), 90, f"the end of all: {more()}")
    assert held(house)["daemon threads"] < 100


class Impatient:
    """A client that sends a part of a request, reads a part of the answer, and goes in one of many ways."""

    def __init__(self, house: House, seed: int) -> None:
        self.house = house
        self.random = random.Random(seed)

    def go(self, request: bytes) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(str(self.house.socket))
        try:
            whole = self.random.random() < 0.8
            sock.sendall(request if whole else request[: self.random.randrange(len(request))])
            if whole and self.random.random() < 0.5:
                sock.recv(self.random.choice((1, 10, 4096)))
            if self.random.random() < 0.3:
                sock.shutdown(socket.SHUT_WR)
            if self.random.random() < 0.3:  # a reset, not an end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            sock.close()


def request(method: str, path: str, body: bytes = b"", upgrade: bool = False) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n"
    if upgrade:
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    return head.encode() + b"\r\n" + body


KINDS = {
    "attach": [
        request(
            "POST", f"/containers/{name}/attach?stream=1&stdin={stdin}&stdout=1&logs={logs}", upgrade=upgrade
        )
        for name in ("plain", "tty")
        for stdin in (0, 1)
        for logs in (0, 1)
        for upgrade in (False, True)
    ],
    "resize": [request("POST", f"/containers/tty/resize?h={n}&w={n}") for n in (1, 24, 65535)],
    "follow": [
        request("GET", "/containers/tty/logs?stdout=1&follow=1"),
        request("GET", "/events"),
        request("GET", "/containers/tty/stats"),
        request("POST", "/containers/tty/wait"),
        request("GET", "/containers/tty/archive?path=/bin"),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_who_goes_is_forgotten(house: House, kind: str) -> None:
    for warm in KINDS[kind]:
        Impatient(house, 0).go(warm)
    before, size = held(house), memory(house)
    client = Impatient(house, 1)
    for number in range(CLIENTS):
        client.go(KINDS[kind][number % len(KINDS[kind])])
    settled(house, before)
    assert memory(house) - size < 24 << 10
    assert house.ok("exec", "plain", "echo", "well") == "well"


def test_execs_that_are_left_alone(house: House) -> None:
    """Made and started by clients that go; the process itself lives as long as it likes."""
    body = b'{"Cmd": ["true"], "AttachStdout": true, "AttachStdin": true}'
    before = held(house)
    client = Impatient(house, 2)
    for _ in range(150):
        made = call(house.socket, "POST", "/containers/plain/exec", body).json["Id"]
        client.go(request("POST", f"/exec/{made}/start", b'{"Tty": false}', upgrade=True))
    settled(house, before)
    assert house.ok("exec", "plain", "echo", "well") == "well"


def test_a_thousand_execs(house: House) -> None:
    """Run to their end, several at a time, with and without somebody who listens."""

    def run(number: int) -> bytes:
        body = {
            "Cmd": ["echo", str(number)],
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": number % 3 == 0,
        }
        made = call(house.socket, "POST", "/containers/plain/exec", body).json["Id"]
        wish = {"Detach": number % 4 == 0, "Tty": body["Tty"]}
        seen = call(house.socket, "POST", f"/exec/{made}/start", wish).body
        if wish["Detach"]:
            return b""
        found = call(house.socket, "GET", f"/exec/{made}/json").json
        assert (found["Running"], found["ExitCode"]) == (False, 0), found
        return seen

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(40)))  # the builders and threads that a busy moment has
        before, size = held(house), memory(house)
        for number, seen in enumerate(pool.map(run, range(CLIENTS))):
            assert number % 4 == 0 or str(number).encode() in seen, number
    settled(house, before)
    # an exec's end is known for a while: a kilobyte or two each
    assert memory(house) - size < 8 << 10


def test_slow_clients_and_half_of_a_request_delay_nobody(house: House) -> None:
    before = held(house)
    sockets = []
    for number in range(200):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(house.socket))
        sock.sendall(
            (
                b"",
                b"G",
                b"GET /info HTTP/1.1\r\nHost: d\r\n",
                request("POST", "/containers/create", b"{}")[:-1],
            )[number % 4]
        )
        sockets.append(sock)
    assert house.ok("ps", "-q", "--filter", "name=plain")
    for sock in sockets:
        sock.close()
    settled(house, before)
