"""kill -9 at every point of the journal, then a restart: done or undone, and nothing left between."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from house import SOURCE, House, python_main, wait_for
from rawhttp import call

from nagaya.image import builtin
from nagaya.linux.pids import is_ending

pytestmark = pytest.mark.root

# the state of the container after crash and restart; None: there is none
POINTS: dict[str, str | None] = {
    "volume-create: before begin": None,
    "volume-create: begun": None,
    "volume-create: directory": None,
    "volume-create: done": None,
    "volume-remove: before begin": None,
    "volume-remove: begun": None,
    "volume-remove: files": None,
    "volume-remove: done": None,
    "create: before begin": None,
    "create: begun": None,
    "create: snapshot": None,
    "create: directory": None,
    "create: volume": None,
    "fill: gathered": None,
    "fill: whole": None,
    "create: done": "created",
    "start: before begin": "created",
    "start: planned": "created",
    "start: pinned": "created",
    "start: connected": "created",
    "start: published": "created",
    "start: begun": "created",
    "start: composed": "created",
    "start: before run": "created",
    "start: ran": "running",
    "start: done": "running",
    "exit: seen": "exited",
    "exit: noted": "exited",
    "volume-create: begun#2": None,  # by a container
    "volume-create: directory#2": None,
    "volume-create: done#2": None,
    "volume-create: begun#3": None,
    "volume-create: directory#3": None,
    "volume-create: done#3": None,
    "remove: before begin": "exited",
    "remove: begun": None,
    "remove: snapshot": None,
    "remove: directory": None,
    "volume-remove: begun#2": None,
    "volume-remove: files#2": None,
    "volume-remove: done#2": None,
    "remove: done": None,
}


def test_every_point_is_tried() -> None:
    found = set()
    for path in (SOURCE / "nagaya/engine").glob("*.py"):
        if path.name.startswith("pods"):  # tests/cri/test_cri_recovery.py
            continue
        if path.stem == "netchanges":
            continue  # test_network_kill_points.py
        text = path.read_text()
        found |= set(re.findall(r'\bpoint\("([^"]+)"\)', text))
        for kind in re.findall(r'journal\.begin\("([^"]+)"', text):
            found |= {f"{kind}: before begin", f"{kind}: begun"}
    assert found == {point.partition("#")[0] for point in POINTS}


with tarfile.open(fileobj=io.BytesIO(builtin.build().layer)) as LAYER:
    FILES = {name.removeprefix("bin/") for name in LAYER.getnames() if name.startswith("bin/")}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def ask(house: House, method: str, path: str, body: Any = None) -> Any:
    """The answer's document; OSError when the daemon dies of the request."""
    reply = call(house.socket, method, path, body)
    assert reply.status < 300, reply
    return json.loads(reply.body) if reply.body else None


def live(house: House, name: str) -> None:
    """A volume's and a container's whole life, as far as it goes."""
    ask(house, "POST", "/volumes/create", {"Name": f"{name}-short"})
    ask(house, "DELETE", f"/volumes/{name}-short")
    ask(
        house,
        "POST",
        f"/containers/create?name={name}",
        {
            "Image": "nagaya/busybox",
            "Cmd": ["sleep", "1000"],
            "Volumes": {"/v": {}},
            "HostConfig": {
                "PortBindings": {"80/tcp": [{"HostPort": "18080"}]},
                "Binds": [f"{name}-data:/bin"],
            },
        },
    )
    ask(house, "POST", f"/containers/{name}/start")
    ask(house, "POST", f"/containers/{name}/kill")
    ask(house, "POST", f"/containers/{name}/wait")
    ask(house, "DELETE", f"/containers/{name}?v=1")
    ask(house, "DELETE", f"/volumes/{name}-data")


def volumes_are_whole(house: House, name: str) -> None:
    """The named volumes are there, empty or filled, or are not; then they go."""
    known = {row[0] for row in rows(house, "volumes")}
    for path in (house.root / "volumes").iterdir():
        assert path.name in known, path
        assert [p.name for p in path.iterdir()] == ["_data"]
        if path.name == f"{name}-data":
            found = {p.name for p in (path / "_data").iterdir()}
            assert found in (set(), FILES)
    for volume in ("short", "data"):
        ask(house, "DELETE", f"/volumes/{name}-{volume}?force=1")


def state(house: House, name: str) -> str | None:
    listed = ask(house, "GET", "/containers/json?all=1")
    found = {c["Names"][0]: c["State"] for c in listed}
    return found.get(f"/{name}")


def rows(house: House, table: str) -> list[Any]:
    with sqlite3.connect(house.root / "ledger.db") as ledger:
        found = ledger.execute(f"SELECT * FROM {table}").fetchall()
    ledger.close()
    return found


def nothing_left(house: House) -> None:
    wait_for(lambda: not house.leaks(), 5, "the end of all that containers had")  # links go in background
    for table in ("containers", "operations", "volumes", "endpoints", "addresses", "snapshots"):
        assert rows(house, table) == [], table
    assert [p.name for p in (house.root / "snapshots").iterdir()] == ["l"]
    assert list((house.root / "volumes").iterdir()) == []


@pytest.mark.parametrize("point", POINTS)
def test_kill_at(house: House, point: str) -> None:
    name = re.sub("[^a-z0-9]+", "-", point)
    if house.daemon is not None and house.daemon.poll() is None:
        house.stop_daemon()
    program, house.program = house.program, [*python_main("crashing"), point]
    try:
        house.start()
        daemon = house.daemon
        assert daemon is not None
        with pytest.raises((OSError, ValueError, AssertionError)):
            live(house, name)
        assert daemon.wait(20) == -signal.SIGKILL, house.tail()
    finally:
        house.program = program
    house.start()
    assert state(house, name) == POINTS[point]
    assert rows(house, "operations") == []
    if POINTS[point] is None:
        volumes_are_whole(house, name)
        nothing_left(house)
        live(house, name)  # the name is free, and all works
    else:
        if POINTS[point] == "running":
            assert house.ok("exec", name, "cat", "/proc/1/comm") == "sleep"
            assert "18080" in house.ok("port", name)
        elif POINTS[point] == "created":
            ask(house, "POST", f"/containers/{name}/start")
            assert house.ok("exec", name, "cat", "/proc/1/comm") == "sleep"
        else:
            assert house.ok("inspect", "-f", "{{.State.ExitCode}}", name) == "137"
        ask(house, "DELETE", f"/containers/{name}?force=1&v=1")
        volumes_are_whole(house, name)
    nothing_left(house)


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except OSError:
        return False
    return True


def test_a_reboot(house: House) -> None:
    """RUN is empty, no process lives: containers are exited, and policies apply."""
    for policy in ("no", "always", "unless-stopped", "on-failure"):
        house.ok("run", "-d", "--name", policy, "--restart", policy, "nagaya/busybox", "sleep", "1000")
    house.ok("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "nagaya/busybox", "sleep", "9")
    house.ok("stop", "-t", "0", "stopped")
    pids = [int(p) for p in house.ok("inspect", "-f", "{{.State.Pid}}", "no", "always").split()]
    keeper = house.supervisor_pid()
    house.kill_daemon()
    os.kill(keeper, signal.SIGKILL)
    for path in Path("/sys/fs/cgroup/pids").glob(f"{house.cgroup_parent}/*/cgroup.procs"):
        for pid in path.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{p}/exe").exists() for p in pids), 10, "the end of all")
    for path in Path("/sys/fs/cgroup").glob(f"*/{house.cgroup_parent}/*/"):
        wait_for(lambda path=path: _removed(path), 10, f"the end of {path}")  # type: ignore[misc]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if str(house.run_dir) in line:
            subprocess.run(["umount", "-l", line.split()[4]], check=True)
    subprocess.run(["rm", "-r", "--one-file-system", str(house.run_dir)], check=True)
    house.start()

    def settled() -> bool:
        up = [n for n in ("always", "unless-stopped", "on-failure") if state(house, n) == "running"]
        return len(up) == 3 and state(house, "no") == state(house, "stopped") == "exited"

    wait_for(settled, 20, "the policies")
    assert house.ok("inspect", "-f", "{{.State.ExitCode}}", "no") == "255"  # nobody saw it
    house.ok("rm", "-f", "no", "always", "unless-stopped", "on-failure", "stopped")
    nothing_left(house)


def test_sigterm_stops_no_container(house: House) -> None:
    house.ok("run", "-d", "--name", "stays", "nagaya/busybox", "sleep", "1000")
    pid = house.ok("inspect", "-f", "{{.State.Pid}}", "stays")
    house.stop_daemon()  # asserts exit status 0
    assert not (house.run_dir / "nagayad.pid").exists()
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    house.start()
    assert house.ok("inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "stays") == f"{pid} running"
    house.ok("rm", "-f", "stays")
    nothing_left(house)


def keepers(house: House) -> list[int]:
    """The pids of all keepers of the house, known to its pid file or not, and of their io."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if str(house.run_dir).encode() in words and any(b"nagaya.supervisor" in w for w in words):
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("keeper_first", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_daemon_and_keeper_end_at_once(house: House, keeper_first: bool, number: int) -> None:
    """SIGTERM for both, as an init system that stops all: no keeper is left that nobody asked for."""
    for _ in range(3):
        house.ok("run", "--rm", "--network", "none", "nagaya/busybox", "true")  # there is a keeper
        daemon = house.daemon
        assert daemon is not None
        ends = [(house.supervisor_pid(), number), (daemon.pid, signal.SIGTERM)]
        for pid, each in ends if keeper_first else ends[::-1]:
            os.kill(pid, each)
        assert daemon.wait(20) == 0, house.tail()
        wait_for(lambda: not keepers(house), 5, "the keeper's end")
        house.daemon = None
        house.start()
    nothing_left(house)


def test_a_keeper_that_dies_while_the_daemon_ends_is_replaced_for_containers(house: House) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo $i; i=$((i+1)); sleep 0.01; done"
    house.ok("run", "-d", "--name", "talks", "--network", "none", "nagaya/busybox", "sh", "-c", script)
    daemon, keeper = house.daemon, house.supervisor_pid()
    assert daemon is not None
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: is_ending(keeper), 5, "the keeper's end")
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait(20) == 0, house.tail()
    house.daemon = None
    assert house.supervisor_pid() != keeper, house.tail()
    assert house.supervisor_pid() in keepers(house)
    house.start()
    assert house.ok("wait", "talks") == "0"
    assert house.ok("logs", "talks").split() == [str(i) for i in range(200)]
    house.ok("rm", "talks")
    nothing_left(house)


def test_a_ledger_of_the_future_is_refused_in_one_line(house: House) -> None:
    house.stop_daemon()
    with sqlite3.connect(house.root / "ledger.db") as ledger:
        (version,) = ledger.execute("PRAGMA user_version").fetchone()
        ledger.execute("PRAGMA user_version=999")
    ledger.close()
    result = subprocess.run(house.inside(house.daemon_argv()), capture_output=True, text=True, timeout=60)
    with sqlite3.connect(house.root / "ledger.db") as ledger:
        ledger.execute(f"PRAGMA user_version={version}")
    ledger.close()
    house.start()
    assert result.returncode == 1
    assert result.stderr == "nagayad: the ledger has schema version 999, newer than this nagaya's 2\n"
