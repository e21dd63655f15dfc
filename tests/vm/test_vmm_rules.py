"""nagaya-vmm before and after its start: the rules of state and configuration, over HTTP, with a guest that
only remembers what it was told. No VM."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from firecracker_api import OPERATIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from vmm import Client

from nagaya.api.firecracker import models
from nagaya.api.firecracker.controller import Controller
from nagaya.api.firecracker.logs import Log, Metrics
from nagaya.api.firecracker.mmds import Mmds
from nagaya.api.firecracker.resources import Resources
from nagaya.api.firecracker.server import Connection, Loop, Server, listen_unix
from nagaya.errors import Unavailable

AFTER_START = "The requested operation is not supported after starting the microVM."
BEFORE_START = "The requested operation is not supported before starting the microVM."


class Remembering:
    """A guest and its maker at once."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.broken = False

    def start(self, resources: Resources) -> Remembering:
        return self._hear("start")

    def load(self, config: models.LoadSnapshotConfig, resources: Resources) -> Remembering:
        return self._hear("load", config)

    def _hear(self, *what: Any) -> Remembering:
        self.heard.append(what[0] if len(what) == 1 else what)
        if self.broken:
            raise Unavailable("QEMU has ended")
        return self

    def pause(self) -> None:
        self._hear("pause")

    def resume(self) -> None:
        self._hear("resume")

    def press_ctrl_alt_del(self) -> None:
        self._hear("ctrl-alt-del")

    def set_balloon(self, amount_mib: int) -> None:
        self._hear("balloon", amount_mib)

    def set_balloon_polling(self, seconds: int) -> None:
        self._hear("polling", seconds)

    def balloon_stats(self) -> dict[str, int]:
        self._hear("stats")
        return {"target_mib": 1}

    def change_drive(self, drive: models.BlockDeviceConfig) -> None:
        self._hear("change", drive.path_on_host)

    def limit_drive(self, drive: models.BlockDeviceConfig) -> None:
        self._hear("limit", drive.rate_limiter)

    def limit_network(self, card: models.NetworkInterfaceConfig) -> None:
        self._hear("limit", card.rx_rate_limiter, card.tx_rate_limiter)

    def save(self, params: models.CreateSnapshotParams, shown: Mapping[str, Any]) -> None:
        self._hear("save", params.snapshot_path)


def taps(name: str) -> int:
    """A tap whose name may be taken only once, as long as it is open."""
    if len(name) > 15:
        raise ValueError(name)
    fd = os.memfd_create(f"tap-{name}")
    for other in os.listdir("/proc/self/fd"):
        try:
            if int(other) != fd and os.readlink(f"/proc/self/fd/{other}").startswith(f"/memfd:tap-{name} "):
                os.close(fd)
                raise OSError(16, "busy")
        except FileNotFoundError:
            continue
    return fd


class Vmm(Client):
    """The API of one machine on a socket, and a client of it."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "api.sock")
        self.guest = Remembering()
        self.log = Log("test-vm")
        self.log.configure(models.LoggerConfig(log_path=str(directory / "log"), show_level=True))
        self.metrics = Metrics("test-vm")
        self.resources = Resources(taps)
        self.fatal: list[int] = []
        self.controller = Controller(
            "test-vm", self.guest, self.resources, Mmds(2000), self.log, self.metrics, self.fatal.append
        )
        self.loop = Loop()
        self.server = Server(self.loop, listen_unix(self.path), self.controller.answer, 51200)
        self._wake, self._woken = socket.socketpair()
        self.loop.watch(self._woken.fileno(), 1, lambda _: self.loop.stop(0))
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def close(self) -> None:
        self._wake.send(b".")
        self._thread.join()
        self._wake.close()
        self._woken.close()
        self.server.close()
        os.unlink(self.path)
        self.loop.close()
        self.resources.close()

    def put(self, path: str, **body: Any) -> None:
        assert self.request("PUT", path, body)[:2] == (204, None)

    def patch(self, path: str, **body: Any) -> None:
        assert self.request("PATCH", path, body)[:2] == (204, None)

    def refused(self, method: str, path: str, body: Any = None) -> str:
        status, answer, _ = self.request(method, path, body)
        assert status in (400, 413) and list(answer) == ["fault_message"]
        return str(answer["fault_message"])


@pytest.fixture
def vmm(tmp_path: Path) -> Iterator[Vmm]:
    made = Vmm(tmp_path)
    yield made
    made.close()


@pytest.fixture
def started(vmm: Vmm, tmp_path: Path) -> Vmm:
    (tmp_path / "kernel").touch()
    vmm.put("/boot-source", kernel_image_path=str(tmp_path / "kernel"))
    vmm.put("/actions", action_type="InstanceStart")
    return vmm


def drive(tmp_path: Path, name: str, **more: Any) -> dict[str, Any]:
    (tmp_path / name).touch()
    return {"drive_id": name, "path_on_host": str(tmp_path / name), "is_root_device": False, **more}


def test_states(vmm: Vmm, tmp_path: Path) -> None:
    assert vmm.get("/") == {
        "id": "test-vm",
        "state": "Not started",
        "vmm_version": "1.16.0",
        "app_name": "Firecracker",
    }
    assert vmm.get("/version") == {"firecracker_version": "1.16.0"}
    start = {"action_type": "InstanceStart"}
    assert vmm.refused("PUT", "/actions", start).endswith(
        "Cannot start microvm without kernel configuration."
    )
    (tmp_path / "kernel").touch()
    vmm.put("/boot-source", kernel_image_path=str(tmp_path / "kernel"))
    vmm.guest.broken = True
    assert vmm.refused("PUT", "/actions", start) == "Start microvm error: QEMU has ended"
    vmm.guest.broken = False
    vmm.put("/actions", action_type="InstanceStart")
    assert vmm.get("/")["state"] == "Running"
    assert vmm.refused("PUT", "/actions", start) == AFTER_START
    vmm.patch("/vm", state="Paused")
    assert vmm.get("/")["state"] == "Paused"
    vmm.put("/snapshot/create", snapshot_path="s", mem_file_path="m")
    vmm.patch("/vm", state="Resumed")
    assert vmm.get("/")["state"] == "Running"
    assert "unavailable while running" in vmm.refused(
        "PUT", "/snapshot/create", {"snapshot_path": "s", "mem_file_path": "m"}
    )
    vmm.put("/actions", action_type="SendCtrlAltDel")
    assert vmm.guest.heard == ["start", "start", "pause", ("save", "s"), "resume", "ctrl-alt-del"]


BEFORE = """PUT /actions InstanceStart|PUT /balloon|PUT /boot-source|PUT /cpu-config|PUT /entropy|PUT /logger
PUT /machine-config|PATCH /machine-config|PUT /metrics|PUT /mmds/config|PUT /serial|PUT /snapshot/load
PUT /vsock|PUT /hotplug/memory"""
AFTER = """PUT /actions FlushMetrics|PUT /actions SendCtrlAltDel|PATCH /balloon|GET /balloon/statistics
PATCH /balloon/statistics|PATCH /balloon/hinting/start|PATCH /balloon/hinting/stop|GET /balloon/hinting/status
PATCH /drives|PATCH /pmem|PATCH /network-interfaces|PATCH /hotplug/memory|GET /hotplug/memory|PATCH /vm
PUT /snapshot/create|DELETE /drives|DELETE /pmem|DELETE /network-interfaces"""


def named(words: str) -> list[tuple[str, str, Any]]:
    found = []
    for word in words.replace("\n", "|").split("|"):
        method, path, action = ([*word.split(), None])[:3]
        found += [
            (how, where, body)
            for how, where, body, _, _ in OPERATIONS
            if how == method
            and where in (path, f"{path}/a", f"{path}/eth0")
            and (action is None or body["action_type"] == action)
        ][:1]
        assert found[-1][0] == method and str(path) in found[-1][1]
    return found


@pytest.mark.parametrize(("method", "path", "body"), named(AFTER))
def test_what_is_refused_before_the_start(vmm: Vmm, method: str, path: str, body: Any) -> None:
    assert vmm.refused(method, path, body) == BEFORE_START
    assert not vmm.guest.heard


@pytest.mark.parametrize(("method", "path", "body"), named(BEFORE))
def test_what_is_refused_after_the_start(started: Vmm, method: str, path: str, body: Any) -> None:
    assert started.refused(method, path, body) == AFTER_START
    assert started.guest.heard == ["start"]


@pytest.mark.parametrize(
    ("method", "path", "body", "what"),
    [
        ("PUT", "/pmem/a", {"id": "a", "path_on_host": "p"}, "pmem devices"),
        ("PUT", "/hotplug/memory", {"total_size_mib": 1024}, "memory hotplug"),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 2, "huge_pages": "2M"}, "huge_pages 2M"),
        (
            "PATCH",
            "/machine-config",
            {"cpu_template": "T2"},
            "the CPU template T2: CPU templates need Firecracker's own KVM",
        ),
        (
            "PUT",
            "/cpu-config",
            {"kvm_capabilities": ["!1"]},
            "CPU templates, which need Firecracker's own KVM",
        ),
        (
            "PUT",
            "/balloon",
            {"amount_mib": 1, "deflate_on_oom": True, "free_page_hinting": True},
            "free page hinting",
        ),
        (
            "PUT",
            "/drives/a",
            {"drive_id": "a", "is_root_device": False, "socket": "s"},
            "vhost-user block devices",
        ),
        (
            "PUT",
            "/snapshot/load",
            {"snapshot_path": "s", "mem_backend": {"backend_type": "Uffd", "backend_path": "m"}},
            "memory served by userfaultfd",
        ),
    ],
)
def test_what_qemu_cannot_do_is_refused(vmm: Vmm, method: str, path: str, body: Any, what: str) -> None:
    assert vmm.refused(method, path, body) == f"The requested operation is not supported: {what}"


def test_no_device_is_plugged_in_or_out_later(started: Vmm, tmp_path: Path) -> None:
    words = "The requested operation is not supported: hot-{}plugging devices"
    assert started.refused("PUT", "/drives/a", drive(tmp_path, "a")) == words.format("")
    assert started.refused("DELETE", "/drives/a") == words.format("un")
    started.patch("/vm", state="Paused")
    params = {"snapshot_path": "s", "mem_file_path": "m", "snapshot_type": "Diff"}
    assert started.refused("PUT", "/snapshot/create", params).endswith("snapshots of type Diff")


def test_machine_config(vmm: Vmm) -> None:
    plain = {"smt": False, "track_dirty_pages": False, "huge_pages": "None"}
    assert vmm.get("/machine-config") == {"vcpu_count": 1, "mem_size_mib": 128, **plain}
    status, _, headers = vmm.request(
        "PUT", "/machine-config", {"vcpu_count": 2, "mem_size_mib": 256, "cpu_template": "None", "smt": True}
    )
    assert (status, headers["deprecation"]) == (204, "true")
    vmm.patch("/machine-config", track_dirty_pages=True)
    expected = {"vcpu_count": 2, "mem_size_mib": 256, **plain, "smt": True, "track_dirty_pages": True}
    assert vmm.get("/machine-config") == expected
    for wrong in ({"vcpu_count": 0}, {"vcpu_count": 33}, {"vcpu_count": 3}):
        assert "The number of vCPUs must be greater than 0" in vmm.refused("PATCH", "/machine-config", wrong)
    for other in ({"mem_size_mib": 0}, {"mem_size_mib": 3, "huge_pages": "Transparent"}):
        assert "The memory size (MiB) is either 0" in vmm.refused("PATCH", "/machine-config", other)
    vmm.put("/balloon", amount_mib=200, deflate_on_oom=True)
    assert "smaller than the previously set balloon" in vmm.refused(
        "PATCH", "/machine-config", {"mem_size_mib": 100}
    )
    assert vmm.get("/machine-config") == expected
    vmm.put("/machine-config", vcpu_count=1, mem_size_mib=256)  # what is not named is the default again
    assert vmm.get("/machine-config") == {"vcpu_count": 1, "mem_size_mib": 256, **plain}


def test_boot_source(vmm: Vmm, tmp_path: Path) -> None:
    missing = "No such file or directory (os error 2)"
    assert vmm.refused("PUT", "/boot-source", {"kernel_image_path": "foo.bar"}) == (
        f"Boot source error: The kernel file cannot be opened: {missing}"
    )
    (tmp_path / "k").touch()
    body = {"kernel_image_path": str(tmp_path / "k")}
    assert vmm.refused("PUT", "/boot-source", {**body, "initrd_path": "foo.bar"}) == (
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions."
        f" {missing}"
    )
    assert "kernel command line is invalid" in vmm.refused("PUT", "/boot-source", {**body, "boot_args": "ä"})
    assert vmm.get("/vm/config")["boot-source"]["kernel_image_path"] == ""
    vmm.put("/boot-source", **body)
    shown = {**body, "initrd_path": None, "boot_args": None}
    assert vmm.get("/vm/config")["boot-source"] == shown


def test_drives(vmm: Vmm, tmp_path: Path) -> None:
    vmm.put("/drives/a", **drive(tmp_path, "a"))
    vmm.put("/drives/root", **drive(tmp_path, "root", is_root_device=True, is_read_only=True))
    assert [d["drive_id"] for d in vmm.get("/vm/config")["drives"]] == ["root", "a"]
    assert vmm.refused("PUT", "/drives/a", drive(tmp_path, "a", is_root_device=True)) == (
        "Drive config error: A root block device already exists!"
    )
    assert vmm.refused("PUT", "/drives/a", drive(tmp_path, "a", path_on_host="foo.bar")) == (
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error"
        " manipulating the backing file: No such file or directory (os error 2) foo.bar"
    )
    both = drive(tmp_path, "a", socket="s")
    assert vmm.refused("PUT", "/drives/a", both).endswith("Invalid block config.")
    limits = {"bandwidth": {"size": 10, "refill_time": 100}, "ops": {"size": 0, "refill_time": 100}}
    vmm.put("/drives/a", **drive(tmp_path, "a", rate_limiter=limits, cache_type="Writeback"))
    assert vmm.get("/vm/config")["drives"][1] == {
        "drive_id": "a",
        "partuuid": None,
        "is_root_device": False,
        "cache_type": "Writeback",
        "is_read_only": False,
        "path_on_host": str(tmp_path / "a"),
        "rate_limiter": {
            "bandwidth": {"size": 10, "one_time_burst": None, "refill_time": 100},
            "ops": None,
        },
        "io_engine": "Sync",
        "socket": None,
    }
    vmm.put("/drives/a", **drive(tmp_path, "a", rate_limiter={}))
    assert vmm.get("/vm/config")["drives"][1]["rate_limiter"] is None


def test_drives_after_the_start(vmm: Vmm, tmp_path: Path) -> None:
    vmm.put("/drives/a", **drive(tmp_path, "a"))
    (tmp_path / "kernel").touch()
    vmm.put("/boot-source", kernel_image_path=str(tmp_path / "kernel"))
    vmm.put("/actions", action_type="InstanceStart")
    words = "Drive config error: Unable to patch the block device: "
    assert vmm.refused("PATCH", "/drives/a", {"drive_id": "a"}) == (
        f"{words}Block: Running method expected different backend. Please verify the request arguments."
    )
    assert vmm.refused("PATCH", "/drives/b", {"drive_id": "b"}).startswith(f"{words}Failed perform action")
    missing = vmm.refused("PATCH", "/drives/a", {"drive_id": "a", "path_on_host": "foo.bar"})
    assert "Error manipulating the backing file: No such file or directory (os error 2) foo.bar" in missing
    (tmp_path / "new").touch()
    vmm.patch("/drives/a", drive_id="a", path_on_host=str(tmp_path / "new"))
    limits = {"bandwidth": {"size": 10, "refill_time": 100}}
    vmm.patch("/drives/a", drive_id="a", rate_limiter=limits)
    vmm.patch("/drives/a", drive_id="a", rate_limiter={"ops": {"size": 1, "refill_time": 100}})
    shown = vmm.get("/vm/config")["drives"][0]
    assert shown["path_on_host"] == str(tmp_path / "new")
    assert shown["rate_limiter"]["bandwidth"]["size"] == 10 and shown["rate_limiter"]["ops"]["size"] == 1
    vmm.guest.broken = True
    assert "QEMU has ended" in vmm.refused(
        "PATCH", "/drives/a", {"drive_id": "a", "path_on_host": str(tmp_path / "a")}
    )
    assert vmm.get("/vm/config")["drives"][0] == shown


def test_network_interfaces(vmm: Vmm) -> None:
    first, second = "06:00:00:00:00:01", "07:00:00:00:00:01"
    vmm.put("/network-interfaces/1", iface_id="1", host_dev_name="t1", guest_mac=first)
    vmm.put("/network-interfaces/2", iface_id="2", host_dev_name="t2", guest_mac=second.upper())
    card = {"iface_id": "2", "host_dev_name": "t2", "guest_mac": first}
    assert vmm.refused("PUT", "/network-interfaces/2", card) == (
        f"Network config error: The MAC address is already in use: {first}"
    )
    vmm.put("/network-interfaces/2", iface_id="2", host_dev_name="t2", guest_mac="08:00:00:00:00:01")
    taken = {"iface_id": "1", "host_dev_name": "t2", "guest_mac": first}
    assert vmm.refused("PUT", "/network-interfaces/1", taken) == (
        "Network config error: Could not create the network device: Open tap device failed: Error while"
        " creating ifreq structure: Device or resource busy (os error 16). Invalid TUN/TAP Backend provided"
        " by t2. Check our documentation on setting up the network devices."
    )
    vmm.put("/network-interfaces/3", iface_id="3", host_dev_name="t3", guest_mac=first, mtu=1400)
    assert vmm.get("/vm/config")["network-interfaces"][-1] == {
        "iface_id": "3",
        "host_dev_name": "t3",
        "guest_mac": first,
        "mtu": 1400,
        "rx_rate_limiter": None,
        "tx_rate_limiter": None,
    }
    long = {"iface_id": "4", "host_dev_name": "t" * 16}
    assert vmm.refused("PUT", "/network-interfaces/4", long).endswith("Invalid interface name")
    low = {"iface_id": "4", "host_dev_name": "t4", "mtu": 67}
    assert vmm.refused("PUT", "/network-interfaces/4", low).endswith("MTU 67 is out of range [68, 65535]")


def test_balloon(vmm: Vmm, tmp_path: Path) -> None:
    assert vmm.refused("GET", "/balloon") == "Balloon config error: No balloon device found."
    assert vmm.refused("PUT", "/balloon", {"amount_mib": 129, "deflate_on_oom": True}) == (
        "Balloon config error: Amount of pages requested is too large."
    )
    vmm.put("/balloon", amount_mib=64, deflate_on_oom=True, stats_polling_interval_s=5)
    shown = {
        "amount_mib": 64,
        "deflate_on_oom": True,
        "stats_polling_interval_s": 5,
        "free_page_hinting": False,
        "free_page_reporting": False,
    }
    assert vmm.get("/balloon") == shown
    (tmp_path / "kernel").touch()
    vmm.put("/boot-source", kernel_image_path=str(tmp_path / "kernel"))
    vmm.put("/actions", action_type="InstanceStart")
    vmm.patch("/balloon", amount_mib=4)
    assert vmm.refused("PATCH", "/balloon", {"amount_mib": 300}).endswith(
        "Requested memory should be less than 300MiB"
    )
    assert vmm.refused("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0}).endswith(
        "Statistics cannot be enabled/disabled after activation."
    )
    vmm.patch("/balloon/statistics", stats_polling_interval_s=1)
    assert vmm.get("/balloon") == {**shown, "amount_mib": 4, "stats_polling_interval_s": 1}
    assert vmm.get("/balloon/statistics") == {"target_mib": 1}
    assert vmm.guest.heard == ["start", ("balloon", 4), ("polling", 1), "stats"]
    assert "hinting when not enabled" in vmm.refused("PATCH", "/balloon/hinting/start", {})


def test_mmds(vmm: Vmm) -> None:
    assert vmm.get("/mmds") == {}
    assert vmm.refused("PATCH", "/mmds", {"a": 1}) == "MMDS error: The MMDS data store is not initialized."
    vmm.put("/mmds", latest={"meta-data": {"ami-id": "x", "old": 1}})
    vmm.patch("/mmds", latest={"meta-data": {"old": None, "new": [2]}})
    assert vmm.get("/mmds") == {"latest": {"meta-data": {"ami-id": "x", "new": [2]}}}
    status, body, _ = vmm.request("PUT", "/mmds", {"a": "b" * 2000})
    assert (status, body["fault_message"]) == (
        413,
        "MMDS limit exceeded error: The MMDS patch request doesn't fit.",
    )
    for cards, words in (
        ([], "is empty."),
        (["foo"], "any existing network interface."),
    ):
        body = {"network_interfaces": cards}
        assert vmm.refused("PUT", "/mmds/config", body).endswith(words)
    vmm.put("/network-interfaces/1", iface_id="1", host_dev_name="t1")
    wrong = {"network_interfaces": ["1"], "ipv4_address": "169.253.0.1"}
    assert vmm.refused("PUT", "/mmds/config", wrong).endswith("The MMDS IPv4 address is not link local.")
    assert "invalid IPv4 address syntax" in vmm.refused("PUT", "/mmds/config", {**wrong, "ipv4_address": "x"})
    vmm.put("/mmds/config", network_interfaces=["1"], version="V2")
    assert vmm.get("/vm/config")["mmds-config"] == {
        "version": "V2",
        "network_interfaces": ["1"],
        "ipv4_address": "169.254.169.254",
        "imds_compat": False,
    }


def test_the_whole_configuration(vmm: Vmm, tmp_path: Path) -> None:
    vmm.put("/vsock", guest_cid=15, uds_path="vsock.sock")
    _, _, headers = vmm.request("PUT", "/vsock", {"vsock_id": "v", "guest_cid": 16, "uds_path": "vsock.sock"})
    assert headers["deprecation"] == "true"
    assert "invalid guest CID" in vmm.refused("PUT", "/vsock", {"guest_cid": 2, "uds_path": "v"})
    vmm.put("/entropy")
    assert vmm.get("/vm/config") == {
        "balloon": None,
        "drives": [],
        "boot-source": {"kernel_image_path": "", "initrd_path": None, "boot_args": None},
        "cpu-config": None,
        "logger": None,
        "machine-config": vmm.get("/machine-config"),
        "metrics": None,
        "mmds-config": None,
        "network-interfaces": [],
        "vsock": {"guest_cid": 16, "uds_path": "vsock.sock"},
        "entropy": {"rate_limiter": None},
        "pmem": [],
        "memory-hotplug": None,
    }


def test_snapshots_are_loaded_by_a_fresh_process_only(vmm: Vmm, tmp_path: Path) -> None:
    load = {"snapshot_path": "s", "mem_backend": {"backend_type": "File", "backend_path": "m"}}
    vmm.put("/metrics", metrics_path=str(tmp_path / "metrics"))
    assert vmm.refused("PUT", "/vsock", {"guest_cid": 0, "uds_path": ""})  # trying is enough
    words = "Loading a microVM snapshot not allowed after configuring boot-specific resources."
    assert vmm.refused("PUT", "/snapshot/load", load) == f"Load snapshot error: {words}"
    assert not vmm.fatal


def test_a_loaded_snapshot_is_paused_or_runs(tmp_path: Path) -> None:
    load = {"snapshot_path": "s", "mem_backend": {"backend_type": "File", "backend_path": "m"}}
    for resume, state in ((False, "Paused"), (True, "Running")):
        vmm = Vmm(tmp_path)
        vmm.put("/snapshot/load", **load, resume_vm=resume)
        assert vmm.get("/")["state"] == state
        vmm.close()
    vmm = Vmm(tmp_path)
    vmm.guest.broken = True
    assert vmm.refused("PUT", "/snapshot/load", load) == (
        "Load snapshot error: Failed to restore from snapshot: QEMU has ended"
    )
    assert vmm.fatal == [1]
    vmm.close()


def test_log_and_metrics(started: Vmm, tmp_path: Path) -> None:
    log = (tmp_path / "log").read_text()
    assert "[test-vm:" in log and ":INFO]" in log
    assert "The API server received a Put request on '/actions' with body" in log
    started.refused("PUT", "/actions", {"action_type": "InstanceStart"})
    assert ":ERROR] Received Error. Status code: 400." in (tmp_path / "log").read_text()
    started.put("/actions", action_type="FlushMetrics")  # without a file that is nothing
    fresh_dir = tmp_path / "fresh"
    fresh_dir.mkdir()
    fresh = Vmm(fresh_dir)
    metrics = tmp_path / "metrics"
    os.mkfifo(metrics)
    reader = os.open(metrics, os.O_RDONLY | os.O_NONBLOCK)
    fresh.put("/metrics", metrics_path=str(metrics), emit_id=True, properties={"a": "b"})
    assert "Reinitialization" in fresh.refused("PUT", "/metrics", {"metrics_path": str(metrics)})
    assert "os error 2" in fresh.refused("PUT", "/logger", {"log_path": "/nonexistent/log"})
    fresh.metrics.flush()
    line = json.loads(os.read(reader, 65536))
    assert line["id"] == "test-vm" and line["properties"] == {"a": "b"} and line["utc_timestamp_ms"] > 0
    assert line["put_api_requests"] == {
        "metrics_count": 2,
        "metrics_fails": 1,
        "logger_count": 1,
        "logger_fails": 1,
    }
    fresh.metrics.flush()
    assert "put_api_requests" not in json.loads(os.read(reader, 65536))  # counted since the last line
    os.close(reader)
    fresh.close()


def talk(vmm: Vmm, data: bytes) -> bytes:
    """What comes back until the peer closes."""
    with vmm.connect() as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
        return answer


def test_http(vmm: Vmm) -> None:
    get = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = talk(vmm, get * 3)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3 and b"Firecracker API" in answers
    assert b"200 OK" in talk(vmm, get.replace(b"/version", b"http://localhost/version"))
    waiting = b"PUT /mmds HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert talk(vmm, waiting + b"{}").endswith(
        b"204 No Content\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
    )
    assert b"HTTP/1.1 100 " in talk(vmm, waiting)
    large = b"PUT /mmds HTTP/1.1\r\nHost: x\r\nContent-Length: 51201\r\n\r\n"
    assert b"HTTP/1.1 413 Payload Too Large" in talk(vmm, large) and b"51201 is larger" in talk(vmm, large)
    chunked = b"PUT /mmds HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"204 No" in talk(vmm, chunked + b"2\r\n{}\r\n0\r\n\r\n")
    assert b"HTTP/1.1 413" in talk(vmm, chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (60000, bytes(60000)))
    assert b"400 Bad Request" in talk(vmm, b"nonsense\r\n\r\n")
    clients = [vmm.connect() for _ in range(10)]
    with vmm.connect() as eleventh:  # answered before it asks
        assert eleventh.recv(4096).startswith(b"HTTP/1.1 503 Service Unavailable")
    for client in clients:
        client.sendall(get)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        client.close()


def test_a_client_that_reads_late_gets_all(vmm: Vmm) -> None:
    vmm.put("/mmds", a="b" * 1900)
    with vmm.connect() as client:
        client.settimeout(5)
        sent = 0
        request = b"GET /mmds HTTP/1.1\r\nHost: x\r\n\r\n"
        client.setblocking(False)
        try:
            while sent < 4000:
                sent += client.send(request * 10) // len(request)
        except BlockingIOError:
            pass
        assert vmm.get("/version")
        client.settimeout(20)
        seen = 0
        while seen < sent - 1:  # the last may have been cut
            seen += client.recv(1 << 20).count(b"HTTP/1.1 200")


PIECES = [
    b"GET / HTTP/1.1\r\n",
    b"PUT /vm HTTP/1.1\r\n",
    b"Host: x\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n",
    b"{}\r\n",
    b"2\r\n",
    b"0\r\n\r\n",
]


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40) | st.sampled_from(PIECES), max_size=12))
def test_no_bytes_break_the_protocol(pieces: list[bytes]) -> None:
    controller = Controller("x", Remembering(), Resources(taps), Mmds(100), Log("x"), Metrics("x"), print)
    connection = Connection(controller.answer, 1000, "x")
    for piece in pieces:
        connection.feed(piece)
    connection.feed(b"")
    assert connection.ending
    assert not connection.output or connection.output.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 5" not in connection.output


STEPS = st.tuples(st.sampled_from(OPERATIONS), st.booleans())


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=12), st.integers(0, 12))
def test_no_order_of_requests_is_worse_than_a_refusal(steps: list[Any], broken_from: int) -> None:
    guest = Remembering()
    resources = Resources(taps)
    log = Log("x")
    log.configure(models.LoggerConfig(level="Off"))
    controller = Controller("x", guest, resources, Mmds(1000), log, Metrics("x"), print)
    boot = b'{"kernel_image_path": "/dev/null"}'
    controller.answer("PUT", "/boot-source", boot, {})
    for index, ((method, path, body, _, _), real) in enumerate(steps):
        guest.broken = index >= broken_from
        if path in ("/logger", "/metrics"):
            continue
        if isinstance(body, dict) and real:
            body = {**body, **{k: "/dev/null" for k in body if k in ("path_on_host", "kernel_image_path")}}
            body = {k: v for k, v in body.items() if k != "socket"}
        reply = controller.answer(method, path, None if body is None else json.dumps(body).encode(), {})
        assert reply.status in (200, 204, 400, 413)
        assert (reply.status == 204) == (reply.body == b"")
    resources.close()
