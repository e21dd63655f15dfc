"""What hangs delays nobody else: a file system whose server is gone, a supervisor that does not answer."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import House, wait_for
from rawhttp import JSON, Connection, Reply, call

from nagaya.linux import mounts

pytestmark = pytest.mark.root

API = "/v1.45"
IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Path]:
    """A file system of FUSE that nobody serves: whoever looks at it waits, until it is aborted."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    place = tmp_path / "stuck"
    place.mkdir()
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    mounts.mount("nobody", str(place), "fuse", mounts.MS_NOSUID, options)
    try:
        yield place
    finally:
        os.close(fd)  # its last holder: requests end with ENOTCONN
        mounts.umount2(str(place), mounts.MNT_DETACH)


def create(house: House, name: str, **host: Any) -> Reply:
    body = {"Image": IMAGE, "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none", **host}}
    return call(house.socket, "POST", f"{API}/containers/create?name={name}", body)


def timed(house: House, path: str) -> Reply:
    """A read, which must not wait."""
    begin = time.monotonic()
    answer = call(house.socket, "GET", API + path)
    assert time.monotonic() - begin < 9, path
    return answer


def everything_answers(house: House, name: str) -> None:
    for path in ("/containers/json?all=1", f"/containers/{name}/json", "/info", "/_ping", "/images/json"):
        assert timed(house, path).status == 200


def test_a_mount_source_that_hangs(house: House, stuck: Path) -> None:
    assert create(house, "well").status == 201
    answers: list[Reply] = []

    def attempt(number: int) -> None:
        answers.append(create(house, f"bad{number}", Binds=[f"{stuck}/sub:/x"]))

    crowd = [threading.Thread(target=attempt, args=(n,)) for n in range(12)]
    for one in crowd:
        one.start()
    everything_answers(house, "well")
    # and whoever wants something else of the daemon gets it
    assert call(house.socket, "POST", f"{API}/containers/well/start").status == 204
    assert house.ok("exec", "well", "echo", "hi") == "hi"
    for one in crowd:
        one.join()
    assert {answer.status for answer in answers} == {500}
    assert f"mount source {stuck}/sub does not answer" in answers[0].message
    names = [c["Names"] for c in timed(house, "/containers/json?all=1").json]
    assert names == [["/well"]]  # no trace, and the names are free
    assert create(house, "bad0").status == 201
    house.ok("rm", "-f", "well", "bad0")


def test_a_supervisor_that_does_not_answer(house: House) -> None:
    assert create(house, "running").status == 201
    assert call(house.socket, "POST", f"{API}/containers/running/start").status == 204
    assert create(house, "waiting").status == 201
    keeper = house.supervisor_pid()
    os.kill(keeper, signal.SIGSTOP)
    try:
        with Connection(house.socket, 60) as starting:
            starting.send("POST", f"{API}/containers/waiting/start")
            everything_answers(house, "running")
            everything_answers(house, "waiting")
            with Connection(house.socket, 60) as topping:
                topping.send("GET", f"{API}/containers/running/top")
                everything_answers(house, "running")
            assert create(house, "another").status == 201  # needs nobody
        # the client that wanted a start has gone: the container starts all the same
    finally:
        os.kill(keeper, signal.SIGCONT)
    wait_for(
        lambda: timed(house, "/containers/waiting/json").json["State"]["Status"] == "running", 60, "the start"
    )
    assert timed(house, "/containers/running/top").status == 200
    house.ok("rm", "-f", "running", "waiting", "another")


def test_dropped_creates_leave_containers_whole_or_none(house: House) -> None:
    body = json.dumps({"Image": IMAGE, "Cmd": ["true"], "Volumes": {"/v": {}}}).encode()
    for number in range(20):
        with Connection(house.socket) as connection:
            connection.send("POST", f"{API}/containers/create?name=dropped{number}", body, JSON)
            time.sleep(number * 0.001)

    def whole() -> bool:
        found = timed(house, "/containers/json?all=1").json
        return all(timed(house, f"/containers/{c['Id']}/json").status == 200 for c in found)

    wait_for(whole, 60, "what is listed to be whole")
    for number in range(20):  # made, or not: the name is that container's, or free
        name = f"dropped{number}"
        answer = call(house.socket, "DELETE", f"{API}/containers/{name}?v=1")
        assert answer.status in (204, 404)
        assert create(house, name).status == 201
        house.ok("rm", "-v", name)
    assert timed(house, "/volumes").json["Volumes"] in (None, [])
