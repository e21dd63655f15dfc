"""A guest of our own for tests: who speaks to its agent one call at a time, and a root to run things in."""

from __future__ import annotations

import os
import time
from _socket import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from nagaya.errors import NagayaError
from nagaya.linux import mounts
from nagaya.linux import namespaces as ns
from nagaya.vm import accel, assets, protocol
from nagaya.vm.machine import Drive, Machine, Memory, Port
from nagaya.vm.protocol import Event, Exit, Failure, Output, Ready, Reply
from nagaya.vm.qemu import Vm

Value = str | bytes | int
Fields = list[tuple[str, Value]]
PATIENCE = 120.0  # a busy machine's guest is slow; a dead one is found out by the tests' own end
SPACES = ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS | ns.CLONE_NEWCGROUP
ROOT = "/run/root"
ALL_CAPS = "1ffffffffff 1ffffffffff 1ffffffffff 0 0"


class Result:
    """What became of a process."""

    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self.status: int | None = None
        self.oom = 0

    @property
    def code(self) -> int:
        """The exit code, as a shell has it."""
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        return 128 - code if code < 0 else code


class Client:
    """The agent's peer on a socket."""

    def __init__(self, sock: socket | None, *, ready: bool = False, vm: Vm | None = None) -> None:
        assert sock is not None
        self.sock = sock
        self.vm = vm
        self.connection = protocol.Connection(ready=ready)
        self.seen: list[Event] = []
        self.numbers = 100

    def _more(self) -> None:
        self.sock.settimeout(PATIENCE)
        data = self.sock.recv(1 << 18)
        assert data, self.vm.console_tail() if self.vm else "the agent hung up"
        self.seen += self.connection.receive(data)

    def events(self) -> Iterator[Event]:
        """Events as they come, for ever."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            while self.seen:
                yield self.seen.pop(0)
            self._more()
        raise AssertionError("the guest says nothing more")

    def ready(self) -> Ready:
        """Wait for the boot's end."""
        for event in self.events():
            assert isinstance(event, Ready)
            return event
        raise AssertionError

    def call(self, verb: str, fields: Iterable[tuple[str, Value]] = (), **more: Value) -> dict[str, bytes]:
        """The answer's fields, of those named alike the last. Other events wait. Raises NagayaError."""
        return dict(self.call_all(verb, fields, **more))

    def call_all(
        self, verb: str, fields: Iterable[tuple[str, Value]] = (), **more: Value
    ) -> list[tuple[str, bytes]]:
        number, data = self.connection.call(verb, [*fields, *more.items()])
        self.sock.sendall(data)
        others: list[Event] = []
        for event in self.events():
            if isinstance(event, Reply | Failure) and event.number == number:
                self.seen = others + self.seen
                if isinstance(event, Failure):
                    raise event.error
                return event.fields
            others.append(event)
        raise AssertionError

    def number(self) -> int:
        """A process's number that was not used yet."""
        self.numbers += 1
        return self.numbers

    def finish(self, process: int, *, stdin: bytes = b"", terminal: bool = False) -> Result:
        """Give it that on its stdin, take all it writes, and wait for its end."""
        result, open_streams = Result(), {1} if terminal else {1, 2}
        others: list[Event] = []

        def feed() -> None:
            nonlocal stdin
            if count := min(self.connection.sendable(process), len(stdin)):
                self.sock.sendall(self.connection.send(process, stdin[:count]))
                stdin = stdin[count:]
            if not stdin and not terminal:
                self.sock.sendall(self.connection.end(process))

        feed()
        for event in self.events():
            if getattr(event, "process", process) != process or isinstance(event, Reply | Failure):
                others.append(event)
            elif isinstance(event, Output):
                if event.stream == 1:
                    result.out += event.data
                else:
                    result.err += event.data
                self.sock.sendall(self.connection.grant(process, event.stream, len(event.data)))
            elif isinstance(event, protocol.End):
                open_streams.discard(event.stream)
            elif isinstance(event, Exit):
                result.status, result.oom = event.status, event.oom
            else:
                feed()
            if result.status is not None and not open_streams:
                self.seen = others + self.seen
                return result
        raise AssertionError

    def run(self, container: str, *words: str, stdin: bytes | None = None, **more: Value) -> Result:
        """exec there, and wait."""
        fields: Fields = [("process", self.number()), ("container", container), ("env", "PATH=/bin")]
        fields += [("arg", word) for word in words] + list(more.items())
        fields += [("stdin", 1)] if stdin is not None else []
        self.call("exec", fields)
        return self.finish(self.numbers, stdin=stdin or b"", terminal="terminal" in more)

    def create(self, container: str, *words: str, fields: Fields | None = None, **more: Value) -> int:
        """A container from the guest's ROOT, not started; its first process's number."""
        process = self.number()
        given: Fields = [("process", process), ("container", container), ("env", "PATH=/bin")]
        given += [("arg", word) for word in words] + [
            ("root", ROOT),
            ("namespaces", SPACES),
            *standard_mounts(),
        ]
        self.call("create", [*given, *(fields or []), *more.items()])
        return process

    def start(self, container: str, *words: str, fields: Fields | None = None, **more: Value) -> int:
        """The same, started."""
        process = self.create(container, *words, fields=fields, **more)
        self.call("start", process=process)
        return process

    def remove(self, container: str) -> None:
        """Delete it, for as long as it takes."""
        while True:
            try:
                self.call("delete", container=container)
                return
            except NagayaError as error:
                assert error.errno == 16, error
                time.sleep(0.01)


def mount(kind: str, source: str, target: str, flags: int = 0, data: str = "") -> tuple[str, Value]:
    """A `mount` field of create."""
    return "mount", "\0".join([kind, source, target, str(flags), "", data])


def standard_mounts() -> Fields:
    """What every container has."""
    safe = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    return [
        mount("proc", "proc", "/proc", safe),
        mount("tmpfs", "tmpfs", "/dev", mounts.MS_NOSUID, "mode=755"),
        mount("devpts", "devpts", "/dev/pts", mounts.MS_NOSUID, "newinstance,ptmxmode=0666,mode=0620"),
        mount("cgroup2", "cgroup", "/sys/fs/cgroup", safe),
        *(
            ("device", f"/dev/{n}\0c\0001\0{minor}\000438\0000\0000")
            for n, minor in (("null", 3), ("zero", 5))
        ),
        ("symlink", "/dev/ptmx\0pts/ptmx"),
        ("symlink", "/dev/stdout\0/proc/self/fd/1"),
    ]


def put_root(client: Client) -> None:
    """busybox as a container's root."""
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc"):
        client.call("mkdir", path=f"{ROOT}/{name}", mode=0o755)
    client.call("write", path=f"{ROOT}/bin/busybox", mode=0o755, data=Path("/bin/busybox").read_bytes())
    for name in "sh cat echo sleep id ls mount ps stty tty head wc true dd hostname kill touch stat".split():
        client.call("symlink", path=f"{ROOT}/bin/{name}", target="busybox")


def machine(kind: str = "cloud", *, memory: Memory | None = None, drives: Iterable[Drive] = ()) -> Machine:
    """A machine with an agent and little else."""
    guest = assets.find(kind)
    return Machine(
        kernel=guest.kernel,
        initrd=guest.initrd,
        cmdline=accel.cmdline("tcg"),
        memory=memory or Memory(128),
        drives=list(drives),
        ports=[Port("agent")],
    )
