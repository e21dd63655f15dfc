"""What passes between networks, and what does not: isolation, internal ones, neighbours that may not talk,
IPv6 with its ports, ranges of ports, MTU, macvlan; with another firewall beside, and after a flush."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from clients import have_dockerd
from dockerd import Dockerd
from house import DOCKER, House, wait_for
from outside import other_machine, sh

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
SERVER = ("sh", "-c", "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www")
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 81))
print("up", flush=True)
while True:
    data, peer = s.recvfrom(999)
    s.sendto(data, peer)
"""
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b"hello")
print(s.recv(99).decode())
"""
OUT4, OUT6 = "10.231.200", "fd00:200:"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


@pytest.fixture(autouse=True)
def tidy(house: House) -> Iterator[None]:
    yield
    left = house.ok("ps", "-aq").split()
    if left:
        house.ok("rm", "-f", *left)
    house.ok("network", "prune", "-f")


@pytest.fixture
def wan(house: House) -> Iterator[list[str]]:
    """Another machine beside the house, which routes to its containers: the argv prefix that enters it."""
    with other_machine(house) as enter:
        sh(house, "sysctl", "-qw", "net.ipv6.conf.wan.accept_dad=0")
        for words in (
            f"addr add {OUT4}.1/24 dev wan",
            f"addr add {OUT6}:1/64 dev wan nodad",
            "link set wan up",
        ):
            sh(house, "ip", *words.split())
        for words in (
            f"addr add {OUT4}.2/24 dev eth0",
            f"addr add {OUT6}:2/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {OUT4}.1",
            f"-6 route add default via {OUT6}:1",
        ):
            subprocess.run([*enter, "ip", *words.split()], check=True)
        yield enter


def start(house: House, name: str, network: str, *more: str, command: Sequence[str] = SERVER) -> None:
    house.ok("run", "-d", "--name", name, "--hostname", name, "--network", network, *more, IMAGE, *command)


def addresses(house: House, name: str, network: str) -> tuple[str, str]:
    shown = json.loads(house.ok("inspect", name))[0]["NetworkSettings"]["Networks"][network]
    return shown["IPAddress"], shown["GlobalIPv6Address"]


def fetch(argv: Sequence[str], url: str, *, patience: int = 5) -> str:
    """A page by curl in some namespace; "" when there is none."""
    command = [*argv, "curl", "-g", "-s", "--max-time", str(patience), url]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def served(house: House, argv: Sequence[str], url: str) -> str:
    """The same, of a server that may have to start yet."""
    wait_for(lambda: fetch(argv, url), 15, url)
    return fetch(argv, url)


def reaches(house: House, name: str, address: str) -> bool:
    """Does the container get a page from that address? (Debian's static busybox has a broken wget.)"""
    script = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80 | grep -q ."
    return house.docker("exec", name, "sh", "-c", script).returncode == 0


def firewalled(house: House) -> None:
    """A host whose firewall forwards nothing it does not know."""
    sh(house, "iptables-nft", "-P", "FORWARD", "DROP")
    sh(house, "ip6tables-nft", "-P", "FORWARD", "DROP")


@pytest.mark.parametrize("beside", ["alone", "beside a firewall", "after a flush"])
def test_between_networks(house: House, wan: list[str], beside: str) -> None:
    if beside == "beside a firewall":
        firewalled(house)
    house.ok("network", "create", "one")
    house.ok("network", "create", "two")
    house.ok("network", "create", "--internal", "shut")
    house.ok("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "deaf")
    if beside == "after a flush":
        sh(house, "nft", "flush", "ruleset")
        wait_for(lambda: "neighbours" in sh(house, "nft", "list", "ruleset"), 20, "the rules")
    start(house, "web", "one", "-p", "18101:80")
    start(house, "other", "one")
    start(house, "far", "two")
    start(house, "in1", "shut", "-p", "18102:80")
    start(house, "in2", "shut")
    start(house, "deaf1", "deaf", "-p", "18103:80")
    start(house, "deaf2", "deaf")
    web, far = addresses(house, "web", "one")[0], addresses(house, "far", "two")[0]
    here: list[str] = house.inside([])
    assert served(house, here, "http://127.0.0.1:18101/") == "web"
    # neighbours, and nobody of another network, in either direction
    assert reaches(house, "other", web)
    assert not reaches(house, "far", web) and not reaches(house, "web", far)
    # by the published port all come: other networks, the outside, with its own address
    assert reaches_port(house, "far", f"{OUT4}.1", 18101) and reaches_port(house, "other", f"{OUT4}.1", 18101)
    assert served(house, wan, f"http://{OUT4}.1:18101/") == "web"
    assert fetch(wan, f"http://{web}/", patience=2) == ""
    assert house.docker("exec", "web", "ping", "-c", "1", "-W", "5", f"{OUT4}.2").returncode == 0
    # an internal one has neighbours and its host
    in1 = addresses(house, "in1", "shut")[0]
    assert reaches(house, "in2", in1) and not reaches(house, "web", in1)
    assert house.docker("exec", "in1", "ping", "-c", "1", "-W", "1", f"{OUT4}.2").returncode
    assert served(house, here, f"http://{in1}/") == "in1" and house.ok("port", "in1") == ""
    # those that may not talk do so by published ports only
    deaf1 = addresses(house, "deaf1", "deaf")[0]
    assert not reaches(house, "deaf2", deaf1)
    assert reaches_port(house, "deaf2", f"{OUT4}.1", 18103)
    assert served(house, wan, f"http://{OUT4}.1:18103/") == "deaf1"
    if beside == "beside a firewall":
        house.ok("rm", "-f", "far", "web", "other")
        house.ok("network", "rm", "two")
        tagged = re.findall(r"-[io] (br-\w+)", sh(house, "iptables-nft", "-S", "FORWARD"))
        named = {n[:12] for n in house.ok("network", "ls", "-q").split()}
        assert tagged and all(name.removeprefix("br-") in named for name in tagged)
        sh(house, "iptables-nft", "-P", "FORWARD", "ACCEPT")
        sh(house, "ip6tables-nft", "-P", "FORWARD", "ACCEPT")


def reaches_port(house: House, name: str, address: str, port: int) -> bool:
    script = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} {port} | grep -q ."
    return house.docker("exec", name, "sh", "-c", script).returncode == 0


@pytest.mark.skipif(not have_dockerd(), reason="no dockerd on this machine")
def test_beside_dockerd(house: House, wan: list[str]) -> None:
    """Its iptables rules drop what they do not know; both daemons' containers are served."""
    here: list[str] = house.inside([])
    house.ok("network", "create", "one")
    start(house, "early", "one", "-p", "18801:80")
    sh(house, "sysctl", "-qw", "net.ipv4.ip_forward=0")  # it is first: then it sets the policy
    with Dockerd(bip="10.231.250.1/24", beside=house) as dockerd:
        assert "-P FORWARD DROP" in sh(house, "iptables-nft", "-S", "FORWARD")
        theirs = [DOCKER, "run", "-d", "--hostname", "theirs", "-p", "18803:80", IMAGE, *SERVER]
        started = subprocess.run(house.inside(theirs), capture_output=True, env=dockerd.environment)
        assert started.returncode == 0, started.stderr
        start(house, "late", "bridge", "-p", "18802:80")
        for port, name in ((18802, "late"), (18803, "theirs")):
            assert served(house, here, f"http://127.0.0.1:{port}/") == name
            assert served(house, wan, f"http://{OUT4}.1:{port}/") == name
        # who was there before it gets through again when we look
        wait_for(lambda: fetch(wan, f"http://{OUT4}.1:18801/", patience=1) == "early", 25, "the rules")
        assert reaches_port(house, "late", f"{OUT4}.1", 18803)
        assert house.docker("exec", "early", "ping", "-c", "1", "-W", "5", f"{OUT4}.2").returncode == 0
    for family in ("iptables-nft", "ip6tables-nft"):
        sh(house, family, "-P", "FORWARD", "ACCEPT")
    sh(house, "ip", "link", "del", "docker0")


@pytest.mark.parametrize("firewall", [False, True])
def test_ipv6(house: House, wan: list[str], firewall: bool) -> None:
    if firewall:
        firewalled(house)
    house.ok(
        "network", "create", "--ipv6", "--subnet", "fd00:231:1::/64", "--subnet", "10.231.81.0/24", "six"
    )
    house.ok("network", "create", "--ipv6", "seven")
    start(house, "web", "six", "--ip6", "fd00:231:1::77", "-p", "18201:80", "-p", f"[{OUT6}:1]:18202:80")
    start(house, "other", "six")
    start(house, "far", "seven")
    assert addresses(house, "web", "six")[1] == "fd00:231:1::77"
    assert addresses(house, "other", "six")[1] == "fd00:231:1::2"
    assert addresses(house, "far", "seven")[1].startswith("fd")
    shown = house.ok("exec", "web", "ip", "-6", "route")
    assert "default via fd00:231:1::1 dev eth0" in shown
    here: list[str] = house.inside([])
    assert served(house, here, "http://127.0.0.1:18201/") == "web"
    assert fetch(here, f"http://[{OUT6}:1]:18201/") == "web"
    assert fetch(wan, f"http://[{OUT6}:1]:18201/") == fetch(wan, f"http://[{OUT6}:1]:18202/") == "web"
    assert fetch(wan, f"http://{OUT4}.1:18201/") == "web" and fetch(wan, f"http://{OUT4}.1:18202/") == ""
    assert house.ok("port", "web", "80").split() == [
        "0.0.0.0:18201",
        "[::]:18201",
        f"[{OUT6}:1]:18202",
    ]
    # out into the world as the host, neighbours, and not between networks nor in by the own address
    assert house.docker("exec", "web", "ping", "-6", "-c", "1", "-W", "5", f"{OUT6}:2").returncode == 0
    assert reaches(house, "other", "fd00:231:1::77") and not reaches(house, "far", "fd00:231:1::77")
    assert fetch(wan, "http://[fd00:231:1::77]/", patience=2) == ""
    # a running container gets it too
    house.ok("network", "connect", "--ip6", "fd00:231:1::99", "six", "far")
    assert reaches(house, "far", "fd00:231:1::77")
    house.ok("network", "disconnect", "six", "far")
    assert not reaches(house, "far", "fd00:231:1::77")
    house.ok("rm", "-f", "web", "other", "far")
    house.ok("network", "prune", "-f")
    wait_for(lambda: "table ip6 nagt" not in sh(house, "nft", "list", "tables"), 5, "the end of IPv6's table")
    for family in ("iptables-nft", "ip6tables-nft") if firewall else ():
        sh(house, family, "-P", "FORWARD", "ACCEPT")


def test_ipv6_ports_without_ipv6(house: House, wan: list[str]) -> None:
    """[::1] cannot be translated, nor IPv6 to a container that has none: these are relayed."""
    start(house, "web", "bridge", "-p", "[::1]:18301:80", "-p", "[::]:18302:80", "-p", "18303:80/udp",
          "-p", "[::]:18304:81/udp")  # fmt: skip
    here: list[str] = house.inside([])
    assert served(house, here, "http://[::1]:18301/") == "web"
    assert fetch(here, "http://[::1]:18302/") == fetch(wan, f"http://[{OUT6}:1]:18302/") == "web"
    assert fetch(wan, f"http://[{OUT6}:1]:18301/", patience=2) == ""
    assert "[::1]:18301" in house.ok("port", "web", "80")
    pid = house.ok("inspect", "-f", "{{.State.Pid}}", "web")
    server = ["nsenter", "-n", "-t", pid, sys.executable, "-c", ECHO]
    with subprocess.Popen(server, stdout=subprocess.PIPE) as echo:
        assert echo.stdout is not None and echo.stdout.readline() == b"up\n"
        for argv, to in ((here, "::1"), (here, f"{OUT6}:1"), (wan, f"{OUT6}:1")):
            client = [*argv, sys.executable, "-c", ASK, to, "18304"]
            assert subprocess.run(client, capture_output=True, timeout=30).stdout == b"hello\n"
        echo.kill()
    house.ok("rm", "-f", "web")
    said = house.docker("run", "--rm", "-p", "[fd00::1]:18301:80", IMAGE, "true")
    assert said.returncode == 125 and b"fd00::1:18301" in said.stderr


def drop_input(house: House) -> None:
    for words in (
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m state --state ESTABLISHED -j ACCEPT",
        "-P INPUT DROP",
    ):
        sh(house, "iptables-nft", *words.split())


def accept_input(house: House) -> None:
    for words in ("-P INPUT ACCEPT", "-F INPUT"):
        sh(house, "iptables-nft", *words.split())


def test_a_host_that_drops_input(house: House, wan: list[str]) -> None:
    """Published ports are open to the outside as far as the host's INPUT rules let them; to the host itself
    and to containers always. The relay outlives the daemon, the rules may come and go."""
    here: list[str] = house.inside([])
    start(house, "before", "bridge", "-p", "18601:80")
    assert served(house, wan, f"http://{OUT4}.1:18601/") == "before"
    drop_input(house)
    try:
        house.stop_daemon()
        house.start()  # it looks at once, else every ten seconds
        assert fetch(wan, f"http://{OUT4}.1:18601/", patience=2) == ""
        house.ok("network", "create", "one")
        start(house, "web", "one", "-p", "18602:80")
        start(house, "far", "bridge")
        assert served(house, here, "http://127.0.0.1:18602/") == "web"
        assert fetch(here, f"http://{OUT4}.1:18602/") == "web"
        assert reaches_port(house, "far", f"{OUT4}.1", 18602)
        assert fetch(wan, f"http://{OUT4}.1:18602/", patience=2) == ""
        sh(house, "iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "18601:18602", "-j", "ACCEPT")
        assert fetch(wan, f"http://{OUT4}.1:18602/") == "web"
        assert fetch(wan, f"http://{OUT4}.1:18601/") == "before"
        house.kill_daemon()
        assert fetch(wan, f"http://{OUT4}.1:18602/") == "web"
        house.start()
        assert fetch(wan, f"http://{OUT4}.1:18602/") == "web"
        house.ok("rm", "-f", "web")
        assert fetch(wan, f"http://{OUT4}.1:18602/", patience=2) == ""
    finally:
        accept_input(house)
    wait_for(lambda: "iifname @bridges fib" not in sh(house, "nft", "list", "ruleset"), 25, "the rule's end")
    assert fetch(wan, f"http://{OUT4}.1:18601/") == "before"


def test_large_transfers_are_relayed_whole(house: House) -> None:
    script = "mkdir /www; head -c 20000000 /dev/urandom > /www/big; sha256sum /www/big; exec httpd -fh /www"
    start(house, "web", "bridge", "-p", "[::1]:18701:80", command=("sh", "-c", script))
    wait_for(lambda: house.ok("logs", "web"), 20, "the file")
    get = "curl -g -s --retry 20 --retry-connrefused http://[::1]:18701/big | sha256sum"
    sums = [subprocess.Popen(house.inside(["sh", "-c", get]), stdout=subprocess.PIPE) for _ in range(4)]
    assert {p.communicate()[0].split()[0].decode() for p in sums} == {house.ok("logs", "web").split()[0]}


def test_ranges_of_ports(house: House) -> None:
    for number, name in enumerate(("r1", "r2", "r3"), 18401):
        start(house, name, "bridge", "-p", "18401-18403:80")
        assert house.ok("port", name, "80") == f"0.0.0.0:{number}"
        assert served(house, house.inside([]), f"http://127.0.0.1:{number}/") == name
    said = house.docker("run", "--rm", "-p", "18401-18403:80", IMAGE, "true")
    assert said.returncode == 125 and b"all ports are allocated" in said.stderr
    house.ok("rm", "-f", "r2")
    start(house, "r4", "bridge", "-p", "18401-18403:80", "-p", "18405:80", "-p", "18411-18412:80-81")
    shown = house.ok("port", "r4").split("\n")
    assert shown == ["80/tcp -> 0.0.0.0:18402", "80/tcp -> 0.0.0.0:18405", "80/tcp -> 0.0.0.0:18411",
                     "81/tcp -> 0.0.0.0:18412"]  # fmt: skip
    assert house.ok("inspect", "-f", "{{json .HostConfig.PortBindings}}", "r1") == (
        '{"80/tcp":[{"HostIp":"","HostPort":"18401-18403"}]}'
    )


def test_mtu_and_names_of_bridges(house: House) -> None:
    house.ok("network", "create", "-o", "com.docker.network.driver.mtu=1280",
             "-o", "com.docker.network.bridge.name=nagt-mine", "small")  # fmt: skip
    start(house, "web", "small", "--mac-address", "02:42:00:00:00:77", command=("sleep", "600"))
    (link,) = json.loads(sh(house, "ip", "-j", "link", "show", "dev", "nagt-mine"))
    assert link["mtu"] == 1280
    inside = house.ok("exec", "web", "ip", "link", "show", "eth0")
    assert "mtu 1280" in inside and "02:42:00:00:00:77" in inside
    house.ok("rm", "-f", "web")
    house.ok("network", "rm", "small")
    assert "nagt-mine" not in sh(house, "ip", "-br", "link")


def test_ports_of_a_network_s_host_address(house: House) -> None:
    house.ok("network", "create", "-o", "com.docker.network.bridge.host_binding_ipv4=127.0.0.1", "own")
    start(house, "web", "own", "-p", "18501:80")
    assert house.ok("port", "web", "80") == "127.0.0.1:18501"
    assert served(house, house.inside([]), "http://127.0.0.1:18501/") == "web"


def test_macvlan(house: House, wan: list[str]) -> None:
    """Containers are machines beside the host, on its interface."""
    house.ok("network", "create", "-d", "macvlan", "-o", "parent=wan", "--subnet", f"{OUT4}.0/24",
             "--ip-range", f"{OUT4}.128/25", "--gateway", f"{OUT4}.2", "lan")  # fmt: skip
    start(house, "web", "lan")
    start(house, "other", "lan")
    address = addresses(house, "web", "lan")[0]
    assert address == f"{OUT4}.128"
    assert served(house, wan, f"http://{address}/") == "web"
    assert reaches(house, "other", address)
    house.ok("rm", "-f", "web", "other")
    said = house.docker("network", "create", "-d", "ipvlan", "-o", "parent=wan", "no")
    assert said.returncode == 1 and b"ipvlan networks are not supported: use macvlan" in said.stderr
    house.ok(
        "network", "create", "-d", "macvlan", "-o", "parent=nosuch", "--subnet", "10.231.90.0/24", "gone"
    )
    said = house.docker("run", "--rm", "--network", "gone", IMAGE, "true")
    assert said.returncode == 125 and b"nosuch" in said.stderr
