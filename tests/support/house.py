"""A whole nagaya of a test's own: daemon, supervisor, network namespace, cgroup parent, directories.

`House` starts it, gives clients for it, breaks it, and at the end checks that nothing was left
behind: mounts, cgroups, processes, interfaces, nftables elements, pins, files in the run directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from bundles import PATIENCE

SOURCE = Path(__file__).resolve().parents[2] / "src"
DOCKER = next((p for p in ("/usr/local/bin/docker", "/usr/bin/docker") if os.access(p, os.X_OK)), "docker")


def python_main(module: str) -> list[str]:
    """argv that runs `module.main(sys.argv[1:])` from this source tree, or of tests/support, as the
    launchers do."""
    path = [str(SOURCE), str(Path(__file__).parent), *(p for p in sys.path if p.endswith("site-packages"))]
    code = f"import sys; sys.path[1:1] = {path!r}; from {module} import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-I", "-S", "-c", code]


def wait_for(condition: Callable[[], object], timeout: float = 10.0, what: str = "condition") -> None:
    """Poll until the condition is true; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.02)


def comm(pid: int) -> str:
    """The name of a process, "" when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


class House:
    """One daemon with everything of its own. Use as a context manager."""

    def __init__(self, *arguments: str, config: str = "") -> None:
        self.tag = uuid.uuid4().hex[:8]
        # short: a Unix socket's path has 107 bytes
        self.base = Path(tempfile.mkdtemp(prefix=f"nagt-{self.tag}-", dir="/tmp"))
        self.root, self.run_dir = self.base / "root", self.base / "run"
        self.socket = self.run_dir / "docker.sock"
        self.log = self.base / "nagayad.log"
        self.bridge = f"nagt{self.tag[:8]}"
        self.cgroup_parent = f"nagt-{self.tag}"
        self.table = f"nagt_{self.tag}"
        self.extra = list(arguments)
        self.program = python_main("nagaya.daemon.main")
        if config:
            path = self.base / "nagayad.toml"
            path.write_text(config)
            self.extra += ["--config", str(path)]
        # a process that keeps the network namespace while the daemon comes and goes
        self.netns = self._network()
        self.daemon: subprocess.Popen[bytes] | None = None
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "NAGAYA_"))},
            "DOCKER_HOST": f"unix://{self.socket}",
            "NAGAYA_HOST": f"unix://{self.socket}",
            "HOME": str(self.base),
        }

    def _network(self) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert made.stdout is not None
        assert made.stdout.readline() == b"up\n"
        return made

    def _remove_cgroups(self) -> None:
        for parent in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup_parent}"):
            for path in sorted(parent.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            parent.rmdir()

    def __enter__(self) -> House:
        try:
            self.start()
        except BaseException:  # nobody will close it, and there are no containers yet
            for process in (self.daemon, self.netns):
                if process is not None:
                    process.kill()
                    process.wait()
            if not any(str(self.base) in m for m in Path("/proc/self/mountinfo").read_text().splitlines()):
                shutil.rmtree(self.base, ignore_errors=True)
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(check=kind is None)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """argv, run in the house's network namespace."""
        return ["nsenter", f"--net=/proc/{self.netns.pid}/ns/net", *argv]

    def daemon_argv(self) -> list[str]:
        """The daemon's command line."""
        return [
            *self.program,
            *("--root", str(self.root), "--run", str(self.run_dir), "--docker-socket", str(self.socket)),
            *("--bridge", self.bridge, "--bip", "10.231.0.1/24", "--nft-table", self.table),
            *("--cgroup-parent", self.cgroup_parent, *self.extra),
        ]

    def start(self) -> None:
        """Start the daemon and wait until its socket answers."""
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                self.inside(self.daemon_argv()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        daemon = self.daemon

        def answers() -> bool:
            if daemon.poll() is not None:
                raise AssertionError(
                    f"nagayad ended with {daemon.returncode}:\n{self.log.read_text()[-4000:]}"
                )
            return self.curl("/_ping") == b"OK"

        wait_for(answers, 20, "the daemon's socket")

    def curl(self, path: str, *arguments: str) -> bytes:
        """The body of a request over the daemon's socket by curl; b"" when it does not answer."""
        result = subprocess.run(
            [
                "curl",
                "-s",
                "--max-time",
                "20",
                *arguments,
                "--unix-socket",
                str(self.socket),
                f"http://d{path}",
            ],
            capture_output=True,
        )
        return result.stdout

    def docker(
        self, *arguments: str, input: bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the real docker CLI against the house."""
        return self._client([DOCKER, *arguments], input, timeout)

    def nagaya(
        self, *arguments: str, input: bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the nagaya command against the house."""
        return self._client([*python_main("nagaya.cli.main"), *arguments], input, timeout)

    def _client(
        self, argv: Sequence[str], input: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.inside(argv), input=input, capture_output=True, timeout=timeout, env=self.environment
        )

    def ok(self, *arguments: str, input: bytes | None = None, timeout: float = 60) -> str:
        """docker ARGUMENTS, which must succeed; its output without the last newline."""
        result = self.docker(*arguments, input=input, timeout=timeout)
        assert result.returncode == 0, (
            arguments,
            result.returncode,
            result.stdout,
            result.stderr,
            self.tail(),
        )
        return result.stdout.decode().rstrip("\n")

    def tail(self) -> str:
        """The end of the daemon's log, for messages of failing tests."""
        return self.log.read_text()[-3000:]

    def supervisor_pid(self) -> int:
        """The keeper's; a new one's file is empty for a moment."""
        file = self.run_dir / "supervisor.pid"
        wait_for(file.read_text, 10, "a keeper")
        return int(file.read_text())

    def io_pid(self) -> int:
        """The keeper's child that moves the bytes."""
        keeper = self.supervisor_pid()
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        (found,) = [int(c) for c in children if comm(int(c)) == "nagaya-io"]
        return found

    def kill_daemon(self) -> None:
        """kill -9 the daemon, and only it."""
        assert self.daemon is not None
        pid = int((self.run_dir / "nagayad.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        self.daemon.wait(10)
        self.daemon = None

    def reboot(self) -> None:
        """Everything of this boot goes: processes, mounts, interfaces, cgroups, the run directory. The
        daemon is not started again."""
        keeper = self.supervisor_pid()
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        self.kill_daemon()
        for pid in (keeper, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in (keeper, *map(int, children)):
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 10, f"the end of {pid}")  # type: ignore[misc]
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([m for m in mounts if m.startswith(f"{self.base}/")]):
            subprocess.run(["umount", "--lazy", mount], check=True)
        self.netns.kill()
        self.netns.wait()
        self.netns = self._network()
        self._remove_cgroups()
        shutil.rmtree(self.run_dir)

    def stop_daemon(self) -> None:
        """SIGTERM, as an init system does it; containers go on."""
        if self.daemon is not None:
            os.kill(int((self.run_dir / "nagayad.pid").read_text()), signal.SIGTERM)
            assert self.daemon.wait(20) == 0, self.tail()
            self.daemon = None

    def leaks(self, patience: float = 15.0) -> list[str]:
        """What containers have left behind, as lines; empty when nothing.

        The kernel takes a network namespace and its links down when it has the time: what is
        gone within `patience` seconds was not left.
        """
        deadline = time.monotonic() + patience
        while (found := self._leaks()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _leaks(self) -> list[str]:
        found = [
            f"mount {line.split()[4]}"
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(self.base) in line
        ]
        for parent in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup_parent}/*"):
            if parent.is_dir():
                found.append(f"cgroup {parent}")
        for directory in ("ns", "dns", "bundles", "runtime", "shm", "foreign/*"):
            found += [f"run {p}" for p in (self.run_dir / directory).glob("*") if p.name != "lock"]
        found += [f"container {p}" for p in (self.root / "containers").glob("*")]
        links = subprocess.run(
            self.inside(["ip", "-j", "link"]), capture_output=True, text=True, check=True
        ).stdout
        found += [f"link {n['ifname']}" for n in json.loads(links) if n["ifname"] not in ("lo", self.bridge)]
        return found

    def close(self, *, check: bool = True) -> None:
        """Remove all containers, stop everything, and (check) fail on anything left behind."""
        leaks: list[str] = []
        try:
            if self.daemon is None or self.daemon.poll() is not None:
                self.start()
            ids = self.docker("ps", "-aq", "--no-trunc").stdout.split()
            if ids:
                self.docker("rm", "-f", *(i.decode() for i in ids), timeout=120)
            self.docker("network", "prune", "-f")
            keeper = self.supervisor_pid()
            self.stop_daemon()
            if check:
                leaks = self.leaks()
            os.kill(keeper, signal.SIGTERM)
            wait_for(lambda: not Path(f"/proc/{keeper}").exists(), 10, "the supervisor's end")
        finally:
            if self.daemon is not None and self.daemon.poll() is None:
                self.daemon.kill()
                self.daemon.wait()
            self.netns.kill()
            self.netns.wait()
            self._remove_cgroups()
            if not any(str(self.base) in m for m in Path("/proc/self/mountinfo").read_text().splitlines()):
                shutil.rmtree(self.base, ignore_errors=not check)
        assert not leaks, leaks
