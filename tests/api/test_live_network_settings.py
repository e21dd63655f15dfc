"""Networks that are only settings for others, on dockerd and on nagayad."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from dockerd import Dockerd
from house import House
from rawhttp import call

pytestmark = pytest.mark.root

API = "/v1.41"
LENDER = {"Network": "lender"}
NAMES = ("given", "lender", "plain")
SUBNET = {"Subnet": "10.231.40.0/24", "Gateway": "10.231.40.9"}
OPTIONS = {"com.docker.network.driver.mtu": "1400"}
Server = Dockerd | House


@pytest.fixture(autouse=True)
def tidy(server: Server) -> Iterator[None]:
    yield
    for name in NAMES:
        call(server.socket, "DELETE", f"{API}/networks/{name}")


def create(server: Server, name: str, **body: Any) -> Any:
    return call(server.socket, "POST", f"{API}/networks/create", {"Name": name, **body})


def test_a_network_has_the_settings_of_another(server: Server) -> None:
    lent = {"IPAM": {"Config": [SUBNET]}, "Options": OPTIONS, "Labels": {"a": "b"}}
    assert create(server, "lender", ConfigOnly=True, **lent).status == 201
    made = create(server, "given", ConfigFrom=LENDER, Attachable=True)
    assert made.status == 201, made
    lender, given = (call(server.socket, "GET", f"{API}/networks/{n}").json for n in ("lender", "given"))
    assert (lender["Driver"], lender["ConfigOnly"], lender["Scope"]) == ("null", True, "local")
    assert (given["Driver"], given["ConfigOnly"], given["Attachable"]) == ("bridge", False, True)
    assert given["ConfigFrom"] == LENDER and lender["ConfigFrom"] == {"Network": ""}
    for found in (lender, given):
        assert found["IPAM"]["Config"] == [SUBNET]
        assert found["Options"] == OPTIONS and found["Labels"] == {"a": "b"}
    refused = call(server.socket, "DELETE", f"{API}/networks/lender")
    assert refused.status == 403 and 'configuration network "lender" is in use' in refused.json["message"]
    begun = time.time()
    pruned = call(server.socket, "POST", f"{API}/networks/prune").json["NetworksDeleted"]
    assert "given" in pruned  # the other one, if it was looked at after it
    path = f"{API}/events?since={begun - 1:.9f}&until={time.time() + 1:.9f}&type=network"
    events = [json.loads(line) for line in call(server.socket, "GET", path).body.splitlines()]
    last = events[-1]
    assert (last["Action"], last["Actor"]["Attributes"]) == ("prune", {"reclaimed": "0"}), events


def test_nobody_is_in_settings(server: Server) -> None:
    assert create(server, "lender", ConfigOnly=True).status == 201
    body = {"Image": "nagaya/busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "lender"}}
    made = call(server.socket, "POST", f"{API}/containers/create", body).json["Id"]
    started = call(server.socket, "POST", f"{API}/containers/{made}/start")
    assert started.status == 403, started
    assert started.json["message"] == "cannot create endpoint on configuration-only network"
    call(server.socket, "DELETE", f"{API}/containers/{made}")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    (
        (
            {"ConfigOnly": True, "Internal": True},
            403,
            "configuration network can only contain network specific",
        ),
        ({"ConfigOnly": True, "Attachable": True}, 403, "configuration network can only contain"),
        (
            {"ConfigOnly": True, "ConfigFrom": LENDER},
            403,
            "a configuration network cannot depend",
        ),
        ({"ConfigFrom": {"Network": "nope"}}, 404, 'configuration network "nope" does not exist'),
        ({"ConfigFrom": {"Network": "plain"}}, 404, 'configuration network "plain" does not exist'),
        (
            {"ConfigFrom": LENDER, "Options": OPTIONS},
            403,
            "network driver options are not supported",
        ),
        (
            {"ConfigFrom": LENDER, "IPAM": {"Config": [SUBNET]}},
            403,
            "user specified configurations",
        ),
        ({"ConfigFrom": LENDER, "Labels": {"x": "y"}}, 403, "user specified configurations"),
        (
            {"ConfigFrom": LENDER, "EnableIPv6": True},
            403,
            "user specified configurations are not",
        ),
    ),
)
def test_what_does_not_go_together(server: Server, body: dict[str, Any], status: int, said: str) -> None:
    assert create(server, "lender", ConfigOnly=True).status == 201
    assert create(server, "plain").status == 201
    refused = create(server, "given", **body)
    assert (refused.status, said in refused.json["message"]) == (status, True), refused
