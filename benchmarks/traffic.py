"""Published ports under load: how fast bytes come through, and how long one byte takes there and back.

The clients are "outside", in a network namespace with a cable to the daemons', and on the daemons' own
127.0.0.1. In each container busybox serves a file, and sends back what it gets.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import stage
from measure import Contest, Failed, Peer, as_rate
from nagaya.linux.namespaces import CLONE_NEWNET, setns
from stage import Client

SIZE = 512 << 20  # bytes of the file
PINGS = 2000
_NEAR, _FAR = "10.231.3.1", "10.231.3.2"
_SERVE = "nc -ll -p 7 -e cat & exec httpd -f -p 80 -h /www"


def lay_cable() -> Path:
    """A network namespace outside, with a link to ours; its file. Raises Failed."""
    for line in (
        "ip netns add outside",
        "ip link add nagtb-near type veth peer name far netns outside",
        f"ip addr add {_NEAR}/24 dev nagtb-near",
        "ip link set nagtb-near up",
        "ip -n outside link set lo up",
        f"ip -n outside addr add {_FAR}/24 dev far",
        "ip -n outside link set far up",
    ):
        done = subprocess.run(line.split(), capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{line}: {done.stderr.strip()}")
    return Path("/run/netns/outside")


class Server:
    """A container of one daemon, its two ports published from `port` on."""

    def __init__(self, socket_path: Path, image: str, files: Path, port: int) -> None:
        if not socket_path.exists():
            raise Failed("its daemon does not run")
        self._client = Client(socket_path)
        self.port = port
        ports = {"80/tcp": [{"HostPort": str(port)}], "7/tcp": [{"HostPort": str(port + 1)}]}
        body = {
            "Image": image,
            "Cmd": ["sh", "-c", _SERVE],
            "ExposedPorts": {name: {} for name in ports},
            "HostConfig": {"Binds": [f"{files}:/www:ro"], "PortBindings": ports},
        }
        answer = stage.decode(self._client.request("POST", "/v1.41/containers/create", body))
        self._path = f"/v1.41/containers/{answer['Id']}"
        self._client.request("POST", f"{self._path}/start")

    def remove(self) -> None:
        """Take the container away."""
        self._client.request("DELETE", f"{self._path}?force=1")


def connect(where: Path | None, port: int) -> socket.socket:
    """A connection to a published port: from 127.0.0.1, or out of a network namespace. Raises Failed."""
    deadline = time.monotonic() + 10
    while True:
        with suppress(OSError):
            found = _socket_in(where) if where else socket.socket()
            found.settimeout(30)
            with suppress(ConnectionRefusedError):  # the container's program has only been started
                found.connect((_NEAR if where else "127.0.0.1", port))
                return found
            found.close()
        if time.monotonic() > deadline:
            raise Failed(f"port {port} does not answer")
        time.sleep(0.05)


def _socket_in(where: Path) -> socket.socket:
    made: list[socket.socket] = []

    def work() -> None:  # a thread joins alone, and stays there until its end
        with where.open() as file:
            setns(file.fileno(), CLONE_NEWNET)
        made.append(socket.socket())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


def fetch(where: Path | None, server: Server) -> None:
    """Read the file once. Raises Failed."""
    with connect(where, server.port) as stream:
        stream.sendall(b"GET /zeros HTTP/1.0\r\n\r\n")
        buffer = bytearray(1 << 20)
        got = 0
        while size := stream.recv_into(buffer):
            got += size
    if got < SIZE:
        raise Failed(f"{got} bytes came, of {SIZE}")


def ping(where: Path | None, server: Server) -> None:
    """Send a byte and wait for it, many times. Raises Failed."""
    with connect(where, server.port + 1) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(PINGS):
            stream.sendall(b"x")
            if stream.recv(1) != b"x":
                raise Failed("a byte did not come back")


def _peer(name: str, server: Server | str, work: Callable[[Server], None]) -> Peer:
    if isinstance(server, str):
        return Peer(name, lambda: None, failure=server)
    return Peer(name, lambda: work(server))


def measure(base: Path, daemons: dict[str, tuple[Path, str]], rounds: int) -> list[dict[str, Any]]:
    """The results; `daemons` are name -> (socket, image), ours first."""
    files = base / "www"
    files.mkdir()
    with (files / "zeros").open("wb") as file:
        file.truncate(SIZE)
    outside = lay_cable()
    servers: dict[str, Server | str] = {}
    for number, (name, (path, image)) in enumerate(daemons.items()):
        try:
            servers[name] = Server(path, image, files, 18000 + 10 * number)
        except Failed as failed:
            servers[name] = str(failed)
    results = []
    try:
        for place, where in (("outside", outside), ("127.0.0.1", None)):
            title = f"published port, from {place}"
            flow = Contest(f"{title}, MB/s", [_peer(*s, partial(fetch, where)) for s in servers.items()])
            # so many runs' milliseconds are one's microseconds
            trip = Contest(
                f"{title}, a byte there and back, \N{MICRO SIGN}s",
                [_peer(*s, partial(ping, where)) for s in servers.items()],
                per_run=PINGS // 1000,
            )
            for contest in (flow, trip):
                stage.say(contest.title)
                contest.play(rounds, warmups=1)
            results += [as_rate(flow.result(), SIZE / 1e6), trip.result()]
    finally:
        for server in servers.values():
            if isinstance(server, Server):
                server.remove()
    return results
