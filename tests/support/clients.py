"""The programs that talk to a daemon in tests: two real docker clients and ours."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from bundles import PATIENCE
from house import python_main

DOCKER_NEW = "/usr/local/bin/docker"
DOCKER_OLD = "/usr/bin/docker"
TIMEOUT = 60.0 * PATIENCE


class Server(Protocol):
    """A daemon of a test's own."""

    @property
    def environment(self) -> Mapping[str, str]: ...
    def inside(self, argv: Sequence[str]) -> list[str]: ...


class Said(NamedTuple):
    """What a program answered."""

    status: int
    out: str
    err: str


class Terminal:
    """A program with a terminal of its own, and the person in front of it."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], rows: int, columns: int) -> None:
        self._master, slave = os.openpty()
        self.resize(rows, columns)
        self.seen = b""
        self.first_modes = self.modes()
        self.last_modes: list[object] = []
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv], stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        """Another size of the window; the program gets SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, data: bytes) -> None:
        """Type."""
        os.write(self._master, data)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more than {self.seen!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the last holder of the other side has gone
            return False
        self.seen += data
        return bool(data)

    def expect(self, text: bytes, timeout: float = TIMEOUT) -> bytes:
        """Wait until text appears; what was seen up to its end, which is not looked at again."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            assert self._read(deadline), f"ended with {self.seen!r}, without {text!r}"
        position = self.seen.index(text) + len(text)
        found, self.seen = self.seen[:position], self.seen[position:]
        return found

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit code; the rest of the output is in `seen`, how it leaves the terminal in `last_modes`."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        status = self._process.wait(max(1.0, deadline - time.monotonic()))
        self.last_modes = self.modes()
        os.close(self._master)
        self._master = -1
        return status

    def modes(self) -> list[object]:
        """What the program has done to the terminal (tcgetattr)."""
        return list(termios.tcgetattr(self._master))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._master >= 0:
            os.close(self._master)


class Background:
    """A program that runs beside the test, its output in pipes."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )

    def line(self, timeout: float = TIMEOUT) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        found = b""
        deadline = time.monotonic() + timeout
        while not found.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no line, only {found!r}"
            data = os.read(self.process.stdout.fileno(), 1)
            assert data, f"ended after {found!r}: {self.process.communicate(timeout=10)[1]!r}"
            found += data
        return found.decode().rstrip("\n")

    def send(self, data: bytes) -> None:
        """Bytes for its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """kill(2)."""
        self.process.send_signal(number)

    def end(self, timeout: float = TIMEOUT) -> Said:
        """Wait for its end; what was not read yet."""
        out, err = self.process.communicate(timeout=timeout)
        return Said(self.process.returncode, out.decode(), err.decode())

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class Cli:
    """One client of one server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self._program = {
            "docker": [DOCKER_NEW],
            "docker20": [DOCKER_OLD],
            "nagaya": python_main("nagaya.cli.main"),
        }[name]

    def argv(self, *arguments: str) -> list[str]:
        """The command line, in the server's network namespace."""
        return self.server.inside([*self._program, *arguments])

    def __call__(
        self,
        *arguments: str,
        input: str | bytes = b"",
        timeout: float = TIMEOUT,
        environment: Mapping[str, str] | None = None,
    ) -> Said:
        done = subprocess.run(
            self.argv(*arguments),
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            timeout=timeout,
            env={**self.server.environment, **(environment or {})},
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str, input: str | bytes = b"") -> str:
        """A command that must succeed; its output without the last newline."""
        said = self(*arguments, input=input)
        assert said.status == 0, (self.name, arguments, said)
        return said.out.removesuffix("\n")

    def terminal(self, *arguments: str, rows: int = 24, columns: int = 80) -> Terminal:
        """The client in a terminal."""
        return Terminal(self.argv(*arguments), {**self.server.environment, "TERM": "xterm"}, rows, columns)

    def background(self, *arguments: str) -> Background:
        """The client beside the test."""
        return Background(self.argv(*arguments), self.server.environment)


def available(name: str) -> bool:
    """Whether this machine has the client."""
    path = {"docker": DOCKER_NEW, "docker20": DOCKER_OLD}.get(name)
    return path is None or os.access(path, os.X_OK)


def have_dockerd() -> bool:
    """Whether Debian's dockerd can be started here."""
    return bool(shutil.which("dockerd") and shutil.which("containerd")) and os.geteuid() == 0
