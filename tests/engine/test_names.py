"""Containers know one another by name: the resolver at 127.0.0.11, asked from inside."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from house import House, wait_for

from nagaya.linux.namespaces import CLONE_NEWNET, setns
from nagaya.network import dnsmessage as dns

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
SERVER = "127.0.0.53"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        for name, more in (("one", ()), ("two", ()), ("six", ("--ipv6",)), ("shut", ("--internal",))):
            started.ok("network", "create", *more, name)
        yield started


@pytest.fixture(autouse=True)
def tidy(house: House) -> Iterator[None]:
    yield
    left = house.ok("ps", "-aq").split()
    if left:
        house.ok("rm", "-f", *left)


@contextmanager
def inside(pid: int) -> Iterator[None]:
    """This thread in the network namespace of a process."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(there, CLONE_NEWNET)
        yield
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(there)


def start(house: House, name: str, network: str, *more: str) -> int:
    house.ok("run", "-d", "--name", name, "--network", network, *more, IMAGE, "sleep", "600")
    return int(house.ok("inspect", "-f", "{{.State.Pid}}", name))


def address(house: House, name: str, network: str) -> str:
    return house.ok("inspect", "-f", f"{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}", name)


def question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    return struct.pack("!HHHHHH", 0x2A2A, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!HH", kind, 1)


def ask(pid: int, name: str, kind: int = dns.A, *, tcp: bool = False) -> tuple[int, list[str]]:
    """(the answer's code, the addresses in it)."""
    query = question(name, kind)
    with inside(pid):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(15)
        sock.connect(("127.0.0.11", 53))
        if tcp:
            sock.sendall(struct.pack("!H", len(query)) + query)
            with sock.makefile("rb") as stream:
                data = stream.read(int.from_bytes(stream.read(2), "big"))
        else:
            sock.send(query)
            data = sock.recv(4096)
    number, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", data)
    assert number == 0x2A2A and flags & 0x8000
    offset, found = len(query), []
    for _ in range(count):
        _, record, _, _, length = struct.unpack_from("!HHHIH", data, offset)
        raw = data[offset + 12 : offset + 12 + length]
        if record in (dns.A, dns.AAAA):
            found.append(socket.inet_ntop(socket.AF_INET6 if record == dns.AAAA else socket.AF_INET, raw))
        else:
            found.append(re.sub(rb"[\x01-\x3f]", b".", raw[1:-1]).decode())
        offset += 12 + length
    return flags & 15, found


def test_names(house: House) -> None:
    pid = start(house, "aa", "one", "--network-alias", "both")
    other = start(house, "bb", "one", "--network-alias", "both", "--link", "aa:store")
    start(house, "cc", "two")
    a, b = address(house, "aa", "one"), address(house, "bb", "one")
    assert house.ok("exec", "aa", "cat", "/etc/resolv.conf").split("\n")[0] == "nameserver 127.0.0.11"
    assert "ndots:0" in house.ok("exec", "aa", "cat", "/etc/resolv.conf")
    short = house.ok("inspect", "-f", "{{.Id}}", "bb")[:12]
    for name in ("bb", "BB", "bb.one", short):
        for tcp in (False, True):
            assert ask(pid, name, tcp=tcp) == (dns.NOERROR, [b])
    assert ask(pid, "bb", dns.AAAA) == (dns.NOERROR, [])  # a name without such an address, no unknown name
    assert ask(other, "store") == (dns.NOERROR, [a]) and ask(pid, "store")[0] == dns.SERVFAIL
    seen = {tuple(ask(pid, "both")[1]) for _ in range(6)}
    assert seen == {(a, b), (b, a)}
    backwards = ".".join(reversed(b.split("."))) + ".in-addr.arpa"
    assert ask(pid, backwards, dns.PTR) == (dns.NOERROR, ["bb.one"])
    # only neighbours are known, and as long as they are
    assert ask(pid, "cc")[0] == dns.SERVFAIL
    house.ok("network", "connect", "--alias", "see", "two", "aa")
    c = address(house, "cc", "two")
    assert ask(pid, "cc") == ask(pid, "cc.two") == (dns.NOERROR, [c])
    house.ok("rename", "bb", "bee")
    assert ask(pid, "bee") == (dns.NOERROR, [b]) and ask(pid, "bb")[0] == dns.SERVFAIL
    house.ok("network", "disconnect", "two", "aa")
    assert ask(pid, "cc")[0] == dns.SERVFAIL
    house.ok("kill", "bee")
    wait_for(lambda: ask(pid, "both")[1] == [a], 10, "the end of a name")


def test_ipv6(house: House) -> None:
    pid = start(house, "aa", "six")
    start(house, "bb", "six")
    found = house.ok("inspect", "-f", "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}", "bb")
    assert ask(pid, "bb", dns.AAAA) == (dns.NOERROR, [found])
    assert ask(pid, "bb") == (dns.NOERROR, [address(house, "bb", "six")])
    assert "1 packets received" in house.ok("exec", "aa", "ping", "-6", "-c", "1", "-W", "5", "bb")


def test_a_container_that_gets_its_first_network_while_it_runs(house: House) -> None:
    pid = start(house, "aa", "bridge")
    start(house, "bb", "one")
    house.ok("network", "connect", "one", "aa")
    assert ask(pid, "bb") == (dns.NOERROR, [address(house, "bb", "one")])
    assert "127.0.0.11" in house.ok("exec", "aa", "cat", "/etc/resolv.conf")


class Upstream:
    """A server in the house's namespace that knows one address for everything, after some refusals."""

    def __init__(self, pid: int) -> None:
        with inside(pid):
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind((SERVER, 53))
            self.tcp = socket.create_server((SERVER, 53))
        self.asked: list[str] = []
        for work in (self._datagrams, self._connections):
            threading.Thread(target=work, daemon=True).start()

    def _answer(self, data: bytes) -> bytes:
        query = dns.parse(data)
        assert isinstance(query, dns.Query)
        self.asked.append(query.name)
        if query.name.startswith("nosuch"):
            return dns.failure(query, dns.NXDOMAIN)
        return dns.answer(query, ["192.0.2.7"])

    def _datagrams(self) -> None:
        while True:
            try:
                data, peer = self.udp.recvfrom(4096)
            except OSError:
                return
            answer = self._answer(data)
            self.udp.sendto(b"\0\0" + answer[2:], peer)  # a forgery first
            self.udp.sendto(answer, peer)

    def _connections(self) -> None:
        while True:
            try:
                peer, _ = self.tcp.accept()
            except OSError:
                return
            with peer, peer.makefile("rb") as stream:
                answer = self._answer(stream.read(int.from_bytes(stream.read(2), "big")))
                peer.sendall(struct.pack("!H", len(answer)) + answer)


@pytest.fixture(scope="module")
def upstream(house: House) -> Upstream:
    return Upstream(house.netns.pid)


def test_other_names_are_asked_for_elsewhere(house: House, upstream: Upstream) -> None:
    # the first server does not exist: the second is asked
    pid = start(house, "aa", "one", "--dns", "127.0.0.99", "--dns", SERVER, "--dns-search", "example.org",
                "--dns-option", "ndots:2")  # fmt: skip
    text = house.ok("exec", "aa", "cat", "/etc/resolv.conf")
    assert text.split("\n") == ["nameserver 127.0.0.11", "search example.org", "options ndots:2"]
    assert ask(pid, "www.example.com") == (dns.NOERROR, ["192.0.2.7"])
    assert ask(pid, "www.example.com", tcp=True) == (dns.NOERROR, ["192.0.2.7"])
    assert ask(pid, "nosuch.example.com")[0] == dns.NXDOMAIN
    upstream.asked.clear()
    assert ask(pid, "aa") == (dns.NOERROR, [address(house, "aa", "one")]) and not upstream.asked
    # nothing leaves an internal network
    shut = start(house, "ss", "shut", "--dns", SERVER)
    assert ask(shut, "www.example.com")[0] == dns.SERVFAIL and not upstream.asked
    assert ask(shut, "ss") == (dns.NOERROR, [address(house, "ss", "shut")])


def helper(house: House) -> int:
    """The keeper's child that answers."""
    keeper = house.supervisor_pid()
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    (found,) = [int(c) for c in children if Path(f"/proc/{c}/comm").read_text() == "nagaya-net\n"]
    return found


def test_it_goes_on_whoever_dies(house: House) -> None:
    pid = start(house, "aa", "one")
    start(house, "bb", "one")
    expected = (dns.NOERROR, [address(house, "bb", "one")])
    house.kill_daemon()
    assert ask(pid, "bb") == ask(pid, "bb", tcp=True) == expected
    os.kill(helper(house), signal.SIGKILL)
    assert ask(pid, "bb") == ask(pid, "bb", tcp=True) == expected
    house.start()
    assert ask(pid, "bb") == expected
    former = house.supervisor_pid()
    os.kill(former, signal.SIGKILL)
    wait_for(lambda: house.supervisor_pid() != former, 10, "another keeper")
    assert ask(pid, "bb") == expected  # the daemon has the sockets, and gives them to the next keeper
    status = Path(f"/proc/{helper(house)}/status").read_text()
    assert re.search(r"Uid:(\s65534){4}", status) and re.search(r"CapEff:\s0{16}", status)
    assert re.search(r"NoNewPrivs:\s1", status)


def test_hostile_clients(house: House, upstream: Upstream) -> None:
    """Garbage, floods, idle and half-open connections: the neighbour is served all the same."""
    pid = start(house, "bad", "one", "--dns", "192.0.2.1")
    good = start(house, "good", "one", "--dns", SERVER)
    before = len(os.listdir(f"/proc/{helper(house)}/fd"))
    with inside(pid):
        flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        idle = [socket.socket() for _ in range(100)]
    flood.connect(("127.0.0.11", 53))
    for sock in idle:
        sock.settimeout(5)
        sock.connect(("127.0.0.11", 53))
        sock.sendall(b"\xff\xffhalf a question")
    for n in range(2000):
        try:
            flood.send(os.urandom(n % 700) if n % 2 else question(f"x{n}.example.com", dns.A))
        except OSError:
            pass  # its queue is full
    assert ask(good, "www.example.com") == (dns.NOERROR, ["192.0.2.7"])
    assert ask(good, "bad") == (dns.NOERROR, [address(house, "bad", "one")])
    assert len(os.listdir(f"/proc/{helper(house)}/fd")) - before <= 128 + 32 + 8
    flood.close()
    for sock in idle:
        sock.close()
    house.ok("rm", "-f", "bad")
    wait_for(lambda: len(os.listdir(f"/proc/{helper(house)}/fd")) <= before, 10, "its sockets' end")


def test_links_of_the_default_bridge(house: House) -> None:
    start(house, "aa", "bridge", "--expose", "53/udp", "-e", "B=2")
    found = address(house, "aa", "bridge")
    short = house.ok("inspect", "-f", "{{.Id}}", "aa")[:12]
    house.ok("run", "-d", "--name", "bb", "--link", "aa:db", IMAGE, "sleep", "600")
    assert f"{found}\tdb {short} aa" in house.ok("exec", "bb", "cat", "/etc/hosts")
    assert house.ok("inspect", "-f", "{{.HostConfig.Links}}", "bb") == "[/aa:/bb/db]"
    variables = house.ok("exec", "bb", "env").splitlines()
    assert f"DB_PORT_53_UDP=udp://{found}:53" in variables and "DB_NAME=/bb/db" in variables
    assert "DB_ENV_B=2" in variables
    house.ok("kill", "aa")
    assert "DB_NAME" not in house.ok("exec", "bb", "env")
    house.ok("stop", "-t", "0", "bb")
    said = house.docker("start", "bb")
    assert b"Cannot link to a non running container: /aa AS /bb/db" in said.stderr
