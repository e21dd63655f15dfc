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
  set subnets {
    type ipv4_addr; flags interval; auto-merge;
    elements = { 10.231.0.0/24 }
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
    ip saddr @subnets oifname != "nagt0" masquerade
    oifname "nagt0" ip saddr 127.0.0.0/8 masquerade
    oifname "nagt0" ip saddr @subnets ct status dnat masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname @unrouted oifname @unrouted drop
    oifname "nagt0" jump to_bridge
    iifname "nagt0" accept
  }
  chain to_bridge {
    ct state established,related accept
    ct status dnat accept
    iifname "nagt0" accept
    drop
  }
}
"""


def test_the_whole_table() -> None:
    elements = [
        firewall.element("10.231.0.2", PublishedPort(80, host_port=8080)),
        firewall.element("10.231.0.2", PublishedPort(53, "udp", "127.0.0.1", 53)),
        firewall.element("10.231.0.3", PublishedPort(9, "sctp", "0.0.0.0", 9)),
    ]
    text = firewall.ruleset("nagt", "nagt0", [Subnet("10.231.0.1", 24)], elements, unrouted=("eth0", "eth1"))
    assert text == GOLDEN
    closed = firewall.ruleset("nagt", "nagt0", [Subnet("10.231.0.1", 24)], (), icc=False)
    assert 'iifname "nagt0" drop' in closed and closed.count("elements") == 1


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
            chain("inet", "nagt", hook="forward", policy="drop"),
            chain("ip", "filter", hook="input", policy="drop"),
            chain("ip", "filter"),
        ]
    }
    assert firewall.foreign_forward_chains(listing, "nagt") == [
        ("ip", "filter", "FORWARD"),
        ("inet", "nagt", "FORWARD"),
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
    rules = [{"rule": {"handle": n, "comment": c}} for n, c in ((1, "nagaya:a"), (2, "nagaya:ab"), (3, "x"))]
    assert firewall.tagged_rules({"nftables": [*rules, {"rule": {"handle": 4}}]}, "nagaya:a") == [1]
