"""What every address allocator must promise, whatever the subnet and whoever is in it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import InvalidArgument, ResourceExhausted
from nagaya.network import ipam
from nagaya.network.model import Subnet


@st.composite
def subnets(draw: st.DrawFn) -> Subnet:
    prefix = draw(st.integers(22, 30))
    network = IPv4Network((draw(st.integers(0x0A000000, 0x0AFFFFFF)) & (0xFFFFFFFF << 32 - prefix), prefix))
    host = draw(st.integers(1, network.num_addresses - 2))
    return Subnet(str(network.network_address + host), prefix)


@given(subnets(), st.data())
def test_every_address_once_then_exhausted(subnet: Subnet, data: st.DataObject) -> None:
    network = subnet.network
    usable = network.num_addresses - 3
    after = data.draw(st.sampled_from(["", subnet.gateway, str(network.broadcast_address), "192.0.2.1"]))
    taken: set[str] = set()
    for _ in range(min(usable, 40)):
        address = ipam.next_address(subnet, taken, after)
        assert address not in taken and IPv4Address(address) in network
        assert address not in (subnet.gateway, str(network.network_address), str(network.broadcast_address))
        taken.add(address)
        after = address
    everything = {str(a) for a in network.hosts()}
    with pytest.raises(ResourceExhausted, match="no free address left in"):
        ipam.next_address(subnet, everything, after)
    if usable:
        last = sorted(everything - {subnet.gateway})[-1]
        assert ipam.next_address(subnet, everything - {last}, after) == last


def test_an_address_rests_as_long_as_possible() -> None:
    subnet = ipam.parse_bip("10.231.0.1/29")
    given_out, after = [], ""
    for _ in range(7):
        after = ipam.next_address(subnet, (), after)
        given_out.append(after.rpartition(".")[2])
    assert given_out == ["2", "3", "4", "5", "6", "2", "3"]


def test_a_full_eight_is_not_walked() -> None:
    subnet = ipam.parse_bip("10.0.0.1/8")
    assert ipam.next_address(subnet, {"10.0.0.2", "10.0.0.3"}) == "10.0.0.4"
    assert ipam.next_address(subnet, {"10.255.255.254"}, "10.255.255.253") == "10.0.0.2"


def test_mac_follows_the_address() -> None:
    assert ipam.mac_of("10.231.0.2") == "02:42:0a:e7:00:02"


@pytest.mark.parametrize(
    "bip",
    [
        *(
            "",
            "10.231.0.1",
            "10.231.0.1/",
            "10.231.0.1/33",
            "10.231.0.1/31",
            "10.231.0.0/24",
            "10.231.0.255/24",
        ),
        *(
            "10.231.0.1/7",
            "x/24",
            "10.231.0.1/24\n",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "fd00::1/64",
            "10.0.0.1/-1",
        ),
        "10.231.0.1/255.255.255.0",
    ],
)
def test_bad_bips_name_the_setting(bip: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ipam.parse_bip(bip)
    assert caught.value.subject == "bip"


def test_pools_as_docker_writes_them() -> None:
    assert ipam.parse_pool("base=10.10.0.0/16,size=24") == ("10.10.0.0/16", 24)
    for text in (
        "",
        "base=10.10.0.0/16",
        "size=24",
        "base=10.10.0.0/16,size=8",
        "base=10.10.0.1/16,size=24",
        "a,b=c",
    ):
        with pytest.raises(InvalidArgument):
            ipam.parse_pool(text)


def test_the_first_pool_that_overlaps_no_route() -> None:
    def choose(*routes: str) -> str:
        return str(ipam.choose_subnet(ipam.DEFAULT_POOLS, map(IPv4Network, routes)))

    assert choose() == "172.17.0.1/16"
    assert choose("0.0.0.0/0", "172.17.0.0/16") == "172.18.0.1/16"
    assert choose("172.17.3.0/24", "172.18.0.1/32", "172.19.0.0/16", "172.20.0.0/16") == "172.21.0.1/16"
    assert choose("172.16.0.0/12", "192.168.1.0/24") == "192.168.16.1/20"
    with pytest.raises(ResourceExhausted, match="default-address-pool"):
        choose("172.16.0.0/12", "192.168.0.0/16")
