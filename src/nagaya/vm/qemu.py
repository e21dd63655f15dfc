"""QEMU as an engine: one process per microVM, started, asked and ended through `Vm`.

The process is the caller's child and dies with it. It inherits what it works on as descriptors: its
monitor, the agent's channel, the console, disks and taps. Confined (`confine`), it has a root of its own with
little but itself in it, no network, no other process to see, and an id that is nobody's on the host.
"""

from __future__ import annotations

import _socket
from select import POLLIN, poll
from time import monotonic

from nagaya.errors import DeadlineExceeded, FailedPrecondition, KernelError, NagayaError, Unavailable
from nagaya.linux import os, pids
from nagaya.vm import assets, confine
from nagaya.vm.machine import Machine, Port, argv
from nagaya.vm.qmp import Qmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from nagaya.vm.confine import Confinement

    class Engine(Protocol):
        """What starts machines: this module's `launch`, or another virtual machine monitor's."""

        def __call__(self, machine: Machine, *, incoming: bool = False) -> Vm:
            """Raises NagayaError when the machine cannot be started."""


AGENT = "agent"
_TAIL = 16384
_STDERR = 4096
_SIGKILL = 9
_MIGRATION = [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]


class Vm:
    """A running machine. `agent`: the host's end of the port of that name, if it has one; `console`: of the
    serial port, if nothing else was made of it: what the guest prints there is for `console_tail`."""

    __slots__ = ("_status", "_stderr", "_tail", "agent", "console", "pid", "pidfd", "qmp")

    def __init__(
        self,
        pid: int,
        pidfd: int,
        qmp: Qmp,
        stderr: int,
        agent: _socket.socket | None,
        console: _socket.socket | None,
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.qmp = qmp
        self.agent = agent
        self.console = console
        self._stderr = stderr
        self._status: int | None = None
        self._tail = b""

    def pause(self) -> None:
        """No processor of it runs. Raises as `Qmp.call`, as all of these do."""
        self.qmp.call("stop")

    def resume(self) -> None:
        """The inverse; also the start of a machine that was loaded."""
        self.qmp.call("cont")

    def set_memory(self, mib: int) -> None:
        """Let the guest keep that much: its balloon takes the rest, as fast as the guest can give it."""
        self.qmp.call("balloon", {"value": mib << 20})

    def memory(self) -> int:
        """How much the guest has at this moment, in MiB."""
        return int(self.qmp.call("query-balloon")["actual"]) >> 20

    def insert(self, drive: str, fd: int, number: int) -> None:
        """Put another file, open to be read, behind a read-only drive that the guest does not use now. It
        goes on seeing the former size. number: not used for another file yet."""
        found = self.qmp.call("query-block")
        node = next(b["inserted"]["node-name"] for b in found if b.get("device") == drive)
        self.qmp.call("add-fd", {"fdset-id": number}, fd=fd)
        file = {"driver": "file", "node-name": f"file{number}", "filename": f"/dev/fdset/{number}"}
        self.qmp.call("blockdev-add", {**file, "read-only": True, "locking": "off"})
        raw = {"driver": "raw", "node-name": node, "read-only": True, "file": f"file{number}"}
        self.qmp.call("blockdev-reopen", {"options": [raw]})

    def power_button(self) -> None:
        """Press it. The guest's kernel decides what comes of that."""
        self.qmp.call("system_powerdown")

    def save(self, state_fd: int, *, timeout: float = 60) -> None:
        """Write the devices' state to an open file. The RAM stays where it is, in the shared file that the
        machine was given (`Memory`). The machine is paused by it."""
        self.pause()
        self.qmp.call("migrate-set-capabilities", {"capabilities": _MIGRATION})
        self.qmp.call("getfd", {"fdname": "state"}, fd=state_fd)
        self.qmp.call("migrate", {"uri": "fd:state"})
        self._moved(timeout)

    def load(self, state_fd: int, *, timeout: float = 60) -> None:
        """Take a saved state; the machine was launched with `incoming`, and stays paused."""
        self.qmp.call("migrate-set-capabilities", {"capabilities": _MIGRATION})
        self.qmp.call("getfd", {"fdname": "state"}, fd=state_fd)
        self.qmp.call("migrate-incoming", {"uri": "fd:state"})
        self._moved(timeout)

    def _moved(self, timeout: float) -> None:
        until = monotonic() + timeout
        while True:
            event = self.qmp.wait_event("MIGRATION", timeout=max(0.001, until - monotonic()))
            status = event.get("data", {}).get("status")
            if status == "completed":
                return
            if status == "failed":
                told = self.complaint()
                raise FailedPrecondition(
                    f"the state does not fit: {told or 'QEMU says no more'}", step="snapshot"
                )

    def complaint(self) -> str:
        """The last line that QEMU wrote to its stderr; "" when it had no complaint."""
        try:
            said = os.read(self._stderr, _STDERR)
        except OSError:
            return ""
        lines = said.decode("utf-8", "replace").strip().split("\n")
        return "".join(c for c in lines[-1] if c.isprintable()).removeprefix("qemu-system-x86_64: ")

    def console_tail(self) -> str:
        """The end of what the guest printed on its console so far; never more than 16 KiB are kept."""
        while self.console is not None:
            try:
                data = self.console.recv(65536, _socket.MSG_DONTWAIT)
            except OSError:
                break
            if not data:
                break
            self._tail = (self._tail + data)[-_TAIL:]
        return self._tail.decode("utf-8", "replace").replace("\r", "")

    def wait(self, timeout: float | None = None) -> int:
        """The wait status of QEMU's end. Raises DeadlineExceeded."""
        if self._status is None:
            poller = poll()
            poller.register(self.pidfd, POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise DeadlineExceeded("QEMU does not end", step="wait")
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def kill(self) -> int:
        """End it now, whatever it does; its wait status."""
        if self._status is None:
            try:
                pids.pidfd_send_signal(self.pidfd, _SIGKILL)
            except KernelError:
                pass  # it has ended: wait tells
        return self.wait(30)

    def close(self) -> None:
        """End it if it runs, and close all that leads to it."""
        self.kill()
        self.qmp.close()
        for end in (self.agent, self.console):
            if end is not None:
                end.close()
        for fd in (self.pidfd, self._stderr):
            os.close(fd)


class _Ends:
    """Sockets in pairs: ours, and QEMU's, which it inherits."""

    def __init__(self) -> None:
        self.ours: list[_socket.socket] = []
        self.theirs: list[_socket.socket] = []

    def pair(self) -> tuple[_socket.socket, int]:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
        self.ours.append(ours)
        self.theirs.append(theirs)
        return ours, theirs.fileno()

    def close(self, ends: list[_socket.socket]) -> None:
        for end in ends:
            end.close()


def _open_files(machine: Machine) -> dict[str, list[int]]:
    """Descriptors of the drives' files and of the console's. Raises KernelError, with the path."""
    files: dict[str, list[int]] = {}
    wanted = [(drive.path, os.O_RDONLY) for drive in machine.drives]
    wanted += [(drive.path, os.O_RDWR) for drive in machine.drives if not drive.read_only]
    if machine.console and not machine.console.startswith("fd:"):
        wanted.append((machine.console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    try:
        for path, flags in dict.fromkeys(wanted):
            files.setdefault(path, []).append(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError as error:
        _close(files)
        raise KernelError(
            f"{path}: {error.strerror}", subject=path, step="open drive", errno=error.errno or 0
        ) from None
    return files


def _close(files: dict[str, list[int]]) -> None:
    for fds in files.values():
        for fd in fds:
            os.close(fd)


def launch(
    machine: Machine,
    *,
    incoming: bool = False,
    confined: Confinement | None = None,
    qemu: str = "",
    timeout: float = 60,
) -> Vm:
    """Start QEMU for this machine and wait for its monitor. The guest runs at once, unless it is `incoming`.

    A port named "agent" without fd and path, and a console "", become channels of the `Vm`'s. confined: see
    `confine`. Raises NotFound (no QEMU), InvalidArgument (such a machine cannot be), KernelError,
    Unavailable with QEMU's last words when it ended at once, DeadlineExceeded.
    """
    qemu = qemu or assets.find_qemu()
    ends = _Ends()
    files: dict[str, list[int]] = {}
    errors = [-1, -1]
    try:
        files = _open_files(machine)
        qmp_end, qmp_fd = ends.pair()
        agent = console = None
        ports, inner = [], confine.inside(machine) if confined else machine.copy()
        for port in machine.ports:
            if port.name == AGENT and port.fd < 0 and not port.path:
                agent, fd = ends.pair()
                port = Port(port.name, fd=fd)
            ports.append(port)
        inner.ports = ports
        if not machine.console:
            console, fd = ends.pair()
            inner.console = f"fd:{fd}"
        words = argv(inner, qemu=qemu, qmp_fd=qmp_fd, files=files, incoming=incoming)
        errors[:] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        kept = [*(end.fileno() for end in ends.theirs), *(fd for fds in files.values() for fd in fds)]
        kept += [nic.fd for nic in machine.nics if nic.fd >= 0] + [p.fd for p in machine.ports if p.fd >= 0]
        kept += [int(machine.console[3:])] if machine.console.startswith("fd:") else []
        pid, pidfd = confine.start(machine, words, kept, errors[1], confined)
    except BaseException:
        ends.close(ends.ours)
        if errors[0] >= 0:
            os.close(errors[0])
        raise
    finally:
        ends.close(ends.theirs)
        _close(files)
        if errors[1] >= 0:
            os.close(errors[1])
    vm = Vm(pid, pidfd, Qmp(qmp_end, timeout=timeout), errors[0], agent, console)
    try:
        vm.qmp.greet()
    except NagayaError as error:
        if isinstance(error, Unavailable):
            vm.wait(10)
        said = vm.complaint()
        vm.close()
        if isinstance(error, Unavailable) and said:
            raise Unavailable(f"QEMU does not start: {said}", step="start microVM") from None
        raise
    return vm
