"""The monitor of a microVM: the process that has the machine, its guest's stdio, and the host's wishes.

Of a single container its pid is the container's: a signal to it is one to the container's first process, and
it ends with that one's exit code. In a pod the containers, and everywhere the further processes, have a
stand-in each (vm.standin), connected here. When the monitor dies, however that comes, so does the machine
(prctl(2), PR_SET_PDEATHSIG), and so do the stand-ins.
"""

from __future__ import annotations

from _struct import unpack

from nagaya.errors import AlreadyExists, FailedPrecondition, NagayaError, NotFound, Unavailable
from nagaya.linux import os, process, tty
from nagaya.linux.seqpacket import close_all
from nagaya.vm import control, guest, setup
from nagaya.vm.loop import POLLIN, Loop
from nagaya.vm.streams import Bridge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

    from nagaya.vm.boot import Machine

SIGKILL = 9
_GRACE = 0.05  # seconds for the answer to who took away the last container of a pod
FORWARDED = [n for n in (*range(1, 32), *range(34, 65)) if n not in (9, 17, 19)]  # KILL CHLD STOP
_SIGWINCH = 28
_STATS = (
    "cpu.stat memory.stat memory.events memory.current memory.peak memory.max memory.swap.max"
    " memory.swap.current io.stat pids.current pids.max cpuset.cpus.effective cpuset.mems.effective"
).split()


class Contained:
    """A container of this machine."""

    __slots__ = ("bridge", "disks", "profile", "started")

    def __init__(self, bridge: Bridge, disks: int, profile: dict[str, Any] | None) -> None:
        self.bridge = bridge
        self.disks = disks
        self.profile = profile
        self.started = False


class Monitor:
    """One machine, its containers, and who talks to it."""

    def __init__(self, loop: Loop, machine: Machine, listener: socket | None) -> None:
        self.loop = loop
        self.machine = machine
        self.guest = machine.guest
        self.containers: dict[str, Contained] = {}
        self._clients: dict[int, Client] = {}
        self._listener = listener
        self._idle: tuple[float, Callable[[], None]] | None = None
        self._timer = 0
        if listener is not None:
            loop.watch(listener.fileno(), POLLIN, self._accept)

    # containers

    def create(
        self,
        identifier: str,
        spec: dict[str, Any],
        bundle: str,
        stdio: tuple[int, int, int],
        done: Callable[[int], None],
    ) -> Contained:
        """Make a container that waits for `start`; done is told its exit code. Raises AlreadyExists, the
        guest's errors."""
        if identifier in self.containers:
            raise AlreadyExists("container with given ID already exists", subject=identifier)
        root, disks = self.machine.root_of(identifier, spec, bundle)
        wanted = spec.get("process") or {}
        linux = spec.get("linux") or {}
        terminal = bool(wanted.get("terminal"))
        bridge = Bridge(self.loop, self.guest, stdio, terminal=terminal)
        try:
            fields = guest.container(
                identifier,
                spec,
                bundle,
                root=root,
                sources=self.machine.sources_of(identifier, spec),
                hostname=self.machine.hostname,
                joins=self._joins(linux),
                shared=self.machine.shared_namespaces(linux),
            )
            size = size_of(stdio[0], wanted) if terminal else None
            fields += guest.process(bridge.number, wanted, linux.get("seccomp"), stdin=True, size=size)
            self.guest.ask("create", fields)
        except BaseException:
            bridge.abandon()
            setup.take_away(self.guest, identifier, disks)
            raise
        made = Contained(bridge, disks, linux.get("seccomp"))
        self.containers[identifier] = made
        bridge.begin(done)
        return made

    def _joins(self, linux: dict[str, Any]) -> dict[str, int]:
        """The pid namespace of another container of the pod, by its first process's number in the guest."""
        for kind in linux.get("namespaces") or []:
            if kind["type"] != "pid" or not kind.get("path"):
                continue
            pid = kind["path"].split("/")[2] if kind["path"].startswith("/proc/") else ""
            for client in self._clients.values():
                if str(client.pid) == pid and client.container in self.containers:
                    return {"pid": self.containers[client.container].bridge.number}
        return {}

    def start(self, identifier: str, then: Callable[[NagayaError | None], None]) -> None:
        """Let a container execute its program; then is told how that went."""
        found = self.containers[identifier]
        found.started = True
        self.guest.call("start", [("process", found.bridge.number)], lambda _, error: then(error))

    def signal(self, number: int, signal: int, *, all: bool = False) -> None:
        """A signal to a process of the guest, or to all of its container; one that has ended is none."""
        fields = [("process", number), ("signal", signal), *([("all", 1)] if all else [])]
        self.guest.call("signal", fields, lambda _answer, _error: None)

    def resize(self, number: int, rows: int, columns: int) -> None:
        """The terminal of a process has another size."""
        fields = [("process", number), ("rows", rows), ("columns", columns)]
        self.guest.call("resize", fields, lambda _answer, _error: None)

    def forward(self, identifier: str, signals: int, terminal: int) -> None:
        """What signals our own process gets, the container's gets. signals: a signalfd; terminal: whose size
        is the container's, or -1."""

        def arrived(_events: int) -> None:
            for number in process.arrived(os.read(signals, 16 * 128)):
                if number == _SIGWINCH and terminal >= 0:
                    self.resize(self.containers[identifier].bridge.number, *tty.get_size(terminal))
                else:
                    self.signal(self.containers[identifier].bridge.number, number)

        self.loop.watch(signals, POLLIN, arrived)

    def idle(self, seconds: float, act: Callable[[], None]) -> None:
        """Act when there is no container for so long, or, once there has been one, when there is none."""
        self._idle = (seconds, act)
        self.hold()

    def hold(self) -> None:
        """Somebody is about to make a container: wait for it as long as `idle` says."""
        if self._idle is None:
            return
        self.loop.cancel(self._timer)
        seconds, act = self._idle
        self._timer = self.loop.after(seconds, lambda: None if self.containers else act())

    # who talks to us

    def _accept(self, _events: int) -> None:
        if self._listener is None:
            return
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        client = Client(self, fd)
        self._clients[fd] = client

    def gone(self, fd: int) -> None:
        """A client has."""
        self._clients.pop(fd, None)

    def found(self, identifier: str) -> Contained:
        """The container. Raises NotFound."""
        if identifier not in self.containers:
            raise NotFound("container does not exist", subject=identifier)
        return self.containers[identifier]

    def delete(self, identifier: str) -> None:
        """Kill what is left of a container and forget it."""
        found = self.containers.pop(identifier)
        try:
            self.guest.ask("delete", [("container", identifier)])
            setup.take_away(self.guest, identifier, found.disks)
        except NagayaError:
            pass  # still ending: its cgroup goes with the machine
        self.machine.forget(identifier)
        if self._idle is not None and not self.containers:
            self.loop.cancel(self._timer)
            self._timer = self.loop.after(_GRACE, self._idle[1])

    def stats(self, identifier: str) -> dict[str, str]:
        """Files of the container's cgroup in the guest. Raises the guest's errors."""
        paths = [f"/sys/fs/cgroup/{identifier}/{name}" for name in _STATS]
        contents = zip(_STATS, setup.read(self.guest, paths), strict=False)
        return {name: data.decode("ascii", "replace") for name, data in contents if data is not None}

    def processes(self, identifier: str) -> dict[str, Any]:
        """{"uptime": seconds, "processes": [stat, status, command line] of each of the container's}, as the
        guest's /proc has them."""
        (uptime,) = setup.read(self.guest, ["/proc/uptime"])
        rows: list[list[str]] = []
        for key, value in self.guest.ask("ps", [("container", identifier)]):
            if key == "stat":
                rows.append([])
            if rows:
                rows[-1].append(value.decode("utf-8", "replace"))
        return {"uptime": (uptime or b"0").split()[0].decode("ascii", "replace"), "processes": rows}

    def limit(self, identifier: str, resources: dict[str, Any]) -> None:
        """New limits of a running container. Raises the guest's errors."""
        for line in guest.limits(resources):
            file, _, value = line.partition("=")
            self.guest.ask("write", [("path", f"/sys/fs/cgroup/{identifier}/{file}"), ("data", value)])


class Client:
    """A connection: of a verb that asks once, or of a stand-in, whose process ends with it."""

    def __init__(self, monitor: Monitor, fd: int) -> None:
        import _socket

        self._monitor = monitor
        self._fd = fd
        self._socket = _socket.socket(fileno=fd)
        credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        self.pid: int = unpack("=iII", credentials)[0]
        self.container = ""
        self._bridge: Bridge | None = None
        monitor.loop.watch(fd, POLLIN, self._readable)

    def _readable(self, _events: int) -> None:
        received = control.receive(self._socket, wait=False)
        if received is None:
            self._close()
            return
        message, fds = received
        try:
            self._obey(message, fds)
        except NagayaError as error:
            self._say(control.failure(error))
        finally:
            close_all(fds)

    def _say(self, message: dict[str, Any]) -> None:
        try:
            control.send(self._socket, message)
        except Unavailable:
            pass  # the hang-up comes as an event of its own

    def _close(self) -> None:
        monitor = self._monitor
        monitor.loop.forget(self._fd)
        self._socket.close()
        monitor.gone(self._fd)
        bridge, self._bridge = self._bridge, None
        if bridge is not None and bridge.code is None:
            monitor.signal(bridge.number, SIGKILL)

    def _obey(self, message: dict[str, Any], fds: list[int]) -> None:
        monitor = self._monitor
        if "signal" in message and self._bridge is not None:
            monitor.signal(self._bridge.number, message["signal"])
            return
        if "resize" in message and self._bridge is not None:
            monitor.resize(self._bridge.number, *message["resize"])
            return
        operation, identifier = str(message.get("op")), str(message.get("container") or "")
        if operation == "create":
            self._create(identifier, message, fds)
            return
        if operation == "hold":
            monitor.hold()
            self._say({"ok": {}})
            return
        found = monitor.found(identifier)
        match operation:
            case "exec":
                self._exec(identifier, found, fds)
            case "start":
                monitor.start(identifier, lambda error: self._say(_reply(error)))
            case "kill":
                monitor.signal(found.bridge.number, message["number"], all=bool(message.get("all")))
                self._say({"ok": {}})
            case "release":
                monitor.delete(identifier)
                self._say({"ok": {"left": len(monitor.containers)}})
            case "ps":
                self._say({"ok": monitor.processes(identifier)})
            case "stats":
                self._say({"ok": monitor.stats(identifier)})
            case "update":
                monitor.limit(identifier, message["resources"])
                self._say({"ok": {}})
            case "delete":
                monitor.delete(identifier)
                self._say({"ok": {}})
            case _:
                raise FailedPrecondition(f"the monitor does not know {operation!r}")

    def _create(self, identifier: str, message: dict[str, Any], fds: list[int]) -> None:
        spec = control.read_document(fds[0])
        stdio = (fds[1], fds[2], fds[3])
        self.container = identifier
        made = self._monitor.create(identifier, spec, message["bundle"], stdio, self._exited)
        self._bridge = made.bridge
        self._say({"ok": {"number": made.bridge.number}})

    def _exec(self, identifier: str, found: Contained, fds: list[int]) -> None:
        wanted = control.read_document(fds[0])
        stdio = (fds[1], fds[2], fds[3])
        terminal = bool(wanted.get("terminal"))
        bridge = Bridge(self._monitor.loop, self._monitor.guest, stdio, terminal=terminal)
        size = size_of(stdio[0], wanted) if terminal else None
        try:
            fields = guest.process(bridge.number, wanted, found.profile, stdin=True, size=size)
        except NagayaError:
            bridge.abandon()
            raise

        def then(_fields: Any, error: NagayaError | None) -> None:
            if error is not None:
                bridge.abandon()
                self._say(control.failure(error))
                return
            self._say({"ok": {}})
            bridge.begin(self._exited)

        self._bridge = bridge
        self._monitor.guest.call("exec", [("container", identifier), *fields], then)

    def _exited(self, code: int) -> None:
        self._say({"exit": code, "oom": self._bridge.oom if self._bridge is not None else 0})


def _reply(error: NagayaError | None) -> dict[str, Any]:
    return {"ok": {}} if error is None else control.failure(error)


def size_of(terminal: int, wanted: dict[str, Any]) -> tuple[int, int]:
    """(rows, columns) of a terminal: as process.consoleSize says, or as it is."""
    size = wanted.get("consoleSize") or {}
    if size.get("height") or size.get("width"):
        return int(size.get("height") or 0), int(size.get("width") or 0)
    return tty.get_size(terminal)
