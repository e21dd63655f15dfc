"""Ports that cannot be, and plans: what is decided before anything is touched."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nagaya.errors import InvalidArgument, NagayaError
from nagaya.network.bridge import interface_name
from nagaya.network.model import EndpointPlan, PublishedPort
from nagaya.network.ports import reserve
from nagaya.network.service import NetworkService


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (PublishedPort(0), InvalidArgument),
        (PublishedPort(65536), InvalidArgument),
        (PublishedPort(1, host_port=-1), InvalidArgument),
        (PublishedPort(1, "icmp"), InvalidArgument),  # type: ignore[arg-type]
        (PublishedPort(1, host_ip="localhost"), InvalidArgument),
        (PublishedPort(1, host_ip="1.2.3.4 . tcp . 1 : 6.6.6.6 . 1 }"), InvalidArgument),
        (PublishedPort(1, host_ip="::1%lo ; flush ruleset"), InvalidArgument),
    ],
)
def test_bad_ports(port: PublishedPort, kind: type[NagayaError]) -> None:
    with pytest.raises(kind) as caught:
        reserve((PublishedPort(80), port), endpoint="x (1)")
    assert "\n" not in str(caught.value)


def test_plans_differ_until_they_are_given_back() -> None:
    service = NetworkService(bip="10.231.9.1/29")
    plans = [service.plan(f"{n}" * 64) for n in range(5)]
    assert [p.address for p in plans] == [f"10.231.9.{n}" for n in range(2, 7)]
    assert plans[0] == EndpointPlan(
        endpoint_id="0" * 64,
        address="10.231.9.2",
        prefix=29,
        gateway="10.231.9.1",
        mac="02:42:0a:e7:09:02",
        host_interface="ngv00000000000",
    )
    with pytest.raises(NagayaError, match="no free address"):
        service.plan("9" * 64)


def test_ports_of_ipv6_are_relayed_to_ipv4() -> None:
    service = NetworkService(bip="10.231.9.1/29")
    ports = tuple(PublishedPort(80, host_ip=ip, host_port=8080) for ip in ("", "::", "::1", "fd00::1"))
    assert service.relayed(service.plan("1" * 64, ports)) == list(ports[1:])


def test_a_plan_survives_the_ledger() -> None:
    plan = NetworkService(bip="10.231.9.1/24", mtu=1400).plan(
        "ab" * 32, ports=(PublishedPort(80, "udp", "127.0.0.1", 8080),)
    )
    assert msgspec.json.decode(msgspec.json.encode(plan), type=EndpointPlan) == plan


@pytest.mark.parametrize("endpoint_id", ["", "../x", "a b", "é"])
def test_bad_endpoint_ids(endpoint_id: str) -> None:
    with pytest.raises(InvalidArgument):
        NetworkService(bip="10.231.9.1/24").plan(endpoint_id)


@pytest.mark.parametrize(
    "options", [{"bip": "10.0.0.1"}, {"mtu": 0}, {"bridge": "a/b"}, {"nft_table": "a b"}]
)
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        NetworkService(**options)


def test_interface_names_fit_the_kernel() -> None:
    assert interface_name("0123456789abcdef" * 4) == "ngv0123456789a"
