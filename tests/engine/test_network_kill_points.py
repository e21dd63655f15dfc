"""kill -9 at every point of a network's making, removal, and of plugging a running container in and out:
done or undone, no address, interface, bridge, rule or route left wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agreement import rows
from house import SOURCE, House, python_main, wait_for
from rawhttp import call

pytestmark = pytest.mark.root

# is the network there after crash and restart? In which networks is the container?
POINTS: dict[str, tuple[bool, set[str]]] = {
    "network create: before begin": (False, {"first"}),
    "network create: begun": (False, {"first"}),
    "network create: made": (False, {"first"}),
    "network create: done": (True, {"first"}),
    "connect: before begin": (True, {"first"}),
    "connect: begun": (True, {"first"}),
    "connect: planned": (True, {"first"}),
    "connect: connected": (True, {"first"}),
    "connect: routed": (True, {"first"}),
    "connect: done": (True, {"first", "second"}),
    "disconnect: before begin": (True, {"first", "second"}),
    "disconnect: begun": (True, {"first"}),
    "disconnect: routed": (True, {"first"}),
    "disconnect: unplugged": (True, {"first"}),
    "disconnect: done": (True, {"first"}),
    "network remove: before begin": (True, {"first"}),
    "network remove: begun": (False, {"first"}),
    "network remove: gone": (False, {"first"}),
    "network remove: done": (False, {"first"}),
}


def test_every_point_is_tried() -> None:
    text = (SOURCE / "nagaya/engine/netchanges.py").read_text()
    found = set(re.findall(r'\.point\("([^"]+)"\)', text))
    for kind in re.findall(r'journal\.begin\("([^"]+)"', text):
        found |= {f"{kind}: before begin", f"{kind}: begun"}
    assert found == set(POINTS)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def ask(house: House, method: str, path: str, body: Any = None) -> Any:
    """The answer's document; OSError when the daemon dies of the request."""
    reply = call(house.socket, method, path, body)
    assert reply.status < 300, reply
    return json.loads(reply.body) if reply.body else None


def change(house: House) -> None:
    """All that can happen to a network, as far as it goes. The second is the way out while it is there: its
    priority is higher, so routes and the published port move there and back."""
    config = {"Config": [{"Subnet": "10.231.82.0/24"}]}
    ask(house, "POST", "/networks/create", {"Name": "second", "IPAM": config})
    endpoint = {"GwPriority": 10, "IPAMConfig": {"IPv4Address": "10.231.82.77"}}
    ask(house, "POST", "/networks/second/connect", {"Container": "box", "EndpointConfig": endpoint})
    ask(house, "POST", "/networks/second/disconnect", {"Container": "box"})
    ask(house, "DELETE", "/networks/second")


def sh(house: House, *argv: str) -> str:
    done = subprocess.run(house.inside(argv), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


@pytest.mark.parametrize("point", POINTS)
def test_kill_at(house: House, point: str) -> None:
    exists, networks = POINTS[point]
    config = {"Config": [{"Subnet": "10.231.81.0/24"}]}
    ask(house, "POST", "/networks/create", {"Name": "first", "IPAM": config})
    house.ok("run", "-d", "--name", "box", "--network", "first", "-p", "18090:80", "nagaya/busybox",
             "sh", "-c", "mkdir /www; echo hi > /www/index.html; exec httpd -f -p 80 -h /www")  # fmt: skip
    house.stop_daemon()
    program, house.program = house.program, [*python_main("crashing"), point]
    try:
        house.start()
        daemon = house.daemon
        assert daemon is not None
        with pytest.raises((OSError, ValueError, AssertionError)):
            change(house)
        assert daemon.wait(20) == -signal.SIGKILL, house.tail()
    finally:
        house.program = program
    house.start()
    assert rows(house, "SELECT kind FROM operations") == []
    named = {n["Name"]: n["Id"] for n in ask(house, "GET", "/networks")}
    assert ("second" in named) is exists
    shown = ask(house, "GET", "/containers/box/json")["NetworkSettings"]["Networks"]
    assert set(shown) == networks and all(n["IPAddress"] for n in shown.values())
    assert shown["first"]["IPAddress"] == "10.231.81.2"
    # the ledger, the bridges, the container's interfaces and its route agree
    owned = {address for (address,) in rows(house, "SELECT address FROM addresses")}
    assert owned == {n["IPAddress"] for n in shown.values()}
    assert len(rows(house, "SELECT 1 FROM endpoints")) == len(networks)
    links = {link["ifname"] for link in json.loads(sh(house, "ip", "-j", "link"))}
    bridges = {name for name in links if name.startswith("br-")}
    assert bridges == {f"br-{i[:12]}" for name, i in named.items() if name in ("first", "second")}
    assert len([name for name in links if name.startswith("ngv")]) == len(networks)
    inside = house.ok("exec", "box", "ip", "-o", "-4", "addr")
    assert set(re.findall(r"10\.231\.8\d\.\d+(?=/24)", inside)) == owned
    way = "10.231.82.1" if "second" in networks else "10.231.81.1"
    assert re.findall(r"default via (\S+)", house.ok("exec", "box", "ip", "route")) == [way]
    page = [
        "curl",
        "-s",
        "--max-time",
        "5",
        "--retry",
        "20",
        "--retry-connrefused",
        "http://127.0.0.1:18090/",
    ]
    assert sh(house, *page).strip() == "hi"
    # and everything goes on from there
    if "second" in networks:
        ask(house, "POST", "/networks/second/disconnect", {"Container": "box"})
    if exists:
        ask(house, "DELETE", "/networks/second")
    change(house)
    assert sh(house, *page).strip() == "hi"
    house.ok("rm", "-f", "box")
    house.ok("network", "rm", "first")
    assert rows(house, "SELECT 1 FROM addresses") == rows(house, "SELECT 1 FROM endpoints") == []
    assert house.leaks() == []


def test_a_container_that_ends_while_no_daemon_is_there(house: House) -> None:
    """It was being plugged in: the daemon starts all the same, and nothing is left."""
    ask(house, "POST", "/networks/create", {"Name": "first"})
    house.ok("run", "-d", "--name", "box", "--network", "none", "nagaya/busybox", "sleep", "600")
    ask(house, "POST", "/networks/none/disconnect", {"Container": "box"})
    pid = int(house.ok("inspect", "-f", "{{.State.Pid}}", "box"))
    house.stop_daemon()
    program, house.program = house.program, [*python_main("crashing"), "connect: connected"]
    try:
        house.start()
        with pytest.raises((OSError, ValueError, AssertionError)):
            ask(house, "POST", "/networks/first/connect", {"Container": "box"})
        assert house.daemon is not None and house.daemon.wait(20) == -signal.SIGKILL
    finally:
        house.program = program
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10, "its end")
    house.start()
    assert ask(house, "GET", "/containers/box/json")["State"]["Status"] == "exited"
    ask(house, "DELETE", "/networks/first")
    assert rows(house, "SELECT 1 FROM addresses") == rows(house, "SELECT 1 FROM endpoints") == []
    house.ok("rm", "box")
    assert house.leaks() == []
