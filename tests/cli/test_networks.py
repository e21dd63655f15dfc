"""Networks by the command line: the bridge, published ports, names, masquerading, none, host, container."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from clients import Cli, available
from house import House, wait_for
from outside import other_machine, sh

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
SERVER = ("sh", "-c", "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www")
OUTSIDE = "10.231.200"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture(params=("docker", "docker20", "nagaya"))
def net(request: pytest.FixtureRequest, house: House) -> Iterator[Cli]:
    """A client; what its test leaves is removed. (Not `cli`: dockerd has no bridge here.)"""
    if not available(request.param):
        pytest.skip(f"no {request.param} here")
    found = Cli(house, request.param)
    yield found
    left = found("ps", "-aq").out.split()
    if left:
        found("rm", "-f", *left)
    # the kernel takes network namespaces apart behind everybody's back
    wait_for(lambda: house.leaks() == [], 20, "a clean house")


def fetch(house: House, url: str) -> str:
    """A page, tried until the server listens."""
    command = ["curl", "-s", "--max-time", "5", "--retry", "40", "--retry-delay", "0", "--retry-connrefused",
               "--retry-max-time", "30", url]  # fmt: skip
    return sh(house, *command).strip()


def page(address: str) -> str:
    """A script for a container's shell that gets a page. (Debian's static busybox has a broken wget.)"""
    request = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80"
    return f"for i in 1 2 3 4 5 6 7 8 9; do {request} && break; sleep 0.2; done"


@contextmanager
def outside(house: House) -> Iterator[list[str]]:
    """Another machine beside the house: the argv prefix that enters it."""
    with other_machine(house) as enter:
        sh(house, "ip", "addr", "add", f"{OUTSIDE}.1/24", "dev", "wan")
        sh(house, "ip", "link", "set", "wan", "up")
        for words in (f"addr add {OUTSIDE}.2/24 dev eth0", "link set eth0 up"):
            subprocess.run([*enter, "ip", *words.split()], check=True)
        yield enter


def test_the_bridge_gives_an_address_and_takes_it_back(house: House, net: Cli) -> None:
    shown = net.ok(
        "run", "--rm", IMAGE, "sh", "-c", "ip -4 -o addr show eth0; ip route; cat /sys/class/net/eth0/mtu"
    )
    assert re.search(r"inet 10\.231\.0\.\d+/24", shown)
    assert "default via 10.231.0.1 dev eth0" in shown and shown.endswith("1500")
    net.ok("run", "-d", "--name", "box", IMAGE, "sleep", "600")
    about = json.loads(net.ok("inspect", "box"))[0]["NetworkSettings"]
    bridge = about["Networks"]["bridge"]
    assert about["IPAddress"] == bridge["IPAddress"] and bridge["Gateway"] == "10.231.0.1"
    assert bridge["IPPrefixLen"] == 24 and re.fullmatch("([0-9a-f]{2}:){5}[0-9a-f]{2}", bridge["MacAddress"])
    sh(house, "busybox", "ping", "-c", "1", "-W", "5", bridge["IPAddress"])
    assert bridge["IPAddress"] in net.ok("exec", "box", "cat", "/etc/hosts")
    assert net.ok("exec", "box", "ping", "-c", "1", "-W", "5", "10.231.0.1").count("1 packets received") == 1


def test_two_containers_reach_each_other(house: House, net: Cli) -> None:
    net.ok("run", "-d", "--name", "web", "--hostname", "web-host", IMAGE, *SERVER)
    address = net.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")
    assert net.ok("run", "--rm", IMAGE, "sh", "-c", page(address)).endswith("web-host")


def test_published_ports(house: House, net: Cli) -> None:
    net.ok("run", "-d", "--name", "web", "--hostname", "shop", "-p", "8080:80", "-p", "127.0.0.1:8081:80",
           "-p", "80", IMAGE, *SERVER)  # fmt: skip
    assert fetch(house, "http://127.0.0.1:8080/") == "shop"
    assert fetch(house, "http://10.231.0.1:8080/") == "shop"
    assert fetch(house, "http://127.0.0.1:8081/") == "shop"
    refused = subprocess.run(house.inside(["curl", "-s", "--max-time", "5", "http://10.231.0.1:8081/"]))
    assert refused.returncode == 7
    lines = net.ok("port", "web").splitlines()
    assert {"80/tcp -> 0.0.0.0:8080", "80/tcp -> 127.0.0.1:8081"} <= set(lines) and len(lines) >= 3
    free = next(line.rpartition(":")[2] for line in lines if line.rpartition(":")[2] not in ("8080", "8081"))
    assert fetch(house, f"http://127.0.0.1:{free}/") == "shop"
    assert "0.0.0.0:8080" in net.ok("port", "web", "80/tcp")
    missing = net("port", "web", "81")
    assert missing.status == 1 and "No public port '81" in missing.err
    assert "0.0.0.0:8080->80/tcp" in net.ok("ps", "--format", "{{.Ports}}")
    # the host's own listeners are told apart, and a second container is refused with what is in the way
    said = net("run", "--rm", "-p", "8080:80", IMAGE, "true")
    assert said.status == 125 and "8080" in said.err
    assert "port is already allocated" in said.err or "address already in use" in said.err
    with outside(house) as enter:
        seen = subprocess.run(
            [*enter, "curl", "-s", "--max-time", "10", f"http://{OUTSIDE}.1:8080/"], capture_output=True
        )
        assert seen.stdout == b"shop\n"
        local = subprocess.run([*enter, "curl", "-s", "--max-time", "3", f"http://{OUTSIDE}.1:8081/"])
        assert local.returncode != 0
    net.ok("rm", "-f", "web")
    gone = subprocess.run(house.inside(["curl", "-s", "--max-time", "5", "http://127.0.0.1:8080/"]))
    assert gone.returncode == 7


def test_exposed_ports_all_at_once_and_ranges(house: House, net: Cli) -> None:
    net.ok(
        "run", "-d", "--name", "all", "--expose", "80", "--expose", "90-91/udp", "-P", IMAGE, "sleep", "600"
    )
    shown = net.ok("port", "all")
    assert {line.split()[0] for line in shown.splitlines()} == {"80/tcp", "90/udp", "91/udp"}
    net.ok("run", "-d", "--name", "range", "-p", "7000-7002:80-82", IMAGE, "sleep", "600")
    for port in range(3):
        assert f"0.0.0.0:{7000 + port}" in net.ok("port", "range", str(80 + port))


def test_traffic_to_the_world_carries_the_host_s_address(house: House, net: Cli) -> None:
    with outside(house) as enter:
        # it has no route to 10.231.0.0/24: only masqueraded packets are answered
        script = f"ping -c 1 -W 10 {OUTSIDE}.2"
        assert "1 packets received" in net.ok("run", "--rm", IMAGE, "sh", "-c", script)
        assert subprocess.run(
            [*enter, "busybox", "ping", "-c", "1", "-W", "1", "10.231.0.1"], capture_output=True
        ).returncode


def test_resolv_conf(net: Cli) -> None:
    flags = ("--dns", "9.9.9.9", "--dns-search", "a.example", "--dns-option", "ndots:3")
    shown = net.ok("run", "--rm", *flags, IMAGE, "cat", "/etc/resolv.conf")
    assert {"nameserver 9.9.9.9", "search a.example", "options ndots:3"} <= set(shown.splitlines())
    own = net.ok("run", "--rm", IMAGE, "cat", "/etc/resolv.conf")
    assert "nameserver" in own and "127.0.0.53" not in own


def test_none_and_host_and_another_s(house: House, net: Cli) -> None:
    lines = net.ok("run", "--rm", "--network", "none", IMAGE, "ls", "/sys/class/net").split()
    assert "lo" in lines and "eth0" not in lines
    assert "LOOPBACK,UP" in net.ok(
        "run", "--rm", "--network", "none", IMAGE, "ip", "-o", "link", "show", "lo"
    )
    there = net.ok("run", "--rm", "--network", "host", IMAGE, "ls", "/sys/class/net").split()
    assert house.bridge in there
    said = net.ok("run", "--rm", "--network", "host", IMAGE, "hostname")
    assert said == subprocess.run(["hostname"], capture_output=True, text=True).stdout.strip()
    net.ok("run", "-d", "--name", "web", IMAGE, *SERVER)
    web = net.ok("exec", "web", "hostname")
    shown = net.ok("run", "--rm", "--network", "container:web", IMAGE, "sh", "-c", page("127.0.0.1"))
    assert shown.endswith(web)
    if net.name != "nagaya":  # which has no such verb yet
        names = net.ok("network", "ls", "--format", "{{.Name}}").split()
        assert sorted(names) == ["bridge", "host", "none"]


def test_a_port_that_a_listener_of_the_host_has(house: House, net: Cli) -> None:
    listener = subprocess.Popen(
        house.inside(["busybox", "nc", "-l", "-p", "8090"]), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: ":8090" in sh(house, "ss", "-ltn"), 20, "the listener")
        said = net("run", "--rm", "-p", "8090:80", IMAGE, "true")
        assert said.status == 125 and "8090" in said.err
        assert "address already in use" in said.err or "port is already allocated" in said.err
    finally:
        listener.kill()
        listener.communicate()
    assert net("run", "--rm", "-p", "8090:80", IMAGE, "true").status == 0


def test_stats_count_what_went_through(net: Cli, house: House) -> None:
    net.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", "ping -c 3 -i 0.1 -s 1400 10.231.0.1; sleep 600")
    wait_for(lambda: "3 packets received" in net.ok("logs", "box"), 10, "pings")

    def inside() -> list[int]:
        words = net.ok("exec", "box", "grep", "eth0:", "/proc/net/dev").split()
        return [int(words[n]) for n in (1, 2, 9, 10)]

    def shown(name: str) -> dict[str, dict[str, int]]:
        return dict(
            json.loads(house.curl(f"/containers/{name}/stats?stream=0&one-shot=1")).get("networks", {})
        )

    wait_for(lambda: inside() == inside(), 10, "silence")
    before, counted, after = inside(), shown("box"), inside()
    assert list(counted) == ["eth0"]
    found = [counted["eth0"][key] for key in ("rx_bytes", "rx_packets", "tx_bytes", "tx_packets")]
    assert all(b <= f <= a for b, f, a in zip(before, found, after, strict=True)), (before, found, after)
    assert found[0] > 3 * 1400 and found[2] > 3 * 1400
    net.ok("run", "-d", "--name", "guest", "--network", "container:box", IMAGE, "sleep", "600")
    assert shown("guest")["eth0"]["rx_bytes"] >= found[0]
    for mode in ("none", "host"):
        net.ok("run", "-d", "--name", mode, "--network", mode, IMAGE, "sleep", "600")
        assert shown(mode) == {}
    columns = net.ok("stats", "--no-stream", "--format", "{{.NetIO}} {{.MemUsage}}", "box")
    sizes = re.fullmatch(r"([0-9.]+)kB / ([0-9.]+)kB [0-9.]+[KM]iB / ([0-9.]+)GiB", columns)
    assert sizes and float(sizes[1]) > 4.2 and float(sizes[2]) > 4.2, columns
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert abs(float(sizes[3]) - total) < 0.01
