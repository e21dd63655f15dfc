"""The hybrid layout: the hierarchies of cgroup v1 have the limits, and cgroup2 beside them the processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bundles import Bundle, cgroups_named

UNIFIED = Path("/sys/fs/cgroup/unified")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (UNIFIED / "cgroup.procs").exists(), reason="no hybrid cgroups"),
]


def _unified(pid: str | int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def test_run_and_exec_are_in_one_cgroup_of_every_hierarchy(box: Bundle) -> None:
    box.spec["linux"]["cgroupsPath"] = f"/{box.tag}"
    namespaces = box.spec["linux"]["namespaces"]
    box.spec["linux"]["namespaces"] = [n for n in namespaces if n["type"] != "cgroup"]
    box.start()
    assert _unified(box.state()["pid"]) == f"/{box.tag}"
    seen = box.ok("exec", box.id, "cat", "/proc/self/cgroup").splitlines()
    assert len(seen) > 1 and all(line.endswith(f":/{box.tag}") for line in seen)
    box.ok("delete", "--force", box.id)
    assert cgroups_named(box.tag) == []


def test_its_own_cgroup_is_the_root_of_its_cgroup_namespace(box: Bundle) -> None:
    lines = box.shell("cat /proc/self/cgroup").splitlines()
    assert "0::/" in lines and all(line.endswith(":/") for line in lines)


def test_exec_goes_below_where_there_is_something_below(our_box: Bundle) -> None:
    our_box.spec["linux"]["cgroupsPath"] = f"/{our_box.tag}"
    namespaces = our_box.spec["linux"]["namespaces"]
    our_box.spec["linux"]["namespaces"] = [n for n in namespaces if n["type"] != "cgroup"]
    our_box.start()
    for hierarchy in UNIFIED.parent.iterdir():
        if hierarchy != UNIFIED and not hierarchy.is_symlink():
            (hierarchy / our_box.tag / "below").mkdir()
    (UNIFIED.parent / "cpuset" / our_box.tag / "below" / "cpuset.cpus").write_text("0")
    (UNIFIED.parent / "cpuset" / our_box.tag / "below" / "cpuset.mems").write_text("0")
    command = ("exec", "--cgroup", "below", our_box.id, "cat", "/proc/self/cgroup")
    lines = our_box.ok(*command).splitlines()
    assert lines.pop() == f"0::/{our_box.tag}"
    assert all(line.endswith(f":/{our_box.tag}/below") for line in lines)
    (UNIFIED / our_box.tag / "below").mkdir()
    assert our_box.ok(*command).splitlines()[-1] == f"0::/{our_box.tag}/below"


def test_where_it_cannot_be_written_it_is_left_alone(box: Bundle) -> None:
    box.spec["linux"]["cgroupsPath"] = f"/{box.tag}"
    box.spec["process"]["args"] = ["cat", "/proc/self/cgroup"]
    box.save()
    script = f'mount -o bind,remount,ro {UNIFIED} && exec "$@"'
    inner = box.argv("run", "--bundle", str(box.path), box.id)
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "-", *inner],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "memory:" in done.stdout, done
    assert cgroups_named(box.tag) == []


def test_who_may_not_be_moved_there_is_started_beside_it(our_box: Bundle) -> None:
    """A threaded cgroup takes no other's process (cgroups(7), "Thread mode")."""
    parent = UNIFIED / our_box.tag
    parent.mkdir()
    (parent / "cgroup.type").write_text("threaded")
    our_box.spec["linux"]["cgroupsPath"] = f"/{our_box.tag}/one"
    our_box.start()
    assert our_box.tag not in _unified(our_box.state()["pid"])
    our_box.ok("delete", "--force", our_box.id)
    for name in sorted(cgroups_named(our_box.tag), reverse=True):
        Path(name).rmdir()
