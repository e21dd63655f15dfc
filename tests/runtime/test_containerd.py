"""containerd's ctr and shim with nagaya-oci as their runtime binary, and with runc, which proves the
tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import wait_until
from clients import Terminal
from containerdhost import Containerd

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("containerd"), reason="containerd is not installed"),
]


@pytest.fixture(scope="module", params=["nagaya-oci", "runc"])
def containerd(request: pytest.FixtureRequest, ours: str) -> Iterator[Containerd]:
    made = Containerd(ours if request.param == "nagaya-oci" else "runc")
    yield made
    assert made.close() == []


def test_run(containerd: Containerd) -> None:
    done = containerd.run(f"{containerd.tag}-a", "sh", "-c", "echo hi; id -u; exit 6", options=("--rm",))
    assert (done.returncode, done.stdout) == (6, "hi\n0\n"), done.stderr


def test_a_missing_command(containerd: Containerd) -> None:
    done = containerd.run(f"{containerd.tag}-b", "nope", options=("--rm",))
    assert done.returncode != 0
    assert 'exec: "nope": executable file not found in $PATH' in done.stderr
    containerd.ctr("containers", "rm", f"{containerd.tag}-b")


def test_task_exec_pause_kill(containerd: Containerd) -> None:
    name = f"{containerd.tag}-c"
    done = containerd.run(name, "sleep", "1000", options=("--detach",))
    assert done.returncode == 0, done.stderr
    assert containerd.ok("tasks", "exec", "--exec-id", "e1", name, "echo", "inside") == "inside\n"
    assert containerd.ctr("tasks", "exec", "--exec-id", "e2", name, "sh", "-c", "exit 3").returncode == 3
    assert "RUNNING" in containerd.ok("tasks", "ls")
    containerd.ok("tasks", "pause", name)
    assert "PAUSED" in containerd.ok("tasks", "ls")
    containerd.ok("tasks", "resume", name)
    assert len(containerd.ok("tasks", "ps", name).splitlines()) == 2
    containerd.remove(name)


def test_run_and_exec_in_a_terminal(containerd: Containerd) -> None:
    name = f"{containerd.tag}-d"
    environment = {**os.environ, "TERM": "xterm"}
    with Terminal(
        containerd.argv(*containerd.words(name, "sh", options=("--rm", "-t"))), environment, 31, 97
    ) as run:
        sized(run, b"31 97")
        run.resize(40, 100)
        sized(run, b"40 100")
        with Terminal(
            containerd.argv("tasks", "exec", "-t", "--exec-id", "t1", name, "sh"), environment, 20, 60
        ) as inner:
            sized(inner, b"20 60")
            inner.send(b"exit 3\r")
            assert inner.wait() == 3
        run.send(b"exit 4\r")
        assert run.wait() == 4


def sized(terminal: Terminal, size: bytes) -> None:
    """Ask for the terminal's size until it is that."""

    def told() -> bool:
        terminal.send(b"busybox stty size; echo en''d\r")
        return size in terminal.expect(b"end")

    wait_until(told, 30, "the size")


def test_limits_and_metrics(containerd: Containerd) -> None:
    name = f"{containerd.tag}-e"
    options = ("--detach", "--memory-limit", str(64 << 20), "--cpus", "0.5")
    done = containerd.run(name, "sleep", "1000", options=options)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(containerd.ok("tasks", "metrics", "--format", "json", name))
    if "usage" in metrics["memory"]:  # cgroup v1
        assert int(metrics["memory"]["usage"]["limit"]) == 64 << 20
        assert 0 < int(metrics["memory"]["usage"]["usage"]) < 64 << 20
    else:
        assert int(metrics["memory"]["usage_limit"]) == 64 << 20
    assert int(metrics["pids"]["current"]) == 1
    top = Path("/sys/fs/cgroup")
    below = f"{containerd.tag}/{name}"
    (quota,) = [*top.glob(f"cpu/{below}/cpu.cfs_quota_us"), *top.glob(f"{below}/cpu.max")]
    assert quota.read_text().split()[0] == "50000"
    containerd.remove(name)


def test_signals_and_what_a_program_is(containerd: Containerd) -> None:
    name = f"{containerd.tag}-f"
    options = ("--detach", "--env", "A=b", "--cwd", "/tmp", "--read-only")
    script = "trap 'exit 7' TERM; while :; do sleep 0.05; done"
    done = containerd.run(name, "sh", "-c", script, options=options)
    assert done.returncode == 0, done.stderr
    told = "echo $A $(id -u):$(id -g) $(busybox pwd); echo x > /tmp/x; true"
    seen = containerd.ctr("tasks", "exec", "--user", "5:6", "--exec-id", "e4", name, "sh", "-c", told)
    assert seen.stdout == "b 5:6 /tmp\n" and "Read-only file system" in seen.stderr
    containerd.ok("tasks", "kill", "--signal", "SIGTERM", name)
    wait_until(lambda: "STOPPED" in containerd.ok("tasks", "ls"))
    assert "exit code 7" in containerd.ctr("tasks", "rm", name).stderr
    containerd.ok("containers", "rm", name)
