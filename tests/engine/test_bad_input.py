"""What cannot be: one clear line, the right status and exit code, and nothing left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import House, wait_for
from rawhttp import call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_left(house: House) -> Iterator[None]:
    yield
    wait_for(lambda: not house.leaks(), 5, "the end of all that containers had")  # links go in background
    assert [p.name for p in (house.root / "snapshots").iterdir()] in (["l"], [])


def refused(house: House, code: int, *arguments: str) -> str:
    """docker ARGUMENTS, which must end with this code; the one line it says."""
    result = house.docker(*arguments)
    assert result.returncode == code, (result, house.tail())
    text = result.stderr.decode().replace("Run 'docker run --help' for more information", "")
    lines = [line for line in text.splitlines() if line and "See 'docker" not in line]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cap-add", "FLY"), 'unknown capability: "CAP_FLY"'),
        (("--user", "nobody2"), "unable to find user nobody2: no matching entries in passwd file"),
        (("--user", "4294967296"), "uids and gids must be in range"),
        (("-w", "relative"), "needs to be an absolute path"),
        (("-v", "/nothing/there:/x:badmode"), "badmode"),
        (("--mount", "type=bind,source=/nothing/there,target=/x"), "bind source path does not exist"),
        (("--memory", "1m"), "Minimum memory limit allowed is 6MB"),
        (("--cpus", "64"), "ange of CPUs is from 0.01"),
        (("--cpuset-cpus", "77"), "Requested CPUs are not available"),
        (("--network", "host", "--sysctl", "net.ipv4.ip_forward=1"), "host's network namespace"),
        (("--security-opt", "nonsense=1"), "invalid --security-opt"),
        (("--runtime", "nothing"), "unknown or invalid runtime name: nothing"),
        (("--network", "nothing"), "network nothing not found"),
        (("--log-driver", "nothing"), 'looking up logging plugin nothing: plugin "nothing" not found'),
        (("--tmpfs", "/x:nonsense"), "Invalid tmpfs option"),
        (("--stop-signal", "NOPE"), "invalid signal: NOPE"),
        (("--name", "-bad"), "Invalid container name (-bad)"),
        (("--cgroup-parent", "../up"), "invalid cgroup parent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_run_refuses(house: House, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused(house, 125, "run", "--rm", *arguments, IMAGE, "true")


def test_missing_images(house: House) -> None:
    assert "invalid reference format" in refused(house, 125, "run", "--rm", "nagaya/UPPER")
    said = house.docker("run", "--rm", "127.0.0.1:1/no/such:image")
    assert said.returncode == 125
    assert b"127.0.0.1:1" in said.stderr
    reply = call(house.socket, "POST", "/containers/create", {"Image": "no/such", "Cmd": ["x"]})
    assert (reply.status, reply.json) == (404, {"message": "No such image: no/such:latest"})


@pytest.mark.parametrize("network", ["none", "bridge"])
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("nonsense", 127, 'exec: "nonsense": executable file not found in $PATH'),
        ("/bin/nonsense", 127, 'exec: "/bin/nonsense": stat /bin/nonsense: no such file or directory'),
        ("/etc/passwd", 126, 'exec: "/etc/passwd": permission denied'),
        ("/etc", 126, 'exec: "/etc": is a directory'),
    ],
)
def test_commands_that_do_not_run(house: House, network: str, command: str, code: int, words: str) -> None:
    assert words in refused(house, code, "run", "--rm", "--network", network, IMAGE, command)
    created = house.ok("create", "--network", network, IMAGE, command)
    reply = call(house.socket, "POST", f"/containers/{created}/start")
    assert reply.status == 400
    assert words in reply.message
    state = call(house.socket, "GET", f"/containers/{created}/json").json["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("created", code, 0)
    assert words in state["Error"]
    house.ok("rm", created)


def test_a_device_that_is_not_there(house: House) -> None:
    """Known at the start only, as with dockerd, whose CLI makes 127 of these words."""
    said = refused(house, 127, "run", "--rm", "--device", "/dev/nothing", IMAGE, "true")
    assert 'custom device "/dev/nothing": no such file or directory' in said


def test_a_namespace_of_nobody(house: House) -> None:
    body = {"Image": IMAGE, "HostConfig": {"NetworkMode": "container:nothing"}}
    reply = call(house.socket, "POST", "/containers/create", body)
    assert (reply.status, reply.message) == (404, "No such container: nothing")
    house.ok("create", "--name", "idle", IMAGE)
    said = refused(house, 125, "run", "--rm", "--pid", "container:idle", IMAGE, "true")
    assert "non running container" in said
    house.ok("rm", "idle")


def test_a_taken_name(house: House) -> None:
    first = house.ok("create", "--name", "taken", IMAGE)
    body = {"Image": IMAGE, "Cmd": ["true"]}
    reply = call(house.socket, "POST", "/containers/create?name=taken", body)
    assert reply.status == 409
    assert reply.message.startswith(
        f'Conflict. The container name "/taken" is already in use by container "{first}".'
    )
    house.ok("rm", "taken")
    assert call(house.socket, "POST", "/containers/create?name=taken", body).status == 201
    house.ok("rm", "taken")


@pytest.mark.parametrize("method", ["json", "logs?stdout=1", "start", "stop", "kill", "wait", "DELETE"])
def test_unknown_ids(house: House, method: str) -> None:
    verb, path = ("DELETE", "") if method == "DELETE" else ("POST", f"/{method}")
    if method.startswith(("json", "logs")):
        verb = "GET"
    reply = call(house.socket, verb, f"/containers/feedface{path}")
    assert (reply.status, reply.json) == (404, {"message": "No such container: feedface"})


def test_a_port_that_is_taken(house: House) -> None:
    house.ok("run", "-d", "--name", "holder", "-p", "18099:80", IMAGE, "sleep", "100")
    said = refused(house, 125, "run", "--rm", "-p", "18099:80", IMAGE, "true")
    assert "Bind for 0.0.0.0:18099 failed: port is already allocated" in said
    house.ok("rm", "-f", "holder")
    assert house.ok("run", "--rm", "-p", "18099:80", IMAGE, "echo", "free") == "free"


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b'{"Image": 5}', b'{"Image":"x","Cmd":"a","HostConfig":[]}', b"\xff", b"[" * 9000],
)
def test_bad_documents(house: House, body: bytes) -> None:
    reply = call(house.socket, "POST", "/containers/create", body)
    assert reply.status == 400
    assert "\n" not in reply.message


def test_a_name_and_an_image_of_a_container_that_runs(house: House) -> None:
    house.ok("run", "-d", "--name", "busy", IMAGE, "sleep", "100")
    for arguments, words in (
        (("rm", "busy"), "cannot remove container"),
        (("unpause", "busy"), "is not paused"),
    ):
        assert words in refused(house, 1, *arguments)
    house.ok("rm", "-f", "busy")


SMALL = """
mkdir -p "$1" && mount -t tmpfs -o size=6m none "$1" && shift && exec "$@"
"""


class SmallHouse(House):
    """Its root is a file system of 6 MB in a mount namespace of its own."""

    def inside(self, argv: Any) -> list[str]:
        found = super().inside(argv)
        if list(argv)[:1] != [sys.executable] or "nagaya.daemon.main" not in " ".join(argv):
            return found
        return ["unshare", "--mount", "sh", "-c", SMALL, "sh", str(self.root), *found]


def test_a_full_disk() -> None:
    with SmallHouse() as house:
        root = Path(f"/proc/{(house.run_dir / 'nagayad.pid').read_text().strip()}/root{house.root}")
        house.ok("create", "--name", "early", IMAGE, "true")
        house.ok("rm", "early")
        space = os.statvfs(root)
        (root / "filler").write_bytes(b"x" * (space.f_bavail * space.f_bsize - 4096))
        seen = []
        for number in range(40):
            result = house.docker("create", "--name", f"full{number}", IMAGE, "true")
            if result.returncode:
                seen.append(result.stderr.decode())
                break
        assert seen, "the disk never became full"
        assert "no space left" in seen[0].lower() or "full" in seen[0], seen
        (root / "filler").unlink()
        house.ok("run", "--rm", "--network", "none", IMAGE, "true")
        names = house.ok("ps", "-aq", "--no-trunc").split()
        assert sorted(p.name for p in (root / "containers").iterdir()) == sorted(names)
        assert sorted(p.name for p in (root / "snapshots").iterdir()) == sorted([*names, "l"])
