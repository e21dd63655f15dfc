"""A bundle's words as a guest's agent gets them, and what machine a bundle is given: pure."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from nagaya.errors import InvalidArgument
from nagaya.linux import mounts as m
from nagaya.linux import namespaces as ns
from nagaya.oci.runtime import example
from nagaya.vm import guest, launching, pod, usage

MB = 1 << 20


def spec() -> dict[str, Any]:
    made = example()
    made["linux"]["maskedPaths"] = ["/proc/kcore"]
    made["linux"]["readonlyPaths"] = ["/proc/sys"]
    return made


def values(fields: guest.Fields, key: str) -> list[Any]:
    return [value for name, value in fields if name == key]


def container(document: dict[str, Any], **more: Any) -> guest.Fields:
    given: dict[str, Any] = {"root": "/run/nagaya/c/root", "sources": {}, **more}
    return guest.container("c", document, "/bundle", **given)


def test_a_plain_bundle() -> None:
    fields = container(spec())
    assert values(fields, "container") == ["c"] and values(fields, "root") == ["/run/nagaya/c/root"]
    (flags,) = values(fields, "namespaces")
    assert flags & ns.CLONE_NEWPID and flags & ns.CLONE_NEWNS and flags & ns.CLONE_NEWIPC
    assert not flags & (ns.CLONE_NEWNET | ns.CLONE_NEWUSER)  # the guest's network is the container's
    mounts = [value.split("\0") for value in values(fields, "mount")]
    proc = next(mount for mount in mounts if mount[2] == "/proc")
    assert proc[:2] == ["proc", "proc"]
    assert "/dev/null\0c\0001\0003\000438\0000\0000" in values(fields, "device")
    assert values(fields, "mask") == ["/proc/kcore"] and values(fields, "protect") == ["/proc/sys"]
    assert values(fields, "readonly") == [1]
    assert values(fields, "hostname") == ["nagaya"]


def test_binds_come_from_where_they_lie_in_the_guest() -> None:
    document = spec()
    document["mounts"] = [
        {"destination": "/a", "type": "bind", "source": "/host/a", "options": ["rbind", "ro", "nosuid"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
        {"destination": "/t", "type": "tmpfs", "source": "t", "options": ["size=1m", "noexec", "rprivate"]},
    ]
    bind, cgroup, tmpfs = (v.split("\0") for v in values(container(document, sources={0: "/run/x"}), "mount"))
    assert bind[:3] == ["", "/run/x", "/a"]
    assert int(bind[3]) == m.MS_BIND | m.MS_REC | m.MS_RDONLY | m.MS_NOSUID
    assert cgroup[:3] == ["cgroup2", "cgroup", "/sys/fs/cgroup"] and cgroup[5] == ""
    assert tmpfs[5] == "size=1m" and int(tmpfs[4]) == m.MS_PRIVATE | m.MS_REC


def test_what_a_pod_shares_is_not_made_anew() -> None:
    document = spec()
    for kind in document["linux"]["namespaces"]:
        if kind["type"] in ("ipc", "pid"):
            kind["path"] = f"/run/ns/{kind['type']}"
    guest.check(document, pod=True)
    with pytest.raises(InvalidArgument, match="cannot join the pid namespace /run/ns/pid"):
        guest.check(document, pod=False)
    fields = container(document, shared=frozenset(("ipc",)), joins={"pid": 7}, hostname="pod")
    (flags,) = values(fields, "namespaces")
    assert not flags & (ns.CLONE_NEWIPC | ns.CLONE_NEWPID)
    assert values(fields, "join") == [f"7 {ns.CLONE_NEWPID}"]
    del document["hostname"]
    assert values(container(document, hostname="pod"), "hostname") == ["pod"]


def test_a_process() -> None:
    wanted = {
        "args": ["sh", "-c", "x"],
        "env": ["A=b", "not a variable"],
        "cwd": "/w",
        "user": {"uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 0o77},
        "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN"],
            "effective": ["CAP_CHOWN", "CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"],
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
        "noNewPrivileges": True,
        "oomScoreAdj": -5,
    }  # fmt: skip
    fields = guest.process(9, wanted, None, stdin=True, size=(24, 80))
    assert values(fields, "process") == [9] and values(fields, "arg") == ["sh", "-c", "x"]
    assert values(fields, "env") == ["A=b"]
    assert (values(fields, "uid"), values(fields, "gid"), values(fields, "group")) == ([5], [6], [7, 8])
    # effective is cut to what is permitted; nothing is inherited that is not ambient, and permitted
    assert values(fields, "caps") == ["21 1 1 0 0"]
    assert values(fields, "rlimit") == ["7 10 20"]
    assert (
        values(fields, "umask") == [0o77] and values(fields, "nnp") == [1] and values(fields, "oom") == [-5]
    )
    assert values(fields, "terminal") == ["24 80"] and values(fields, "stdin") == [1]
    assert not values(fields, "seccomp")
    filtered = guest.process(9, wanted, {"defaultAction": "SCMP_ACT_ALLOW"}, stdin=False, size=None)
    assert len(values(filtered, "seccomp")[0]) % 8 == 0 and not values(filtered, "stdin")


def test_limits() -> None:
    resources = {
        "memory": {"limit": 64 * MB, "swap": 64 * MB},
        "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1"},
        "pids": {"limit": 50},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
    }
    assert guest.limits(resources) == [
        "pids.max=50", "memory.swap.max=0", f"memory.max={64 * MB}", "cpu.weight=100", "cpu.max=50000 100000",
    ]  # fmt: skip
    # the host's part: processors, and memory for the guest's and QEMU's
    assert launching.host_resources(resources, 256) == {
        "cpu": resources["cpu"], "memory": {"limit": (256 + launching.OVERHEAD) * MB},
    }  # fmt: skip
    assert launching.host_resources({"pids": {"limit": 5}}, 256) == {}


@pytest.mark.parametrize(
    ("limit", "is_pod", "mib"),
    [(0, False, 256), (-1, False, 256), (64, False, 256), (192, False, 256), (193, False, 512),
     (3000, False, 4096), (64, True, 1024), (3000, True, 4096), (1 << 40, False, 64 << 10)],
)  # fmt: skip
def test_memory_comes_in_powers_of_two(limit: int, is_pod: bool, mib: int) -> None:
    document = {"linux": {"resources": {"memory": {"limit": limit * MB if limit > 0 else limit}}}}
    assert launching.memory_of(document, is_pod) == mib


def test_processors_are_those_that_may_be_used() -> None:
    def asked(**cpu: int) -> int:
        return launching.vcpus_of({"linux": {"resources": {"cpu": cpu}}})

    assert asked() == asked(quota=-1) == asked(quota=50000, period=100000) == 1
    assert asked(quota=150000, period=100000) == asked(quota=200000) == 2
    assert asked(quota=10**9, period=1000) == 8


def test_whose_pod_it_is() -> None:
    assert launching.pod_of({}) == launching.pod_of({"annotations": {"x": "y"}}) == ""
    assert launching.pod_of({"annotations": {"io.kubernetes.cri.sandbox-id": "abc"}}) == "abc"
    assert launching.pod_of({"annotations": {"io.kubernetes.cri-o.SandboxID": "def"}}) == "def"
    with pytest.raises(InvalidArgument):
        launching.pod_of({"annotations": {"io.kubernetes.cri.sandbox-id": "../x"}})
    assert pod.beside("/kubepods/pod1/c1", "p") == "/kubepods/pod1/vm-p"
    assert pod.beside("kubepods.slice:nagaya:c1", "p") == "kubepods.slice:nagaya:vm-p"
    assert pod.beside("", "p") == ""


def test_privileged_containers_get_the_devices_that_a_guest_has() -> None:
    document = copy.deepcopy(spec())
    disk = {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}
    fuse = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    document["linux"]["devices"] = [disk, fuse]
    with pytest.raises(InvalidArgument, match="has not the host's device /dev/sda"):
        guest.check(document, pod=False)
    document["linux"]["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    guest.check(document, pod=False)
    paths = [value.split("\0")[0] for value in values(container(document), "device")]
    assert "/dev/fuse" in paths and "/dev/sda" not in paths


def test_processes_as_a_table() -> None:
    stat = "7 (a b) S 1 " + " ".join(["0"] * 9) + " 250 50 0"
    shown = usage.table([[stat, "Name:\ta b\nUid:\t5\t5\t5\t5\n", "sleep\x00100\x00"], ["", "", ""]])
    head, row = shown.splitlines()
    assert head.split() == ["UID", "PID", "PPID", "TIME", "CMD"]
    assert row.split() == ["5", "7", "1", "00:00:03", "sleep", "100"]
