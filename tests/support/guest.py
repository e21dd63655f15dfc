"""nagayad in the emulated machine, which is all its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from house import python_main, wait_for

CGROUP_PARENT = "nagt-daemon"


class Daemon:
    """nagayad in the machine's own network namespace."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.base = Path(tempfile.mkdtemp(prefix="nagt-", dir="/tmp"))
        self.socket = self.base / "run" / "docker.sock"
        self.environment = {**os.environ, "NAGAYA_HOST": f"unix://{self.socket}", "HOME": str(self.base)}
        self.process: subprocess.Popen[bytes] | None = None

    def inside(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def start(self) -> None:
        with (self.base / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *python_main("nagaya.daemon.main"),
                    *("--root", str(self.base / "root"), "--run", str(self.base / "run")),
                    *("--docker-socket", str(self.socket), "--cgroup-parent", CGROUP_PARENT),
                    *("--bridge", "nagt0", "--bip", "10.231.0.1/24"),
                    *(word.format(base=self.base) for word in self.arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        wait_for(lambda: self.log_of_end() or self.socket.exists(), 30, "the daemon's socket")
        assert self.process.poll() is None, (self.base / "log").read_text()

    def log_of_end(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def stop(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(int((self.base / "run" / "nagayad.pid").read_text()), number)
        self.process.wait(300)
        self.socket.unlink(missing_ok=True)
