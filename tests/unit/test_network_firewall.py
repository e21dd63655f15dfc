"""The rules as text (golden), and the reading of other firewalls' chains."""

from __future__ import annotations

from typing import Any

import pytest

from nagaya.errors import InvalidArgument
from nagaya.network import firewall
from nagaya.network.model import PublishedPort, Subnet

GOLDEN = """\
add table ip nagt
delete table ip nagt
table ip nagt {
  map published_address {
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;
    elements = { 127.0.0.1 . udp . 53 : 10.231.0.2 . 53 }
  }
  map published_any {
    type inet_proto . inet_service : ipv4_addr . inet_service;
    elements = { tcp . 8080 : 10.231.0.2 . 80, sctp . 9 : 10.231.0.3 . 9 }
  }
  set bridges {
    type ifname;
    elements = { "nagt0", "nagt1" }
  }
  set internal {
    type ifname;
    elements = { "nagt1" }
  }
  set neighbours {
    type ifname . ifname;
    elements = { "nagt0" . "nagt0" }
  }
  set unrouted {
    type ifname;
    elements = { "eth0", "eth1" }
  }
  chain spoofed {
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname != "lo" ip saddr 127.0.0.0/8 drop
  }
  chain publish {
    meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . meta l4proto . th dport map @published_address
    meta l4proto { tcp, udp, sctp } dnat ip to meta l4proto . th dport map @published_any
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump publish
  }
  chain output {
    type nat hook output priority -100; policy accept;
    fib daddr type local jump publish
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.231.0.0/24 oifname != "nagt0" masquerade
    oifname "nagt0" ip saddr 127.0.0.0/8 masquerade
    oifname "nagt0" ip saddr { 10.231.0.0/24 } ct status dnat masquerade
    oifname "nagt1" ip saddr 127.0.0.0/8 masquerade
    oifname "nagt1" ip saddr { 10.231.1.0/24 } ct status dnat masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname @unrouted oifname @unrouted drop
    iifname . oifname @neighbours accept
    oifname @bridges jump to_bridge
    iifname @internal drop
    iifname @bridges accept
  }
  chain to_bridge {
    ct state established,related accept
    oifname @internal drop
    ct status dnat accept
    drop
  }
}
"""

GOLDEN_6 = """\
add table ip6 nagt
delete table ip6 nagt
table ip6 nagt {
  map published_address {
    type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;
  }
  map published_any {
    type inet_proto . inet_service : ipv6_addr . inet_service;
    elements = { tcp . 8080 : fd00::2 . 80 }
  }
  set bridges {
    type ifname;
    elements = { "nagt0", "nagt1" }
  }
  set internal {
    type ifname;
    elements = { "nagt1" }
  }
  set neighbours {
    type ifname . ifname;
    elements = { "nagt0" . "nagt0" }
  }
  set unrouted {
    type ifname;
  }
  chain spoofed {
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip6 daddr ::1 drop
    iifname != "lo" ip6 saddr ::1 drop
  }
  chain publish {
    meta l4proto { tcp, udp, sctp } dnat ip6 to ip6 daddr . meta l4proto . th dport map @published_address
    meta l4proto { tcp, udp, sctp } dnat ip6 to meta l4proto . th dport map @published_any
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump publish
  }
  chain output {
    type nat hook output priority -100; policy accept;
    ip6 daddr != ::1 fib daddr type local jump publish
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    oifname "nagt1" ip6 saddr { fd00::/64 } ct status dnat masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname @unrouted oifname @unrouted drop
    iifname . oifname @neighbours accept
    oifname @bridges jump to_bridge
    iifname @internal drop
    iifname @bridges accept
  }
  chain to_bridge {
    ct state established,related accept
    oifname @internal drop
    ct status dnat accept
    drop
  }
}
"""


BRIDGES = (
    firewall.Bridging("nagt0", (Subnet("10.231.0.1", 24),)),
    firewall.Bridging("nagt1", (Subnet("10.231.1.1", 24), Subnet("fd00::1", 64)), icc=False, internal=True),
)


def test_the_whole_table() -> None:
    elements = [
        firewall.element("10.231.0.2", PublishedPort(80, host_port=8080)),
        firewall.element("10.231.0.2", PublishedPort(53, "udp", "127.0.0.1", 53)),
        firewall.element("10.231.0.3", PublishedPort(9, "sctp", "0.0.0.0", 9)),
    ]
    assert firewall.ruleset("nagt", BRIDGES, elements, unrouted=("eth0", "eth1")) == GOLDEN
    elements = [firewall.element("fd00::2", PublishedPort(80, host_ip="::", host_port=8080))]
    assert firewall.ruleset("nagt", BRIDGES, elements, family="ip6") == GOLDEN_6


def test_one_element_per_port() -> None:
    one = [firewall.element("10.231.0.2", PublishedPort(80, host_ip="10.0.0.1", host_port=8080))]
    assert firewall.add_elements("t", one) == (
        "add element ip t published_address { 10.0.0.1 . tcp . 8080 : 10.231.0.2 . 80 }\n"
    )
    assert firewall.delete_elements("t", one) == (
        "delete element ip t published_address { 10.0.0.1 . tcp . 8080 }\n"
    )


@pytest.mark.parametrize(
    ("table", "bridge"),
    [
        *(
            ("", "b"),
            ("1t", "b"),
            ("t t", "b"),
            ("t;flush ruleset", "b"),
            ("t", ""),
            ("t", "br*"),
            ("t", ".."),
        ),
        *(("t", 'b"'), ("t", "b\n"), ("t", "../lo"), ("t", "x" * 16), ("t\n", "b")),
    ],
)
def test_names_cannot_leave_their_quotes(table: str, bridge: str) -> None:
    with pytest.raises(InvalidArgument):
        firewall.check_names(table, bridge)


def chain(family: str, table: str, **more: Any) -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": "FORWARD", "handle": 1, **more}}


def test_foreign_forward_chains() -> None:
    listing = {
        "nftables": [
            {"metainfo": {}},
            chain("ip", "filter", hook="forward", policy="drop"),
            chain("ip", "nagt", hook="forward", policy="accept"),
            chain("ip6", "filter", hook="forward", policy="drop"),
            chain("inet", "firewalld", hook="forward", policy="drop"),
            chain("ip", "filter", hook="input", policy="drop"),
            chain("ip", "filter"),
        ]
    }
    assert firewall.foreign_forward_chains(listing, "nagt") == [
        ("ip", "filter", "FORWARD"),
        ("ip6", "filter", "FORWARD"),
        ("inet", "firewalld", "FORWARD"),
    ]


def test_what_drops_by_default() -> None:
    def drops(policy: str, *rules: list[dict[str, Any]]) -> bool:
        head = chain("ip", "filter", hook="forward", policy=policy)
        return firewall.drops_by_default({"nftables": [head, *({"rule": {"expr": r}} for r in rules)]})

    counter: dict[str, Any] = {"counter": {"packets": 0, "bytes": 0}}
    match: dict[str, Any] = {"match": {}}
    assert drops("drop")
    assert not drops("accept")
    assert drops("accept", [match, {"accept": None}], [counter, {"reject": {}}])
    assert drops("accept", [{"drop": None}])
    assert not drops("accept", [{"drop": None}], [match, {"drop": None}])


def test_only_our_rules_are_ours() -> None:
    def expression(key: str, name: str) -> list[dict[str, Any]]:
        return [{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}}, {"accept": None}]

    rules = [
        {"rule": {"handle": 1, "comment": "nagaya:a", "expr": expression("iifname", "nagt0")}},
        {"rule": {"handle": 2, "comment": "nagaya:ab", "expr": expression("oifname", "nagt0")}},
        {"rule": {"handle": 3, "comment": "x"}},
        {"rule": {"handle": 4}},
    ]
    assert firewall.tagged_rules({"nftables": rules}, "nagaya:a") == {1: ("iifname", "nagt0")}
