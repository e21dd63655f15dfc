"""Debian's dockerd with nagaya-oci beside runc: the everyday commands, with the outcome of runc.

Most tests run once with each runtime and demand the same; those that look at everything a program can
see run a script with both and compare what it printed.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import remove_cgroups
from clients import Cli, Said, Terminal, available, have_dockerd
from dockerd import Dockerd
from house import wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not have_dockerd(), reason="dockerd is not installed"),
]

IMAGE = "nagaya/busybox"
RUNTIMES = ("runc", "nagaya")
MB = 1 << 20
PATIENT = ("sh", "-c", "trap 'exit 5' TERM; trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done")


@pytest.fixture(scope="module")
def dockerd(ours: str) -> Iterator[Dockerd]:
    with Dockerd({"nagaya": ours}, bip="10.231.77.1/24") as made:
        yield made


@pytest.fixture(scope="module")
def client(dockerd: Dockerd) -> Cli:
    return Cli(dockerd, "docker" if available("docker") else "docker20")


class Box:
    """The docker command, with one runtime for what it runs."""

    def __init__(self, cli: Cli, runtime: str) -> None:
        self.cli, self.runtime = cli, runtime
        self.ok = cli.ok

    def words(self, *arguments: str) -> tuple[str, ...]:
        return ("run", "--runtime", self.runtime, *arguments)

    def run(self, *arguments: str, input: str = "") -> Said:
        return self.cli(*self.words(*arguments), input=input)

    def shell(self, *arguments: str) -> str:
        """The output of `run --rm OPTIONS IMAGE sh -c SCRIPT`, of (*OPTIONS, SCRIPT)."""
        *options, script = arguments
        return self.cli.ok(*self.words("--rm", *options, IMAGE, "sh", "-c", script))

    def start(self, *options: str, command: tuple[str, ...] = ("sleep", "600")) -> None:
        """A container "box" in the background."""
        self.cli.ok(*self.words("-d", "--name", "box", *options, IMAGE, *command))

    def inspect(self, field: str, name: str = "box") -> Any:
        return json.loads(self.cli.ok("inspect", "-f", f"{{{{json {field}}}}}", name))

    def patient(self) -> None:
        """A container that listens to its signals, once it does."""
        self.start(command=PATIENT)
        wait_for(lambda: self.cli("logs", "box").out == "up\n", 30, "the trap")


def remove_all(cli: Cli) -> None:
    if left := cli("ps", "-aq").out.split():
        cli("rm", "-f", "-v", *left)


@pytest.fixture(params=RUNTIMES)
def box(request: pytest.FixtureRequest, client: Cli) -> Iterator[Box]:
    yield Box(client, request.param)
    remove_all(client)


@pytest.fixture
def same(client: Cli) -> Iterator[Callable[..., str]]:
    """Run a script with both runtimes: what runc's printed; the other's must be the same."""

    def both(*arguments: str) -> str:
        theirs, mine = (Box(client, runtime).shell(*arguments) for runtime in RUNTIMES)
        assert difference(seen(theirs), seen(mine)) == []
        return theirs

    yield both
    remove_all(client)


def test_the_runtime_is_ours(box: Box) -> None:
    box.start()
    assert box.inspect(".HostConfig.Runtime") == box.runtime
    pid = box.inspect(".State.Pid")
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    assert "nagaya" in box.ok("info", "-f", "{{json .Runtimes}}")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("true",), 0, ""),
        (("sh", "-c", "exit 7"), 7, ""),
        (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137, ""),
        (("nope",), 127, 'exec: "nope": executable file not found in $PATH'),
        (("/nope",), 127, "/nope: no such file or directory"),
        (("/etc/passwd",), 126, 'exec: "/etc/passwd": permission denied'),
        (("/etc",), 126, "/etc"),
    ],
)
def test_exit_codes(box: Box, command: tuple[str, ...], code: int, message: str) -> None:
    said = box.run("--rm", IMAGE, *command)
    assert said.status == code and message in said.err, said
    assert box.ok("ps", "-aq") == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-w", "/etc/passwd"), "not a directory"),
        (("-v", "/usr:/etc/passwd/x"), "not a directory"),
        (("--cpuset-cpus", "0", "--sysctl", "kernel.nosuch=1"), "kernel.nosuch"),
        (("--device", "/dev/null:/etc/passwd/x"), "not a directory"),
    ],
)
def test_what_cannot_be_made_says_why(box: Box, options: tuple[str, ...], message: str) -> None:
    said = box.run("--rm", *options, IMAGE, "true")
    assert said.status in (125, 126, 127) and message in said.err, said
    assert box.ok("ps", "-aq") == ""


def test_streams(box: Box) -> None:
    assert box.run("--rm", "-i", IMAGE, "sh", "-c", "cat; echo bad >&2", input="a\nb") == (0, "a\nb", "bad\n")
    big = box.run("--rm", IMAGE, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")
    assert big.status == 0 and len(big.out) == 3_000_000


SEES = r"""
id; pwd; hostname; umask; env | sort
grep -v -e '^Vm' -e ^Rss -e ctxt -e id: -e SigQ -e HugetlbPages /proc/self/status
ulimit -a; cat /proc/self/oom_score_adj /proc/self/cgroup; mount
ls -ln /dev /dev/pts | sed 's/[A-Z][a-z][a-z]  *[0-9]* [0-9:]*//'
ls -l /proc/self/fd | sed 's/.*:[0-9][0-9] //; s/\[[0-9]*\]//'
cd /proc/sys; ls net/ipv4 | wc -l; cat net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start
ip -o -4 addr | sed 's/@if[0-9]*//; s/^[0-9]*: //'
for f in /proc/kcore /proc/keys /proc/timer_list /sys/firmware /proc/scsi; do
    head -c 1 $f 2>&1 | wc -c; ls $f
done
for f in kernel/hostname /proc/sysrq-trigger /sys/x /dev/x /proc/irq/x /x; do
    touch $f 2>&1 | sed 's/.*: //'
done
readlink /proc/self/ns/user; readlink /proc/self/ns/time; nproc
"""


# where ours is stricter, and what it leaves alone on a hybrid host: docs/nagaya-oci.md, "Differences"
KNOWN = re.compile(r"0::/|tmpfs on (/proc/acpi|/proc/scsi|/sys/firmware|/sys/fs/cgroup) type tmpfs \(r")


def seen(output: str) -> list[str]:
    """The lines of SEES without what no two containers have in common, sorted: dockerd hands mounts over
    in an order of the moment."""
    output = re.sub(r"(upper|lower|work)dir=[^,)]*", r"\1", re.sub(r"\b[0-9a-f]{64}\b", "ID", output))
    output = re.sub(r"\b[0-9a-f]{12}\b", "ID", re.sub(r"(10\.231\.77)\.\d+", r"\1.N", output))
    lines = re.sub(r"/proc/\d+/", "/proc/N/", output).splitlines()
    return sorted(line for line in lines if not KNOWN.match(line))


def difference(theirs: list[str], mine: list[str]) -> list[str]:
    """The lines that only one has."""
    return [line for line in difflib.ndiff(theirs, mine) if line[0] in "+-"]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-t",),
        ("--user", "1000:5", "--group-add", "33", "-w", "/tmp/new/dir", "-e", "A=b", "-h", "other"),
        ("--user", "daemon", "--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN", "--cap-drop", "KILL"),
        ("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--init"),
        ("--read-only", "--tmpfs", "/run:size=1m,mode=700,noexec", "--tmpfs", "/scratch", "--shm-size", "3m"),
        ("--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"),
        ("--ulimit", "nofile=100:200", "--ulimit", "core=0", "--oom-score-adj", "500", "--ipc", "none"),
        ("--network", "none", "--sysctl", "net.ipv4.ip_default_ttl=9", "--sysctl", "kernel.msgmax=70000"),
        ("--network", "host", "--uts", "host", "--ipc", "host"),
        ("-v", "/usr/share:/share:ro", "--mount", "type=tmpfs,dst=/t,tmpfs-size=9m", "-v", "/anonymous"),
        ("--mount", "type=bind,src=/usr,dst=/u,ro,bind-propagation=private", "--device", "/dev/fuse:/f:r"),
        ("--memory", "64m", "--cpus", "0.5", "--cpu-shares", "9", "--pids-limit", "50", "--cpuset-cpus", "0"),
    ],
    ids=lambda options: " ".join(options) or "plain",
)  # fmt: skip
def test_a_program_sees_the_same(same: Callable[..., str], options: tuple[str, ...]) -> None:
    assert "proc on /proc type proc" in same(*options, SEES)


def test_sharing_namespaces_of_another(box: Box) -> None:
    box.start("--ipc", "shareable")
    for kind in ("pid", "network", "ipc"):
        out = box.shell(f"--{kind}", "container:box", f"readlink /proc/self/ns/{kind[:3]}")
        pid = box.inspect(".State.Pid")
        assert out == str(Path(f"/proc/{pid}/ns/{kind[:3]}").readlink())
    assert "sleep" in box.shell("--pid", "container:box", "ps")
    assert "dockerd" in box.shell("--pid", "host", "ps -o args")


def test_privileged_as_far_as_the_host_allows(client: Cli) -> None:
    """A root without all capabilities can give no container them: this runc fails there; ours gives those
    that there are, as runc has it since 1.2."""
    theirs, mine = (
        Box(client, name).run("--rm", "--privileged", IMAGE, "sh", "-c", SEES) for name in RUNTIMES
    )
    assert mine.status == 0
    if theirs.status == 0:
        assert difference(seen(theirs.out), seen(mine.out)) == []
    else:
        assert "unable to apply caps: operation not permitted" in theirs.err
        mask = int(re.findall(r"CapBnd:\t(\w+)", mine.out)[0], 16)
        held = int(re.findall(r"CapBnd:\t(\w+)", Path("/proc/self/status").read_text())[0], 16)
        assert mask & ~held == 0
        assert "NoNewPrivs:\t0\nSeccomp:\t0\n" in mine.out and "sysfs on /sys type sysfs (rw" in mine.out


LIMITS = r"""
cd /sys/fs/cgroup
for f in memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes \
    memory/memory.swappiness cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus \
    pids/pids.max devices/devices.list blkio/blkio.weight \
    memory.max memory.swap.max memory.low cpu.max cpu.weight cpuset.cpus pids.max io.max; do
    [ -e $f ] && echo $f && sort $f
done
exit 0
"""


def test_limits(same: Callable[..., str]) -> None:
    seen = same(
        *("--memory", "64m", "--memory-swap", "96m", "--memory-reservation", "32m", "--cpus", "0.5"),
        *("--cpu-shares", "200", "--cpuset-cpus", "1", "--pids-limit", "50", "--device", "/dev/fuse"),
        *("--device-cgroup-rule", "c 42:* rmw", LIMITS),
    )
    assert str(64 * MB) in seen and "50000" in seen
    assert "\nc 42:* rwm\n" in same("--device-cgroup-rule", "c 42:* rmw", LIMITS) or "memory.max" in seen


def test_beyond_the_limits(box: Box) -> None:
    said = box.run("--pids-limit", "5", "--rm", IMAGE, "sh", "-c", "for i in 1 2 3 4 5 6; do sleep 9 & done")
    assert said.status != 0 and "fork" in said.err
    limit = ("--memory", "16m", "--memory-swap", "16m")
    box.start(*limit, command=("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1; echo $?; sleep 600"))
    wait_for(lambda: box.cli("logs", "box").out == "137\n", 30, "the kill")
    # the shim tells of it when it gets to it; a container that ends before has not been killed for memory
    told = ("events", "--since", "1h", "--filter", "container=box", "--filter", "event=oom", "--until")
    wait_for(lambda: box.ok(*told, f"{time.time():.9f}"), 30, "the event")
    box.ok("kill", "box")
    assert box.inspect(".State.OOMKilled") is True
    assert box.run("--name", "small", "--memory", "16m", IMAGE, "true").status == 0
    assert box.inspect(".State.OOMKilled", "small") is False


def test_exec(box: Box) -> None:
    box.start("-e", "A=outer", "-w", "/tmp")
    out = box.ok("exec", "box", "sh", "-c", "echo $A $(id -u) $(pwd)")
    assert out == "outer 0 /tmp"
    out = box.ok("exec", "-e", "A=inner", "-e", "B=2", "-u", "1000:33", "-w", "/etc", "box",
                 "sh", "-c", "echo $A $B $(id -u):$(id -g) $PWD; grep CapEff /proc/self/status")  # fmt: skip
    assert out == "inner 2 1000:33 /etc\nCapEff:\t0000000000000000"
    assert box.cli("exec", "box", "sh", "-c", "exit 9").status == 9
    assert box.cli("exec", "box", "sh", "-c", "kill -TERM $$").status == 143
    assert box.cli("exec", "-i", "box", "cat", input="given").out == "given"
    said = box.cli("exec", "box", "nope")
    assert (
        said.status in (126, 127)
        and 'exec: "nope": executable file not found in $PATH' in said.out + said.err
    )
    said = box.cli("exec", "box", "/etc/passwd")
    assert said.status == 126 and "permission denied" in said.out + said.err
    said = box.cli("exec", "-w", "/etc/passwd", "box", "true")
    assert said.status in (126, 127) and "not a directory" in said.out + said.err
    box.ok("exec", "-d", "box", "sh", "-c", "echo done > /tmp/flag")
    wait_for(lambda: box.cli("exec", "box", "cat", "/tmp/flag").out == "done\n", 30, "what runs detached")


def test_exec_sees_what_the_container_sees(client: Cli) -> None:
    script = SEES + "cat /proc/1/comm; ps -o comm"
    outputs = []
    for runtime in RUNTIMES:
        box = Box(client, runtime)
        box.start("--cap-drop", "CHOWN", "--ulimit", "nofile=99:99", "--memory", "64m", "-h", "boxy")
        outputs.append([seen(box.ok("exec", *options, "box", "sh", "-c", script))
                        # the terminal last: it may be seen for a moment after its end
                        for options in ((), ("-u", "daemon"), ("-t",))])  # fmt: skip
        remove_all(client)
    for theirs, mine in zip(*outputs, strict=True):
        assert difference(theirs, mine) == []


def converse(terminal: Terminal) -> int:
    """What a person does in a shell, the window resized meanwhile; the exit code."""

    def size(expected: bytes) -> bool:
        terminal.send(b"stty size; echo en''d\r")
        return expected in terminal.expect(b"end")

    # the client tells the size after the start
    wait_for(lambda: size(b"31 97"), 30, "the size")

    def resized() -> bool:
        # again and again: the client and the peers lose one that comes beside another
        terminal.resize(41, 100)
        terminal.resize(40, 100)
        return size(b"40 100")

    wait_for(resized, 30, "the new size")
    terminal.send(b"tty; echo be''gun; sleep 600\r")
    assert b"/dev/pts/" in terminal.expect(b"begun")
    terminal.send(b"\x03")
    terminal.expect(b"# ")
    terminal.send(b"exit 4\r")
    return terminal.wait()


def test_run_in_a_terminal(box: Box) -> None:
    with box.cli.terminal(*box.words("-it", "--rm", IMAGE, "sh"), rows=31, columns=97) as terminal:
        assert converse(terminal) == 4


def test_exec_in_a_terminal(box: Box) -> None:
    box.start()
    with box.cli.terminal("exec", "-it", "box", "sh", rows=31, columns=97) as terminal:
        assert converse(terminal) == 4


def test_detach_and_attach(box: Box) -> None:
    words = box.words("-it", "--name", "box", IMAGE, "sh", "-c", "echo up; read x; echo got $x; exit 6")
    with box.cli.terminal(*words) as terminal:
        terminal.expect(b"up")
        terminal.send(b"\x10\x11")
        assert terminal.wait() == 0
    assert box.inspect(".State.Running")
    with box.cli.terminal("attach", "box") as terminal:
        terminal.send(b"word\r")
        terminal.expect(b"got word")
        assert terminal.wait() == 6


def test_stats(box: Box) -> None:
    box.start("--memory", "64m", "--pids-limit", "20", command=("sh", "-c", "while :; do :; done"))

    def stats() -> dict[str, str]:
        found: dict[str, str] = json.loads(box.ok("stats", "--no-stream", "--format", "{{json .}}", "box"))
        return found

    wait_for(lambda: float(stats()["CPUPerc"].rstrip("%")) > 1, 60, "the loop in the numbers")
    seen = stats()
    assert seen["PIDs"] == "1" and seen["Name"] == "box"
    used, limit = (re.fullmatch(r"([\d.]+)(KiB|MiB)", part) for part in seen["MemUsage"].split(" / "))
    assert used and limit and limit.groups() == ("64", "MiB")
    assert 0 < float(used[1]) * {"KiB": 1, "MiB": 1024}[used[2]] < 16 * 1024


def test_top(box: Box) -> None:
    box.start(command=("sh", "-c", "sleep 601 & sleep 602; :"))

    def rows() -> list[str]:
        titles, *found = box.ok("top", "box", "-o", "pid,args").splitlines()
        assert titles.split() == ["PID", "COMMAND"]
        return sorted(row.split(None, 1)[1] for row in found)

    wait_for(
        lambda: rows() == ["sh -c sleep 601 & sleep 602; :", "sleep 601", "sleep 602"], 30, "its processes"
    )


def test_pause(box: Box) -> None:
    box.start(command=("sh", "-c", "while :; do echo x; sleep 0.05; done"))
    box.ok("pause", "box")
    assert box.ok("ps", "--format", "{{.Status}}").endswith("(Paused)")
    quiet = box.ok("logs", "box")
    said = box.cli("exec", "box", "true")
    assert said.status == 1 and "is paused" in said.err
    assert box.ok("logs", "box") == quiet
    box.ok("unpause", "box")
    wait_for(lambda: len(box.ok("logs", "box")) > len(quiet), 30, "more output")
    box.ok("pause", "box")
    box.ok("rm", "-f", "box")


def test_update(box: Box) -> None:
    box.start("--memory", "64m", "--memory-swap", "64m")
    box.ok("update", "--memory", "32m", "--memory-swap", "48m", "--cpus", "0.25", "--pids-limit", "33", "box")
    lines = box.ok("exec", "box", "sh", "-c", LIMITS).splitlines()
    limits = dict(zip(lines[::2], lines[1::2], strict=False))
    expected = {
        "memory/memory.limit_in_bytes": str(32 * MB),
        "memory/memory.memsw.limit_in_bytes": str(48 * MB),
        "cpu/cpu.cfs_quota_us": "25000",
        "pids/pids.max": "33",
        "memory.max": str(32 * MB),
        "memory.swap.max": str(16 * MB),
        "cpu.max": "25000 100000",
        "pids.max": "33",
    }
    told = {file: value for file, value in limits.items() if file in expected}
    assert len(told) == 4 and told == {file: expected[file] for file in told}
    # what was asked for holds after a restart
    box.ok("restart", "-t", "0", "box")
    assert box.ok("exec", "box", "sh", "-c", LIMITS).splitlines()[:2] == lines[:2]


def test_health(box: Box) -> None:
    options = ("--health-interval", "100ms", "--health-retries", "2", "--health-timeout", "30s")
    box.start(*options, "--health-cmd", "echo looked; test -e /tmp/well")
    wait_for(lambda: box.inspect(".State.Health.Status") == "unhealthy", 60, "unhealthy")
    log = box.inspect(".State.Health.Log")
    assert log[-1]["ExitCode"] == 1 and log[-1]["Output"] == "looked\n"
    box.ok("exec", "box", "touch", "/tmp/well")
    wait_for(lambda: box.inspect(".State.Health.Status") == "healthy", 60, "healthy")
    assert "(healthy)" in box.ok("ps", "--format", "{{.Status}}")


def test_a_health_check_that_hangs_is_killed(box: Box) -> None:
    options = ("--health-interval", "50ms", "--health-retries", "1", "--health-timeout", "300ms")
    box.start(*options, "--health-cmd", "exec sleep 77")
    wait_for(lambda: box.inspect(".State.Health.Status") == "unhealthy", 60, "unhealthy")
    assert box.inspect(".State.Health.Log")[0]["ExitCode"] == -1


def test_signals(box: Box) -> None:
    box.patient()
    box.ok("kill", "-s", "HUP", "box")
    wait_for(lambda: box.cli("logs", "box").out == "up\nhup\n", 30, "the signal")
    box.ok("stop", "-t", "60", "box")
    assert box.inspect(".State.ExitCode") == 5
    box.ok("start", "box")
    box.ok("kill", "box")
    assert box.ok("wait", "box") == "137"


def test_stop_kills_what_does_not_listen(box: Box) -> None:
    box.start()
    before = time.monotonic()
    box.ok("stop", "-t", "1", "box")
    assert box.inspect(".State.ExitCode") == 137 and time.monotonic() - before < 30


def test_signals_reach_a_program_below_init(box: Box) -> None:
    box.start("--init", command=PATIENT)
    wait_for(lambda: box.cli("logs", "box").out == "up\n", 30, "the trap")
    assert "init" in box.ok("exec", "box", "cat", "/proc/1/comm") or "tini" in box.ok("top", "box")
    box.ok("stop", "-t", "60", "box")
    assert box.inspect(".State.ExitCode") == 5


def test_restart(box: Box) -> None:
    box.start("--stop-timeout", "0", command=("sh", "-c", "echo x >> /n; wc -l < /n; exec sleep 600"))
    box.ok("restart", "box")
    wait_for(lambda: box.cli("logs", "box").out == "1\n2\n", 30, "the second start")
    box.ok("kill", "box")
    box.ok("start", "box")
    wait_for(lambda: box.cli("logs", "--tail", "1", "box").out == "3\n", 30, "the third start")


def test_a_restart_policy(box: Box) -> None:
    box.start("--restart", "on-failure:2", command=("sh", "-c", "echo x; exit 4"))
    wait_for(lambda: box.inspect(".State.Status") == "exited", 60, "the last end")
    assert box.inspect(".RestartCount") == 2 and box.cli("logs", "box").out == "x\n" * 3


def test_cp(box: Box, tmp_path: Path) -> None:
    box.start("--tmpfs", "/scratch")
    (tmp_path / "file").write_text("content\n")
    box.ok("cp", str(tmp_path / "file"), "box:/etc/here")
    assert box.ok("exec", "box", "cat", "/etc/here") == "content"
    box.ok("exec", "box", "sh", "-c", "echo changed > /etc/here")
    box.ok("cp", "box:/etc/here", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "changed\n"


def test_volumes_are_shared_and_kept(box: Box, tmp_path: Path) -> None:
    volume = f"kept-{box.runtime}"
    assert (
        box.shell("-v", f"{volume}:/data", "-v", f"{tmp_path}:/host", "echo 1 | tee /data/f /host/f") == "1"
    )
    assert box.shell("-v", f"{volume}:/data:ro", "cat /data/f; touch /data/g 2>&1 || :").endswith(
        "file system"
    )
    assert (tmp_path / "f").read_text() == "1\n"
    box.ok("volume", "rm", volume)


def test_the_network(box: Box) -> None:
    box.start(command=("httpd", "-f", "-h", "/etc"))
    address = box.inspect(".NetworkSettings.IPAddress")
    request = "printf 'GET /shells HTTP/1.0\\r\\n\\r\\n'"
    fetch = f"until {request} | nc {address} 80; do sleep 0.05; done"
    assert box.shell(fetch).endswith("/bin/sh")
    assert box.shell("--network", "container:box", f"{request} | nc 127.0.0.1 80").endswith("/bin/sh")


def test_what_it_changed(box: Box) -> None:
    said = box.run("--name", "box", IMAGE, "sh", "-c", "echo new > /root/file")
    assert said.status == 0
    assert box.ok("diff", "box").splitlines() == ["C /root", "A /root/file"]


def test_nothing_is_left_of_it(box: Box, dockerd: Dockerd) -> None:
    box.start("--memory", "32m", "-v", "/usr/share:/share")
    pid = box.inspect(".State.Pid")
    identity = box.inspect(".Id")
    box.ok("exec", "box", "true")
    box.ok("rm", "-f", "box")
    assert not Path(f"/proc/{pid}").exists()
    assert list(Path("/sys/fs/cgroup").glob(f"**/{identity}")) == []
    assert identity not in Path("/proc/self/mountinfo").read_text()
    assert list((dockerd.base / "run").glob(f"**/{identity}")) == []
    assert remove_cgroups(identity) == []
