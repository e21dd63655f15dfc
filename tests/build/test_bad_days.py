"""Builds that do not come to their end: a client that goes, a daemon that is killed, a disk that is full."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import build, run, start_build, work_left
from disks import disk, fill
from house import House, python_main, wait_for

pytestmark = pytest.mark.root

SLOW = {"Dockerfile": "FROM nagaya/busybox\nRUN echo kept >/kept\nRUN echo here && sleep 1000\n"}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def until(process: subprocess.Popen[str], text: str) -> None:
    """Read what it says up to a line."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith(text):
            return
    raise AssertionError(said)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


def nothing_left(house: House) -> None:
    wait_for(lambda: not work_left(house), 20, f"the end of the build: {house.tail()}")
    assert house.docker("ps", "-aq").stdout == b""
    assert house.leaks() == []


def test_a_client_that_goes_ends_its_build(house: House, tmp_path: Path) -> None:
    building = start_build(house, tmp_path, SLOW)
    until(building, "here")
    building.send_signal(signal.SIGINT)
    building.communicate(timeout=60)
    nothing_left(house)
    assert (
        "Using cache"
        in build(house, tmp_path, {"Dockerfile": SLOW["Dockerfile"].replace("1000", "0")}).stdout
    )


def test_a_client_that_goes_at_any_moment(house: House, tmp_path: Path) -> None:
    """Also while its container is being made, started or taken away."""
    (tmp_path / "Dockerfile").write_text("FROM nagaya/busybox\nRUN usleep 5000\n")
    for number in range(12):
        building = start_build(house, tmp_path, {}, "--no-cache")
        until(building, "Step 2")
        time.sleep(number * 0.004)
        end(building)
    nothing_left(house)


def test_a_daemon_that_is_told_to_end_takes_its_builds_along(house: House, tmp_path: Path) -> None:
    building = start_build(house, tmp_path, {"Dockerfile": SLOW["Dockerfile"].replace("kept", "ended")})
    try:
        until(building, "here")
        house.stop_daemon()
        assert work_left(house) == [] and house.leaks() == []
    finally:
        end(building)
    house.start()
    nothing_left(house)


def test_a_client_that_goes_while_it_sends(house: House, tmp_path: Path) -> None:
    """The context is half there."""
    from building import TAR, tar
    from rawhttp import Connection

    data = tar(("Dockerfile", "FROM nagaya/busybox\n"), ("big", bytes(1 << 20)))
    with Connection(house.socket) as connection:
        head = f"POST /build HTTP/1.1\r\nHost: d\r\nContent-Length: {len(data)}\r\n"
        connection.sock.sendall(
            f"{head}Content-Type: {TAR['Content-Type']}\r\n\r\n".encode() + data[:300_000]
        )
        wait_for(lambda: work_left(house), 20, "the context's files")
    nothing_left(house)


def test_stages_end_together_when_one_fails(house: House, tmp_path: Path) -> None:
    lines = (
        "FROM nagaya/busybox AS slow\nRUN sleep 1000\nFROM nagaya/busybox AS broken\nRUN sleep 1; exit 7\n"
        "FROM scratch\nCOPY --from=slow /x /\nCOPY --from=broken /x /\n"
    )
    assert build(house, tmp_path, {"Dockerfile": lines}, ok=False).returncode == 7
    nothing_left(house)


def test_kill_9_of_the_daemon_leaves_nothing(house: House, tmp_path: Path) -> None:
    building = start_build(house, tmp_path, {"Dockerfile": SLOW["Dockerfile"].replace("kept", "lost")})
    try:
        until(building, "here")
        house.kill_daemon()
    finally:
        end(building)
    house.start()
    nothing_left(house)
    again = build(
        house, tmp_path, {"Dockerfile": "FROM nagaya/busybox\nRUN echo lost >/lost\n"}, "-t", "after"
    )
    assert "Using cache" not in again.stdout
    assert run(house, "after", "cat", "/lost") == "lost\n"


def test_kill_9_at_steps_of_a_build(house: House, tmp_path: Path) -> None:
    """What is here afterwards is the image, or nothing; and the next build is none the worse."""
    lines = "FROM nagaya/busybox\nCOPY a /a\nRUN echo {} >/b\nWORKDIR /c\n"
    program, seen = house.program, set[int]()
    for step in (9, 40, 75, 110):
        house.stop_daemon()
        house.program = [*python_main("buildkilling"), str(step)]
        house.start()
        files = {"a": f"{step}\n", "Dockerfile": lines.format(step)}
        done = build(house, tmp_path, files, "-t", "victim", ok=None)
        house.program = program
        assert house.daemon is not None
        seen.add(done.returncode)
        if done.returncode:
            assert house.daemon.wait(30) == -signal.SIGKILL, house.tail()
            house.daemon = None
            house.start()
        nothing_left(house)
        build(house, tmp_path, files, "-t", "victim")
        assert run(house, "victim", "cat", "/a", "/b").split() == [str(step), str(step)]
    assert 1 in seen


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with disk(64, "ext4") as place:
        house = House()
        house.root = place / "root"
        with house:
            lines = "FROM nagaya/busybox\nRUN dd if=/dev/zero of=/big bs=1M count=200\n"
            house.ok("run", "--rm", "nagaya/busybox", "true")
            failed = build(house, tmp_path, {"Dockerfile": lines}, ok=False)
            assert "No space left on device" in failed.stdout + failed.stderr
            copying = {"Dockerfile": "FROM nagaya/busybox\nCOPY big /\nCOPY big /again\n"}
            (tmp_path / "big").write_bytes(bytes(24 << 20))
            failed = build(house, tmp_path, copying, ok=False)
            message = failed.stderr.strip().splitlines()[-1]
            assert "no space left on device" in message, failed
            (tmp_path / "big").unlink()
            assert work_left(house) == []
            ballast = fill(place)
            failed = build(house, tmp_path, {"Dockerfile": "FROM nagaya/busybox\nRUN echo x >/x\n"}, ok=False)
            assert "no space left on device" in failed.stderr.lower(), failed
            ballast.unlink()
            build(house, tmp_path, {}, "-t", "room")
            assert run(house, "room", "cat", "/x") == "x\n"
            assert house.leaks() == [] and work_left(house) == []
            assert "Traceback" not in house.log.read_text()
