"""How the kernel runs the process: scheduler, CPUs, I/O priority, memory policy, personality."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
from bundles import Bundle

pytestmark = pytest.mark.root

CPUS = sorted(os.sched_getaffinity(0))
PER_LINUX32 = 8


def allowed(status: str) -> str:
    return next(line.split()[1] for line in status.splitlines() if line.startswith("Cpus_allowed_list"))


def pid(box: Bundle) -> int:
    return int(box.state()["pid"])


def exec_process(box: Bundle, **members: Any) -> str:
    process = {"cwd": "/", "args": ["cat", "/proc/self/status"], "user": {"uid": 0, "gid": 0}, **members}
    process["env"] = ["PATH=/bin"]
    (box.base / "process.json").write_text(json.dumps(process))
    return box.ok("exec", "--process", str(box.base / "process.json"), box.id)


def test_scheduler_and_io_priority_reach_the_first_process_and_exec(our_box: Bundle) -> None:
    process = our_box.spec["process"]
    process["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
    process["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 3}
    our_box.start()
    assert os.sched_getscheduler(pid(our_box)) == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, pid(our_box)) == 7
    text = subprocess.run(["ionice", "-p", str(pid(our_box))], capture_output=True, text=True, check=True)
    assert text.stdout.strip() == "best-effort: prio 3"
    # 41st field of proc_pid_stat(5): the policy
    assert our_box.ok("exec", our_box.id, "cat", "/proc/self/stat").split()[40] == str(os.SCHED_BATCH)
    stat = exec_process(
        our_box,
        args=["cat", "/proc/self/stat"],
        scheduler={
            "policy": "SCHED_DEADLINE",
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 1 << 20,
            "deadline": 1 << 24,
            "period": 1 << 24,
        },
    )
    assert stat.split()[40] in ("6", "0")  # the kernel may have run it to its end before


def test_the_callers_cpus_are_not_the_containers(our_box: Bundle) -> None:
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    our_box.spec["process"]["args"] = ["cat", "/proc/self/status"]
    our_box.save()
    run = our_box.argv("run", "--bundle", str(our_box.path), our_box.id)
    done = subprocess.run(
        ["taskset", "-c", str(CPUS[0]), *run],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    assert allowed(done.stdout) != str(CPUS[0])


def test_cpus_of_exec(our_box: Bundle) -> None:
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    our_box.start()
    last = str(CPUS[-1])
    assert allowed(exec_process(our_box, execCPUAffinity={"initial": str(CPUS[0]), "final": last})) == last
    assert allowed(exec_process(our_box, execCPUAffinity={"initial": last})) != last
    assert allowed(exec_process(our_box)) != last


def test_memory_policy(our_box: Bundle) -> None:
    our_box.spec["linux"]["memoryPolicy"] = {
        "mode": "MPOL_BIND",
        "nodes": "0",
        "flags": ["MPOL_F_STATIC_NODES"],
    }
    assert our_box.shell("head -n 1 /proc/self/numa_maps").split()[1] == "bind=static:0"


def test_personality(our_box: Bundle) -> None:
    our_box.spec["linux"]["personality"] = {"domain": "LINUX32"}
    our_box.start()
    with open(f"/proc/{pid(our_box)}/personality") as file:
        assert int(file.read(), 16) & 0xFF == PER_LINUX32
    text = our_box.ok("exec", our_box.id, "cat", "/proc/self/personality")
    assert int(text, 16) & 0xFF == PER_LINUX32


BAD: list[tuple[str, str, Any, str]] = [
    ("process", "scheduler", {}, "process.scheduler.policy: invalid scheduler policy None"),
    ("process", "scheduler", {"policy": "SCHED_X"}, "process.scheduler.policy"),
    ("process", "scheduler", {"policy": "SCHED_BATCH", "nice": 20}, "process.scheduler.nice: 20 is out of"),
    ("process", "scheduler", {"policy": "SCHED_OTHER", "priority": 1}, "process.scheduler.priority"),
    ("process", "scheduler", {"policy": "SCHED_FIFO", "runtime": 1}, "process.scheduler: runtime"),
    ("process", "scheduler", {"policy": "SCHED_FIFO", "flags": ["X"]}, "process.scheduler.flags[0]"),
    ("process", "scheduler", "SCHED_FIFO", "process.scheduler: must be an object"),
    ("process", "ioPriority", {"class": "X"}, "process.ioPriority.class"),
    ("process", "ioPriority", {"class": "IOPRIO_CLASS_RT", "priority": 8}, "process.ioPriority.priority"),
    ("process", "execCPUAffinity", {"initial": "a"}, "process.execCPUAffinity.initial: invalid CPU 'a'"),
    ("process", "execCPUAffinity", {"final": "3-1"}, "process.execCPUAffinity.final"),
    ("linux", "memoryPolicy", {}, "linux.memoryPolicy.mode: invalid memory policy mode"),
    ("linux", "memoryPolicy", {"mode": "MPOL_BIND", "nodes": "0-99999"}, "invalid memory policy node"),
    ("linux", "memoryPolicy", {"mode": "MPOL_LOCAL", "nodes": "0-1"}, "requires 0 nodes but got 2"),
    ("linux", "memoryPolicy", {"mode": "MPOL_BIND", "flags": ["X"]}, "linux.memoryPolicy.flags[0]"),
    ("linux", "personality", {"domain": "X"}, "linux.personality.domain"),
    ("linux", "personality", {"domain": "LINUX", "flags": ["X"]}, "linux.personality.flags"),
]


@pytest.mark.parametrize(("section", "key", "value", "text"), BAD)
def test_what_is_wrong_is_named(our_box: Bundle, section: str, key: str, value: Any, text: str) -> None:
    our_box.spec[section][key] = value
    done = our_box.run("true")
    assert done.returncode == 1 and text in done.stderr
    assert done.stderr.count("\n") == 1
    assert our_box.leaks() == []


def test_a_deadline_needs_all_cpus(our_box: Bundle) -> None:
    if len(CPUS) < 2:
        pytest.skip("one CPU")
    our_box.spec["linux"].setdefault("resources", {})["cpu"] = {"cpus": str(CPUS[0])}
    our_box.spec["process"]["scheduler"] = {
        "policy": "SCHED_DEADLINE",
        "runtime": 1 << 20,
        "deadline": 1 << 24,
        "period": 1 << 24,
    }
    done = our_box.run("true")
    assert done.returncode == 1
    assert "process scheduler can't be used together with AllowedCPUs" in done.stderr
