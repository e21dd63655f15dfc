"""linux.resources on cgroup v2: what is written where, and that the kernel acts on it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from bundles import Bundle, wait_until

pytestmark = pytest.mark.root

MB = 1 << 20
DISK = "/dev/nvme0n1"


def group(box: Bundle) -> Path:
    """The container's cgroup."""
    return Path(f"/sys/fs/cgroup{box.spec['linux']['cgroupsPath']}")


def value(box: Bundle, file: str) -> str:
    return (group(box) / file).read_text().strip()


def resources(box: Bundle, **parts: Any) -> None:
    box.spec["linux"]["resources"].update(parts)


def stats(box: Bundle) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(box.ok("events", "--stats", box.id))["data"]
    return data


def disk_number() -> tuple[int, int]:
    status = os.stat(DISK)
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def disk_node() -> dict[str, Any]:
    """The disk as a device of the container."""
    major, minor = disk_number()
    return {"path": "/dev/disk", "type": "b", "major": major, "minor": minor, "fileMode": 0o600}


def test_limits_are_in_the_files_of_cgroup_v2(box: Bundle) -> None:
    resources(
        box,
        memory={"limit": 64 * MB, "swap": 96 * MB, "reservation": 16 * MB},
        cpu={"shares": 1024, "quota": 50000, "period": 100000, "cpus": "1", "mems": "0"},
        pids={"limit": 33},
        hugepageLimits=[{"pageSize": "2MB", "limit": 4 * MB}],
        unified={"memory.high": str(48 * MB), "memory.oom.group": "1"},
    )
    box.start()
    assert value(box, "cgroup.procs") == str(box.state()["pid"])
    expected = {
        "memory.max": str(64 * MB),
        "memory.swap.max": str(32 * MB),
        "memory.low": str(16 * MB),
        "memory.high": str(48 * MB),
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "1",
        "cpuset.mems": "0",
        "pids.max": "33",
        "hugetlb.2MB.max": str(4 * MB),
    }
    assert {file: value(box, file) for file in expected} == expected
    # 39 by the formula of these versions of runc and crun
    assert value(box, "cpu.weight") == ("100" if box.is_ours else "39")
    assert box.ok("exec", box.id, "nproc") == "1\n"


def test_limits_of_block_io(box: Bundle) -> None:
    major, minor = disk_number()
    device = {"major": major, "minor": minor}
    resources(
        box,
        blockIO={
            "weight": 500,
            "throttleReadBpsDevice": [{**device, "rate": 8 * MB}],
            "throttleWriteIOPSDevice": [{**device, "rate": 100}],
        },
    )
    box.start()
    assert value(box, "io.max") == f"{major}:{minor} rbps={8 * MB} wbps=max riops=max wiops=100"
    assert value(box, "io.weight") == "default 4950"
    box.ok("update", "--blkio-weight", "10", box.id)
    assert value(box, "io.weight") == "default 1"


def test_reads_of_the_disk_are_throttled_and_counted(events_box: Bundle) -> None:
    major, minor = disk_number()
    events_box.spec["linux"]["devices"] = [disk_node()]
    resources(
        events_box,
        devices=[
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "b", "major": major, "minor": minor, "access": "r"},
        ],
        blockIO={"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 4 * MB}]},
    )
    events_box.start()
    before = os.times().elapsed
    events_box.ok(
        "exec", events_box.id, "dd", "if=/dev/disk", "of=/dev/null", "bs=1M", "count=6", "iflag=direct"
    )
    assert os.times().elapsed - before > 1
    reads = [
        entry["value"]
        for entry in stats(events_box)["blkio"]["ioServiceBytesRecursive"]
        # runc leaves a number 0 out
        if (entry["major"], entry.get("minor", 0), entry["op"].lower()) == (major, minor, "read")
    ]
    assert reads == [6 * MB]


def test_a_program_beyond_its_memory_is_killed(box: Bundle) -> None:
    resources(box, memory={"limit": 16 * MB, "swap": 16 * MB})
    done = box.run("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
    assert done.returncode == 137


def test_swap_is_used_where_it_is_allowed(box: Bundle) -> None:
    resources(box, memory={"limit": 16 * MB, "swap": 80 * MB})
    assert box.run("dd", "if=/dev/zero", "of=/dev/null", "bs=48M", "count=1").returncode == 0


@pytest.mark.parametrize("limit", [2 * MB, MB // 2])
@pytest.mark.parametrize("own_namespace", [True, False])
def test_a_limit_below_what_the_runtime_itself_needs(
    our_box: Bundle, limit: int, own_namespace: bool
) -> None:
    """Only the program is charged: the interpreter that makes the container would not fit."""
    if not own_namespace:
        our_box.spec["linux"]["namespaces"] = [
            n for n in our_box.spec["linux"]["namespaces"] if n["type"] != "cgroup"
        ]
    resources(our_box, memory={"limit": limit, "swap": limit})
    assert our_box.run("true").returncode == 0
    assert "0::/" in our_box.shell("cat /proc/self/cgroup")


def test_exec_where_the_runtime_itself_would_not_fit(our_box: Bundle) -> None:
    """Neither is the interpreter that joins charged for what it has loaded."""
    resources(our_box, memory={"limit": MB, "swap": MB})
    our_box.start()
    for _ in range(3):
        assert our_box.ok("exec", our_box.id, "echo", "alive") == "alive\n"


def test_processes_beyond_the_limit_are_refused(events_box: Bundle) -> None:
    resources(events_box, pids={"limit": 16})
    events_box.start()
    done = events_box.call(
        "exec",
        events_box.id,
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 5 & done",
    )
    assert done.returncode != 0 and "fork" in done.stderr
    assert stats(events_box)["pids"]["limit"] == 16


def test_a_quota_throttles(events_box: Bundle) -> None:
    resources(events_box, cpu={"quota": 5000, "period": 50000})
    events_box.start("sh", "-c", "while :; do :; done")
    wait_until(lambda: stats(events_box)["cpu"]["throttling"]["throttledPeriods"] > 2)
    usage = stats(events_box)["cpu"]["usage"]
    assert usage["total"] > 0 and usage["user"] + usage["kernel"] <= usage["total"] + 1_000_000


def test_statistics(events_box: Bundle) -> None:
    resources(events_box, memory={"limit": 64 * MB, "swap": 96 * MB}, pids={"limit": 20})
    events_box.start()
    data = stats(events_box)
    assert data["pids"] == {"current": 1, "limit": 20}
    assert data["memory"]["usage"]["limit"] == 64 * MB
    assert 0 < data["memory"]["usage"]["usage"] < 64 * MB
    assert data["memory"]["raw"]["anon"] > 0
    assert "2MB" in data["hugetlb"]


def test_update(box: Bundle) -> None:
    resources(box, memory={"limit": 64 * MB, "swap": 64 * MB}, pids={"limit": 20})
    box.start()
    box.ok("update", "--memory", str(96 * MB), "--memory-swap", str(128 * MB), "--pids-limit", "40", box.id)
    box.ok("update", "--cpu-quota", "20000", "--cpu-period", "40000", "--cpuset-cpus", "0", box.id)
    files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpuset.cpus")
    assert [value(box, file) for file in files] == [str(96 * MB), str(32 * MB), "40", "20000 40000", "0"]
    box.ok("update", "--memory", "-1", "--memory-swap", "-1", "--cpu-quota", "-1", box.id)
    assert [value(box, file) for file in ("memory.max", "memory.swap.max")] == ["max", "max"]
    if not box.runtime.endswith("crun"):  # 1.8.1 leaves the quota as it is
        assert value(box, "cpu.max").startswith("max ")


def test_an_update_that_would_kill_is_refused(box: Bundle) -> None:
    resources(box, memory={"limit": 64 * MB, "swap": 64 * MB, "checkBeforeUpdate": True})
    box.start()
    (box.base / "new.json").write_text(json.dumps({"memory": {"limit": 4096, "checkBeforeUpdate": True}}))
    done = box.call("update", "-r", str(box.base / "new.json"), box.id)
    if box.is_ours:  # these versions of the peers do not have it
        assert done.returncode == 1 and "rejecting memory limit" in done.stderr
        assert value(box, "memory.max") == str(64 * MB)


def test_a_limit_of_a_missing_controller_is_named(our_box: Bundle) -> None:
    resources(our_box, unified={"nonesuch.max": "1"})
    done = our_box.run("true")
    assert done.returncode == 1
    assert "linux.resources.unified[nonesuch.max]" in done.stderr and "nonesuch controller" in done.stderr


def test_device_rules(box: Bundle) -> None:
    major, minor = disk_number()
    box.spec["linux"]["devices"] = [disk_node()]
    deny = {"allow": False, "access": "rwm"}
    resources(box, devices=[deny])
    box.start()
    read = ("exec", box.id, "head", "-c", "1", "/dev/disk")
    done = box.call(*read)
    assert done.returncode != 0 and "not permitted" in done.stderr
    assert box.call("exec", box.id, "sh", "-c", "echo x > /dev/null; head -c 1 /dev/zero").returncode == 0
    made = box.call("exec", box.id, "mknod", "/disk", "b", str(major), str(minor))
    assert made.returncode != 0
    # an update leaves them alone
    box.ok("update", "--pids-limit", "50", box.id)
    assert box.call(*read).returncode != 0


def test_device_rules_by_access(box: Bundle) -> None:
    major, minor = disk_number()
    box.spec["linux"]["devices"] = [disk_node()]
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": major, "access": "rm"},
    ]
    resources(box, devices=rules)
    # mknod needs the capability, which the example does not have
    for kind in ("bounding", "effective", "permitted"):
        box.spec["process"]["capabilities"][kind].append("CAP_MKNOD")
    box.start()
    box.ok("exec", "--cap", "CAP_MKNOD", box.id, "mknod", "/disk", "b", str(major), str(minor))
    assert stat.S_ISBLK(os.stat(box.rootfs / "disk").st_mode)
    box.ok("exec", box.id, "head", "-c", "1", "/dev/disk")
    done = box.call("exec", box.id, "sh", "-c", "echo x > /dev/disk")
    assert done.returncode != 0 and "not permitted" in done.stderr


def test_everything_allowed_needs_no_program(box: Bundle) -> None:
    box.spec["linux"]["devices"] = [disk_node()]
    resources(box, devices=[{"allow": True, "access": "rwm"}])
    box.start()
    box.ok("exec", box.id, "head", "-c", "1", "/dev/disk")
