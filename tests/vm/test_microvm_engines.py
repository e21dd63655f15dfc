"""podman, and containerd's ctr, with nagaya-vm as their runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import microruntime
import pytest
from bundles import image_tar, remove_cgroups
from containerdhost import Containerd

pytestmark = microruntime.needed

# podman wants more than a root without CAP_SYS_RESOURCE may have; and it takes an error's text from the
# log of runtimes that it knows to write JSON
CONFIGURATION = """
[containers]
default_ulimits = ["nofile=1024:2048", "nproc=1000:1000"]
[engine]
runtime_supports_json = ["nagaya-vm"]
"""


class Podman:
    """podman with everything of its own, its images in overlays."""

    def __init__(self) -> None:
        self.tag = f"nagt-{uuid.uuid4().hex[:8]}"
        self.base = Path(tempfile.mkdtemp(prefix=f"{self.tag}-"))
        (self.base / "containers.conf").write_text(CONFIGURATION)
        (self.base / "image.tar").write_bytes(image_tar())
        self._argv = [
            "podman", "--root", str(self.base / "root"), "--runroot", str(self.base / "run"),
            "--tmpdir", str(self.base / "tmp"), "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs",
            "--events-backend", "file", "--runtime", microruntime.command(self.base),
        ]  # fmt: skip
        self.ok("import", "-q", str(self.base / "image.tar"), "nagt:1")

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        # to files: a container in the background, and its monitor, would keep a pipe open
        with (self.base / "out").open("w+") as out, (self.base / "err").open("w+") as err:
            done = subprocess.run(
                [*self._argv, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=120,
                env={**os.environ, "CONTAINERS_CONF": str(self.base / "containers.conf")},
                cwd=self.base,
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, done.returncode, out.read(), err.read())

    def ok(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, (words, done)
        return done.stdout

    def close(self) -> None:
        self("rm", "--all", "--force", "--time", "0")
        subprocess.run(["umount", "--lazy", self.base / "root" / "overlay"], capture_output=True)
        shutil.rmtree(self.base)
        remove_cgroups(self.tag)


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    made = Podman()
    yield made
    made.close()


def test_podman_run_exec_stop_start(podman: Podman) -> None:
    options = ("--network", "none", "--cgroup-parent", f"/{podman.tag}")
    kernel = podman.ok("run", "--rm", *options, "nagt:1", "cat", "/proc/sys/kernel/osrelease").strip()
    assert kernel and kernel != os.uname().release
    assert podman("run", "--rm", *options, "nagt:1", "sh", "-c", "exit 7").returncode == 7
    assert podman("run", "--rm", *options, "nagt:1", "nothing-here").returncode == 127
    podman.ok("run", "-d", "--name", "box", *options, "nagt:1", "sleep", "1000")
    done = podman("exec", "box", "sh", "-c", "echo in; echo written > /kept; exit 4")
    assert (done.returncode, done.stdout) == (4, "in\n")
    podman.ok("kill", "--signal", "KILL", "box")
    podman.ok("wait", "box")
    podman.ok("start", "box")
    assert podman.ok("exec", "box", "echo", "again") == "again\n"
    podman.ok("rm", "-f", "-t", "0", "box")


@pytest.mark.skipif(not shutil.which("containerd"), reason="containerd is not installed")
def test_ctr_run_and_exec(tmp_path: Path) -> None:
    containerd = Containerd(microruntime.command(tmp_path))
    try:
        done = containerd.run("a", "sh", "-c", "cat /proc/sys/kernel/osrelease; exit 4", options=("--rm",))
        assert done.returncode == 4 and done.stdout.strip() not in ("", os.uname().release), done
        done = containerd.run("b", "sleep", "1000", options=("--detach",))
        assert done.returncode == 0, done
        assert containerd.ok("tasks", "exec", "--exec-id", "e", "b", "echo", "in") == "in\n"
        containerd.remove("b")
    finally:
        left = containerd.close()
    assert left == []
