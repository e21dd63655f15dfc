"""The network room against the kernel: every scenario in a network namespace of its own.

pytest runs each scenario as `unshare --net python THIS_FILE NAME`, so nothing of the machine's network
is touched and whatever leaks dies with the namespace. Inside, one process plays host, containers and
the outside world: a socket stays in the namespace it was opened in. Oracles: ip -j and nft -j.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nagaya.errors import KernelError, NagayaError
from nagaya.linux.namespaces import CLONE_NEWNET, setns, unshare
from nagaya.linux.netlink import Netlink
from nagaya.network.model import EndpointPlan, PublishedPort
from nagaya.network.service import NetworkService

BRIDGE, TABLE, BIP = "nagt0", "nagt_live", "10.231.7.1/24"
SCENARIOS: dict[str, Any] = {}


def scenario(function: Any) -> Any:
    SCENARIOS[function.__name__] = function
    return function


def sh(*argv: str, ns: int | None = None) -> str:
    with inside(ns):
        result = subprocess.run(argv, capture_output=True, text=True)
    assert result.returncode == 0, (argv, result.stderr)
    return result.stdout


def ip(*argv: str, ns: int | None = None) -> Any:
    return json.loads(sh("ip", "-j", "-d", *argv, ns=ns) or "[]")


def nft(command: str) -> list[dict[str, Any]]:
    listing: list[dict[str, Any]] = json.loads(sh("nft", "-j", *command.split()))["nftables"]
    return [entry for entry in listing if "metainfo" not in entry]


@contextmanager
def inside(ns: int | None) -> Iterator[None]:
    if ns is None:
        yield
        return
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(ns, CLONE_NEWNET)
        yield
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


def namespace() -> int:
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


class Container:
    """A namespace that plays a container, with the rtnetlink socket a builder would pass over."""

    def __init__(self, service: NetworkService, number: int, *ports: PublishedPort) -> None:
        self.ns = namespace()
        with inside(self.ns):
            with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as file:
                file.write("1")
            self.nl = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        bound, self.fds = service.reserve(ports, endpoint=f"c{number} (id)")
        self.plan = service.plan(f"{number:064x}"[::-1], bound)
        service.connect(self.plan, f"/proc/self/fd/{self.ns}", self.nl.fileno())
        service.publish(self.plan)
        self.service = service

    def host_port(self, index: int = 0) -> int:
        return self.plan.ports[index].host_port

    def remove(self) -> None:
        self.service.unpublish(self.plan)
        self.service.disconnect(self.plan, wait=True)
        for fd in (*self.fds, self.ns):
            os.close(fd)
        self.nl.close()


def start(**options: Any) -> NetworkService:
    sh("ip", "link", "set", "lo", "up")
    service = NetworkService(bridge=BRIDGE, bip=BIP, nft_table=TABLE, **options)
    assert service.start(()) == ()
    return service


def outside(name: str = "wan", net: str = "10.231.200") -> int:
    """Another machine, on a network with us: it is .2, we are .1 and its default route."""
    ns = namespace()
    sh(
        "ip",
        "link",
        "add",
        name,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        f"/proc/{os.getpid()}/fd/{ns}",
    )
    sh("ip", "addr", "add", f"{net}.1/24", "dev", name)
    sh("ip", "link", "set", name, "up")
    sh("ip", "link", "set", "lo", "up", ns=ns)
    sh("ip", "addr", "add", f"{net}.2/24", "dev", "eth0", ns=ns)
    sh("ip", "link", "set", "eth0", "up", ns=ns)
    sh("ip", "route", "add", "default", "via", f"{net}.1", ns=ns)
    return ns


def listener(ns: int | None, port: int, address: str = "0.0.0.0") -> socket.socket:
    with inside(ns):
        server = socket.create_server((address, port))
    server.settimeout(3)
    return server


def talk(server: socket.socket, client_ns: int | None, to: tuple[str, int], source: str = "") -> str:
    """Connect from client_ns, exchange a word both ways; the client's address as the server sees it."""
    with inside(client_ns):
        client = socket.socket()
    client.settimeout(2)
    with client:
        if source:
            client.bind((source, 0))
        client.connect(to)
        peer, (address, _) = server.accept()
        with peer:
            client.sendall(b"hello")
            assert peer.recv(5) == b"hello"
            peer.sendall(b"world")
            assert client.recv(5) == b"world"
    return str(address)


def refused(client_ns: int | None, to: tuple[str, int]) -> bool:
    with inside(client_ns):
        client = socket.socket()
    client.settimeout(0.5)
    with client:
        try:
            client.connect(to)
        except OSError:
            return True
    return False


def assert_clean() -> None:
    assert [link["ifname"] for link in ip("link") if link["ifname"].startswith(("nag", "ngv"))] == []
    assert [e for e in nft("list ruleset") if "nagaya" in json.dumps(e) or TABLE in json.dumps(e)] == []


@scenario
def endpoint() -> None:
    service = start()
    assert_clean()  # nothing before the first endpoint
    c = Container(service, 1)
    (eth0,) = ip("addr", "show", "dev", "eth0", ns=c.ns)
    assert [(a["local"], a["prefixlen"]) for a in eth0["addr_info"]] == [("10.231.7.2", 24)]
    assert eth0["address"] == "02:42:0a:e7:07:02" and eth0["mtu"] == 1500 and "UP" in eth0["flags"]
    (default,) = [r for r in ip("route", ns=c.ns) if r["dst"] == "default"]
    assert (default["gateway"], default["dev"]) == ("10.231.7.1", "eth0")
    (lo,) = ip("link", "show", "dev", "lo", ns=c.ns)
    assert "UP" in lo["flags"]
    (port,) = ip("link", "show", "master", BRIDGE)
    assert port["ifname"] == c.plan.host_interface
    assert port["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert port["linkinfo"]["info_slave_data"]["isolated"] is False
    (bridge,) = ip("addr", "show", "dev", BRIDGE)
    assert [(a["local"], a["prefixlen"]) for a in bridge["addr_info"]] == [("10.231.7.1", 24)]
    assert bridge["ifalias"] == f"nagaya:{TABLE}"
    for name, value in (
        ("ipv4/ip_forward", "1"),
        (f"ipv4/conf/{BRIDGE}/route_localnet", "1"),
        (f"ipv6/conf/{BRIDGE}/accept_ra", "0"),
        (f"ipv6/conf/{BRIDGE}/disable_ipv6", "1"),
    ):
        with open(f"/proc/sys/net/{name}", encoding="ascii") as file:
            assert file.read().strip() == value, name
    c.remove()
    assert ip("link", "show", "master", BRIDGE) == []
    service.disconnect(c.plan, wait=True)
    service.unpublish(c.plan)
    service.teardown()
    assert_clean()
    service.teardown()


def _published(prepare: Any = None) -> None:
    service = start()
    if prepare:
        prepare()
    wan = outside()
    web = Container(service, 1, PublishedPort(80), PublishedPort(81, host_ip="127.0.0.1", host_port=18081))
    other = Container(service, 2)
    port = web.host_port()
    assert 1024 < port < 65536
    server, private = listener(web.ns, 80), listener(web.ns, 81)
    # from this host: by 127.0.0.1, another of 127/8, its own addresses
    assert talk(server, None, ("127.0.0.1", port)) == "10.231.7.1"
    assert talk(server, None, ("127.0.0.2", port)) == "10.231.7.1"
    assert talk(server, None, ("10.231.200.1", port)) == "10.231.200.1"
    assert talk(server, None, ("10.231.7.1", port)) == "10.231.7.1"
    assert talk(private, None, ("127.0.0.1", 18081)) == "10.231.7.1"
    # from outside, with the source kept
    assert talk(server, wan, ("10.231.200.1", port)) == "10.231.200.2"
    assert refused(wan, ("10.231.200.1", 18081))
    # from itself (hairpin) and from its neighbour, by the host's addresses
    assert talk(server, web.ns, ("10.231.200.1", port)) == "10.231.7.1"
    assert talk(server, web.ns, ("10.231.7.1", port)) == "10.231.7.1"
    assert talk(server, other.ns, ("10.231.200.1", port)) == "10.231.7.1"
    # the neighbour directly; the outside not
    assert talk(server, other.ns, (web.plan.address, 80)) == other.plan.address
    assert refused(wan, (web.plan.address, 80))
    # out into the world, masqueraded
    with listener(wan, 99) as abroad:
        assert talk(abroad, web.ns, ("10.231.200.2", 99)) == "10.231.200.1"
    # gone after unpublish
    service.unpublish(web.plan)
    assert refused(None, ("127.0.0.1", port)) and refused(wan, ("10.231.200.1", port))
    for one in (web, other):
        one.remove()
    service.teardown()
    assert_clean()


def bridge_netfilter(on: bool) -> None:
    """br_netfilter shows bridged frames to the ip hooks; per namespace, and on by default where loaded."""
    try:
        with open("/proc/sys/net/bridge/bridge-nf-call-iptables", "w", encoding="ascii") as file:
            file.write("1" if on else "0")
    except FileNotFoundError:
        pass


@scenario
def published() -> None:
    bridge_netfilter(False)
    _published()


@scenario
def published_through_bridge_netfilter() -> None:
    bridge_netfilter(True)
    _published()


@scenario
def published_beside_iptables_drop() -> None:
    def prepare() -> None:
        bridge_netfilter(False)
        sh("iptables-nft", "-P", "FORWARD", "DROP")
        sh("iptables-nft", "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "ACCEPT")

    _published(prepare)
    assert sh("iptables-nft", "-S", "FORWARD").split("\n")[:2] == [
        "-P FORWARD DROP",
        "-A FORWARD -s 192.0.2.0/24 -j ACCEPT",
    ]


@scenario
def published_beside_rejecting_firewall() -> None:
    def prepare() -> None:
        sh(
            "nft",
            "table inet firewalld {\n chain filter_FORWARD {\n"
            "type filter hook forward priority 10; policy accept;\n"
            "ct state established,related accept\n counter reject with icmpx admin-prohibited\n }\n }",
        )

    _published(prepare)


@scenario
def udp() -> None:
    service = start()
    wan = outside()
    c = Container(service, 1, PublishedPort(53, "udp"))
    with inside(c.ns):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", 53))
    server.settimeout(2)
    for ns, to in ((None, "127.0.0.1"), (wan, "10.231.200.1"), (c.ns, "10.231.7.1")):
        with inside(ns):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(2)
        client.connect((to, c.host_port()))
        client.send(b"q")
        data, peer = server.recvfrom(9)
        assert data == b"q"
        server.sendto(b"a", peer)
        assert client.recv(9) == b"a"


@scenario
def udp_flows_follow_the_container() -> None:
    """A client that talks all the time reaches the container that has the port now."""
    service = start()
    Container(service, 9).remove()  # the table is there, so the kernel tracks connections
    wan = outside()
    with inside(wan):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(("10.231.200.1", 18053))
    client.send(b"too early")
    for number in (1, 2):
        c = Container(service, number, PublishedPort(53, "udp", host_port=18053))
        with inside(c.ns):
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("", 53))
        server.settimeout(1)
        try:
            client.send(b"query")
        except ConnectionRefusedError:  # the answer to the one before
            client.send(b"query")
        said = server.recvfrom(9)[0]
        if said == b"too early":  # it waited for a neighbour's address meanwhile
            said = server.recvfrom(9)[0]
        assert said == b"query", number
        c.remove()


@scenario
def disconnect_later() -> None:
    service = start()
    dying, held = Container(service, 1), Container(service, 2)
    for c in (dying, held):
        service.disconnect(c.plan)
    os.close(dying.ns)
    dying.nl.close()
    assert service.plan("3" * 64).address == "10.231.7.4"  # theirs are not free yet
    service.drain()
    assert ip("link", "show", "master", BRIDGE) == []
    assert [link["ifname"] for link in ip("link", ns=held.ns)] == ["lo"]
    assert service._default.leases.keys() == {"3" * 64}


@scenario
def full_subnet() -> None:
    service = NetworkService(bridge=BRIDGE, bip="10.231.7.1/30", nft_table=TABLE)
    for number in (1, 2):  # one address: the second has it as soon as the first is told to go
        c = Container(service, number)
        with pytest.raises(NagayaError, match=r"no free address left in 10\.231\.7\.0/30"):
            service.plan("9" * 64)
        service.disconnect(c.plan)


@scenario
def spoofing() -> None:
    """A neighbour of this host, or a container, that speaks to or from 127/8 is not heard."""
    service = start()
    wan = outside()
    c = Container(service, 1, PublishedPort(80, host_ip="127.0.0.1", host_port=18080))
    server = listener(c.ns, 80)
    secret = listener(None, 18082, "127.0.0.1")
    for ns, via in ((wan, "10.231.200.1"), (c.ns, "10.231.7.1")):
        with inside(ns):
            with open("/proc/sys/net/ipv4/conf/eth0/route_localnet", "w", encoding="ascii") as file:
                file.write("1")
            sh("ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
            sh("ip", "route", "del", "local", "127.0.0.1", "dev", "lo", "table", "local")
            sh("ip", "route", "add", "127.0.0.0/8", "via", via, "dev", "eth0")
        assert refused(ns, ("127.0.0.1", 18080)), "published port for localhost only"
        assert refused(ns, ("127.0.0.1", 18082)), "a service of the host on localhost"
    assert talk(server, None, ("127.0.0.1", 18080)) == "10.231.7.1"
    assert talk(secret, None, ("127.0.0.1", 18082)) == "127.0.0.1"


@scenario
def unrouted() -> None:
    """Turning forwarding on for containers makes no router between the host's other networks."""
    lan, wan = outside("lan", "10.231.100"), outside("wan", "10.231.200")
    server = listener(wan, 99)
    service = start()
    c = Container(service, 1)
    assert refused(lan, ("10.231.200.2", 99))
    assert talk(server, c.ns, ("10.231.200.2", 99)) == "10.231.200.1"
    # still so for a restarted daemon, until the administrator says otherwise
    second = NetworkService(bridge=BRIDGE, bip=BIP, nft_table=TABLE)
    second.start([c.plan])
    assert refused(lan, ("10.231.200.2", 99))
    sh("nft", "flush", "set", "ip", TABLE, "unrouted")
    assert talk(server, lan, ("10.231.200.2", 99)) == "10.231.100.2"
    second.start([c.plan])
    assert talk(server, lan, ("10.231.200.2", 99)) == "10.231.100.2"


@scenario
def restart() -> None:
    """A new daemon after a crash: living endpoints keep working, leftovers of dead ones go."""
    service = start()
    alive = Container(service, 1, PublishedPort(80))
    Container(service, 2, PublishedPort(80))  # died with its daemon
    half = Container(service, 3)
    sh("ip", "link", "set", half.plan.host_interface, "alias", "")  # died before naming it
    sh("ip", "link", "add", "ngvforeign", "type", "veth", "peer", "name", "elsewhere")  # not a port of ours
    server = listener(alive.ns, 80)
    held = talk_open(server, alive.host_port())
    second = NetworkService(bridge=BRIDGE, bip=BIP, nft_table=TABLE)
    gone = EndpointPlan("f" * 64, "10.231.7.99", 24, "10.231.7.1", "02:42:0a:e7:07:63", "ngvfffffffffff")
    assert second.start([alive.plan, gone]) == (gone.endpoint_id,)
    assert [link["ifname"] for link in ip("link", "show", "master", BRIDGE)] == [alive.plan.host_interface]
    assert any(link["ifname"] == "ngvforeign" for link in ip("link"))
    held[0].sendall(b"still")
    assert held[1].recv(5) == b"still"
    assert talk(server, None, ("127.0.0.1", alive.host_port())) == "10.231.7.1"
    (listing,) = [e["map"] for e in nft(f"list map ip {TABLE} published_any") if "map" in e]
    assert len(listing["elem"]) == 1
    taken = {second.plan(f"{n}" * 64).address for n in range(3, 6)}
    assert len(taken) == 3 and not taken & {alive.plan.address, "10.231.7.1"}


def talk_open(server: socket.socket, port: int) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(("127.0.0.1", port), 2)
    peer, _ = server.accept()
    peer.settimeout(2)
    return client, peer


@scenario
def reassert() -> None:
    service = start()
    assert service.reassert() is False
    c = Container(service, 1, PublishedPort(80))
    server, to = listener(c.ns, 80), ("127.0.0.1", c.host_port())
    assert service.reassert() is False
    for command in ("flush ruleset", f"flush table ip {TABLE}", f"delete table ip {TABLE}"):
        sh("nft", command)
        assert refused(None, to)
        assert service.reassert() is True
        assert talk(server, None, to) == "10.231.7.1"
    # a firewall that starts after us
    wan = outside()
    sh("iptables-nft", "-P", "FORWARD", "DROP")
    assert refused(wan, ("10.231.200.1", c.host_port()))
    service.reassert()
    assert talk(server, wan, ("10.231.200.1", c.host_port())) == "10.231.200.2"
    sh("iptables-nft", "-F", "FORWARD")
    service.reassert()
    assert talk(server, wan, ("10.231.200.1", c.host_port())) == "10.231.200.2"
    # and one that stops dropping gets rid of our rules
    sh("iptables-nft", "-P", "FORWARD", "ACCEPT")
    service.reassert()
    assert "nagt0" not in sh("iptables-nft", "-S", "FORWARD")
    # the bridge itself
    sh("ip", "link", "del", BRIDGE)
    assert service.reassert() is True
    assert talk(server, None, to) == "10.231.7.1"
    # without waiting for anybody to ask
    sh("ip", "link", "del", BRIDGE)
    sh("nft", "flush", "ruleset")
    d = Container(service, 2, PublishedPort(80))
    assert talk(listener(d.ns, 80), None, ("127.0.0.1", d.host_port())) == "10.231.7.1"
    assert talk(server, None, to) == "10.231.7.1"


@scenario
def no_icc() -> None:
    bridge_netfilter(False)
    _no_icc()


@scenario
def no_icc_through_bridge_netfilter() -> None:
    bridge_netfilter(True)
    _no_icc()


def _no_icc() -> None:
    service = start(icc=False)
    a, b = Container(service, 1, PublishedPort(80)), Container(service, 2)
    server = listener(a.ns, 80)
    assert refused(b.ns, (a.plan.address, 80))
    assert talk(server, b.ns, ("10.231.7.1", a.host_port())) == "10.231.7.1"
    assert talk(server, None, (a.plan.address, 80)) == "10.231.7.1"


@scenario
def failures_leave_nothing() -> None:
    service = start()
    c = Container(service, 1)
    before = {link["ifname"] for link in ip("link")}
    wrong = service.plan("2" * 64)
    ns = namespace()
    with inside(ns):
        right = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    unrelated = namespace()
    with inside(unrelated):
        elsewhere = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    with open(__file__, "rb") as not_a_namespace:
        for target, nl in (
            ("/nonexistent/net", right.fileno()),
            (not_a_namespace.fileno(), right.fileno()),
            (ns, elsewhere.fileno()),
        ):
            with pytest.raises(NagayaError) as caught:
                service.connect(wrong, target, nl)
            assert "\n" not in str(caught.value)
            assert {link["ifname"] for link in ip("link")} == before
            assert [link["ifname"] for link in ip("link", ns=ns)] == ["lo"]
    service.connect(wrong, ns, right.fileno())
    # a name clash inside: eth0 is there already
    third = service.plan("3" * 64)
    with pytest.raises(KernelError) as clash:
        service.connect(third, ns, right.fileno())
    assert clash.value.step == f"netlink: add veth {third.host_interface}" and clash.value.errno == 17
    service.disconnect(wrong, wait=True)
    assert {link["ifname"] for link in ip("link")} == before
    # a port that leads elsewhere
    service.publish(EndpointPlan(**{**_fields(c.plan), "ports": (PublishedPort(80, host_port=18083),)}))
    with pytest.raises(KernelError) as busy:
        service.publish(EndpointPlan(**{**_fields(third), "ports": (PublishedPort(80, host_port=18083),)}))
    assert busy.value.errno == 17
    # not our bridge
    sh("ip", "link", "add", "nagt1", "type", "veth", "peer", "name", "nagt2")
    with pytest.raises(NagayaError, match="nagt1 exists and is no bridge"):
        NetworkService(bridge="nagt1", bip="10.231.8.1/24", nft_table="nagt_x").start([c.plan])


def _fields(plan: EndpointPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__struct_fields__}


@scenario
def reserving() -> None:
    service = NetworkService()
    wanted = (PublishedPort(80), PublishedPort(80, "udp"))
    _reserving(service, *service.reserve(wanted, endpoint="web (1)"))
    wanted = (PublishedPort(80, host_port=18080), PublishedPort(80, "udp", host_port=18080))
    _reserving(service, *service.reserve(wanted, endpoint="web (1)"))


def _reserving(service: NetworkService, bound: tuple[PublishedPort, ...], fds: list[int]) -> None:
    one, two = bound
    assert len(fds) == 2 and one.host_port and two.host_port
    # nobody else gets it: not a second container, not a server of the host with SO_REUSEADDR
    with pytest.raises(KernelError) as caught:
        service.reserve((PublishedPort(1), PublishedPort(80, host_port=one.host_port)), endpoint="db (2)")
    assert str(caught.value) == (
        "driver failed programming external connectivity on endpoint db (2): "
        f"Bind for 0.0.0.0:{one.host_port} failed: port is already allocated"
    )
    for kind, port in ((socket.SOCK_STREAM, one.host_port), (socket.SOCK_DGRAM, two.host_port)):
        rival = socket.socket(socket.AF_INET, kind)
        if kind == socket.SOCK_STREAM:
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            rival.bind(("", port))
    sh("ip", "link", "set", "lo", "up")
    assert refused(None, ("127.0.0.1", one.host_port))  # at once, not swallowed
    for fd in fds:
        os.close(fd)
    # connections in TIME_WAIT are no reason to refuse
    server = socket.create_server(("127.0.0.1", one.host_port))
    client = socket.create_connection(("127.0.0.1", one.host_port))
    peer, _ = server.accept()
    peer.close()
    client.close()
    server.close()
    with pytest.raises(OSError, match="in use"):
        socket.socket().bind(("", one.host_port))
    again, fds = service.reserve((one,))
    assert again == (one,)
    for fd in fds:
        os.close(fd)
    with pytest.raises(KernelError, match=r"192.0.2.1:80/tcp: cannot assign"):
        service.reserve((PublishedPort(80, host_ip="192.0.2.1", host_port=80),), endpoint="x (3)")


@scenario
def pools() -> None:
    """Without bip: the first pool that overlaps no route; and the bridge's own subnet after a restart."""
    sh("ip", "link", "set", "lo", "up")
    outside("wan", "10.231.64")
    options: dict[str, Any] = {
        "bridge": BRIDGE,
        "nft_table": TABLE,
        "default_pools": (("10.231.64.0/24", 24), ("10.231.65.0/24", 24)),
    }
    service = NetworkService(**options)
    c = Container(service, 1)
    assert c.plan.address == "10.231.65.2"
    again = NetworkService(**options)
    again.start([c.plan])
    assert [str(s) for s in again.subnets()] == ["10.231.65.1/24"]


@scenario
def time_of_it() -> None:
    """Not a check: prints the medians for docs/adr/0005-network.md (run by hand)."""
    service = start()
    Container(service, 999).remove()
    samples: dict[str, list[float]] = {}

    def timed(what: str, action: Any) -> Any:
        begin = time.perf_counter()
        result = action()
        samples.setdefault(what, []).append((time.perf_counter() - begin) * 1e3)
        return result

    for n in range(1, 31):
        begin = time.perf_counter()
        ns = timed("netns", namespace)
        with inside(ns):
            nl = Netlink()
        plan = service.plan(f"{n:064x}"[::-1])
        timed("connect", lambda p=plan, s=ns, i=nl: service.connect(p, s, i._socket.fileno()))
        samples.setdefault("netns+connect", []).append((time.perf_counter() - begin) * 1e3)
        ports, fds = timed("reserve", lambda: service.reserve((PublishedPort(80),)))
        plan = EndpointPlan(**{**_fields(plan), "ports": ports})
        timed("publish", lambda p=plan: service.publish(p))
        timed("reassert, nothing to do", service.reassert)
        timed("unpublish", lambda p=plan: service.unpublish(p))
        timed("disconnect, waiting", lambda p=plan: service.disconnect(p, wait=True))
        for fd in (*fds, ns):
            os.close(fd)
        nl.close()
    for what, values in samples.items():
        values.sort()
        sys.stdout.write(f"{what:26} median {values[len(values) // 2]:6.2f} ms, best {values[0]:6.2f}\n")


@pytest.mark.root
@pytest.mark.network
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "time_of_it"])
def test_network(name: str) -> None:
    result = subprocess.run(
        ["unshare", "--net", sys.executable, __file__, name], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr


if __name__ == "__main__":
    with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as forward:
        forward.write("0")  # a new namespace has the first one's value
    SCENARIOS[sys.argv[1]]()
