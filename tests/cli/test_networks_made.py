"""Networks of one's own by the command line: made, listed, removed; containers plugged in and out. First
with dockerd, which has no bridge of its own here and no iptables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from clients import Cli

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture
def net(cli: Cli) -> Iterator[Cli]:
    yield cli
    left = cli("ps", "-aq").out.split()
    if left:
        cli("rm", "-f", "-v", *left)
    cli("network", "prune", "-f")


def networks(cli: Cli, container: str) -> dict[str, dict[str, object]]:
    shown = json.loads(cli.ok("inspect", container))[0]["NetworkSettings"]["Networks"]
    assert isinstance(shown, dict)
    return shown


def test_a_network_s_life(net: Cli, pair: str) -> None:
    made = net.ok("network", "create", "--subnet", "10.231.80.0/24", "--ip-range", "10.231.80.128/25",
                  "--gateway", "10.231.80.200", "--aux-address", "router=10.231.80.129", "--label", "a=b",
                  "--opt", "com.docker.network.bridge.name=nagt-own", "--internal", "one")  # fmt: skip
    assert re.fullmatch("[0-9a-f]{64}", made)
    (shown,) = json.loads(net.ok("network", "inspect", "one"))
    assert shown["Id"] == made and shown["Driver"] == "bridge" and shown["Internal"] is True
    assert shown["IPAM"]["Config"] == [
        {
            "Subnet": "10.231.80.0/24",
            "IPRange": "10.231.80.128/25",
            "Gateway": "10.231.80.200",
            "AuxiliaryAddresses": {"router": "10.231.80.129"},
        }
    ]
    assert shown["Labels"] == {"a": "b"} and shown["Containers"] == {}
    assert shown["Options"] == {"com.docker.network.bridge.name": "nagt-own"}
    assert (
        net.ok("network", "ls", "-q", "--no-trunc", "--filter", "name=one", "--filter", "type=custom") == made
    )
    assert net.ok("network", "ls", "-q", "--no-trunc", "--filter", "label=a=b", "-f", "type=custom") == made
    assert net.ok("network", "ls", "-q", "--filter", "dangling=true") == made[:12]
    assert net.ok("network", "ls", "-q", "--filter", "driver=null", "--filter", "id=" + made) == ""
    net.ok("run", "-d", "--name", "c1", "--network", "one", IMAGE, "sleep", "600")
    assert networks(net, "c1")["one"]["IPAddress"] == "10.231.80.128"
    net.ok("run", "-d", "--name", "c2", "--network", "one", IMAGE, "sleep", "600")
    assert networks(net, "c2")["one"]["IPAddress"] == "10.231.80.130"  # after the router's
    if not pair.startswith("dockerd"):  # its old version leaves the way out, which its iptables rules close
        assert "default" not in net.ok("exec", "c1", "ip", "route")
    said = net("network", "rm", "one")
    assert said.status == 1 and "has active endpoints" in said.err
    assert net.ok("ps", "-q", "--filter", "network=one").count("\n") == 1
    net.ok("rm", "-f", "c1", "c2")
    assert net.ok("network", "rm", "one") == "one"
    said = net("network", "rm", "one")
    # the old client has words of its own
    assert said.status == 1 and ("network one not found" in said.err or "No such network: one" in said.err)


def test_what_is_refused(net: Cli, pair: str) -> None:
    net.ok("network", "create", "--subnet", "10.231.80.0/24", "one")
    refused: tuple[tuple[tuple[str, ...], str], ...] = (
        (("one",), "network with name one already exists"),
        (("--subnet", "10.231.80.128/25", "two"), "Pool overlaps with other one on this address space"),
        (("host",), "operation is not permitted on predefined host network"),
        (("-d", "host", "two"), 'only one instance of "host" network is allowed'),
        (("-d", "nosuch", "two"), 'plugin "nosuch" not found'),
        (
            ("-d", "macvlan", "-o", "parent=lo", "two"),
            "loopback interface is not a valid macvlan parent",
        ),
        (("-o", "com.docker.network.driver.mtu=zz", "two"), "failed to parse com.docker.network.driver.mtu"),
        (("-o", "com.docker.network.bridge.enable_icc=zz", "two"), "strconv.ParseBool"),
    )
    for words, why in refused:
        said = net("network", "create", *words)
        assert said.status == 1 and why in said.err, (words, said)
    refused = (
        (("--network", "one", "--ip", "10.231.99.7"), "It does not belong to any of this network's subnets"),
        (("--network", "nosuch"), "network nosuch not found"),
    )
    for words, why in refused:
        said = net("run", "--rm", *words, IMAGE, "true")
        assert said.status == 125 and why in said.err, (words, said)
    net.ok("network", "create", "three")
    said = net("run", "--rm", "--network", "three", "--ip", "172.18.0.9", IMAGE, "true")
    assert "user specified IP address is supported only when connecting to networks with user" in said.err
    said = net("run", "--rm", "--network", "none", "--network-alias", "x", IMAGE, "true")
    assert said.status == 125 and "network-scoped aliases are only supported for user-defined" in said.err
    net.ok("run", "-d", "--name", "c1", "--network", "one", "--ip", "10.231.80.9", IMAGE, "sleep", "600")
    said = net("run", "--rm", "--network", "one", "--ip", "10.231.80.9", IMAGE, "true")
    assert said.status == 125 and "Address already in use" in said.err


def test_plugging_in_and_out(net: Cli, pair: str) -> None:
    net.ok("network", "create", "--subnet", "10.231.80.0/24", "one")
    net.ok("network", "create", "--subnet", "10.231.81.0/24", "two")
    net.ok("run", "-d", "--name", "c1", "--network", "one", "--network-alias", "web", IMAGE, "sleep", "600")
    net.ok("network", "connect", "--alias", "www", "--ip", "10.231.81.9", "two", "c1")
    both = networks(net, "c1")
    assert set(both) == {"one", "two"} and both["two"]["IPAddress"] == "10.231.81.9"
    assert both["two"]["Gateway"] == "10.231.81.1" and both["two"]["IPAMConfig"] == {
        "IPv4Address": "10.231.81.9"
    }
    assert "www" in str(both["two"]["Aliases"]) and "web" in str(both["one"]["Aliases"])
    inside = net.ok("exec", "c1", "ip", "-o", "-4", "addr")
    assert "eth0" in inside and "10.231.81.9/24" in inside and "eth1" in inside
    assert "default via 10.231.80.1 dev eth0" in net.ok("exec", "c1", "ip", "route")
    assert "10.231.81.9" in net.ok("exec", "c1", "cat", "/etc/hosts")
    (shown,) = json.loads(net.ok("network", "inspect", "two"))
    (member,) = shown["Containers"].values()
    assert member["Name"] == "c1" and member["IPv4Address"] == "10.231.81.9/24"
    for words, why in (
        (("connect", "two", "c1"), "endpoint with name c1 already exists in network two"),
        (("connect", "nosuch", "c1"), "network nosuch not found"),
        (("connect", "two", "nosuch"), "No such container: nosuch"),
        (
            ("connect", "host", "c1"),
            "container cannot be disconnected from host network or connected",
        ),
        (("connect", "none", "c1"), "with one of the networks in private (none) mode"),
        (("disconnect", "nosuch", "c1"), "network nosuch not found"),
        (("disconnect", "none", "c1"), "is not connected to network none"),
    ):
        said = net("network", *words)
        assert said.status == 1 and why in said.err, (words, said)
    net.ok("network", "disconnect", "one", "c1")
    assert set(networks(net, "c1")) == {"two"}
    assert "default via 10.231.81.1 dev eth1" in net.ok("exec", "c1", "ip", "route")
    assert "10.231.80" not in net.ok("exec", "c1", "ip", "-4", "addr")
    net.ok("network", "connect", "one", "c1")
    assert "default via 10.231.80.1 dev eth2" in net.ok("exec", "c1", "ip", "route")
    net.ok("stop", "-t", "0", "c1")
    net.ok("network", "disconnect", "two", "c1")
    net.ok("network", "connect", "--ip", "10.231.81.33", "two", "c1")
    net.ok("start", "c1")
    assert networks(net, "c1")["two"]["IPAddress"] == "10.231.81.33"
    net.ok("run", "-d", "--name", "n1", "--network", "none", IMAGE, "sleep", "600")
    net.ok("network", "disconnect", "none", "n1")
    net.ok("network", "connect", "one", "n1")
    assert "10.231.80." in net.ok("exec", "n1", "ip", "-4", "addr")
    net.ok("run", "-d", "--name", "j1", "--network", "container:c1", IMAGE, "sleep", "600")
    said = net("network", "connect", "one", "j1")
    assert "container sharing network namespace with another container or host cannot be" in said.err
    assert "10.231.81.33" in net.ok("exec", "j1", "ip", "-4", "addr")
    net.ok("rm", "-f", "c1", "n1", "j1")
    assert net.ok("network", "prune", "-f").split() == ["Deleted", "Networks:", "one", "two"] or "one" in (
        net.ok("network", "ls")
    )
