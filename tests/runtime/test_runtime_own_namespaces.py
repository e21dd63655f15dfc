"""Namespaces with settings: clocks of a time namespace, interfaces that move to a network namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from bundles import Bundle

pytestmark = pytest.mark.root

OFFSETS = {"monotonic": {"secs": 7000, "nanosecs": 5}, "boottime": {"secs": -3}}


def own_users(box: Bundle) -> None:
    box.spec["linux"]["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    box.spec["linux"]["uidMappings"] = box.spec["linux"]["gidMappings"] = ids
    for path in (box.base, box.path):
        path.chmod(0o755)
    for path in (box.rootfs, *box.rootfs.rglob("*")):
        os.chown(path, 100000, 100000, follow_symlinks=False)


@pytest.mark.parametrize("users", [False, True])
def test_a_time_namespace_has_its_offsets(our_box: Bundle, users: bool) -> None:
    if users:
        own_users(our_box)
    our_box.spec["linux"]["namespaces"].append({"type": "time"})
    our_box.spec["linux"]["timeOffsets"] = OFFSETS
    lines = our_box.shell("cat /proc/self/timens_offsets").splitlines()
    assert [line.split() for line in lines] == [["monotonic", "7000", "5"], ["boottime", "-3", "0"]]


def test_all_namespaces_of_another_container_are_joined(our_box: Bundle) -> None:
    own_users(our_box)
    our_box.spec["linux"]["namespaces"].append({"type": "time"})
    our_box.spec["linux"]["timeOffsets"] = OFFSETS
    our_box.start()
    pid = our_box.state()["pid"]
    first, linux = our_box.id, our_box.spec["linux"]
    our_box.id = f"{first}b"
    for key in ("uidMappings", "gidMappings", "timeOffsets"):
        del linux[key]
    for entry in linux["namespaces"]:
        if entry["type"] != "mount":
            entry["path"] = f"/proc/{pid}/ns/{'net' if entry['type'] == 'network' else entry['type']}"
    assert "7000" in our_box.shell("cat /proc/self/timens_offsets")
    our_box.id = first


def in_a_network_of_ones_own(box: Bundle, setup: str) -> subprocess.CompletedProcess[str]:
    box.save()
    run = " ".join(box.argv("run", "--bundle", str(box.path), box.id))
    return subprocess.run(
        ["unshare", "--net", "sh", "-ec", f"{setup}; {run}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("device", [{}, {"name": "eth7"}])
def test_interfaces_move_with_their_addresses(our_box: Bundle, users: bool, device: dict[str, Any]) -> None:
    if users:
        own_users(our_box)
    (our_box.rootfs / "bin" / "ip").symlink_to("busybox")
    our_box.spec["linux"]["netDevices"] = {"nagt-a": device}
    our_box.spec["process"]["args"] = ["ip", "address"]
    done = in_a_network_of_ones_own(
        our_box,
        "ip link add nagt-a mtu 1400 type veth peer name nagt-b;"
        " ip link set nagt-a address 02:00:00:00:00:09;"
        " ip address add 10.231.9.1/24 dev nagt-a; ip address add fd31::9/64 dev nagt-a nodad;"
        " ip address add 10.231.8.1/24 scope link dev nagt-a; ip link set nagt-a up",
    )
    assert done.returncode == 0, done
    _, _, text = done.stdout.partition(f": {device.get('name', 'nagt-a')}")
    for expected in ("mtu 1400", "02:00:00:00:00:09", "10.231.9.1/24", "fd31::9/64", ",UP"):
        assert expected in text, (expected, done.stdout)
    assert "10.231.8.1" not in done.stdout


@pytest.mark.parametrize("users", [False, True])
def test_proc_of_a_joined_pid_namespace_shows_that_alone(box: Bundle, users: bool) -> None:
    if users:
        if not box.is_ours:
            pytest.skip("runc joins a user namespace without mappings since 1.2")
        own_users(box)
    box.start()
    pid, first, linux = box.state()["pid"], box.id, box.spec["linux"]
    box.id = f"{first}b"
    joined = ("pid", "user") if users else ("pid",)
    for entry in linux["namespaces"]:
        if entry["type"] in joined:
            entry["path"] = f"/proc/{pid}/ns/{entry['type']}"
    for key in ("uidMappings", "gidMappings") if users else ():
        del linux[key]
    names = box.shell("cd /proc; echo [0-9]*; readlink self; cat /proc/1/cmdline").split("\n")
    assert names[2] == "sleep\x001000\x00"
    assert names[0].split()[0] == "1" and len(names[0].split()) <= 3
    assert 1 < int(names[1]) < 100
    box.id = first


def test_where_the_kernel_cannot_name_the_namespace_a_helper_makes_the_proc() -> None:
    script = (
        "import os; from nagaya.linux import namespaces as ns; from nagaya.runtime import plan\n"
        "from nagaya.runtime.steps import procfs\n"
        "ns.unshare(ns.CLONE_NEWPID | ns.CLONE_NEWNS)\n"
        "step = plan.Mount(0, {'destination': '/proc', 'type': 'proc', 'options': ['ro']})\n"
        "read, write = os.pipe()\n"
        "pid = os.fork()\n"
        "if not pid: os.close(write); os.read(read, 1); os._exit(0)\n"
        "tree = procfs.by_helper(step)\n"
        "top = os.open('.', os.O_RDONLY, dir_fd=tree)\n"
        "print(*(n for n in os.listdir(top) if n.isdigit()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
