"""podman with nagaya-oci as its runtime, and with runc, which proves the tests: its storage, its state and
its network of a test's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from bundles import image_tar, remove_cgroups, wait_until
from clients import Terminal

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("podman"), reason="podman is not installed"),
]

# podman wants more than a root without CAP_SYS_RESOURCE may have; and it takes an error's text from the
# log of runtimes that it knows to write JSON
CONFIGURATION = """
[containers]
default_ulimits = ["nofile=1024:2048", "nproc=1000:1000"]
[engine]
runtime_supports_json = ["nagaya-oci", "runc"]
"""
MB = 1 << 20


class Podman:
    """podman with everything of its own."""

    def __init__(self, runtime: str) -> None:
        self.tag = f"nagt-{uuid.uuid4().hex[:8]}"
        self.base = Path(tempfile.mkdtemp(prefix=f"{self.tag}-"))
        self.names = count()
        self.runtime = runtime
        (self.base / "containers.conf").write_text(CONFIGURATION)
        self.environment = {**os.environ, "CONTAINERS_CONF": str(self.base / "containers.conf")}
        self.options = [
            *("--root", str(self.base / "root"), "--runroot", str(self.base / "run")),
            *("--tmpdir", str(self.base / "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"),
            *("--events-backend", "file", "--runtime", runtime),
        ]

    def argv(self, *arguments: str) -> list[str]:
        return ["podman", *self.options, *arguments]

    def __call__(self, *arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        # to files: a container in the background, and its monitor, would keep a pipe open
        with (self.base / "out").open("w+") as out, (self.base / "err").open("w+") as err:
            done = subprocess.run(
                self.argv(*arguments),
                input=input,
                stdout=out,
                stderr=err,
                timeout=120,
                env=self.environment,
                cwd=self.base,  # conmon leaves a file named "oom" where it is
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, done.returncode, out.read(), err.read())

    def ok(self, *arguments: str, input: bytes | None = None) -> str:
        done = self(*arguments, input=input)
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def words(self, *arguments: str) -> tuple[str, ...]:
        return ("run", "--network", "none", "--cgroup-parent", f"/{self.tag}", *arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self(*self.words(*arguments))

    def start(self, *options: str) -> str:
        """A container in the background; its name."""
        name = f"box{next(self.names)}"
        done = self.run("-d", "--name", name, *options, "nagt:1", "sleep", "1000")
        assert done.returncode == 0, done
        return name


@pytest.fixture(scope="module", params=["nagaya-oci", "runc"])
def podman(request: pytest.FixtureRequest, ours: str) -> Iterator[Podman]:
    runtime = ours if request.param == "nagaya-oci" else shutil.which("runc")
    if runtime is None:
        pytest.skip("runc is not installed")
    made = Podman(runtime)
    made.ok("import", "-", "nagt:1", input=image_tar())
    yield made
    made("pod", "rm", "--all", "--force", "--time", "0")
    made("rm", "--all", "--force", "--time", "0")
    made("rmi", "--all", "--force")
    left = remove_cgroups(made.tag)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if str(made.base) in line:  # podman's own: it binds its storage onto itself
            subprocess.run(["umount", line.split()[4]], check=True)
    shutil.rmtree(made.base)
    # conmon and podman make them, and runc in hierarchies that podman removes none of
    assert [
        path for path in left if "conmon" not in path and not re.search("/(systemd|unified)/", path)
    ] == []


def test_run(podman: Podman) -> None:
    done = podman.run("--rm", "--hostname", "boxy", "nagt:1", "sh", "-c", "echo $(hostname) $(id -u); exit 5")
    assert (done.returncode, done.stdout) == (5, "boxy 0\n"), done.stderr


@pytest.mark.parametrize(("command", "code"), [("/nope", 127), ("nope", 127), ("/etc", 126)])
def test_exit_codes_of_what_cannot_be_run(podman: Podman, command: str, code: int) -> None:
    done = podman.run("--rm", "nagt:1", command)
    assert done.returncode == code, done


def test_background_exec_logs_stop(podman: Podman) -> None:
    name = f"{podman.tag}-a"
    done = podman.run(
        "-d",
        "--name",
        name,
        "nagt:1",
        "sh",
        "-c",
        "echo begun; trap 'exit 3' TERM; while :; do sleep 0.1; done",
    )
    assert done.returncode == 0, done
    assert podman.ok("exec", name, "echo", "hi") == "hi\n"
    assert podman("exec", name, "sh", "-c", "exit 4").returncode == 4
    assert podman("exec", name, "nope").returncode == 127
    wait_until(lambda: podman.ok("logs", name) == "begun\n")
    assert podman.ok("inspect", "--format", "{{.State.Status}}", name) == "running\n"
    assert "sh" in podman.ok("top", name, "comm") or "busybox" in podman.ok("top", name, "comm")
    podman.ok("stop", "--time", "20", name)
    (document,) = json.loads(podman.ok("inspect", name))
    assert (document["State"]["ExitCode"], document["State"]["Status"]) == (3, "exited")
    assert document["OCIRuntime"] == podman.runtime
    podman.ok("rm", name)


def test_pause_and_kill(podman: Podman) -> None:
    name = f"{podman.tag}-b"
    assert podman.run("-d", "--name", name, "nagt:1", "sleep", "1000").returncode == 0
    podman.ok("pause", name)
    assert podman.ok("inspect", "--format", "{{.State.Status}}", name) == "paused\n"
    podman.ok("unpause", name)
    podman.ok("kill", name)
    assert podman.ok("wait", name) == "137\n"
    podman.ok("rm", name)


def test_run_in_a_terminal(podman: Podman) -> None:
    argv = podman.argv(*podman.words("--rm", "-it", "nagt:1", "sh"))
    with Terminal(argv, {**podman.environment, "TERM": "xterm"}, 31, 97) as terminal:
        converse(terminal, b"31 97")
        terminal.resize(40, 100)
        converse(terminal, b"40 100")
        terminal.send(b"exit 4\r")
        assert terminal.wait() == 4


def converse(terminal: Terminal, size: bytes) -> None:
    """Ask for the terminal's size until it is that."""

    def told() -> bool:
        terminal.send(b"busybox stty size; echo en''d\r")
        return size in terminal.expect(b"end")

    wait_until(told, 30, "the size")


def test_a_terminal_in_the_background(podman: Podman) -> None:
    name = f"{podman.tag}-c"
    done = podman.run("-t", "-d", "--name", name, "nagt:1", "sh", "-c", "ls -l /dev/console; sleep 1000")
    assert done.returncode == 0, done
    wait_until(lambda: "/dev/console" in podman.ok("logs", name))
    argv = podman.argv("exec", "-it", name, "sh")
    with Terminal(argv, {**podman.environment, "TERM": "xterm"}, 31, 97) as terminal:
        converse(terminal, b"31 97")
        terminal.send(b"exit 5\r")
        assert terminal.wait() == 5
    podman.ok("rm", "--force", "--time", "0", name)


def test_exec_has_options(podman: Podman) -> None:
    name = podman.start("-e", "A=outer")
    script = "echo $A $B $(id -u):$(id -g) $(busybox pwd)"
    assert podman.ok("exec", name, "sh", "-c", script) == "outer 0:0 /\n"
    options = ("-e", "A=inner", "-e", "B=2", "-u", "1000:5", "-w", "/tmp")
    assert podman.ok("exec", *options, name, "sh", "-c", script) == "inner 2 1000:5 /tmp\n"
    assert podman("exec", name, "sh", "-c", "sh -c 'kill -9 $$'").returncode == 137
    podman.ok("rm", "--force", "--time", "0", name)


def test_limits_update_and_stats(podman: Podman) -> None:
    name = podman.start("--memory", "64m", "--memory-swap", "64m", "--pids-limit", "50")
    (seen,) = json.loads(podman.ok("stats", "--no-stream", "--format", "json", name))
    assert seen["name"] == name and seen["pids"] == "1"
    assert seen["mem_usage"].endswith(" / 67.11MB") and not seen["mem_usage"].startswith("0B")
    podman.ok("update", "--memory", "32m", "--memory-swap", "48m", "--cpus", "0.5", name)
    pid = podman.ok("inspect", "--format", "{{.State.Pid}}", name).strip()
    groups = {
        kind: path
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        for _, kinds, path in [line.split(":", 2)]
        for kind in kinds.split(",")
    }
    told = {}
    for kind, file in (
        ("memory", "memory.limit_in_bytes"),
        ("cpu", "cpu.cfs_quota_us"),
        ("pids", "pids.max"),
    ):
        if kind in groups:  # cgroup v1
            told[file] = Path(f"/sys/fs/cgroup/{kind}{groups[kind]}/{file}").read_text().strip()
    expected = {"memory.limit_in_bytes": str(32 * MB), "cpu.cfs_quota_us": "50000", "pids.max": "50"}
    assert told == (expected if "memory" in groups else {})
    podman.ok("rm", "--force", "--time", "0", name)
    done = podman.run("--rm", "--memory", "16m", "--memory-swap", "16m", "nagt:1",
                      "busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")  # fmt: skip
    assert done.returncode == 137


def test_health(podman: Podman) -> None:
    check = (
        "--health-cmd",
        "CMD-SHELL ls /tmp/well",
        "--health-interval",
        "disable",
        "--health-retries",
        "1",
    )
    name = podman.start(*check)
    assert podman("healthcheck", "run", name).returncode == 1
    podman.ok("exec", name, "busybox", "touch", "/tmp/well")
    podman.ok("healthcheck", "run", name)
    assert podman.ok("inspect", "--format", "{{.State.Health.Status}}", name) == "healthy\n"
    podman.ok("rm", "--force", "--time", "0", name)


def test_cp_diff_restart(podman: Podman, tmp_path: Path) -> None:
    name = podman.start()
    (tmp_path / "file").write_text("content\n")
    podman.ok("cp", str(tmp_path / "file"), f"{name}:/tmp/file")
    assert podman.ok("exec", name, "cat", "/tmp/file") == "content\n"
    assert "A /tmp/file" in podman.ok("diff", name).splitlines()
    podman.ok("restart", "--time", "0", name)
    assert podman.ok("exec", name, "cat", "/tmp/file") == "content\n"
    podman.ok("rm", "--force", "--time", "0", name)


def test_what_a_program_sees(podman: Podman) -> None:
    script = (
        "id; busybox grep -e Cap -e NoNew -e Seccomp: /proc/self/status; hostname; busybox env | busybox sort"
    )
    options = ("--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges",
               "--user", "5:6", "--hostname", "boxy", "--env", "A=b")  # fmt: skip
    done = podman.run("--rm", *options, "nagt:1", "sh", "-c", script)
    assert done.returncode == 0, done
    assert done.stdout.splitlines() == [
        "uid=5 gid=6 groups=6",
        "CapInh:\t0000000000000001",
        "CapPrm:\t0000000000000001",
        "CapEff:\t0000000000000001",
        "CapBnd:\t0000000000000001",
        "CapAmb:\t0000000000000001",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "boxy",
        "A=b",
        "HOME=/",
        "HOSTNAME=boxy",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD=/",
        "SHLVL=1",
        "TERM=xterm",
        "container=podman",
    ]


def test_read_only_with_temporary_directories(podman: Podman) -> None:
    """podman's are copied up; one that the image lacks is everybody's, as /tmp is."""
    directories = "/etc /tmp /run /var/tmp /dev/shm"
    script = f"for d in {directories}; do busybox stat -c '%a %n' $d; done; echo x > /run/x; echo x > /x"
    done = podman.run("--rm", "--read-only", "nagt:1", "sh", "-c", script)
    assert done.stdout == "755 /etc\n755 /tmp\n1777 /run\n1777 /var/tmp\n1777 /dev/shm\n"
    assert done.returncode != 0 and "Read-only file system" in done.stderr


def test_a_user_namespace(podman: Podman) -> None:
    done = podman.run(
        "--rm", "--uidmap", "0:100000:65536", "nagt:1", "sh", "-c", "cat /proc/self/uid_map; id -u"
    )
    assert done.stdout.split() == ["0", "100000", "65536", "0"], done


def test_pods(podman: Podman) -> None:
    podman.ok("pod", "create", "--name", "pod", "--network", "none", "--cgroup-parent", f"/{podman.tag}")
    podman.ok("run", "-d", "--pod", "pod", "--name", "member", "nagt:1", "sleep", "1000")
    out = podman.ok(
        "run", "--rm", "--pod", "pod", "nagt:1", "sh", "-c", "hostname; ls /proc/self/ns | busybox wc -l"
    )
    assert out.split()[0] == "pod"
    first, second = (
        os.readlink(f"/proc/{podman.ok('inspect', '--format', '{{.State.Pid}}', name).strip()}/ns/ipc")
        for name in (
            "member",
            podman.ok("pod", "inspect", "--format", "{{.InfraContainerID}}", "pod").strip(),
        )
    )
    assert first == second
    assert "sleep" in podman.ok("pod", "top", "pod")
    podman.ok("pod", "pause", "pod")
    assert podman.ok("inspect", "--format", "{{.State.Status}}", "member") == "paused\n"
    podman.ok("pod", "unpause", "pod")
    podman.ok("pod", "stop", "--time", "0", "pod")
    podman.ok("pod", "start", "pod")
    assert podman.ok("inspect", "--format", "{{.State.Status}}", "member") == "running\n"
    podman.ok("pod", "rm", "--force", "--time", "0", "pod")


def test_build(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM nagt:1\nRUN echo made by $(id -u) > /made\nCMD cat /made\n")
    limits = ("--ulimit", "nofile=1024:2048", "--ulimit", "nproc=1000:1000")
    # buildah takes the parent for the cgroup itself
    network = ("--network", "none", "--isolation", "oci", "--cgroup-parent", f"/{podman.tag}-build")
    podman.ok("build", *limits, *network, "-t", f"built-{podman.tag}", str(tmp_path))
    assert podman.run("--rm", f"built-{podman.tag}").stdout == "made by 0\n"
