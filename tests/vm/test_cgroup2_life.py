"""The life of a container whose cgroup is one of v2: where it is, pause, kill, exec, events, removal."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bundles import Bundle, cgroups_named, wait_until

pytestmark = pytest.mark.root

MB = 1 << 20
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done"


def group(box: Bundle) -> Path:
    """The container's cgroup."""
    return Path(f"/sys/fs/cgroup{box.spec['linux']['cgroupsPath']}")


def shared_cgroup_namespace(box: Bundle) -> None:
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "cgroup"]


def cgroup_mount(*options: str) -> dict[str, Any]:
    return {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", *options],
    }


def mount_cgroups(box: Bundle, *options: str) -> None:
    box.spec["mounts"] = [m for m in box.spec["mounts"] if m["destination"] != "/sys/fs/cgroup"]
    box.spec["mounts"].append(cgroup_mount(*options))


@contextmanager
def beside(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs meanwhile, and no longer."""
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def populated(path: Path) -> bool:
    return "populated 1" in (path / "cgroup.events").read_text()


def test_a_namespace_of_its_own_shows_its_cgroup_as_the_root(box: Bundle) -> None:
    mount_cgroups(box, "ro")
    box.spec["linux"]["resources"]["memory"] = {"limit": 64 * MB}
    out = box.shell(
        "cat /proc/self/cgroup /sys/fs/cgroup/memory.max; ls /sys/fs/cgroup/cgroup.procs;"
        " grep ' /sys/fs/cgroup ' /proc/self/mounts; mkdir /sys/fs/cgroup/x 2>&1 || true"
    ).splitlines()
    assert out[:3] == ["0::/", str(64 * MB), "/sys/fs/cgroup/cgroup.procs"]
    assert re.fullmatch(r"\S+ /sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime\b.*", out[3])
    assert "Read-only file system" in out[4]


def test_without_a_namespace_the_mount_has_the_path_that_proc_tells(box: Bundle) -> None:
    shared_cgroup_namespace(box)
    mount_cgroups(box, "ro")
    box.spec["linux"]["resources"]["memory"] = {"limit": 64 * MB}
    out = box.shell(
        "cat /proc/self/cgroup; path=$(sed s/0::// /proc/self/cgroup); cat /sys/fs/cgroup$path/memory.max"
    )
    assert out.splitlines() == [f"0::/{box.tag}", str(64 * MB)]


def test_a_user_namespace_without_a_cgroup_namespace(our_box: Bundle) -> None:
    """It may not mount cgroup2 anew."""
    shared_cgroup_namespace(our_box)
    mount_cgroups(our_box, "ro")
    our_box.base.chmod(0o755)
    our_box.spec["linux"]["namespaces"].append({"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        our_box.spec["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    our_box.spec["linux"]["resources"]["pids"] = {"limit": 9}
    assert our_box.shell("cat /sys/fs/cgroup$(sed s/0::// /proc/self/cgroup)/pids.max") == "9\n"


def test_the_first_process_is_born_in_its_cgroup(our_box: Bundle) -> None:
    """CLONE_INTO_CGROUP spares it the wait of joining; so its limits are there before it is."""
    our_box.spec["process"]["args"] = ["cat", "/proc/self/cgroup"]
    our_box.spec["linux"]["resources"]["pids"] = {"limit": 1}
    our_box.save()
    done = our_box.call("--debug", "run", "--bundle", str(our_box.path), our_box.id)
    assert (done.returncode, done.stdout) == (0, "0::/\n")
    assert done.stderr.index("cgroups (") < done.stderr.index("clone (")


@pytest.mark.parametrize("path", ["", "nagt-relative"])
def test_a_path_that_is_not_absolute_is_below_the_mount(our_box: Bundle, path: str) -> None:
    our_box.spec["linux"]["cgroupsPath"] = path and f"{our_box.tag}-relative"
    our_box.start()
    name = our_box.spec["linux"]["cgroupsPath"] or our_box.id
    where = Path(f"/proc/{our_box.state()['pid']}/cgroup").read_text()
    assert where.endswith(f"/{name}\n")
    assert cgroups_named(our_box.tag) == [f"/sys/fs/cgroup{where.strip()[3:]}"]


def test_pause_and_resume(box: Bundle) -> None:
    box.start("sh", "-c", COUNT)
    count = box.rootfs / "count"
    wait_until(count.exists)
    box.ok("pause", box.id)
    assert box.status() == "paused"
    assert (group(box) / "cgroup.freeze").read_text() == "1\n"
    assert "frozen 1" in (group(box) / "cgroup.events").read_text()
    before = count.read_text()
    done = box.call("exec", box.id, "true")
    assert done.returncode != 0 and "paused" in done.stderr
    assert count.read_text() == before
    box.ok("resume", box.id)
    assert box.status() == "running"
    wait_until(lambda: count.read_text() not in ("", before))


def test_a_paused_container_can_be_removed(box: Bundle) -> None:
    box.start("sh", "-c", COUNT)
    box.ok("pause", box.id)
    box.ok("delete", "--force", box.id)
    assert cgroups_named(box.tag) == []


def test_a_paused_container_dies_by_kill(box: Bundle) -> None:
    box.start("sh", "-c", COUNT)
    box.ok("pause", box.id)
    box.ok("kill", box.id, "KILL")
    wait_until(lambda: box.status() == "stopped")


def test_exec_is_in_the_containers_cgroup(box: Bundle) -> None:
    box.start()
    assert box.ok("exec", box.id, "cat", "/proc/self/cgroup") == "0::/\n"
    with beside(box.argv("exec", box.id, "sleep", "1000")) as process:
        wait_until(lambda: len(json.loads(box.ok("ps", "-f", "json", box.id))) == 2)
        pids = json.loads(box.ok("ps", "-f", "json", box.id))
        assert sorted(pids) == sorted(map(int, (group(box) / "cgroup.procs").read_text().split()))
        if not box.runtime.endswith("crun"):  # it prints pids alone
            assert "sleep 1000" in box.ok("ps", box.id)
        box.ok("kill", box.id, "KILL")
        process.wait(30)


def test_exec_where_the_container_has_divided_its_cgroup(box: Bundle) -> None:
    """As systemd does in a container: then none may be in the cgroup itself ("no internal processes",
    cgroup-v2.rst), and who joins goes where the first process is."""
    mount_cgroups(box, "rw")
    box.start(
        "sh",
        "-c",
        "cd /sys/fs/cgroup; mkdir init.scope; echo 1 > init.scope/cgroup.procs;"
        " echo +memory +pids > cgroup.subtree_control; sleep 1000",
    )
    wait_until(lambda: "pids" in (group(box) / "cgroup.subtree_control").read_text())
    assert box.ok("exec", box.id, "cat", "/proc/self/cgroup") == "0::/init.scope\n"
    box.ok("delete", "--force", box.id)
    assert cgroups_named(box.tag) == []


def test_exec_in_a_cgroup_below(our_box: Bundle) -> None:
    mount_cgroups(our_box, "rw")
    our_box.start("sh", "-c", "mkdir /sys/fs/cgroup/below; sleep 1000")
    wait_until((group(our_box) / "below").is_dir)
    out = our_box.ok("exec", "--cgroup", "below", our_box.id, "cat", "/proc/self/cgroup")
    assert out == "0::/below\n"
    done = our_box.call("exec", "--cgroup", "none", our_box.id, "true")
    assert done.returncode == 255 and "none" in done.stderr


def test_kill_all_reaches_what_has_left_the_session(box: Bundle) -> None:
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "pid"]
    box.start("sh", "-c", "for i in 1 2 3; do (sleep 1000 &) ; done; exec sleep 1000")
    wait_until(lambda: len((group(box) / "cgroup.procs").read_text().split()) == 4)
    box.ok("kill", "--all", box.id, "TERM")
    wait_until(lambda: not populated(group(box)))
    box.ok("delete", box.id)
    assert cgroups_named(box.tag) == []


def test_a_fork_bomb_is_removed(our_box: Bundle) -> None:
    """runc 1.1.5 runs after its processes, and may lose."""
    # the least weight, so that it does not outrun the runtime on an emulated processor
    our_box.spec["linux"]["resources"] |= {"pids": {"limit": 40}, "cpu": {"shares": 2}}
    our_box.spec["linux"]["namespaces"] = [
        n for n in our_box.spec["linux"]["namespaces"] if n["type"] != "pid"
    ]
    our_box.start("sh", "-c", "f() { f & f & wait; }; while :; do f; done 2>/dev/null")
    wait_until(lambda: int((group(our_box) / "pids.current").read_text()) > 30)
    our_box.ok("delete", "--force", our_box.id)
    assert cgroups_named(our_box.tag) == []


def test_an_oom_kill_is_an_event(events_box: Bundle) -> None:
    events_box.spec["linux"]["resources"]["memory"] = {"limit": 24 * MB, "swap": 24 * MB}
    events_box.start()
    log = events_box.base / "events"
    with (
        log.open("w") as out,
        beside(events_box.argv("events", "--interval", "200ms", events_box.id), stdout=out) as events,
    ):
        wait_until(lambda: '"stats"' in log.read_text())
        done = events_box.call(
            "exec", events_box.id, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"
        )
        assert done.returncode == 137
        wait_until(lambda: '"oom"' in log.read_text())
        events_box.ok("kill", events_box.id, "KILL")
        events.wait(30)
    kinds = [json.loads(line)["type"] for line in log.read_text().splitlines()]
    assert kinds.count("oom") == 1 and kinds.count("stats") >= 1


def test_what_the_container_made_below_its_cgroup_goes_too(box: Bundle) -> None:
    mount_cgroups(box, "rw")
    box.start("sh", "-c", "mkdir -p /sys/fs/cgroup/a/b/c /sys/fs/cgroup/d; sleep 1000")
    wait_until((group(box) / "d").is_dir)
    box.ok("kill", box.id, "KILL")
    wait_until(lambda: box.status() == "stopped")
    box.ok("delete", box.id)
    assert cgroups_named(box.tag) == []


def test_a_cgroup_in_use_is_refused_and_stays(our_box: Bundle) -> None:
    our_box.start()
    done = our_box.call("run", "--bundle", str(our_box.path), f"{our_box.id}-second")
    assert done.returncode == 1 and "container's cgroup is not empty" in done.stderr
    assert our_box.status() == "running" and populated(group(our_box))


def test_a_failed_start_leaves_no_cgroup(our_box: Bundle) -> None:
    assert our_box.run("/nonesuch").returncode != 0
    our_box.spec["linux"]["resources"]["memory"] = {"limit": 64 * MB, "swap": 32 * MB}
    assert our_box.run("true").returncode == 1
    our_box.spec["linux"]["resources"]["memory"] = {}
    our_box.spec["linux"]["resources"]["cpu"] = {"cpus": "77"}
    assert "linux.resources.cpu.cpus" in our_box.run("true").stderr
    assert cgroups_named(our_box.tag) == []


def test_the_parent_of_a_path_hands_its_controllers_down(box: Bundle) -> None:
    box.spec["linux"]["cgroupsPath"] = f"/{box.tag}/deep/er"
    box.spec["linux"]["resources"]["pids"] = {"limit": 9}
    box.start()
    assert (group(box) / "pids.max").read_text() == "9\n"
    assert "memory" in (group(box).parent / "cgroup.subtree_control").read_text()
    box.ok("delete", "--force", box.id)
    for parent in sorted(cgroups_named(box.tag), reverse=True):  # made on the way; the peers leave them, too
        for name in ("deep", ""):
            if os.path.isdir(f"{parent}/{name}"):
                os.rmdir(f"{parent}/{name}")


def test_a_parent_with_processes_of_its_own_is_a_clear_error(our_box: Bundle) -> None:
    """The kernel then gives its children no controllers that count resources."""
    parent = Path(f"/sys/fs/cgroup/{our_box.tag}")
    parent.mkdir()
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        (parent / "cgroup.procs").write_text(str(sleeper.pid))
        our_box.spec["linux"]["cgroupsPath"] = f"/{our_box.tag}/inner"
        our_box.spec["linux"]["resources"]["memory"] = {"limit": 64 * MB}
        done = our_box.run("true")
        sleeper.kill()
        sleeper.wait()
    assert done.returncode == 1 and "no memory controller" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert cgroups_named(our_box.tag) == [str(parent)]
    parent.rmdir()
