"""What clients of older versions mean, and are shown."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nagaya.api.docker.types import history
from nagaya.api.docker.types.structs import CreateBody
from nagaya.errors import InvalidArgument


def create(version: tuple[int, int], *, cgroup2: bool = False, **body: Any) -> CreateBody:
    made = msgspec.convert(body, CreateBody)
    history.as_of(made, version, cgroup2=cgroup2)
    return made


@pytest.mark.parametrize(
    ("version", "cgroup2", "ipc", "cgroupns"),
    (
        ((1, 24), False, "shareable", "host"),
        ((1, 39), True, "shareable", None),
        ((1, 40), False, None, "host"),
        ((1, 40), True, None, None),
        ((1, 41), False, None, None),
    ),
)
def test_defaults(version: tuple[int, int], cgroup2: bool, ipc: str | None, cgroupns: str | None) -> None:
    host = create(version, cgroup2=cgroup2).HostConfig
    assert host is not None and (host.IpcMode, host.CgroupnsMode) == (ipc, cgroupns)
    said = create(version, HostConfig={"IpcMode": "none", "CgroupnsMode": "private"}).HostConfig
    assert said is not None and (said.IpcMode, said.CgroupnsMode) == ("none", "private")


def test_fields_that_did_not_exist() -> None:
    bind = {"NonRecursive": True, "CreateMountpoint": True, "ReadOnlyNonRecursive": True}
    body: dict[str, Any] = {
        "Healthcheck": {"StartInterval": 5},
        "HostConfig": {"Annotations": {"a": "b"}, "Mounts": [{"Type": "bind", "BindOptions": bind}]},
    }

    def seen(version: tuple[int, int]) -> list[object]:
        made = create(version, **body)
        assert made.HostConfig and made.HostConfig.Mounts and made.Healthcheck
        options = made.HostConfig.Mounts[0].BindOptions
        assert options is not None
        found = (options.NonRecursive, options.CreateMountpoint, options.ReadOnlyNonRecursive)
        return [
            bool(value) for value in (*found, made.HostConfig.Annotations, made.Healthcheck.StartInterval)
        ]

    assert seen((1, 39)) == [False, False, False, False, False]
    assert seen((1, 40)) == [True, False, False, False, False]
    assert seen((1, 42)) == [True, True, False, False, False]
    assert seen((1, 43)) == [True, True, False, True, False]
    assert seen((1, 44)) == [True, True, True, True, True]


@pytest.mark.parametrize(
    ("last", "body", "said"),
    (
        (
            (1, 43),
            {"NetworkingConfig": {"EndpointsConfig": {"b": None, "a": None}}},
            "Container cannot be connected to network endpoints: a, b",
        ),
        (
            (1, 43),
            {"HostConfig": {"Mounts": [{"BindOptions": {"ReadOnlyForceRecursive": True}}]}},
            "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer",
        ),
        (
            (1, 44),
            {"HostConfig": {"Mounts": [{"VolumeOptions": {"Subpath": "a"}}]}},
            "VolumeOptions.Subpath needs API v1.45 or newer",
        ),
    ),
)
def test_what_needs_a_newer_one(last: tuple[int, int], body: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        create(last, **body)
    create((last[0], last[1] + 1), **body)


def test_an_id_is_an_alias_no_more() -> None:
    def aliases(version: tuple[int, int], given: list[str] | None, endpoint: str = "e") -> object:
        place = {"Aliases": given, "DNSNames": ["web"], "EndpointID": endpoint}
        document: dict[str, Any] = {"Id": "f" * 64, "NetworkSettings": {"Networks": {"net": place}}}
        history.inspected(document, version)
        return place["Aliases"]

    assert aliases((1, 44), ["x"]) == ["x", "f" * 12]
    assert aliases((1, 44), None) == ["f" * 12]
    assert aliases((1, 44), None, "") is None
    assert aliases((1, 45), ["x"]) == ["x"]


@pytest.mark.parametrize(
    ("version", "fields"),
    (
        ((1, 48), {"BridgeNfIptables"}),
        ((1, 49), {"BridgeNfIptables", "FirewallBackend"}),
        ((1, 50), {"FirewallBackend", "DiscoveredDevices"}),
    ),
)
def test_info(version: tuple[int, int], fields: set[str]) -> None:
    document = dict.fromkeys(("BridgeNfIptables", "FirewallBackend", "DiscoveredDevices"), "x")
    history.informed(document, version)
    assert set(document) == fields
