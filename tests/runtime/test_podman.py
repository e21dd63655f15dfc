"""podman with nagaya-oci as its runtime: its storage, its state and its network of a test's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import image_tar, remove_cgroups, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("podman"), reason="podman is not installed"),
]

# podman wants more than a root without CAP_SYS_RESOURCE may have
LIMITS = ("--ulimit", "nofile=1024:2048", "--ulimit", "nproc=1000:1000")


class Podman:
    """podman with everything of its own."""

    def __init__(self, runtime: str) -> None:
        self.tag = f"nagt-{uuid.uuid4().hex[:8]}"
        self.base = Path(tempfile.mkdtemp(prefix=f"{self.tag}-"))
        self.options = [
            *("--root", str(self.base / "root"), "--runroot", str(self.base / "run")),
            *("--tmpdir", str(self.base / "tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"),
            *("--events-backend", "file", "--runtime", runtime),
        ]

    def __call__(self, *arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        # to files: a container in the background, and its monitor, would keep a pipe open
        with (self.base / "out").open("w+") as out, (self.base / "err").open("w+") as err:
            done = subprocess.run(
                ["podman", *self.options, *arguments], input=input, stdout=out, stderr=err, timeout=120
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, done.returncode, out.read(), err.read())

    def ok(self, *arguments: str, input: bytes | None = None) -> str:
        done = self(*arguments, input=input)
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        parent = ("--cgroup-parent", f"/{self.tag}")
        return self("run", "--network", "none", *parent, *LIMITS, *arguments)


@pytest.fixture(scope="module")
def podman(ours: str) -> Iterator[Podman]:
    made = Podman(ours)
    made.ok("import", "-", "nagt:1", input=image_tar())
    yield made
    made("rm", "--all", "--force", "--time", "0")
    made("rmi", "--all", "--force")
    left = remove_cgroups(made.tag)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if str(made.base) in line:  # podman's own: it binds its storage onto itself
            subprocess.run(["umount", line.split()[4]], check=True)
    shutil.rmtree(made.base)
    # conmon and podman make them; what our runtime made must be gone
    assert [path for path in left if "conmon" not in path] == []


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
    assert document["OCIRuntime"].endswith("nagaya-oci")
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


def test_terminal(podman: Podman) -> None:
    name = f"{podman.tag}-c"
    assert (
        podman.run(
            "-t", "-d", "--name", name, "nagt:1", "sh", "-c", "ls -l /dev/console; sleep 1000"
        ).returncode
        == 0
    )
    wait_until(lambda: "/dev/console" in podman.ok("logs", name))
    podman.ok("rm", "--force", "--time", "0", name)
