"""Images on bad days, seen through the daemon: registries that never answer, damaged files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from house import House, wait_for
from images import Registry, busybox_layers, layer, write_layout

pytestmark = pytest.mark.root

# takes every connection and never says a word
SILENT = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=200)
print("up", flush=True)
taken = []
while True:
    taken.append(server.accept()[0])
"""


@pytest.fixture
def house() -> Iterator[House]:
    with House() as started:
        yield started


@contextmanager
def silent(house: House, port: int) -> Iterator[str]:
    process = subprocess.Popen(
        house.inside([sys.executable, "-c", SILENT, str(port)]), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def connections(house: House, port: int) -> int:
    """How many connections the daemon has to that port."""
    shown = subprocess.run(
        house.inside(["ss", "-Htn", "state", "established", f"dport = :{port}"]),
        capture_output=True,
        text=True,
        check=True,
    )
    return len(shown.stdout.splitlines())


def test_pulls_that_hang_delay_nobody_and_end_with_their_clients(house: House) -> None:
    house.ok("images", "-q")
    house.ok("create", "--name", "one", "nagaya/busybox", "true")
    house.ok("rm", "one")
    with silent(house, 5001) as address, ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    ["curl", "-sN", "--unix-socket", str(house.socket), "-X", "POST",
                     f"http://d/images/create?fromImage={address}/a/b{n}&tag=1"],
                    stdout=subprocess.DEVNULL,
                )
            )
            for n in range(12)
        ]  # fmt: skip
        try:
            wait_for(lambda: connections(house, 5001) >= 12, 20, "the pulls")
            begun = time.monotonic()
            house.ok("tag", "nagaya/busybox", "other:1")
            house.ok("rmi", "other:1")
            house.ok("pull", "nagaya/busybox")
            house.ok("run", "--rm", "--network", "none", "nagaya/busybox", "true")
            assert time.monotonic() - begun < 15
            assert connections(house, 5001) >= 12
        finally:
            for client in clients[:6]:
                client.kill()
        wait_for(lambda: connections(house, 5001) == 6, 10, "the end of the pulls whose clients went")
        begun = time.monotonic()
        house.stop_daemon()  # asserts exit status 0
        assert time.monotonic() - begun < 10
        for client in clients:
            client.wait(10)
    house.start()


def test_one_damaged_configuration(house: House, tmp_path: Path) -> None:
    write_layout(tmp_path / "one", busybox_layers(), {"Cmd": ["cat", "/data/kept"]})
    write_layout(tmp_path / "two", [*busybox_layers(), layer([("x", b"x")])], {"Cmd": ["cat", "/x"]})
    with Registry(tmp_path / "registry", house.inside([])) as registry:
        name = registry.push(f"oci:{tmp_path}/one", "one:1")
        other = registry.push(f"oci:{tmp_path}/two", "two:1")
        house.ok("pull", "-q", name)
        house.ok("pull", "-q", other)
        image = json.loads(house.ok("inspect", name))[0]["Id"]
        house.stop_daemon()
        (house.root / "content/blobs" / image.replace(":", "/")).write_bytes(b"{")
        house.start()
        listed = house.ok("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
        assert other in listed and name not in listed
        assert f"image {image[7:19]} is not listed: " in house.tail()
        failed = house.docker("run", "--rm", "--network", "none", name)
        assert failed.returncode == 125
        assert b"the stored content does not match its digest: pull it again" in failed.stderr
        house.ok("pull", "-q", name)
        assert house.ok("run", "--rm", "--network", "none", name) == "kept"
        house.stop_daemon()
        (house.root / "content/blobs" / image.replace(":", "/")).write_bytes(b"{")
        house.start()
        lines = house.ok("rmi", name).splitlines()
        assert lines[0] == f"Untagged: {name}" and f"Deleted: {image}" in lines
        assert not (house.root / "content/blobs" / image.replace(":", "/")).exists()
        assert house.ok("run", "--rm", "--network", "none", other) == "x"
