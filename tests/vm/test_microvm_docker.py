"""Docker containers in microVMs: the real CLI on a daemon whose runtimes have nagaya-vm among them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import microruntime
import pytest
from clients import Background, Terminal
from house import DOCKER, House, wait_for

pytestmark = microruntime.needed

IMAGE = "nagaya/busybox"
VM = ("--runtime", "nagaya-vm")


@pytest.fixture(scope="module")
def home() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="nagt-vm-") as directory:
        command = microruntime.command(Path(directory))
        with House(config=f'[runtimes]\n"nagaya-vm" = "{command}"\n') as house:
            yield house


@pytest.fixture
def house(home: House) -> Iterator[House]:
    """The daemon, without containers before and after."""
    yield home
    if found := home.ok("ps", "-aq").split():
        home.ok("rm", "-f", *found)


def test_a_kernel_of_its_own_and_nothing_left(house: House) -> None:
    kernel = house.ok("run", "--rm", *VM, IMAGE, "uname", "-r")
    assert kernel and kernel != os.uname().release
    assert house.ok("ps", "-aq") == ""
    done = house.docker("run", "--rm", *VM, IMAGE, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    done = house.docker("run", "--rm", *VM, IMAGE, "nothing-here")
    assert done.returncode == 127 and b"executable file not found in $PATH" in done.stderr


def test_a_person_at_a_terminal(house: House) -> None:
    argv = house.inside([DOCKER, "run", "-it", "--rm", *VM, IMAGE, "sh"])
    with Terminal(argv, house.environment, 30, 70) as terminal:
        terminal.expect(b"/ # ")
        terminal.send(b"stty size; tty; echo $((6*7))\n")
        terminal.expect(b"30 70\r\n/dev/pts/0\r\n42\r\n")
        terminal.resize(31, 71)
        terminal.send(b"sleep 0.2; stty size; exit 4\n")
        terminal.expect(b"31 71\r\n")
        assert terminal.wait() == 4


def test_a_published_port_names_and_volumes(house: House) -> None:
    (house.base / "www").mkdir()
    (house.base / "www" / "index.html").write_text("from the host\n")
    house.ok("network", "create", "front")
    house.ok("run", "-d", "--name", "web", *VM, "--network", "front", "-p", "8099:80",
             "-v", f"{house.base}/www:/www", IMAGE, "httpd", "-f", "-h", "/www")  # fmt: skip
    fetch = "until wget -q -O - http://{}; do sleep 0.1; done"
    for options in ((), VM):  # from the host's kernel, and from another guest
        out = house.ok("run", "--rm", *options, "--network", "front", IMAGE, "sh", "-c", fetch.format("web"))
        assert out == "from the host"
    fetched = subprocess.run(house.inside(["curl", "-s", "http://127.0.0.1:8099/"]), capture_output=True)
    assert fetched.stdout == b"from the host\n"
    house.ok("exec", "web", "sh", "-c", "echo from the guest > /www/index.html")
    assert (house.base / "www" / "index.html").read_text() == "from the guest\n"
    house.ok("rm", "-f", "web")
    house.ok("network", "rm", "front")


def test_exec_logs_stats_and_health(house: House) -> None:
    script = "echo begin; while [ ! -e /go ]; do sleep 0.1; done; echo end; sleep 1000"
    house.ok("run", "-d", "--name", "box", *VM, "-m", "64m", "--health-cmd", "test -e /go",
             "--health-interval", "1s", IMAGE, "sh", "-c", script)  # fmt: skip
    follower = Background(house.inside([DOCKER, "logs", "-f", "box"]), house.environment)
    assert follower.line() == "begin"
    words = ("exec", "-e", "A=b", "-w", "/tmp", "-u", "5", "box", "sh", "-c", "echo $A $PWD; id -u")
    assert house.ok(*words) == "b /tmp\n5"
    assert house.docker("exec", "box", "sh", "-c", "exit 9").returncode == 9
    assert house.docker("exec", "-i", "box", "cat", input=b"in and out").stdout == b"in and out"
    seen = json.loads(house.ok("stats", "--no-stream", "--format", "{{json .}}", "box"))
    assert seen["MemUsage"].endswith(" / 64MiB") and not seen["MemUsage"].startswith("0B")
    rows = house.ok("top", "box", "-o", "pid,user,comm").splitlines()
    assert rows[0].split() == ["PID", "USER", "COMMAND"] and any(
        r.split()[1:] == ["root", "sh"] for r in rows
    )
    house.ok("exec", "box", "touch", "/go")
    assert follower.line() == "end"
    follower.process.kill()
    follower.process.communicate()
    status = ("inspect", "-f", "{{.State.Health.Status}}", "box")
    wait_for(lambda: house.ok(*status) == "healthy", 60, "health")


def test_out_of_memory_and_a_dead_machine(house: House) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1; exit $?"
    done = house.docker("run", "--name", "box", *VM, "-m", "16m", IMAGE, "sh", "-c", script)
    assert done.returncode == 137
    assert house.ok("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "box") == "true 137"
    house.ok("rm", "box")
    house.ok("run", "-d", "--name", "box", *VM, IMAGE, "sleep", "1000")
    monitor = int(house.ok("inspect", "-f", "{{.State.Pid}}", "box"))
    (machine,) = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    os.kill(int(machine), signal.SIGKILL)
    assert house.ok("wait", "box") == "137"
    assert b"nagaya-vm: the microVM has ended" in house.docker("logs", "box").stderr
    assert house.ok("inspect", "-f", "{{.State.OOMKilled}}", "box") == "false"
    house.ok("start", "box")
    house.ok("exec", "box", "true")


def test_stop_restart_and_what_was_written(house: House) -> None:
    script = "echo up >> /log; trap 'echo down >> /log; exit 5' TERM; while :; do sleep 0.1; done"
    house.ok("run", "-d", "--name", "box", *VM, IMAGE, "sh", "-c", script)
    log = ("exec", "box", "cat", "/log")
    wait_for(lambda: house.docker(*log).stdout == b"up\n", 60, "the first line")
    house.ok("stop", "-t", "60", "box")
    assert house.ok("inspect", "-f", "{{.State.ExitCode}}", "box") == "5"
    house.ok("start", "box")
    wait_for(lambda: house.docker(*log).stdout == b"up\ndown\nup\n", 60, "what was written before")
    house.ok("restart", "-t", "60", "box")
    wait_for(lambda: house.docker(*log).stdout.count(b"up") == 3, 60, "the third start")
    house.ok("pause", "box")
    assert b"is paused" in house.docker(*log).stderr
    house.ok("unpause", "box")
    house.ok("kill", "box")
    assert house.ok("wait", "box") == "137"


def test_the_host_s_root_is_nobody_s(house: House) -> None:
    """The container's process on the host is the monitor, and its root is the host's."""
    house.ok("run", "-d", "--name", "box", *VM, IMAGE, "sleep", "1000")
    (house.base / "file").write_text("x")
    for words in (
        ("cp", "box:/etc/passwd", "-"), ("cp", str(house.base / "file"), "box:/tmp/nagt-file"),
        ("export", "box"), ("commit", "box"), ("diff", "box"),
    ):  # fmt: skip
        done = house.docker(*words)
        assert done.returncode == 1 and b"are those of its microVM" in done.stderr, (words, done)
    assert not os.path.exists("/tmp/nagt-file")
    for mode in ("--network", "--pid"):
        done = house.docker("run", "--rm", mode, "container:box", IMAGE, "true")
        assert done.returncode == 125 and b"runs in a microVM" in done.stderr
    house.ok("stop", "-t", "0", "box")
    assert b"are those of its microVM" in house.docker("cp", "box:/etc/passwd", "-").stderr


def test_the_daemon_may_be_killed_meanwhile(house: House) -> None:
    house.ok("run", "-d", "--name", "box", *VM, IMAGE, "sh", "-c", "while :; do date +%s; sleep 0.2; done")
    house.kill_daemon()
    house.start()
    assert re.fullmatch(r"\d+", house.ok("logs", "-n", "1", "box"))
    assert house.ok("exec", "box", "echo", "still here") == "still here"
    house.ok("rm", "-f", "box")
