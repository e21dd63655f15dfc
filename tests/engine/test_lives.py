"""Containers that end: restart policies, auto-removal, lack of memory; and other runtimes and daemons."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import House, wait_for

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started


def inspect(house: House, name: str) -> dict[str, Any]:
    (found,) = json.loads(house.ok("inspect", name))
    assert isinstance(found, dict)
    return found


def state(house: House, name: str) -> dict[str, Any]:
    found = inspect(house, name)["State"]
    assert isinstance(found, dict)
    return found


def test_on_failure_gives_up(house: House) -> None:
    house.ok(
        "run", "-d", "--name", "fails", "--restart", "on-failure:2", IMAGE, "sh", "-c", "echo try; exit 4"
    )
    wait_for(lambda: state(house, "fails")["Status"] == "exited", 20, "the last try")
    assert (state(house, "fails")["ExitCode"], inspect(house, "fails")["RestartCount"]) == (4, 2)
    assert house.ok("logs", "fails") == "try\ntry\ntry"
    house.ok("rm", "fails")


def test_on_failure_leaves_success_alone(house: House) -> None:
    house.ok("run", "-d", "--name", "works", "--restart", "on-failure", IMAGE, "true")
    assert house.ok("wait", "works") == "0"
    assert (state(house, "works")["Status"], inspect(house, "works")["RestartCount"]) == ("exited", 0)
    house.ok("rm", "works")


def test_a_shared_shm_outlives_the_daemon_and_goes_with_its_container(house: House) -> None:
    house.ok("run", "-d", "--name", "giver", "--ipc", "shareable", IMAGE, "sleep", "600")
    house.ok("exec", "giver", "sh", "-c", "echo shared > /dev/shm/f")
    house.kill_daemon()
    house.start()
    joined = ("run", "--rm", "--ipc", "container:giver")
    assert house.ok(*joined, IMAGE, "cat", "/dev/shm/f") == "shared"
    assert house.nagaya("system", "check").returncode == 0
    (place,) = (house.run_dir / "shm").iterdir()
    house.ok("rm", "-f", "giver")
    wait_for(lambda: not place.exists(), 60, "the mount's end")


def test_health_is_not_forgotten_with_the_daemon(house: House) -> None:
    house.ok(
        *("run", "-d", "--name", "well", "--health-cmd", "echo fine", "--health-interval", "100ms"),
        *(IMAGE, "sleep", "600"),
    )
    wait_for(lambda: len(state(house, "well")["Health"]["Log"]) == 5, 20, "five checks")
    house.kill_daemon()
    house.start()
    known = state(house, "well")["Health"]
    assert (known["Status"], len(known["Log"]), known["Log"][0]["Output"]) == ("healthy", 5, "fine\n")
    last = known["Log"][-1]["Start"]
    wait_for(lambda: state(house, "well")["Health"]["Log"][0]["Start"] > last, 20, "checks of the new daemon")
    house.ok("rm", "-f", "well")


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_always_until_it_is_stopped(house: House, policy: str) -> None:
    house.ok("run", "-d", "--name", "again", "--restart", policy, IMAGE, "sleep", "0.05")
    wait_for(lambda: inspect(house, "again")["RestartCount"] >= 2, 20, "two restarts")
    house.ok("stop", "-t", "1", "again")
    assert state(house, "again")["Status"] == "exited"
    count = inspect(house, "again")["RestartCount"]
    house.stop_daemon()
    house.start()
    if policy == "always":
        began = state(house, "again")["StartedAt"]
        wait_for(lambda: state(house, "again")["StartedAt"] != began, 20, "a start")
    else:
        assert (state(house, "again")["Status"], inspect(house, "again")["RestartCount"]) == ("exited", count)
    house.ok("rm", "-f", "again")


def test_a_killed_container_is_not_restarted(house: House) -> None:
    house.ok("run", "-d", "--name", "victim", "--restart", "always", IMAGE, "sleep", "1000")
    house.ok("kill", "victim")
    assert (state(house, "victim")["Status"], state(house, "victim")["ExitCode"]) == ("exited", 137)
    house.ok("rm", "victim")


def test_auto_removal_takes_all(house: House) -> None:
    house.ok("run", "-d", "--rm", "--name", "brief", "-v", "/data", IMAGE, "sleep", "1000")
    (volume,) = (house.root / "volumes").iterdir()
    house.ok("stop", "-t", "0", "brief")
    wait_for(lambda: house.docker("inspect", "brief").returncode == 1, 10, "its removal")
    assert not volume.exists()
    assert list((house.root / "containers").iterdir()) == []


def test_auto_removal_while_the_daemon_was_down(house: House) -> None:
    house.ok("run", "-d", "--rm", "--name", "missed", IMAGE, "sleep", "0.5")
    pid = state(house, "missed")["Pid"]
    house.kill_daemon()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10, "its end")
    house.start()
    assert house.docker("inspect", "missed").returncode == 1


def test_lack_of_memory_is_told(house: House) -> None:
    events = "tail /dev/zero"  # keeps the last line, which never ends
    house.ok(
        "run", "-d", "--name", "hungry", "--memory", "12m", "--memory-swap", "12m", IMAGE, "sh", "-c", events
    )
    assert house.ok("wait", "hungry") == "137"
    assert state(house, "hungry")["OOMKilled"] is True
    house.ok("rm", "hungry")
    house.ok("run", "-d", "--name", "killed", IMAGE, "sleep", "1000")
    house.ok("kill", "killed")
    assert state(house, "killed")["OOMKilled"] is False
    house.ok("rm", "killed")


def test_a_container_restarts_many_times_at_once(house: House) -> None:
    """Restart, stop and kill from several clients end in a state that is told, not in a hang."""
    house.ok("run", "-d", "--name", "busy", IMAGE, "sleep", "1000")
    for _ in range(3):
        house.ok("restart", "-t", "0", "busy")
    assert state(house, "busy")["Status"] == "running"
    house.ok("pause", "busy")
    house.ok("rm", "-f", "busy")


def test_two_daemons_side_by_side(house: House) -> None:
    with House() as other:
        for each in (house, other):
            each.ok("run", "-d", "--name", "same", "-p", "18077:80", IMAGE, "sleep", "1000")
        assert inspect(house, "same")["Id"] != inspect(other, "same")["Id"]
        other.ok("rm", "-f", "same")
        assert state(house, "same")["Running"]
        assert other.leaks() == []
    house.ok("exec", "same", "true")
    house.ok("rm", "-f", "same")


def test_another_root_needs_another_run(house: House) -> None:
    """Either directory alone is enough to be refused."""
    pid = (house.run_dir / "nagayad.pid").read_text().strip()
    for flag in ("--root", "--run"):
        argv = house.daemon_argv()
        argv[argv.index(flag) + 1] = str(house.base / "elsewhere")
        result = subprocess.run(house.inside(argv), capture_output=True, text=True, timeout=60)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert f"another nagayad (process {pid})" in result.stderr


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
def test_runc_makes_containers_too(house: House) -> None:
    house.ok("run", "-d", "--name", "foreign", "--runtime", "runc", "-p", "18076:80", IMAGE, "sleep", "1000")
    assert house.ok("exec", "foreign", "cat", "/proc/1/comm") == "sleep"
    assert house.docker("exec", "foreign", "sh", "-c", "exit 3").returncode == 3
    assert house.docker("exec", "foreign", "nonsense").returncode == 127
    assert "sleep 1000" in house.ok("top", "foreign")
    house.ok("pause", "foreign")
    house.ok("unpause", "foreign")
    house.ok("update", "--memory", "64m", "--memory-swap", "64m", "foreign")
    house.kill_daemon()
    house.start()
    assert state(house, "foreign")["Running"]
    house.ok("kill", "foreign")
    assert state(house, "foreign")["ExitCode"] == 137
    house.ok("start", "foreign")
    house.ok("rm", "-f", "foreign")
    assert house.ok("run", "--rm", "--runtime", "runc", "-t", IMAGE, "tty").strip() == "/dev/pts/0"
    says_once_what_is_wrong(house, "runc")
    assert house.docker("run", "--rm", "--runtime", "runc", IMAGE, "nonsense").returncode == 127
    assert house.docker("run", "--rm", "--runtime", "runc", IMAGE, "/etc/passwd").returncode == 126
    assert house.docker("run", "--rm", "--runtime", "runc", IMAGE, "sh", "-c", "exit 5").returncode == 5
    wait_for(lambda: not house.leaks(), 5, "the end of all that containers had")


def says_once_what_is_wrong(house: House, runtime: str) -> None:
    """The error of a failed start is the daemon's answer: nothing of it is the container's output."""
    for command, wrong in (
        ("nonsense", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
    ):
        result = house.docker("run", "--name", "fails", "--runtime", runtime, IMAGE, command)
        assert result.stdout == b""
        lines = [line for line in result.stderr.decode().splitlines() if line]
        assert len(lines) == 2  # and "Run 'docker run --help' ..."
        assert lines[0].endswith(f'unable to start container process: exec: "{command}": {wrong}: unknown')
        logs = house.docker("logs", "fails")
        assert (logs.stdout, logs.stderr) == (b"", b"")
        house.ok("rm", "fails")


class PureHouse(House):
    """In a mount namespace without the hybrid cgroup mount, which Debian's crun refuses."""

    def inside(self, argv: Any) -> list[str]:
        script = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
        found = super().inside(argv)
        if "nagaya.daemon.main" not in " ".join(argv):
            return found
        return ["unshare", "--mount", "sh", "-c", script, "sh", *found]


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
def test_a_runtime_with_arguments_of_its_own(tmp_path: Path) -> None:
    path = shutil.which("runc")
    with House(config=f"[runtimes]\nchatty = \"{path} --debug --criu='{tmp_path}/a b'\"\n") as house:
        assert house.ok("run", "--rm", "--runtime", "chatty", IMAGE, "echo", "hi") == "hi"


@pytest.mark.skipif(shutil.which("crun") is None, reason="needs crun")
def test_crun_makes_containers_too() -> None:
    with PureHouse() as house:
        assert house.ok("run", "--rm", "--runtime", "crun", IMAGE, "echo", "hi") == "hi"
        assert house.docker("run", "--rm", "--runtime", "crun", IMAGE, "sh", "-c", "exit 5").returncode == 5
        assert house.docker("run", "--rm", "--runtime", "crun", IMAGE, "nonsense").returncode == 127
        assert house.docker("run", "--rm", "--runtime", "crun", IMAGE, "/etc/passwd").returncode == 126
        says_once_what_is_wrong(house, "crun")
        house.ok("run", "-d", "--name", "foreign", "--runtime", "crun", IMAGE, "sleep", "1000")
        assert house.ok("exec", "foreign", "cat", "/proc/1/comm") == "sleep"
        assert "sleep 1000" in house.ok("top", "foreign")
        house.ok("rm", "-f", "foreign")
        wait_for(lambda: not house.leaks(), 5, "the end of all that containers had")
