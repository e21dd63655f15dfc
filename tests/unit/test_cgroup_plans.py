"""What is written to cgroup files for OCI linux.resources, on v1 and v2: no root needed."""

from __future__ import annotations

from typing import Any

import pytest

from nagaya.errors import FailedPrecondition, InvalidArgument
from nagaya.linux import cgroup
from nagaya.runtime import cgroups
from nagaya.runtime.cgroups import devices, stats, v1, v1_limits, v2

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
42 31 0:32 /elsewhere /mnt/again rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw,nsdelegate
"""
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
NESTED = (
    "30 23 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    "31 23 0:27 /docker/abc /sys/fs/cgroup/my\\040cpu ro - cgroup cgroup rw,cpu\n"
)


def test_layouts_are_told_apart() -> None:
    hybrid = cgroup.parse_mountinfo(HYBRID)
    assert (hybrid.version, hybrid.unified) == (1, "/sys/fs/cgroup/unified")
    assert [h.controllers for h in hybrid.hierarchies] == [("cpu", "cpuacct"), ("memory",), ("name=systemd",)]
    memory = hybrid.hierarchy("memory")
    assert memory is not None and memory.mountpoint == "/sys/fs/cgroup/memory"
    assert hybrid.hierarchy("pids") is None
    unified = cgroup.parse_mountinfo(UNIFIED)
    assert (unified.version, unified.unified, unified.hierarchies) == (2, "/sys/fs/cgroup", [])
    nested = cgroup.parse_mountinfo(NESTED)
    assert [h.mountpoint for h in nested.hierarchies] == ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/my cpu"]


def test_own_cgroups_are_read() -> None:
    text = "4:memory:/a/b\n3:cpu,cpuacct:/\n1:name=systemd:/init.scope\n0::/init.scope\n"
    assert cgroup.parse_proc_cgroup(text) == {
        "memory": "/a/b",
        "cpu": "/",
        "cpuacct": "/",
        "name=systemd": "/init.scope",
        "": "/init.scope",
    }


def test_v1_paths_follow_cgroups_path() -> None:
    found = cgroup.parse_mountinfo(HYBRID)
    own = {"memory": "/mine", "cpu": "/", "name=systemd": "/"}
    absolute = v1.paths_for(found, own, "/pods//a/./b/", "id")
    assert absolute["memory"] == "/sys/fs/cgroup/memory/pods/a/b"
    assert absolute["cpu"] == absolute["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct/pods/a/b"
    assert absolute[""] == "/sys/fs/cgroup/unified/pods/a/b"  # the hybrid layout's cgroup2
    manager = v1.ManagerV1(absolute)
    assert absolute[""] not in manager.join_paths()  # born there: joining takes long
    relative = v1.paths_for(found, own, "pods/a", "id")
    assert relative["memory"] == "/sys/fs/cgroup/memory/mine/pods/a"
    empty = v1.paths_for(found, own, "", "id")
    assert (empty["memory"], empty["cpu"]) == (
        "/sys/fs/cgroup/memory/mine/id",
        "/sys/fs/cgroup/cpu,cpuacct/id",
    )


def test_v1_paths_inside_a_container_without_a_cgroup_namespace() -> None:
    found = cgroup.parse_mountinfo(NESTED)
    inside = v1.paths_for(found, {"memory": "/docker/abc/sub", "cpu": "/docker/abc"}, "x", "id")
    assert inside == {"memory": "/sys/fs/cgroup/memory/sub/x", "cpu": "/sys/fs/cgroup/my cpu/x"}


@pytest.mark.parametrize("path", ["../../etc", "/a/../..", "a\nb", "a\0b", "/"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        v1.paths_for(cgroup.parse_mountinfo(HYBRID), {}, path, "id")
    assert caught.value.subject == "linux.cgroupsPath"
    with pytest.raises(InvalidArgument):
        v2.path_for(cgroup.parse_mountinfo(UNIFIED), {"": "/"}, path, "id")


def test_v2_path_is_beside_our_own_cgroup() -> None:
    found = cgroup.parse_mountinfo(UNIFIED)
    own = {"": "/user.slice/session.scope"}
    assert v2.path_for(found, own, "", "id") == "/sys/fs/cgroup/user.slice/id"
    assert v2.path_for(found, own, "/x/y", "id") == "/sys/fs/cgroup/x/y"
    assert v2.path_for(found, {"": "/"}, "a/b", "id") == "/sys/fs/cgroup/a/b"


def test_container_view() -> None:
    found = cgroup.parse_mountinfo(HYBRID)
    view = cgroup.container_view(found, v1.paths_for(found, {}, "/c/1", "1"))
    assert view == [
        ("cpu,cpuacct", "cpu,cpuacct", "/c/1"),
        ("memory", "memory", "/c/1"),
        ("systemd", "none,name=systemd", "/c/1"),
    ]
    assert cgroup.container_view(cgroup.parse_mountinfo(UNIFIED), {"": "/sys/fs/cgroup/c/1"}) == [
        ("", "", "/c/1")
    ]


FULL: dict[str, Any] = {
    "memory": {
        "limit": 64 << 20,
        "swap": 128 << 20,
        "reservation": 32 << 20,
        "swappiness": 10,
        "disableOOMKiller": True,
        "kernel": 1 << 20,
        "kernelTCP": 1 << 20,
    },
    "cpu": {
        "shares": 512,
        "quota": 50000,
        "period": 20000,
        "burst": 1000,
        "cpus": "0-1",
        "mems": "0",
    },
    "pids": {"limit": 100},
    "blockIO": {
        "weight": 500,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 300}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}],
    },
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
    "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}},
}


def test_v1_golden() -> None:
    network = {"classID": 0x100001, "priorities": [{"name": "eth0", "priority": 5}]}
    assert v1_limits.plan_v1({**FULL, "network": network}, devices=False) == [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_period_us", "20000"),
        ("cpu", "cpu.cfs_burst_us", "1000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("cpuset", "cpuset.mems", "0"),
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "134217728"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("memory", "memory.oom_control", "1"),
        ("memory", "memory.swappiness", "10"),
        ("blkio", "blkio.weight", "500"),
        ("blkio", "blkio.weight_device", "8:0 300"),
        ("blkio", "blkio.throttle.read_bps_device", "8:0 1048576"),
        ("blkio", "blkio.throttle.write_iops_device", "8:16 7"),
        ("pids", "pids.max", "100"),
        ("hugetlb", "hugetlb.2MB.limit_in_bytes", "4194304"),
        ("hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
        ("net_cls", "net_cls.classid", "1048577"),
        ("net_prio", "net_prio.ifpriomap", "eth0 5"),
        ("rdma", "rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
    ]


def test_v2_golden() -> None:
    resources = {**FULL, "unified": {"memory.oom.group": "1", "io.max": "8:0 rbps=1\n8:16 wbps=2"}}
    assert [w[:2] for w in v2.plan_v2(resources)] == [
        ("pids.max", "100"),
        ("memory.swap.max", "67108864"),
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("io.weight", "4950"),
        ("io.weight", "8:0 2930"),
        ("io.max", "8:0 rbps=1048576"),
        ("io.max", "8:16 wiops=7"),
        ("cpu.weight", "59"),
        ("cpu.max.burst", "1000"),
        ("cpu.max", "50000 20000"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
        ("memory.oom.group", "1"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 wbps=2"),
    ]
    assert ("io.bfq.weight", "500") in [w[:2] for w in v2.plan_v2(FULL, bfq=True)]


def test_nothing_asked_is_nothing_written() -> None:
    assert v1_limits.plan_v1({}, devices=False) == []
    assert v2.plan_v2({}) == []
    empty: dict[str, Any] = {"memory": {}, "cpu": {"shares": 0}, "pids": {}, "blockIO": None, "unified": {}}
    assert v1_limits.plan_v1(empty, devices=False) == v2.plan_v2(empty) == []


def test_unlimited() -> None:
    resources = {"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}
    assert v1_limits.plan_v1(resources, devices=False) == [
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("memory", "memory.limit_in_bytes", "-1"),
        ("memory", "memory.memsw.limit_in_bytes", "-1"),
        ("pids", "pids.max", "max"),
    ]
    assert [w[:2] for w in v2.plan_v2(resources)] == [
        ("pids.max", "max"),
        ("memory.swap.max", "max"),
        ("memory.max", "max"),
        ("cpu.max", "max 100000"),
    ]


@pytest.mark.parametrize(
    ("current", "limit", "swap", "first"),
    [
        (2**63, 64, 128, "memory.limit_in_bytes"),  # fresh: lower memory first
        (64, 256, 512, "memory.memsw.limit_in_bytes"),  # raising: make room above first
        (512, 64, 128, "memory.limit_in_bytes"),  # lowering
        (64, 32, 128, "memory.memsw.limit_in_bytes"),
        (64, 256, -1, "memory.memsw.limit_in_bytes"),
    ],
)
def test_memory_and_swap_are_written_in_an_order_the_kernel_takes(
    current: int, limit: int, swap: int, first: str
) -> None:
    writes = v1_limits.plan_v1({"memory": {"limit": limit, "swap": swap}}, devices=False)
    ordered = v1_limits.memory_order(writes, current)
    assert sorted(ordered) == sorted(writes)
    assert ordered[0][1] == first


@pytest.mark.parametrize(
    ("memory", "swap", "expected"),
    [
        (0, 0, None),
        (64, 0, None),
        (64, 64, 0),
        (64, 100, 36),
        (64, -1, -1),
        (-1, 0, -1),
        (-1, 5, 5),
        (0, -1, -1),
    ],
)
def test_swap_of_v2(memory: int, swap: int, expected: int | None) -> None:
    assert v2.swap_of(memory, swap) == expected


@pytest.mark.parametrize(
    ("shares", "weight"),
    [
        (1, 1),
        (2, 1),
        (3, 2),
        (256, 35),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (262143, 10000),
        (262144, 10000),
    ],
)
def test_weight_of_shares(shares: int, weight: int) -> None:
    assert v2.weight_of_shares(shares) == weight


def test_weight_of_shares_never_falls() -> None:
    weights = [v2.weight_of_shares(shares) for shares in range(2, 262145, 97)]
    assert weights == sorted(weights) and weights[0] >= 1 and weights[-1] <= 10000


def test_io_weight() -> None:
    assert [v2.io_weight_of_blkio(w) for w in (10, 100, 1000)] == [1, 910, 10000]


BAD_BOTH = [
    ({"memory": {"limit": "64m"}}, "linux.resources.memory.limit"),
    ({"memory": {"limit": True}}, "linux.resources.memory.limit"),
    ({"memory": []}, "linux.resources.memory"),
    ({"memory": {"limit": 64, "swap": 32}}, "linux.resources.memory.swap"),
    ({"cpu": {"cpus": "0\n1"}}, "linux.resources.cpu.cpus"),
    ({"pids": {"limit": 1.5}}, "linux.resources.pids.limit"),
    ({"blockIO": {"weightDevice": [{"weight": 5}]}}, "linux.resources.blockIO.weightDevice[0]"),
    ({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}, "linux.resources.hugepageLimits[0].pageSize"),
]


@pytest.mark.parametrize(("resources", "field"), BAD_BOTH)
def test_bad_values_name_their_field(resources: dict[str, Any], field: str) -> None:
    for plan in (lambda r: v1_limits.plan_v1(r, devices=False), v2.plan_v2):
        with pytest.raises(InvalidArgument) as caught:
            plan(resources)
        assert caught.value.subject.startswith(field)


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"unified": {"memory.high": "1"}}, "linux.resources.unified"),
        ({"memory": {"swappiness": 101}}, "linux.resources.memory.swappiness"),
        ({"cpu": {"shares": 1}}, "linux.resources.cpu.shares"),
    ],
)
def test_bad_on_v1(resources: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        v1_limits.plan_v1(resources, devices=False)
    assert caught.value.subject == field


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"unified": {"../x": "1"}}, "linux.resources.unified[../x]"),
        ({"unified": {"nodot": "1"}}, "linux.resources.unified[nodot]"),
        ({"unified": {"cgroup.procs": "1"}}, "linux.resources.unified[cgroup.procs]"),
        ({"unified": {"memory.high": 5}}, "linux.resources.unified[memory.high]"),
        ({"cpu": {"realtimeRuntime": 1000}}, "linux.resources.cpu.realtimeRuntime"),
        ({"network": {"classID": 5}}, "linux.resources.network.classID"),
        ({"memory": {"swap": 5}}, "linux.resources.memory.swap"),
    ],
)
def test_bad_on_v2(resources: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        v2.plan_v2(resources)
    assert caught.value.subject == field


def test_check_before_update() -> None:
    wanted = {"memory": {"limit": 100, "swap": 200, "checkBeforeUpdate": True}}
    v2.check_usage(wanted, 100, 50)
    v2.check_usage({"memory": {"limit": 100}}, 500, 500)
    with pytest.raises(FailedPrecondition, match="rejecting memory limit 100 < usage 101"):
        v2.check_usage(wanted, 101, 0)
    with pytest.raises(FailedPrecondition, match="memory\\+swap"):
        v2.check_usage(wanted, 100, 150)


def test_device_lines_of_dockers_defaults() -> None:
    from nagaya.oci import defaults

    lines = devices.v1_lines(devices.parse(defaults.device_rules()))
    assert lines[0] == (False, "a")
    assert all(allow for allow, _ in lines[1:])
    assert {line for _, line in lines[1:]} == {
        "c *:* m",
        "b *:* m",
        "c 1:3 rwm",
        "c 1:5 rwm",
        "c 1:7 rwm",
        "c 1:8 rwm",
        "c 1:9 rwm",
        "c 5:0 rwm",
        "c 5:1 rwm",
        "c 5:2 rwm",
        "c 10:200 rwm",
        "c 136:* rwm",
    }


def test_device_lines_of_a_privileged_container() -> None:
    assert devices.v1_lines(devices.parse([{"allow": True, "access": "rwm"}])) == [(True, "a")]


def test_device_lines_merge_and_take_away() -> None:
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "w"},
        {"allow": True, "type": "c", "major": 10, "minor": 1, "access": "rwm"},
        {"allow": False, "type": "c", "major": 10, "minor": 1, "access": "w"},
    ]
    lines = devices.v1_lines(devices.parse(rules, always=()))
    assert lines == [(False, "a"), (True, "b 8:0 rw"), (True, "c 10:1 rm")]


def test_a_hole_in_a_wildcard_is_refused_on_v1() -> None:
    rules = [
        {"allow": True, "type": "c", "major": 10, "access": "rwm"},
        {"allow": False, "type": "c", "major": 10, "minor": 1, "access": "w"},
    ]
    with pytest.raises(InvalidArgument, match="exception for device c 10:1 from the wider rule c 10:"):
        devices.v1_lines(devices.parse(rules))


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"type": "x", "allow": True}, "linux.resources.devices[0].type"),
        ({"type": "c", "allow": True, "access": "rx"}, "linux.resources.devices[0].access"),
        ({"type": "c", "allow": True, "major": -5}, "linux.resources.devices[0].major"),
        ({"type": "c", "allow": "yes"}, "linux.resources.devices[0].allow"),
        ("c 1:3 rwm", "linux.resources.devices[0]"),
    ],
)
def test_bad_device_rules(entry: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        devices.parse([entry])
    assert caught.value.subject == field


def test_pressure_is_told_where_the_kernel_counts_it() -> None:
    text = (
        "some avg10=1.53 avg60=0.87 avg300=0.73 total=1088168194\n"
        "full avg10=0.00 avg60=0.20 avg300=0.40 total=7\n"
    )
    assert stats.pressure(text) == {
        "psi": {
            "some": {"avg10": 1.53, "avg60": 0.87, "avg300": 0.73, "total": 1088168194},
            "full": {"avg10": 0.0, "avg60": 0.2, "avg300": 0.4, "total": 7},
        }
    }
    assert stats.pressure("") == {}


def test_stats_parsers() -> None:
    assert stats.cpu_list("0-2,5\n") == [0, 1, 2, 5]
    assert stats.blkio_entries("8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n") == [
        {"major": 8, "minor": 0, "op": "Read", "value": 4096},
        {"major": 8, "minor": 0, "op": "Total", "value": 4096},
    ]
    amounts, operations = stats.io_stat("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n")
    assert [e["value"] for e in amounts] == [1, 2]
    assert [e["value"] for e in operations] == [3, 4]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 3, "paths": {}},
        {"version": 1, "paths": {"memory": "relative"}},
        {"version": 2, "paths": 5},
    ],
)
def test_a_damaged_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        cgroups.from_state(state)


def test_state_round_trip() -> None:
    manager = v1.ManagerV1({"memory": "/sys/fs/cgroup/memory/x"})
    again = cgroups.from_state(manager.to_state())
    assert isinstance(again, v1.ManagerV1) and again.paths == manager.paths and not again.fresh


def test_join_paths_keep_memory_for_last() -> None:
    paths = {"cpu": "/c/a", "cpuacct": "/c/a", "memory": "/m/a", "pids": "/p/a"}
    manager = v1.ManagerV1(paths)
    assert manager.join_paths() == ["/c/a", "/m/a", "/p/a"]
    assert manager.join_paths(False) == ["/c/a", "/p/a"]
    assert manager.join_paths(True) == ["/m/a"]
    unified = v2.ManagerV2({"": "/u/a"})
    assert (unified.join_paths(), unified.join_paths(False), unified.join_paths(True)) == (
        ["/u/a"],
        [],
        ["/u/a"],
    )


def test_unknown_driver() -> None:
    with pytest.raises(InvalidArgument):
        cgroups.manager("", "magic", container_id="x")


@pytest.mark.parametrize(
    ("enabled", "refuses"),
    [("", False), ("cpuset cpu pids\n", False), ("cpu memory pids\n", True), ("io\n", True)],
)
def test_which_divided_cgroups_take_no_process(enabled: str, refuses: bool) -> None:
    assert v2.takes_no_process(enabled) is refuses
