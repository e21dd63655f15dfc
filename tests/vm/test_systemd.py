"""The systemd cgroup driver with a real systemd (`./dev test-vm --systemd`): what its units say, what the
kernel says, and that runc with the same bundle has them say the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import Bundle, bundle, cgroups_named, wait_until

pytestmark = pytest.mark.root

MB = 1 << 20


def _with_driver(runtime: str, directory: Path) -> str:
    """A command of the runtime's name that always has the option."""
    path = directory / Path(runtime).name
    path.write_text(f'#!/bin/sh\nexec {runtime} --systemd-cgroup "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="session")
def drivers(ours: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{name: command} of each runtime that is there."""
    # an installation has it beside the package
    (site,) = (Path(ours).parents[1] / "lib").glob("python3.*/site-packages")
    jeepney = importlib.util.find_spec("jeepney")
    assert jeepney is not None and jeepney.origin is not None
    (site / "jeepney").symlink_to(Path(jeepney.origin).parent)
    directory = tmp_path_factory.mktemp("driver")
    found = {"nagaya-oci": ours, "runc": shutil.which("runc")}
    return {name: _with_driver(path, directory) for name, path in found.items() if path}


def _bundle(runtime: str) -> Iterator[Bundle]:
    tag = f"nagt-{uuid.uuid4().hex[:10]}"
    with bundle(runtime, Path(tempfile.mkdtemp(prefix=f"{tag}-")), tag) as made:
        made.spec["linux"]["cgroupsPath"] = f"system.slice:nagt:{tag}"
        yield made


@pytest.fixture(params=["nagaya-oci", *(["runc"] if shutil.which("runc") else [])])
def box(request: pytest.FixtureRequest, drivers: dict[str, str]) -> Iterator[Bundle]:
    """A bundle of each runtime."""
    yield from _bundle(drivers[request.param])


@pytest.fixture
def our_box(drivers: dict[str, str]) -> Iterator[Bundle]:
    """A bundle of nagaya-oci alone."""
    yield from _bundle(drivers["nagaya-oci"])


def unit(box: Bundle) -> str:
    """The name of the container's scope."""
    return f"nagt-{box.tag}.scope"


def show(name: str, *properties: str) -> dict[str, str]:
    """What systemd says of a unit."""
    argv = ["systemctl", "show", name, *(f"--property={p}" for p in properties)]
    out = subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    return dict(line.split("=", 1) for line in out.splitlines())


def group(box: Bundle) -> Path:
    """The container's cgroup, as the kernel tells."""
    told = Path(f"/proc/{box.state()['pid']}/cgroup").read_text()
    return Path(f"/sys/fs/cgroup{told.strip()[3:]}")


def value(box: Bundle, file: str) -> str:
    return (group(box) / file).read_text().strip()


def resources(box: Bundle, **parts: Any) -> None:
    box.spec["linux"]["resources"].update(parts)


LIMITS: dict[str, Any] = {
    "memory": {"limit": 64 * MB, "swap": 96 * MB, "reservation": 16 * MB},
    "cpu": {"quota": 50000, "period": 100000, "cpus": "1", "mems": "0"},
    "pids": {"limit": 33},
}
FILES = {
    "memory.max": str(64 * MB),
    "memory.swap.max": str(32 * MB),
    "memory.low": str(16 * MB),
    "cpu.max": "50000 100000",
    "cpuset.cpus": "1",
    "cpuset.mems": "0",
    "pids.max": "33",
}
PROPERTIES = {
    "MemoryMax": str(64 * MB),
    "MemorySwapMax": str(32 * MB),
    "MemoryLow": str(16 * MB),
    "CPUQuotaPerSecUSec": "500ms",
    "CPUQuotaPeriodUSec": "100ms",
    "AllowedCPUs": "1",
    "AllowedMemoryNodes": "0",
    "TasksMax": "33",
}


def reload() -> None:
    subprocess.run(["systemctl", "daemon-reload"], check=True, stdin=subprocess.DEVNULL)


def test_a_scope_with_its_limits(box: Bundle) -> None:
    resources(box, **LIMITS)
    box.start()
    name = unit(box)
    assert group(box) == Path(f"/sys/fs/cgroup/system.slice/{name}")
    state = show(name, "ActiveState", "SubState", "Slice", "Delegate", "Transient")
    assert state == {
        "ActiveState": "active",
        "SubState": "running",
        "Slice": "system.slice",
        "Delegate": "yes",
        "Transient": "yes",
    }
    assert show(name, *PROPERTIES) == PROPERTIES
    assert {file: value(box, file) for file in FILES} == FILES
    # systemd writes again what its units say
    reload()
    assert {file: value(box, file) for file in FILES} == FILES
    assert value(box, "cgroup.procs") == str(box.state()["pid"])


def test_update(box: Bundle) -> None:
    resources(box, **LIMITS)
    box.start()
    box.ok("update", "--memory", str(96 * MB), "--memory-swap", str(128 * MB), "--pids-limit", "40", box.id)
    box.ok("update", "--cpu-quota", "20000", "--cpu-period", "100000", "--cpuset-cpus", "0", box.id)
    expected = {
        "MemoryMax": str(96 * MB),
        "MemorySwapMax": str(32 * MB),
        "CPUQuotaPerSecUSec": "200ms",
        "AllowedCPUs": "0",
        "TasksMax": "40",
    }
    assert show(unit(box), *expected) == expected
    reload()
    files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpuset.cpus")
    assert [value(box, file) for file in files] == [str(96 * MB), str(32 * MB), "40", "20000 100000", "0"]


def test_exec_pause_and_stats(box: Bundle) -> None:
    box.start()
    assert box.ok("exec", box.id, "cat", "/proc/self/cgroup") == "0::/\n"
    box.ok("pause", box.id)
    assert box.status() == "paused" and "frozen 1" in value(box, "cgroup.events")
    box.ok("resume", box.id)
    data = json.loads(box.ok("events", "--stats", box.id))["data"]
    assert data["pids"]["current"] == 1
    box.ok("delete", "--force", box.id)
    gone(box)


def gone(box: Bundle) -> None:
    """Neither a unit nor a cgroup is left."""
    wait_until(lambda: show(unit(box), "LoadState", "ActiveState")
               == {"LoadState": "not-found", "ActiveState": "inactive"}, 30, "the unit's end")  # fmt: skip
    assert cgroups_named(box.tag) == []


def test_a_container_that_ends(box: Bundle) -> None:
    assert box.run("sh", "-c", "exit 7").returncode == 7
    gone(box)
    box.start("true")
    wait_until(lambda: box.status() == "stopped")
    box.ok("delete", box.id)
    gone(box)


def test_a_program_beyond_its_memory_is_killed(box: Bundle) -> None:
    resources(box, memory={"limit": 16 * MB, "swap": 16 * MB})
    assert box.run("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1").returncode == 137
    # what ended by the kernel's hand is a failed scope: it goes with the container, too
    gone(box)


@pytest.mark.parametrize(
    ("slice_name", "below"),
    [
        ("user-1000.slice", "user.slice/user-1000.slice"),
        ("nagt-a-b.slice", "nagt.slice/nagt-a.slice/nagt-a-b.slice"),
        ("", "system.slice"),
    ],
)
def test_slices(box: Bundle, slice_name: str, below: str) -> None:
    box.spec["linux"]["cgroupsPath"] = f"{slice_name}:nagt:{box.tag}"
    box.start()
    assert group(box) == Path(f"/sys/fs/cgroup/{below}/{unit(box)}")
    assert show(unit(box), "Slice") == {"Slice": slice_name or "system.slice"}


def test_without_a_path(our_box: Bundle) -> None:
    our_box.spec["linux"]["cgroupsPath"] = ""
    our_box.start()
    assert group(our_box) == Path(f"/sys/fs/cgroup/system.slice/nagaya-{our_box.id}.scope")


def test_device_rules_outlive_a_reload(box: Bundle) -> None:
    status = os.stat("/dev/nvme0n1")
    number = {"type": "b", "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
    box.spec["linux"]["devices"] = [{**number, "path": "/dev/disk", "fileMode": 0o600}]
    deny = {"allow": False, "access": "rwm"}
    resources(box, devices=[deny, {"allow": True, **number, "access": "r"}])
    box.start()
    for _ in range(2):
        box.ok("exec", box.id, "head", "-c", "1", "/dev/disk")
        done = box.call("exec", box.id, "sh", "-c", "echo x > /dev/disk")
        assert done.returncode != 0 and "not permitted" in done.stderr
        box.ok("exec", box.id, "sh", "-c", "echo x > /dev/null; head -c 1 /dev/zero")
        reload()
    box.ok("update", "--pids-limit", "50", box.id)
    assert box.call("exec", box.id, "sh", "-c", "echo x > /dev/disk").returncode != 0


def test_what_systemd_has_no_property_for(box: Bundle) -> None:
    resources(
        box, hugepageLimits=[{"pageSize": "2MB", "limit": 4 * MB}], unified={"memory.high": str(48 * MB)}
    )
    box.start()
    assert value(box, "hugetlb.2MB.max") == str(4 * MB)
    assert value(box, "memory.high") == str(48 * MB)


def test_annotations_name_properties_of_the_unit(box: Bundle) -> None:
    prefix = "org.systemd.property."
    box.spec["annotations"] = {
        f"{prefix}TimeoutStopSec": "uint64 77",
        f"{prefix}CollectMode": "'inactive-or-failed'",
        f"{prefix}Documentation": "['man:nagt(1)', 'man:nagt(2)']",
    }
    box.start()
    assert show(unit(box), "TimeoutStopUSec", "CollectMode", "Documentation") == {
        "TimeoutStopUSec": "1min 17s",
        "CollectMode": "inactive-or-failed",
        "Documentation": '"man:nagt(1)" "man:nagt(2)"',
    }


@pytest.mark.parametrize(("name", "text"), [("TimeoutStopSec", "'x'"), ("Nonsense", "1"), ("a-b", "1")])
def test_a_property_that_is_none_is_an_error(box: Bundle, name: str, text: str) -> None:
    box.spec["annotations"] = {f"org.systemd.property.{name}": text}
    assert box.run("true").returncode != 0
    gone(box)


def test_a_failed_start_leaves_no_unit(our_box: Bundle) -> None:
    assert our_box.run("/nonesuch").returncode != 0
    gone(our_box)
    resources(our_box, memory={"limit": 64 * MB, "swap": 32 * MB})
    assert our_box.run("true").returncode == 1
    gone(our_box)


def test_a_path_of_the_other_driver_is_a_clear_error(our_box: Bundle) -> None:
    our_box.spec["linux"]["cgroupsPath"] = f"/{our_box.tag}"
    done = our_box.run("true")
    assert done.returncode == 1 and "'slice:prefix:name'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_scope_in_use_is_refused_and_stays(our_box: Bundle) -> None:
    our_box.start()
    done = our_box.call("run", "--bundle", str(our_box.path), f"{our_box.id}-second")
    assert done.returncode == 1 and unit(our_box) in done.stderr
    assert our_box.status() == "running"
    assert show(unit(our_box), "ActiveState") == {"ActiveState": "active"}
