"""Images through a living daemon: very many layers, clients that go away, what the daemon keeps in memory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeregistry import file, member, tar
from house import House, wait_for
from parcels import docker_archive, packed

from nagaya.image import builtin

pytestmark = pytest.mark.root

LAYERS = 128


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def stored(house: House) -> list[str]:
    """Everything in the store, and what is on its way there."""
    found = [str(p) for p in (house.root / "content").rglob("*") if p.is_file()]
    found += [str(p) for p in (house.root / "content/ingest").iterdir()]
    return sorted(found + [str(p) for p in (house.root / "snapshots/l").iterdir()])


def test_a_container_of_128_layers(house: House) -> None:
    """More than mount(2)'s options can hold; each changes a file of the one below, and may take one away."""
    layers = [builtin.build().layer]
    for number in range(1, LAYERS):
        name = str(number).encode()
        layers.append(
            tar(
                file("same", name),
                file(f"own{number}", name),
                *([file(f".wh.own{number - 1}")] if number % 2 else []),
            )
        )
    archive = packed(docker_archive(*layers, tags=["deep:1"]))
    assert house.ok("load", input=archive) == "Loaded image: deep:1"
    shown = house.ok(
        "run", "--rm", "--network", "none", "deep:1", "/bin/sh", "-c", "cat /same; echo; ls / | grep -c own; "
        "echo more > /own1; mv /own3 /moved; cat /own1 /moved"
    )  # fmt: skip
    # of the pairs of own files the lower one is gone
    assert shown == f"{LAYERS - 1}\n{LAYERS // 2}\nmore\n3"
    assert house.ok("inspect", "-f", "{{len .RootFS.Layers}}", "deep:1") == str(LAYERS)
    # and one more on top of them
    house.ok("run", "--name", "top", "--network", "none", "deep:1", "/bin/sh", "-c", "echo new > /same")
    image = house.ok("commit", "top", "deeper:1")
    assert house.ok("run", "--rm", "--network", "none", image, "/bin/cat", "/same") == "new"
    house.ok("rm", "top")
    assert "Deleted: sha256:" in house.ok("rmi", "deep:1", "deeper:1")


@pytest.mark.parametrize("path", ["/images/load", "/images/create?fromSrc=-&repo=gone&tag=1"])
def test_a_client_that_goes_away_in_the_middle_leaves_nothing(house: House, path: str) -> None:
    before = stored(house)
    archive = packed(docker_archive(tar(file("big", os.urandom(4 << 20))), tags=["gone:1"]))
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(house.socket))
        head = f"POST {path} HTTP/1.1\r\nHost: d\r\nContent-Length: {len(archive)}\r\n\r\n"
        line.sendall(head.encode() + archive[: len(archive) // 2])
        wait_for(lambda: stored(house) != before, 20, "the spool")
    wait_for(lambda: stored(house) == before, 20, "its end")
    assert b"gone" not in house.curl("/images/json")


def test_a_daemon_that_is_killed_in_the_middle_of_a_load(house: House) -> None:
    before = stored(house)
    archive = packed(docker_archive(tar(file("big", os.urandom(4 << 20))), tags=["gone:1"]))
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(house.socket))
        head = f"POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Length: {len(archive)}\r\n\r\n"
        line.sendall(head.encode() + archive[: len(archive) // 2])
        wait_for(lambda: stored(house) != before, 20, "the spool")
        house.kill_daemon()
    house.start()
    assert stored(house) == before
    assert house.ok("load", input=archive) == "Loaded image: gone:1"
    house.ok("rmi", "gone:1")


def test_saving_stops_with_its_client(house: House) -> None:
    archive = packed(docker_archive(tar(file("big", os.urandom(8 << 20))), tags=["saved:1"]))
    house.ok("load", input=archive)
    with subprocess.Popen(
        house.inside(["docker", "save", "saved:1"]), stdout=subprocess.PIPE, env=house.environment
    ) as process:
        assert process.stdout is not None and process.stdout.read(1000)
        process.send_signal(signal.SIGKILL)
    # its lease ended with it: what is removed is gone at once
    house.ok("rmi", "saved:1")
    wait_for(lambda: len([p for p in stored(house) if "/blobs/" in p]) <= 3, 10, "the blobs' end")


def test_a_load_and_a_save_take_no_more_memory_for_more_bytes(house: House, tmp_path: Path) -> None:
    pid = int((house.run_dir / "nagayad.pid").read_text())

    def most() -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    layer = tar(
        member("d", tarfile.DIRTYPE, mode=0o755), *(file(f"d/{n}", os.urandom(1 << 20)) for n in range(80))
    )
    path = tmp_path / "big.tar"
    path.write_bytes(packed(docker_archive(layer, tags=["heavy:1"])))
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = most()
    house.ok("load", "-i", str(path))
    house.ok("save", "-o", str(tmp_path / "out.tar"), "heavy:1")
    assert most() - before < 50 << 10
    assert json.loads(house.curl("/images/heavy:1/json"))["Size"] == 80 << 20
    house.ok("rmi", "heavy:1")
    assert (tmp_path / "out.tar").stat().st_size > 80 << 20
