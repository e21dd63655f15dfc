"""Fields of HostConfig, on dockerd and on nagayad: what is refused, and what the kernel is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerd import Dockerd
from house import House
from rawhttp import Reply, call

pytestmark = pytest.mark.root

API = "/v1.41"
Server = Dockerd | House
LOOP = "/dev/loop0"


@pytest.fixture(autouse=True)
def tidy(server: Server) -> Iterator[None]:
    yield
    for item in call(server.socket, "GET", f"{API}/containers/json?all=1").json:
        assert call(server.socket, "DELETE", f"{API}/containers/{item['Id']}?force=1&v=1").status == 204


def create(server: Server, host: dict[str, Any], *command: str, **body: Any) -> Reply:
    wish = {"Image": "nagaya/busybox", "Cmd": list(command or ("sleep", "600")), "HostConfig": host, **body}
    return call(server.socket, "POST", f"{API}/containers/create", wish)


def start(server: Server, host: dict[str, Any], *command: str, **body: Any) -> str:
    made = create(server, host, *command, **body)
    assert made.status == 201, made
    identity = str(made.json["Id"])
    started = call(server.socket, "POST", f"{API}/containers/{identity}/start")
    assert started.status == 204, started
    return identity


def output(server: Server, host: dict[str, Any], *command: str, **body: Any) -> str:
    identity = start(server, host, *command, Tty=True, **body)
    assert call(server.socket, "POST", f"{API}/containers/{identity}/wait").status == 200
    return call(server.socket, "GET", f"{API}/containers/{identity}/logs?stdout=1").body.decode()


def inspect(server: Server, identity: str) -> dict[str, Any]:
    found = call(server.socket, "GET", f"{API}/containers/{identity}/json").json
    assert isinstance(found, dict)
    return found


def control(server: Server, controller: str, identity: str, name: str) -> str:
    """A file of the container's cgroup."""
    return Path(f"/sys/fs/cgroup/{controller}/{server.cgroup_parent}/{identity}/{name}").read_text().strip()


@pytest.mark.parametrize(
    ("host", "says"),
    (
        ({"StorageOpt": {"size": "1G"}}, "--storage-opt is supported only for overlay over xfs"),
        ({"DeviceCgroupRules": ["x 1:3 mr"]}, "invalid device cgroup rule format: 'x 1:3 mr'"),
        ({"BlkioDeviceReadBps": [{"Path": "/dev/nosuch", "Rate": 1}]}, "stat /dev/nosuch: no such file"),
        ({"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1}]}, ""),
        ({"CpuRealtimeRuntime": 900_000_000}, ""),
        ({"VolumesFrom": ["nosuch"]}, "No such container: nosuch"),
        ({"VolumesFrom": ["nosuch:xx"]}, "invalid mode: xx"),
        ({"VolumesFrom": [""]}, "volumes-from specification cannot be an empty string"),
        ({"SecurityOpt": ["foo=bar"]}, "invalid --security-opt"),
        ({"SecurityOpt": ["seccomp={"]}, "ecoding seccomp profile failed"),
        ({"PidMode": "container:nosuch"}, "No such container: nosuch"),
        ({"IpcMode": "container:nosuch"}, "No such container: nosuch"),
        ({"Devices": [{"PathOnHost": "/dev/nosuch"}]}, "gathering device information"),
        ({"Tmpfs": {"/x": "foo"}}, 'nvalid tmpfs option ["foo"]'),
        ({"GroupAdd": ["nosuch"]}, "nable to find group nosuch"),
        ({"Sysctls": {"kernel.foo": "1"}}, "kernel.foo"),
    ),
)
def test_refusals(server: Server, host: dict[str, Any], says: str) -> None:
    """The older one lets some of them come as far as the start."""
    answer = create(server, host)
    if answer.status == 201:
        answer = call(server.socket, "POST", f"{API}/containers/{answer.json['Id']}/start")
    assert 400 <= answer.status <= 500
    assert says in answer.message


def test_rates_of_devices_and_their_update(server: Server) -> None:
    if not os.path.exists(LOOP):
        pytest.skip("no loop device here")
    rate = {"Path": LOOP, "Rate": 1 << 20}
    identity = start(server, {"BlkioDeviceReadBps": [rate], "BlkioDeviceWriteIOps": [rate]})
    assert inspect(server, identity)["HostConfig"]["BlkioDeviceReadBps"] == [rate]
    number = f"{os.major(os.stat(LOOP).st_rdev)}:{os.minor(os.stat(LOOP).st_rdev)}"
    assert control(server, "blkio", identity, "blkio.throttle.read_bps_device") == f"{number} 1048576"
    assert control(server, "blkio", identity, "blkio.throttle.write_iops_device") == f"{number} 1048576"


def test_weights_that_the_kernel_lacks_are_dropped_with_a_warning(server: Server) -> None:
    if os.path.exists("/sys/fs/cgroup/blkio/blkio.weight") or os.path.exists("/sys/fs/cgroup/cgroup.procs"):
        pytest.skip("this kernel has weights")
    answer = create(
        server,
        {"BlkioWeight": 300, "BlkioWeightDevice": [{"Path": LOOP, "Weight": 500}], "NetworkMode": "none"},
    )
    assert [w.partition(" or the cgroup")[0] for w in answer.json["Warnings"]] == [
        "Your kernel does not support Block I/O weight",
        "Your kernel does not support Block I/O weight_device",
    ]
    shown = inspect(server, answer.json["Id"])["HostConfig"]
    assert (shown["BlkioWeight"], shown["BlkioWeightDevice"]) == (0, [])


def test_device_rules_of_the_user(server: Server) -> None:
    rules = ["c 10:200 r", "b 7:* rwm"]
    identity = start(server, {"DeviceCgroupRules": rules})
    assert inspect(server, identity)["HostConfig"]["DeviceCgroupRules"] == rules
    listed = control(server, "devices", identity, "devices.list").splitlines()
    assert "b 7:* rwm" in listed
    assert any(line.startswith("c 10:200 r") for line in listed)


def test_volumes_from(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bound\n")
    giver = start(
        server,
        {"Binds": [f"{tmp_path}:/bound", "named:/named"]},
        *("sh", "-c", "echo anonymous > /any/file; echo named > /named/file"),
        Volumes={"/any": {}},
    )
    assert call(server.socket, "POST", f"{API}/containers/{giver}/wait").json["StatusCode"] == 0
    script = "cat /bound/file /named/file /any/file; touch /any/x && echo writable"
    assert output(server, {"VolumesFrom": [giver]}, "sh", "-c", script).split() == [
        *("bound", "named", "anonymous", "writable"),
    ]
    taker = start(server, {"VolumesFrom": [f"{giver}:ro"], "Binds": ["other:/named"]})
    shown = inspect(server, taker)
    assert shown["HostConfig"]["VolumesFrom"] == [f"{giver}:ro"]
    theirs = {m["Destination"]: m["Source"] for m in inspect(server, giver)["Mounts"]}
    mounts = {m["Destination"]: (m["Source"], m["RW"]) for m in shown["Mounts"]}
    assert mounts["/any"] == (theirs["/any"], False)
    assert mounts["/bound"] == (str(tmp_path), False)
    assert mounts["/named"][0] != theirs["/named"] and mounts["/named"][1]
    # what another one still uses stays
    assert call(server.socket, "DELETE", f"{API}/containers/{giver}?v=1").status == 204
    assert Path(theirs["/any"], "file").read_text() == "anonymous\n"


def test_namespaces_of_another(server: Server) -> None:
    peer = start(server, {"IpcMode": "shareable"}, "sh", "-c", "echo here > /dev/shm/mark; exec sleep 600")
    joined = {"PidMode": f"container:{peer}", "IpcMode": f"container:{peer}"}
    script = "until [ -e /dev/shm/mark ]; do sleep 0.02; done; cat /dev/shm/mark; cat /proc/1/comm"
    assert output(server, joined, "sh", "-c", script).split() == ["here", "sleep"]
    private = start(server, {"IpcMode": "private"})
    answer = create(server, {"IpcMode": f"container:{private}"})
    if answer.status == 201:
        answer = call(server.socket, "POST", f"{API}/containers/{answer.json['Id']}/start")
    assert "non-shareable IPC" in answer.message
    host = output(
        server, {"UTSMode": "host", "IpcMode": "host"}, "sh", "-c", "hostname; readlink /proc/self/ns/ipc"
    )
    assert host.split() == [os.uname().nodename, os.readlink("/proc/self/ns/ipc")]


def test_security_options_that_change_nothing_here(server: Server) -> None:
    if os.path.isdir("/sys/kernel/security/apparmor") or os.path.isdir("/sys/fs/selinux"):
        pytest.skip("this host has AppArmor or SELinux")
    options = ["apparmor=foo", "label=type:foo", "no-new-privileges"]
    status = output(server, {"SecurityOpt": options}, "grep", "NoNewPrivs", "/proc/self/status")
    assert status.split() == ["NoNewPrivs:", "1"]
