"""A keeper of a test's own, the engine's client of it, and what they run: host programs (the keeper of
`keeper_host.py`) or real containers from the host's static busybox.

`Keeping` ends everything it started, and fails on anything left behind: processes, mounts, cgroups.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from house import SOURCE

from nagaya.engine.keeper import Exit, Started
from nagaya.engine.supervisor import Supervisor
from nagaya.errors import NagayaError
from nagaya.oci.runtime import example

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    "sh echo cat true false sleep seq dd yes stty tty printf kill sed grep head wc ls id hostname".split()
)
LIMIT = 120.0  # seconds that a live test may take at most


def live(body: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an async test one that pytest runs, with an end."""

    @functools.wraps(body)
    def test(*arguments: Any, **fixtures: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(LIMIT):
                await body(*arguments, **fixtures)

        asyncio.run(bounded())

    return test


async def until(
    condition: Callable[[], object], what: str = "condition", timeout: float = 20.0, step: float = 0.01
) -> None:
    """Wait until the condition is true; AssertionError after `timeout` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        await asyncio.sleep(step)


def make_rootfs(path: Path) -> Path:
    """A root file system of busybox alone."""
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (path / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin" / "busybox")
    for name in APPLETS:
        (path / "bin" / name).symlink_to("busybox")
    return path


def alive(pid: int) -> bool:
    """Is there such a process, other than a zombie?"""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat[stat.rfind(b")") + 2 :].split()[0] not in (b"Z", b"X")


def children_of(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    """What ps shows of a process; "" when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def fds_of(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def pss_of(pid: int) -> int:
    """The proportional set size of a process in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


def private_of(pid: int) -> int:
    """The memory that a process shares with no other, in KiB: what a leak would grow."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


class Viewer:
    """The near end of an attached client's socket."""

    def __init__(self, sock: socket.socket, serial: int) -> None:
        self.sock = sock
        self.serial = serial
        self._seen = b""

    async def read(self) -> bytes:
        """One read; b"" at the end."""
        return await asyncio.get_running_loop().sock_recv(self.sock, 65536)

    async def rest(self) -> bytes:
        """Everything up to the end."""
        while data := await self.read():
            self._seen += data
        return self._seen

    async def until(self, text: bytes) -> bytes:
        """Everything up to, and with, the read that brought the text."""
        while text not in self._seen:
            data = await self.read()
            assert data, f"{text!r} is not in {self._seen!r}"
            self._seen += data
        return self._seen

    async def write(self, data: bytes) -> None:
        """Type."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def half_close(self) -> None:
        """No more input."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def unframe(data: bytes) -> dict[int, bytes]:
    """What each stream brought, of Docker's frames; AssertionError when they are broken."""
    streams: dict[int, bytes] = {}
    while data:
        assert len(data) >= 8, data
        number, length = struct.unpack(">BxxxI", data[:8])
        assert len(data) >= 8 + length, "cut frame"
        streams[number] = streams.get(number, b"") + data[8 : 8 + length]
        data = data[8 + length :]
    return streams


class Keeping:
    """A run directory with its keeper, and a client. host: the builders run host programs."""

    def __init__(self, *, host: bool = False, rootfs: Path | None = None, log_root: bool = False) -> None:
        self.tag = uuid.uuid4().hex[:8]
        self.base = Path(tempfile.mkdtemp(prefix=f"nagt-{self.tag}-", dir="/tmp"))
        self.run_dir, self.logs = self.base / "run", self.base / "logs"
        self.state = self.run_dir / "runtime"
        self.logs.mkdir()
        self.rootfs = rootfs
        self.cgroup_parent = f"nagt-{self.tag}"
        self.command: list[str] = []
        if host:
            keeper = Path(__file__).with_name("keeper_host.py")
            code = (
                "import sys, runpy; sys.path.insert(0, sys.argv.pop(1));"
                " runpy.run_path(sys.argv[1], None, '__main__')"
            )
            self.command = [sys.executable, "-I", "-S", "-c", code, str(SOURCE), str(keeper)]
        self._log_root = str(self.logs) if log_root else ""
        self.exits: dict[str, Exit] = {}
        self.detached: list[tuple[str, int, str]] = []
        self.dropped: dict[str, list[tuple[int, int]]] = {}
        self.client = self.connect()
        self._seen: set[int] = set()
        self._viewers: list[Viewer] = []

    def connect(self) -> Supervisor:
        """Another client of the same keeper, not started yet."""
        return Supervisor(
            str(self.run_dir),
            root=self._log_root,
            command=self.command,
            on_exit=lambda e: self.exits.__setitem__(e.token, e),
            on_detached=lambda *what: self.detached.append(what),
            on_dropped=lambda token, lines, error: self.dropped.setdefault(token, []).append((lines, error)),
        )

    async def __aenter__(self) -> Keeping:
        await self.client.start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.close(check=kind is None)

    @property
    def keeper_pid(self) -> int:
        return int((self.run_dir / "supervisor.pid").read_text())

    def io_pid(self) -> int:
        """The keeper's child that moves the bytes; 0 while there is none."""
        return next((child for child in children_of(self.keeper_pid) if name_of(child) == "nagaya-io"), 0)

    async def io(self) -> int:
        """The pid of io, once there is one."""
        await until(self.io_pid, "io")
        return self.io_pid()

    async def kill_keeper(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL, or SIGHUP; returns when the client has started another and given it everything."""
        adoptions, pid = self.client.adoptions, self.keeper_pid
        os.kill(pid, number)
        await until(lambda: self.client.adoptions > adoptions, "adoption by another keeper")

    async def kill_io(self) -> int:
        """SIGKILL; returns the pid of the next one."""
        former = await self.io()
        os.kill(former, signal.SIGKILL)
        await until(lambda: self.io_pid() not in (0, former), "another io")
        return self.io_pid()

    def log(self, token: str, **settings: Any) -> dict[str, Any]:
        """The settings of a token's log."""
        return {"driver": "json-file", "path": str(self.logs / f"{token}.log"), **settings}

    def records(self, token: str) -> list[dict[str, str]]:
        """All that is in a token's logs, the rotated ones too, oldest first."""
        files = sorted(self.logs.glob(f"{token}.log.*"), key=lambda p: -int(p.suffix[1:]))
        found = []
        for path in [*files, self.logs / f"{token}.log"]:
            if path.exists():
                found += [json.loads(line) for line in path.read_bytes().splitlines()]
        return found

    def output(self, token: str, stream: str = "stdout") -> str:
        """The text of one stream in the logs."""
        return "".join(r["log"] for r in self.records(token) if r["stream"] == stream)

    # processes

    async def host(self, token: str, *argv: str, **options: Any) -> Started:
        """Run a host program (of a `host` keeper)."""
        request: dict[str, Any] = {"op": "run", "argv": list(argv)}
        if options.get("stdio") == "pty":
            request["console"] = True
        return self._note(await self.client.run(token, request, **options))

    async def container(
        self,
        token: str,
        *argv: str,
        console: tuple[int, int] | None = None,
        op: str = "run",
        edit: Callable[[dict[str, Any]], None] | None = None,
        **options: Any,
    ) -> Started:
        """Run a container. edit changes its config.json."""
        spec = self.spec(*argv)
        if edit is not None:
            edit(spec)
        request: dict[str, Any] = {
            "op": op,
            "root": str(self.state),
            "id": token,
            "bundle": str(self.base),
            "spec": spec,
        }
        if console is not None:
            request["console"] = list(console)
            spec["process"]["terminal"] = True
            options["stdio"] = "pty"
        return self._note(await self.client.run(token, request, **options))

    def spec(self, *argv: str) -> dict[str, Any]:
        """A config.json for the rootfs."""
        spec = example()
        spec["process"]["args"] = list(argv)
        spec["process"]["terminal"] = False
        spec["root"]["path"] = str(self.rootfs)
        spec["linux"]["cgroupsPath"] = f"/{self.cgroup_parent}/{uuid.uuid4().hex[:12]}"
        return spec

    def _note(self, started: Started) -> Started:
        if started.pid:
            self._seen.add(started.pid)
        return started

    async def exit(self, token: str, timeout: float = 30.0) -> Exit:
        """How the process of the token ended, once it has."""

        # told, or over already when we connected
        def ended() -> Exit | None:
            entry = self.client.entries.get(token)
            return self.exits.get(token) or (entry.exit if entry else None)

        await until(ended, f"exit of {token}", timeout, 0.002)
        result = ended()
        assert result is not None
        return result

    async def finish(self, token: str) -> Exit:
        """Wait for the end of a container, and remove it."""
        ended = await self.exit(token)
        await self.delete(token)
        await self.client.release(token)
        return ended

    async def delete(self, token: str, *, force: bool = False) -> None:
        """Remove a container's state and cgroup."""
        await self.client.call({"op": "delete", "root": str(self.state), "id": token, "force": force})

    async def attach(self, token: str, **options: Any) -> Viewer:
        """Attach a client."""
        near, far = socket.socketpair()
        near.setblocking(False)
        serial = await self.client.attach(token, far.detach(), **options)
        viewer = Viewer(near, serial)
        self._viewers.append(viewer)
        return viewer

    # the end

    def families(self) -> list[int]:
        """Pids of processes that name our directories, or were started here."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.tag.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found + [p for p in self._seen if alive(p) and p not in found]

    async def close(self, *, check: bool = True) -> None:
        """End everything; fail on what was left behind."""
        for viewer in self._viewers:
            viewer.close()
        leaks: list[str] = []
        try:
            await self._end_containers()
            keeper = self.client.keeper_pid
            await self.client.quit()
            await self.client.close()
            await until(lambda: not alive(keeper), "the end of the keeper")
            await until(lambda: not self.families(), f"the end of {self.families()}", 10.0)
        except (NagayaError, AssertionError) as error:
            leaks.append(str(error))
        finally:
            await self.client.close()
            for pid in self.families():
                leaks.append(f"process {pid}: {_cmdline(pid)}")
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not self.families(), "the end of what was left")
            mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
            for mount in reversed([m for m in mounts if self.tag in m]):
                leaks.append(f"mount {mount}")
                subprocess.run(["umount", "--lazy", "--no-canonicalize", mount], check=True)
            leaks += [f"state {p}" for p in self.state.glob("*")]
            for parent in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup_parent}"):
                for path in sorted(parent.rglob("*"), reverse=True):
                    if path.is_dir():
                        leaks.append(f"cgroup {path}")
                        path.rmdir()
                parent.rmdir()
            complaints = self.run_dir / "supervisor.log"
            text = complaints.read_text() if complaints.exists() else ""
            shutil.rmtree(self.base)
        if check:
            assert not leaks, leaks
            assert not text, text

    async def _end_containers(self) -> None:
        entries = list(self.client.entries.values())
        for entry in entries:
            if entry.exit is None and entry.pidfd >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(entry.pidfd, signal.SIGKILL)
        for token in [e.token for e in entries]:
            await until(lambda: all(e.exit or e.pidfd < 0 for e in self.client.entries.values()), "ends")
            if (self.state / token).exists():
                await self.delete(token, force=True)
            await self.client.release(token)


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


async def command(*argv: str, env: Mapping[str, str] | None = None) -> str:
    """Run a host command that must succeed; its output."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, (argv, output)
    return output.decode()


async def gather(*work: Awaitable[Any]) -> list[Any]:
    """All of it at once; the first error leaves when all have ended."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
