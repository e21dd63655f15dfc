"""Debian's dockerd as a peer: what a test demands of nagayad is first demanded of the original.

It has a root, a network namespace and a mount namespace of its own; a bridge only when asked for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from house import House, wait_for

from nagaya.image import builtin


class Dockerd:
    """One dockerd with an image of nagaya/busybox's files. Use as a context manager.

    runtimes: further ones, by name, of paths. bip: the address of a bridge; without there is none. beside: it
    lives in that house's network namespace, with its own iptables rules.
    """

    def __init__(
        self, runtimes: Mapping[str, str] | None = None, bip: str = "", beside: House | None = None
    ) -> None:
        self.tag = uuid.uuid4().hex[:8]
        self.base = Path(tempfile.mkdtemp(prefix=f"nagt-{self.tag}-", dir="/tmp"))
        self.socket = self.base / "d.sock"
        self.cgroup_parent = f"nagt-{self.tag}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "NAGAYA_"))},
            "DOCKER_HOST": f"unix://{self.socket}",
            "NAGAYA_HOST": f"unix://{self.socket}",
            "HOME": str(self.base),
        }
        (self.base / "daemon.json").write_text("{}")
        arguments = (
            f"--config-file {self.base}/daemon.json --data-root {self.base}/root --exec-root {self.base}/run "
            f"--pidfile {self.base}/d.pid --host unix://{self.socket} "
            f"--cgroup-parent {self.cgroup_parent} --containerd-namespace nagt-{self.tag} "
            f"--containerd-plugins-namespace nagt-p-{self.tag} "
            + (f"--bip {bip} " if bip else "--bridge none ")
            + ("" if beside else "--iptables=false --ip6tables=false ")
            + " ".join(f"--add-runtime {name}={path}" for name, path in (runtimes or {}).items())
        )
        self.log = self.base / "log"
        command = ["unshare", "--mount", "sh", "-c", f"ip link set lo up; exec dockerd {arguments}"]
        with self.log.open("wb") as log:
            self.daemon = subprocess.Popen(
                beside.inside(command) if beside else [command[0], "--net", *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Dockerd:
        try:
            wait_for(lambda: self.curl("/_ping") == b"OK", 60, "dockerd")
            imported = subprocess.run(
                ["docker", "import", "-c", "CMD [\"sh\"]", "-c", "ENV PATH=/bin:/usr/bin:/sbin:/usr/sbin",
                 "-", "nagaya/busybox"],
                input=builtin.build().layer, env=self.environment, capture_output=True,
            )  # fmt: skip
            assert imported.returncode == 0, imported.stderr
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inside(self, argv: Sequence[str]) -> list[str]:
        """argv, run in the daemon's network namespace."""
        return ["nsenter", f"--net=/proc/{self.daemon.pid}/ns/net", *argv]

    def curl(self, path: str, *arguments: str) -> bytes:
        """The body of a request by curl; b"" when nobody answers."""
        return subprocess.run(
            ["curl", "-s", "--max-time", "20", *arguments, "--unix-socket", str(self.socket), f"http://d{path}"],
            capture_output=True,
        ).stdout  # fmt: skip

    def close(self) -> None:
        """Remove its containers, end it, and remove its files."""
        listed = subprocess.run(["docker", "ps", "-aq"], capture_output=True, env=self.environment)
        if listed.stdout.split():
            subprocess.run(
                ["docker", "rm", "-f", *listed.stdout.decode().split()],
                capture_output=True, env=self.environment,
            )  # fmt: skip
        self.daemon.terminate()
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        for path in sorted(Path("/sys/fs/cgroup").glob(f"*/{self.cgroup_parent}/**/"), reverse=True):
            path.rmdir()
        shutil.rmtree(self.base, ignore_errors=True)
