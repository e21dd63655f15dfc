"""The default bridge with IPv6, and networks that have nothing else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from house import House, wait_for
from rawhttp import call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
SERVE = ("sh", "-c", "echo served > /index.html; exec httpd -f -p 80 -h /")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House("--ipv6", "--fixed-cidr-v6", "fd00:231::/64") as made:
        yield made


def run(house: House, *arguments: str) -> str:
    done = house.docker(*arguments)
    assert done.returncode == 0, (done, house.tail())
    return done.stdout.decode()


def inspect(house: House, name: str) -> Any:
    return json.loads(run(house, "inspect", name))[0]


def fetch(house: House, address: str, port: int) -> bytes:
    argv = house.inside(["curl", "-s", "-g", "--max-time", "5", f"http://{address}:{port}/"])
    return subprocess.run(argv, capture_output=True).stdout


def test_the_default_bridge_has_ipv6(house: House) -> None:
    bridge = inspect(house, "bridge")
    assert bridge["EnableIPv6"] and bridge["EnableIPv4"]
    assert bridge["IPAM"]["Config"][1] == {"Subnet": "fd00:231::/64", "Gateway": "fd00:231::1"}
    run(house, "run", "-d", "--name", "web", "-p", "18931:80", IMAGE, *SERVE)
    place = inspect(house, "web")["NetworkSettings"]["Networks"]["bridge"]
    assert place["GlobalIPv6Address"].startswith("fd00:231::") and place["IPv6Gateway"] == "fd00:231::1"
    assert place["GlobalIPv6PrefixLen"] == 64 and place["IPAddress"]
    key = inspect(house, "web")["NetworkSettings"]["SandboxKey"]
    inside = subprocess.run(["nsenter", f"--net={key}", "ip", "addr"], capture_output=True, text=True).stdout
    assert place["GlobalIPv6Address"] in inside
    wait_for(lambda: fetch(house, f"[{place['GlobalIPv6Address']}]", 80) == b"served\n", 10, "the server")
    for address in ("[::1]", "127.0.0.1", "[fd00:231::1]"):
        assert fetch(house, address, 18931) == b"served\n", address
    script = f"wget -qO- http://[{place['GlobalIPv6Address']}]/; ip -6 route | grep default"
    seen = run(house, "run", "--rm", IMAGE, "sh", "-c", script)
    assert seen.startswith("served\n") and "via fd00:231::1" in seen
    house.stop_daemon()
    house.start()
    assert fetch(house, "[::1]", 18931) == b"served\n"
    assert inspect(house, "bridge")["IPAM"]["Config"][1]["Subnet"] == "fd00:231::/64"
    run(house, "rm", "-f", "web")


def test_a_network_without_ipv4(house: House) -> None:
    asked = {"Name": "six", "EnableIPv4": False, "EnableIPv6": True}
    asked["IPAM"] = {"Config": [{"Subnet": "fd00:232::/64"}]}
    assert call(house.socket, "POST", "/networks/create", asked).status == 201
    shown = inspect(house, "six")
    assert (shown["EnableIPv4"], shown["EnableIPv6"]) == (False, True)
    assert [c["Subnet"] for c in shown["IPAM"]["Config"]] == ["fd00:232::/64"]
    run(house, "run", "-d", "--name", "web", "--network", "six", "-p", "18932:80", IMAGE, *SERVE)
    found = inspect(house, "web")["NetworkSettings"]
    assert found["Networks"]["six"]["IPAddress"] == "" and found["Networks"]["six"]["GlobalIPv6Address"]
    assert found["Ports"]["80/tcp"] == [{"HostIp": "::", "HostPort": "18932"}]
    wait_for(lambda: fetch(house, "[::1]", 18932) == b"served\n", 10, "the server")
    script = "wget -qO- http://web/; ip -4 addr show eth0 | grep -c inet"
    done = house.docker("run", "--rm", "--network", "six", IMAGE, "sh", "-c", script)
    assert done.stdout == b"served\n0\n", done
    key = found["SandboxKey"]
    inside = subprocess.run(["nsenter", f"--net={key}", "ip", "addr"], capture_output=True, text=True).stdout
    assert found["Networks"]["six"]["GlobalIPv6Address"] in inside
    run(house, "network", "connect", "bridge", "web")
    assert "inet 10.231.0." in run(house, "exec", "web", "ip", "-4", "addr")
    run(house, "network", "disconnect", "six", "web")
    run(house, "rm", "-f", "web")
    run(house, "network", "rm", "six")
    neither = call(house.socket, "POST", "/networks/create", {"Name": "no", "EnableIPv4": False})
    assert (neither.status, neither.json["message"]) == (400, "IPv4 or IPv6 must be enabled")


def test_a_port_of_sctp(house: House) -> None:
    """The rules are all there is of it where, as often, the kernel has no SCTP sockets."""
    run(house, "run", "-d", "--name", "web", "-p", "18933:99/sctp", IMAGE, "sleep", "600")
    assert run(house, "port", "web").splitlines()[0] == "99/sctp -> 0.0.0.0:18933"
    address = inspect(house, "web")["NetworkSettings"]["IPAddress"]
    listed = house.inside(["nft", "list", "map", "ip", house.table, "published_any"])
    assert f"sctp . 18933 : {address} . 99" in subprocess.run(listed, capture_output=True, text=True).stdout
    run(house, "rm", "-f", "web")
    assert "18933" not in subprocess.run(listed, capture_output=True, text=True).stdout


def test_who_has_no_network_of_its_own_has_no_key(house: House) -> None:
    for mode in ("none", "host"):
        run(house, "run", "-d", "--name", "alone", "--network", mode, IMAGE, "sleep", "600")
        assert inspect(house, "alone")["NetworkSettings"]["SandboxKey"] == ""
        run(house, "rm", "-f", "alone")
