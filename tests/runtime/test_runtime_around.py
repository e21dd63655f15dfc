"""Around the life of a container: events, sockets that are handed in, logs, lists, limits; shown on runc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bundles import Bundle, wait_until

pytestmark = pytest.mark.root


@contextmanager
def events(box: Bundle, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`events` that runs beside the test."""
    with subprocess.Popen(
        box.argv("events", *options, box.id), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        guard = threading.Timer(60, process.kill)  # who reads from it would wait for ever
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


def _lines(process: subprocess.Popen[str], kind: str, count: int) -> list[dict[str, Any]]:
    """So many lines of a kind, as they come; those of other kinds are left out."""
    assert process.stdout is not None
    found: list[dict[str, Any]] = []
    for line in process.stdout:
        document = json.loads(line)
        if document["type"] == kind:
            found.append(document)
            if len(found) == count:
                return found
    raise AssertionError(
        f"{len(found)} of {count} lines, then its end: {process.stderr and process.stderr.read()}"
    )


def test_events_come_at_the_interval_until_the_end(box: Bundle) -> None:
    box.start()
    with events(box, "--interval", "50ms") as process:
        begin = time.monotonic()
        seen = _lines(process, "stats", 4)
        assert time.monotonic() - begin >= 0.14
        assert all(line["id"] == box.id and line["data"]["pids"]["current"] >= 1 for line in seen)
        box.ok("delete", "--force", box.id)
        assert process.wait(30) == 0


def test_events_tell_of_the_kernels_oom_killer(box: Bundle) -> None:
    box.spec["linux"]["resources"]["memory"] = {"limit": 40 << 20, "swap": 40 << 20}
    eats = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    box.start("sh", "-c", f"trap '{eats}' USR1; touch /tmp/ready; while :; do sleep 0.05; done")
    wait_until((box.rootfs / "tmp" / "ready").exists)
    with events(box, "--interval", "50ms") as process:
        _lines(process, "stats", 1)
        box.ok("kill", box.id, "USR1")
        (seen,) = _lines(process, "oom", 1)
        assert seen["id"] == box.id


@pytest.mark.parametrize("interval", ["0s", "-1s", "often"])
def test_an_interval_must_be_a_duration(box: Bundle, interval: str) -> None:
    box.start()
    done = box.call("events", f"--interval={interval}", box.id)
    assert done.returncode == 1 and "interval" in done.stderr


def test_events_of_a_stopped_container_are_an_error(box: Bundle) -> None:
    box.start("true")
    wait_until(lambda: box.status() == "stopped")
    done = box.call("events", "--stats", box.id)
    assert done.returncode == 1 and f"container with id {box.id} is not running" in done.stderr


def test_sockets_are_handed_in_as_systemd_does(box: Bundle) -> None:
    """sd_listen_fds(3): LISTEN_FDS of them from 3 on, for the process that LISTEN_PID names."""
    box.spec["process"]["args"] = [
        "sh",
        "-c",
        "ls /proc/$$/fd; echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4",
    ]
    box.save()
    script = (
        "import os, sys\n"
        "for number, text in ((13, b'one'), (14, b'two')):\n"
        "    reader, writer = os.pipe()\n"
        "    os.write(writer, text); os.close(writer); os.dup2(reader, number); os.close(reader)\n"
        "os.dup2(13, 3); os.dup2(14, 4); os.close(13); os.close(14)\n"
        "os.set_inheritable(3, True); os.set_inheritable(4, True)\n"
        "os.environ['LISTEN_FDS'] = '2'; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    argv = [sys.executable, "-S", "-c", script, *box.argv("run", "--bundle", str(box.path), box.id)]
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done
    *_, last, content = done.stdout.splitlines()
    assert (last, content) == ("2 1", "onetwo")
    assert {"0", "1", "2", "3", "4"} <= set(done.stdout.split())


def test_listen_fds_that_are_not_there_are_refused(our_box: Bundle) -> None:
    done = our_box.run("true", env={**os.environ, "LISTEN_FDS": "7"})
    assert done.returncode == 1 and "preserved-fd" in done.stderr
    assert our_box.leaks() == []


def test_update_reads_a_file_and_options(box: Bundle) -> None:
    box.start()
    document = box.base / "resources.json"
    document.write_text(
        json.dumps(
            {"memory": {"limit": 50 << 20}, "cpu": {"quota": 20000, "period": 100000}, "pids": {"limit": 55}}
        )
    )
    box.ok("update", "--resources", str(document), box.id)
    data = json.loads(box.ok("events", "--stats", box.id))["data"]
    assert data["memory"]["usage"]["limit"] == 50 << 20 and data["pids"]["limit"] == 55
    if Path("/sys/fs/cgroup/cpu").is_dir():
        pid = box.state()["pid"]
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        path = next(line.split(":")[2] for line in lines if line.split(":")[1] == "cpu")
        assert Path(f"/sys/fs/cgroup/cpu{path}/cpu.cfs_quota_us").read_text() == "20000\n"
    document.write_text("{")
    assert box.call("update", "--resources", str(document), box.id).returncode == 1
    assert box.call("update", "--resources", "/no/such/file", box.id).returncode == 1
    assert box.call("update", "--memory", "lots", box.id).returncode == 1


def test_ps_as_a_table_and_as_json(box: Bundle) -> None:
    box.start("sh", "-c", "sleep 1001 & sleep 1002 & wait")
    wait_until(lambda: len(json.loads(box.ok("ps", "--format", "json", box.id))) == 3)
    pids = json.loads(box.ok("ps", "-f", "json", box.id))
    header, *rows = box.ok("ps", "--format", "table", box.id).splitlines()
    column = header.split().index("PID")
    assert sorted(int(row.split()[column]) for row in rows) == sorted(pids)
    assert [row for row in rows if "sleep 1001" in row]
    header, *rows = box.ok("ps", box.id, "-e", "-x").splitlines()
    assert len(rows) == 3 and "COMMAND" in header
    done = box.call("ps", "--format", "xml", box.id)
    assert done.returncode == 1 and "invalid format option" in done.stderr


def test_list_has_containers_of_every_state(box: Bundle) -> None:
    names = {}
    for status, args in (("created", None), ("running", "1000"), ("stopped", "0"), ("paused", "1000")):
        identifier = f"{box.tag}-{status}"
        box.spec["process"]["args"] = ["sleep", args or "1000"]
        box.save()
        box.ok("create", "--bundle", str(box.path), identifier)
        if args:
            box.ok("start", identifier)
        names[identifier] = status
    box.ok("pause", f"{box.tag}-paused")
    box.id = f"{box.tag}-stopped"
    wait_until(lambda: box.status() == "stopped")
    assert sorted(box.ok("list", "--quiet").split()) == sorted(names)
    found = {c["id"]: c for c in json.loads(box.ok("list", "-f", "json"))}
    assert {name: entry["status"] for name, entry in found.items()} == names
    assert found[box.id]["pid"] == 0
    box.ok("resume", f"{box.tag}-paused")


def test_exec_waits_for_no_thaw_unless_told(box: Bundle) -> None:
    box.start()
    box.ok("pause", box.id)
    done = box.call("exec", box.id, "true")
    assert done.returncode == 255 and "cannot exec in a paused container" in done.stderr
    command = box.argv("exec", "--ignore-paused", box.id, "echo", "thawed")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        time.sleep(0.2)
        assert process.poll() is None  # it is frozen, too
        box.ok("resume", box.id)
        assert process.communicate(timeout=30)[0] == b"thawed\n"


def test_kill_all_sends_any_signal(box: Bundle) -> None:
    script = "trap 'echo >/tmp/got{0}' USR1; touch /tmp/ready{0}; while :; do sleep 0.05; done"
    (box.rootfs / "one.sh").write_text(script.format(1))
    (box.rootfs / "two.sh").write_text(script.format(2))
    box.start("sh", "-c", "sh /one.sh & exec sh /two.sh")
    wait_until(lambda: all((box.rootfs / "tmp" / f"ready{n}").exists() for n in (1, 2)))
    box.ok("kill", "--all", box.id, "USR1")
    wait_until(lambda: all((box.rootfs / "tmp" / f"got{n}").exists() for n in (1, 2)))
    assert box.status() == "running"


def test_the_log_as_json_and_with_debug(box: Bundle, tmp_path: Path) -> None:
    box.start()
    log = tmp_path / "log"
    root = ("--root", str(box.state_root))
    done = subprocess.run(
        [box.runtime, "--debug", "--log", log, "--log-format", "json", *root, "exec", box.id, "/nope"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 255
    documents = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"level", "msg", "time"} <= set(document) for document in documents)
    (error,) = (document["msg"] for document in documents if document["level"] == "error")
    assert "no such file or directory" in error and "no such file or directory" in done.stderr
    assert any(document["level"] == "debug" for document in documents)
    done = subprocess.run(
        [box.runtime, "--log", log, "--log-format", "xml", *root, "list"], capture_output=True, text=True
    )
    assert done.returncode == 1


def test_the_log_is_text_unless_told(box: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log"
    subprocess.run(
        [box.runtime, "--log", log, "--root", tmp_path / "none", "state", "x"], capture_output=True
    )
    (line,) = log.read_text().splitlines()
    assert line.startswith('time="') and 'level=error msg="container does not exist"' in line
