"""/info's live figures, /metrics, /system/df by kind."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from house import House
from rawhttp import Connection, call

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def figures(house: House) -> dict[str, float]:
    """Of /metrics, every line of which must be one of the format's."""
    answer = call(house.socket, "GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found, types = {}, {}
    for line in answer.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert kind in ("gauge", "counter") and name not in types
            types[name] = kind
        elif not line.startswith("# HELP "):
            matched = re.fullmatch(r'([a-z_]+)(\{(?:[a-z_]+="[^"\\]*",?)+\})? ([0-9.e+]+)', line)
            assert matched and matched[1] in types, line
            found[matched[1] + (matched[2] or "")] = float(matched[3])
    return found


def test_metrics(house: House) -> None:
    before = figures(house)
    house.ok("run", "-d", "--name", "one", "--network", "none", IMAGE, "sleep", "600")
    house.ok("volume", "create", "data")
    with Connection(house.socket) as reader:
        reader.send("GET", "/events")
        reader.head()
        after = figures(house)
        assert after["engine_daemon_events_subscribers_total"] == 1
        assert call(house.socket, "GET", "/info").json["NEventsListener"] == 1
    running = 'engine_daemon_container_states_containers{state="running"}'
    assert (before[running], after[running]) == (0, 1)
    assert after["engine_daemon_events_total"] > before["engine_daemon_events_total"]
    assert after["nagaya_volumes"] == before["nagaya_volumes"] + 1
    assert after["process_resident_memory_bytes"] > 1 << 20
    assert after["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"] > 0
    assert 3 < after["process_open_fds"] < after["process_max_fds"]
    house.ok("rm", "-f", "one")
    house.ok("volume", "rm", "data")


def test_info_counts(house: House) -> None:
    facts = call(house.socket, "GET", "/info").json
    assert facts["NFd"] > 3 and facts["NGoroutines"] > 0
    assert facts["OSVersion"]


def test_disk_usage_by_kind(house: House) -> None:
    house.ok("run", "--rm", "-v", "full:/d", IMAGE, "dd", "if=/dev/zero", "of=/d/x", "bs=1000", "count=5")
    assert set(call(house.socket, "GET", "/system/df").json) == {
        *("LayersSize", "Images", "Containers", "Volumes", "BuildCache")
    }
    only = call(house.socket, "GET", "/system/df?type=volume").json
    assert set(only) == {"Volumes"}
    (full,) = [v for v in only["Volumes"] if v["Name"] == "full"]
    assert full["UsageData"] == {"Size": 5000, "RefCount": 0}
    two = call(house.socket, "GET", "/system/df?type=container&type=build-cache").json
    assert set(two) == {"Containers", "BuildCache"}
    assert call(house.socket, "GET", "/system/df?type=odd").status == 400
    house.ok("volume", "rm", "full")
