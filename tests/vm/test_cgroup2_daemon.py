"""nagayad on cgroup v2: a container's life by the nagaya command, and what the kernel says of it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from clients import Cli
from guest import CGROUP_PARENT, Daemon
from house import wait_for

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
MB = 1 << 20


def group(cli: Cli, name: str = "box") -> Path:
    """The container's cgroup, as the kernel tells."""
    pid = cli.ok("inspect", "-f", "{{.State.Pid}}", name)
    path = Path(f"/proc/{pid}/cgroup").read_text().strip()
    assert path.startswith(f"0::/{CGROUP_PARENT}/")
    return Path(f"/sys/fs/cgroup{path[3:]}")


def values(cli: Cli, *files: str) -> list[str]:
    return [(group(cli) / file).read_text().strip() for file in files]


def test_run(cli: Cli) -> None:
    said = cli(
        "run", "--rm", IMAGE, "sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup/memory.max; exit 7"
    )
    assert said.status == 7 and said.out == "0::/\n/sys/fs/cgroup/memory.max\n", said
    said = cli("run", "--rm", IMAGE, "nope")
    assert said.status == 127 and 'exec: "nope": executable file not found in $PATH' in said.err


def test_limits_and_update(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--memory", "64m", "--memory-swap", "96m", "--cpus", "0.5",
           "--pids-limit", "50", "--cpuset-cpus", "1", "-c", "1024", IMAGE, "sleep", "600")  # fmt: skip
    files = ("memory.max", "memory.swap.max", "cpu.max", "pids.max", "cpuset.cpus", "cpu.weight")
    told = values(cli, *files)
    assert told == [str(64 * MB), str(32 * MB), "50000 100000", "50", "1", "100"]
    assert cli.ok("exec", "box", "cat", "/sys/fs/cgroup/memory.max") == str(64 * MB)
    cli.ok("update", "--memory", "32m", "--memory-swap", "64m", "--cpus", "0.25", "--pids-limit", "60", "box")
    told = values(cli, *files[:4])
    assert told == [str(32 * MB), str(32 * MB), "25000 100000", "60"]
    cli.ok("restart", "-t", "0", "box")
    assert values(cli, *files[:4]) == told


def test_exec_and_devices(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--device", "/dev/nvme0n1:/dev/disk:r", IMAGE, "sleep", "600")
    script = "echo $A $PWD; cat /proc/self/cgroup"
    assert cli.ok("exec", "-e", "A=b", "-w", "/tmp", "box", "sh", "-c", script) == "b /tmp\n0::/"
    assert cli("exec", "box", "sh", "-c", "exit 9").status == 9
    cli.ok("exec", "box", "head", "-c", "1", "/dev/disk")
    said = cli("exec", "box", "sh", "-c", "echo x > /dev/disk")
    assert said.status != 0 and "not permitted" in said.err
    number = os.stat("/dev/nvme1n1").st_rdev
    make = f"mknod /swap b {os.major(number)} {os.minor(number)} && head -c 1 /swap"
    said = cli("exec", "box", "sh", "-c", make)
    assert said.status != 0 and "not permitted" in said.err


def test_stats_and_top(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "--memory", "64m", IMAGE, "sh", "-c", "while :; do :; done")

    def stats() -> dict[str, str]:
        found: dict[str, str] = json.loads(cli.ok("stats", "--no-stream", "--format", "{{json .}}", "box"))
        return found

    wait_for(lambda: float(stats()["CPUPerc"].rstrip("%")) > 1, 30, "the loop in the numbers")
    seen = stats()
    assert seen["PIDs"] == "1" and seen["MemUsage"].endswith(" / 64MiB")
    assert not seen["MemUsage"].startswith("0B")
    assert "sh -c while" in cli.ok("top", "box")


def test_pause(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", "while :; do echo x; sleep 0.1; done")
    cli.ok("pause", "box")
    assert "frozen 1" in values(cli, "cgroup.events")[0]
    assert cli.ok("inspect", "-f", "{{.State.Status}}", "box") == "paused"
    quiet = cli.ok("logs", "box")
    said = cli("exec", "box", "true")
    assert said.status == 1 and "is paused" in said.err
    assert cli.ok("logs", "box") == quiet
    cli.ok("unpause", "box")
    wait_for(lambda: len(cli.ok("logs", "box")) > len(quiet), 30, "more output")
    cli.ok("pause", "box")
    cli.ok("rm", "-f", "box")


def test_out_of_memory(cli: Cli) -> None:
    said = cli("run", "--name", "box", "--memory", "16m", "--memory-swap", "16m", IMAGE,
               "sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?")  # fmt: skip
    assert said.status == 137
    assert cli.ok("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "box") == "true 137"


def test_stop_kill_wait(cli: Cli) -> None:
    patient = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"
    cli.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", patient)
    wait_for(lambda: cli("logs", "box").out == "up\n", 30, "the trap")
    cli.ok("stop", "-t", "300", "box")
    assert cli.ok("inspect", "-f", "{{.State.ExitCode}}", "box") == "5"
    cli.ok("start", "box")
    cli.ok("kill", "box")
    assert cli.ok("wait", "box") == "137"


def test_cp_of_a_stopped_container(cli: Cli, tmp_path: Path) -> None:
    """Its overlay is mounted for that alone, where nobody sees it."""
    assert cli("run", "--name", "box", IMAGE, "sh", "-c", "echo made > /root/file").status == 0
    cli.ok("cp", "box:/root/file", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "made\n"
    (tmp_path / "file").write_text("changed\n")
    cli.ok("cp", str(tmp_path / "file"), "box:/root/file")
    cli.ok("cp", "box:/root/file", str(tmp_path / "again"))
    assert (tmp_path / "again").read_text() == "changed\n"
    assert "overlay" not in Path("/proc/self/mountinfo").read_text()


def test_a_network_of_its_own(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "-p", "8099:80", IMAGE, "httpd", "-f", "-h", "/etc")
    address = cli.ok("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "box")
    assert re.fullmatch(r"10\.231\.0\.\d+", address)
    fetch = f"until printf 'GET /shells HTTP/1.0\\r\\n\\r\\n' | nc {address} 80; do sleep 0.1; done"
    assert cli.ok("run", "--rm", IMAGE, "sh", "-c", fetch).endswith("/bin/sh")


def test_containers_live_through_a_kill_of_the_daemon(cli: Cli, daemon: Daemon) -> None:
    cli.ok("run", "-d", "--name", "box", "--memory", "64m", IMAGE, "sleep", "600")
    before = group(cli)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert group(cli) == before
    cli.ok("update", "--memory", "32m", "--memory-swap", "64m", "box")
    assert values(cli, "memory.max") == [str(32 * MB)]
    cli.ok("exec", "box", "true")
