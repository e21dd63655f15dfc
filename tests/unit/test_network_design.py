"""What a network becomes of what was asked for, and what is refused in dockerd's words."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from nagaya.errors import InvalidArgument, NagayaError, PermissionDenied, ResourceExhausted
from nagaya.network import ipam
from nagaya.network.design import IpamConfig, NetworkRequest, decide
from nagaya.network.model import NetworkPlan, Subnet

ID = "ab" * 32
POOLS = (("10.231.0.0/16", 24), ("fd00:231::/32", 64))
B = "com.docker.network.bridge."


def plan(*ipam: IpamConfig, ipv6: bool = False, options: dict[str, str] | None = None) -> NetworkPlan:
    return decide(NetworkRequest(ID, ipam=ipam, ipv6=ipv6, options=options or {}), (), (), POOLS)


def test_what_is_chosen() -> None:
    made = plan(ipv6=True)
    assert made.interface == "br-abababababab" and made.mtu == 1500 and made.icc and made.masquerade
    assert str(made.subnet) == "10.231.0.1/24" and str(made.subnet6) == "fd00:231::1/64"
    taken = [NetworkPlan("x", "br0", subnet=made.subnet, subnet6=made.subnet6)]
    occupied = [ip_network("10.231.1.0/25"), ip_network("0.0.0.0/0"), ip_network("10.231.2.0/23")]
    second = decide(NetworkRequest("cd" * 32, ipv6=True), taken, occupied, POOLS)
    assert str(second.subnet) == "10.231.4.1/24" and str(second.subnet6) == "fd00:231:0:1::1/64"
    with pytest.raises(ResourceExhausted):
        decide(NetworkRequest(ID), taken, [ip_network("10.0.0.0/8")], POOLS)


def test_what_is_asked_for() -> None:
    config = IpamConfig("10.9.0.0/24", "10.9.0.128/25", auxiliary={"router": "10.9.0.129"})
    options = {
        f"{B}enable_icc": "false",
        f"{B}name": "mine",
        f"{B}host_binding_ipv4": "10.0.0.1",
        f"{B}enable_ip_masquerade": "0",
        "com.docker.network.driver.mtu": "1400",
    }
    made = plan(config, options=options)
    assert made.subnet == Subnet("10.9.0.128", 24) and made.reserved == ("10.9.0.129",)
    assert (made.icc, made.masquerade, made.interface, made.mtu) == (False, False, "mine", 1400)
    assert made.host_ip == "10.0.0.1" and made.ip_range == "10.9.0.128/25"
    only6 = plan(IpamConfig("fd00:9::/64", gateway="fd00:9::5"), ipv6=True)
    assert str(only6.subnet6) == "fd00:9::5/64" and only6.subnet is not None


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (IpamConfig("10.9.0.0"), "invalid CIDR block notation"),
        (IpamConfig("10.9.0.3/24"), "it should be 10.9.0.0/24"),
        (IpamConfig("10.9.0.0/31"), "No available addresses on this pool"),
        (IpamConfig("fd00::/64%x"), "invalid CIDR block notation"),
        (IpamConfig("10.9.0.0/24", gateway="10.9.1.1"), "doesn't contain this address"),
        (IpamConfig("10.9.0.0/24", gateway="10.9.0.255"), "Address already in use"),
        (IpamConfig("fd00::/64", gateway='fd00::1%" ; flush'), "invalid address"),
        (IpamConfig("10.9.0.0/24", auxiliary={"a": "x"}), "invalid address"),
        (IpamConfig("10.9.0.0/24", "10.8.0.0/25"), "doesn't contain ip-range"),
        (IpamConfig("10.9.0.0/24", "10.0.0.0/8"), "bigger than its parent subnet"),
        (IpamConfig("10.9.0.0/24", "fd00::/65"), "parent subnet is an IPv4 block"),
        (IpamConfig(gateway="10.9.0.1"), "invalid CIDR address"),
    ],
)
def test_bad_subnets(config: IpamConfig, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        plan(config, ipv6=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{B}name", 'x"; flush ruleset'),
        (f"{B}name", "../lo"),
        (f"{B}name", "all"),
        (f"{B}enable_icc", "maybe"),
        (f"{B}host_binding_ipv4", "::1"),
        (f"{B}gateway_mode_ipv4", "routed"),
        ("com.docker.network.driver.mtu", "-1"),
        ("com.docker.network.driver.mtu", "67"),
    ],
)
def test_bad_options(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument):
        plan(options={name: value})


def test_networks_keep_apart() -> None:
    other = NetworkPlan("x", "mine", subnet=Subnet("10.9.0.1", 24))
    for request in (
        NetworkRequest(ID, ipam=(IpamConfig("10.9.0.128/25"),)),
        NetworkRequest(ID, options={f"{B}name": "mine"}),
        NetworkRequest(ID, ipam=(IpamConfig("10.1.0.0/24"), IpamConfig("10.2.0.0/24"))),
        NetworkRequest(ID, driver="host"),
    ):
        with pytest.raises(PermissionDenied):
            decide(request, [other], (), POOLS)


@pytest.mark.parametrize(
    "options",
    [{}, {"parent": "lo"}, {"parent": 'e"'}, {"parent": "eth0", "macvlan_mode": "x"}],
)
def test_bad_macvlans(options: dict[str, str]) -> None:
    with pytest.raises(NagayaError):
        decide(NetworkRequest(ID, driver="macvlan", options=options), (), (), POOLS)


def test_addresses_of_a_range_and_of_ipv6() -> None:
    subnet = Subnet("10.9.0.1", 24)
    assert ipam.next_address(subnet, (), "", "10.9.0.128/30") == "10.9.0.128"
    assert ipam.next_address(subnet, {"10.9.0.128"}, "10.9.0.131", "10.9.0.128/30") == "10.9.0.129"
    with pytest.raises(ResourceExhausted):
        ipam.next_address(subnet, {f"10.9.0.{n}" for n in range(128, 132)}, "", "10.9.0.128/30")
    six = Subnet("fd00::1", 126)
    assert [ipam.next_address(six, (), after) for after in ("", "fd00::2", "fd00::3")] == [
        "fd00::2",
        "fd00::3",
        "fd00::2",
    ]
