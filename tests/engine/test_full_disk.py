"""A disk without room: the daemon starts, tells, frees, and says in one line what it cannot write."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import Any

import pytest
from disks import disk, fill
from house import House, wait_for
from rawhttp import Reply, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


def left(house: House) -> list[str]:
    """What an attempt to start has left."""
    return [line for line in house.leaks(0) if not line.startswith("container ")]


def ask(house: House, method: str, path: str, body: Any = None) -> Reply:
    return call(house.socket, method, path, body)


def states(house: House) -> dict[str, str]:
    found = ask(house, "GET", "/containers/json?all=1").json
    return {c["Names"][0][1:]: c["State"] for c in found}


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_daemon_whose_root_is_full(kind: str) -> None:
    with disk(96, kind) as place:
        house = House()
        house.root = place / "root"
        with house:
            for name in ("one", "two", "three"):
                house.ok("run", "-d", "--name", name, IMAGE, "sleep", "1000")
            house.stop_daemon()
            ballast = fill(place)
            house.start()
            fill(place)  # with what the start has freed
            assert states(house) == dict.fromkeys(("one", "two", "three"), "running")
            assert ask(house, "GET", "/images/json").json
            assert ask(house, "GET", "/containers/one/json").json["State"]["Running"]

            refused = ask(house, "POST", "/containers/create?name=four", {"Image": IMAGE, "Cmd": ["true"]})
            if refused.status == 201:  # tmpfs has room for directories
                refused = ask(house, "POST", "/containers/four/start")
            assert refused.status == 500, refused
            assert "no space left on device" in refused.message
            assert "\n" not in refused.message and "OSError" not in refused.message
            ask(house, "DELETE", "/containers/four")

            assert ask(house, "POST", "/containers/one/stop?t=0").status == 204
            assert states(house)["one"] == "exited"
            assert ask(house, "DELETE", "/containers/one").status == 204
            assert ask(house, "DELETE", "/containers/two?force=1").status == 204
            house.kill_daemon()
            house.start()
            assert states(house) == {"three": "running"}
            house.stop_daemon()
            fill(place)  # no reserve this time, but the log's room
            house.start()
            assert ask(house, "DELETE", "/containers/three?force=1").status == 204
            assert ask(house, "DELETE", f"/images/{IMAGE}?force=1").status == 200
            assert states(house) == {}
            ballast.unlink()
            assert house.ok("run", "--rm", IMAGE, "echo", "again") == "again"
            assert "Traceback" not in house.log.read_text()
            assert house.leaks() == []


@pytest.mark.parametrize("what", ["bytes", "files"])
@pytest.mark.parametrize("network", ["none", "bridge"])
def test_a_full_run_directory(what: str, network: str) -> None:
    """Every start fails with one line that says what could not be done, and succeeds when there is room."""
    with disk(2, "tmpfs") as place:
        house = House()
        house.run_dir = place
        house.socket = place / "docker.sock"
        house.environment["DOCKER_HOST"] = f"unix://{house.socket}"
        with house:
            body = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"NetworkMode": network}}
            assert ask(house, "POST", "/containers/create?name=one", body).status == 201
            if what == "files":
                subprocess.run(["mount", "-o", "remount,nr_inodes=64", str(place)], check=True)
                clutter = place / "clutter"
                clutter.mkdir()
                with suppress(OSError):
                    for number in range(100):
                        (clutter / str(number)).touch()
            else:
                clutter = fill(place)
            room = sorted(clutter.iterdir()) if clutter.is_dir() else []
            said: list[str] = []
            while True:  # each time one file more can be made, so that another step is the one that fails
                reply = ask(house, "POST", "/containers/one/start")
                if reply.status == 204:
                    break
                assert reply.status == 500, reply
                step, _, why = reply.message.rpartition(": ")
                assert why == "no space left on device", reply
                assert step and "OSError" not in step, reply
                if not said or said[-1] != step:
                    said.append(step)
                    wait_for(lambda: not left(house), 5, "the end of all the attempt had")
                if room:
                    room.pop().unlink()
                else:
                    clutter.unlink()
            assert len(said) >= (4 if what == "files" else 1), said
            assert ask(house, "POST", "/containers/one/wait").json["StatusCode"] == 0
            subprocess.run(["rm", "-rf", str(clutter)], check=True)
            assert "Traceback" not in house.log.read_text()


def test_an_exit_on_a_full_disk() -> None:
    """Too small a disk for reserves: the end is known, waiters are told, and it is written later."""
    with disk(12, "tmpfs") as place:
        house = House()
        house.root = place / "root"
        with house:
            detached = ("run", "-d", "--network", "none", "--name")
            for name in ("first", "second"):
                house.ok(*detached, name, IMAGE, "sh", "-c", "sleep 1; exit 7")
            house.ok(*detached, "brief", "--rm", IMAGE, "sleep", "1")
            ballast = fill(place)
            assert ask(house, "POST", "/containers/first/wait").json["StatusCode"] == 7
            assert ask(house, "POST", "/containers/second/wait").json["StatusCode"] == 7
            wait_for(lambda: house.log.read_text().count("cannot be written yet") >= 2, 5, "the report")
            assert ask(house, "GET", "/containers/first/json").json["State"]["ExitCode"] == 7
            wait_for(lambda: not left(house), 5, "the end of all they had")
            refused = ask(house, "POST", "/containers/first/start")
            assert refused.status == 500
            assert "ledger" in refused.message
            house.kill_daemon()  # the keeper has what the ledger has not
            ballast.unlink()
            house.start()
            assert states(house)["first"] == "exited"
            assert ask(house, "GET", "/containers/second/json").json["State"]["ExitCode"] == 7
            assert "brief" not in states(house)
            assert ask(house, "POST", "/containers/first/start").status == 204
            ballast = fill(place)
            assert ask(house, "POST", "/containers/first/wait").json["StatusCode"] == 7
            ballast.unlink()  # this time the daemon itself writes it later
            started = ask(house, "POST", "/containers/first/start")
            assert started.status == 204, started
