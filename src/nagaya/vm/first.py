"""The process that stands on the host for one of a guest: what it does from the fork to the exit code."""

from __future__ import annotations

from nagaya.errors import InternalError, KernelError, NagayaError, Unavailable
from nagaya.linux import namespaces as ns
from nagaya.linux import netdevice, os, process, tty
from nagaya.runtime import channel
from nagaya.runtime import state as store
from nagaya.vm import control
from nagaya.vm.loop import POLLIN, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from nagaya.runtime.channel import Channel
    from nagaya.vm import boot
    from nagaya.vm.boot import Wish

OOM = "oom"  # a file of the state directory
_KILLED = 137  # what a container says whose machine has gone
_SIGWINCH = 28


class Place:
    """What such a process needs to know."""

    __slots__ = ("channel", "identifier", "pod", "root", "slave", "waits", "wish")

    def __init__(
        self, root: str, identifier: str, wish: Wish, end: Channel, slave: int, *, waits: bool, pod: str
    ) -> None:
        self.root = root
        self.identifier = identifier
        self.wish = wish
        self.channel = end
        self.slave = slave
        self.waits = waits
        self.pod = pod

    @property
    def directory(self) -> str:
        """The container's state directory."""
        return f"{self.root}/{self.identifier}"


def main(place: Place) -> NoReturn:
    """A container's first process: the monitor of its own machine, or a stand-in in its pod's."""
    reported(place.channel, place.slave, lambda: _stand_in(place) if place.pod else _monitor(place))


def exec_main(directory: str, identifier: str, wanted: dict[str, Any], end: Channel, slave: int) -> NoReturn:
    """The stand-in of one more process."""

    def body() -> int:
        signals = process.signalfd(forwarded())
        sock = asked(directory, {"op": "exec", "container": identifier}, wanted)
        end.send("started")
        end.close()
        return serve(sock, signals, 0 if slave >= 0 else -1)

    reported(end, slave, body)


def _code_of(error: NagayaError) -> int:
    return {"command_not_found": 127, "command_not_executable": 126}.get(error.code, 255)


def reported(end: Channel, slave: int, body: Callable[[], int]) -> NoReturn:
    """Be a process that tells an error over the channel, if it fails, and exits with the body's code. It
    keeps stdio, or the terminal in its place, and the channel."""
    code = 255
    try:
        process.set_name("nagaya-vm")
        _settle(end.fileno(), slave)
        code = body()
    except NagayaError as error:
        _tell(end, error)
    except BaseException as error:
        _tell(end, InternalError(f"{type(error).__name__}: {error}"))
    finally:
        os._exit(code)


def _tell(end: Channel, error: NagayaError) -> None:
    try:
        end.send(channel.ERROR, error.to_wire())
    except (InternalError, OSError):
        _say(str(error))  # who made us has gone


def _settle(kept: int, slave: int) -> None:
    """Out of the caller's session; of its descriptors only stdio stays, or the terminal in its place."""
    os.setsid()
    if slave >= 0:
        tty.set_controlling(slave)
        for number in range(3):
            os.dup2(slave, number)
    ns.close_range(3, kept - 1)
    ns.close_range(kept + 1)


def forwarded() -> list[int]:
    """The signals that the guest's process gets in our place."""
    from nagaya.vm.monitor import FORWARDED

    return FORWARDED


# a machine of its own


def _monitor(place: Place) -> int:
    from nagaya.vm import boot, leavings
    from nagaya.vm.monitor import Monitor

    signals = process.signalfd(forwarded())
    _go(place.channel)  # in our cgroups now: all that comes is charged there
    network = enter_network(place.wish.spec)
    place.channel.send(channel.HOOKS)
    _go(place.channel)
    loop = Loop()
    ended: list[int] = []

    made: list[boot.Machine] = []

    def lost(error: NagayaError) -> None:
        if made:  # else it is told to who makes us
            _say(f"{error.message}{_last_words(made[0])}")
        ended.append(_KILLED)

    machine = boot.start(loop, place.directory, place.wish, network_path=network, lost=lost)
    made.append(machine)
    try:
        monitor = Monitor(loop, machine, control.listen(place.directory))
        monitor.create(place.identifier, place.wish.spec, place.wish.bundle, (0, 1, 2), ended.append)
        monitor.forward(place.identifier, signals, 0 if place.slave >= 0 else -1)
        fifo = _open_fifo(place)
        place.channel.send(channel.READY)
        _go(place.channel)

        def started(error: NagayaError | None) -> None:
            if place.waits and error is not None and not isinstance(error, Unavailable):
                ended.append(_code_of(error))  # `start` has not waited for it; `lost` tells of the machine
            if place.waits:
                return
            if error is not None:
                place.channel.send(channel.ERROR, error.to_wire())
                ended.append(255)
                return
            place.channel.send("started")
            place.channel.close()

        if place.waits:
            place.channel.close()
            _on_start(loop, fifo, lambda: monitor.start(place.identifier, started))
        else:
            monitor.start(place.identifier, started)
        while not ended:
            loop.turn()
        if monitor.found(place.identifier).bridge.oom:
            note_oom(place.directory)
    finally:
        machine.end()
        leavings.take_away(leavings.of(place.directory))
    return ended[0]


def _last_words(machine: boot.Machine) -> str:
    """The last line that the guest's kernel printed, of one that has died."""
    line = machine.last_words()
    return f": {line}" if line else ""


def _say(text: str) -> None:
    """A line on the container's stderr."""
    try:
        os.write(2, f"nagaya-vm: {text}\n".encode("utf-8", "replace"))
    except OSError:
        pass  # nobody reads it any more


def note_oom(directory: str) -> None:
    """Leave word in the state directory that the guest's kernel killed for lack of memory: what the host's
    cgroup counts, of an ordinary container, is QEMU's."""
    os.close(os.open(f"{directory}/{OOM}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def enter_network(spec: dict[str, Any]) -> str:
    """Be in the sandbox's network namespace: the one named, or a new one with lo up, which hooks may fill.
    What was named, or "". Raises KernelError."""
    kinds = (spec.get("linux") or {}).get("namespaces") or []
    path: str = next((kind.get("path") or "" for kind in kinds if kind["type"] == "network"), "")
    if not path:
        ns.unshare(ns.CLONE_NEWNET)
        netdevice.set_up("lo")
        return ""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise KernelError(reason, subject=path, step=f"open {path}", errno=error.errno or 0) from None
    try:
        ns.setns(fd, ns.CLONE_NEWNET)
    finally:
        os.close(fd)
    return path


def _go(end: Channel) -> None:
    if end.receive() is None:
        os._exit(1)  # who made us has gone


def _open_fifo(place: Place) -> int:
    """What `start` writes into; -1 when nobody waits for it. Before anybody is told that we are there."""
    if not place.waits:
        return -1
    return os.open(f"{place.directory}/{store.FIFO}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _on_start(loop: Loop, fd: int, act: Callable[[], None]) -> None:
    """Act once `start` has written into the fifo."""

    def readable(_events: int) -> None:
        if os.read(fd, 16):
            loop.forget(fd)
            os.close(fd)
            act()

    loop.watch(fd, POLLIN, readable)


# a machine of a pod


def _stand_in(place: Place) -> int:
    from nagaya.vm import pod

    signals = process.signalfd(forwarded())
    _go(place.channel)
    directory = pod.ensure(place)
    place.channel.send(channel.HOOKS)
    _go(place.channel)
    message = {"op": "create", "container": place.identifier, "bundle": place.wish.bundle}
    sock = asked(directory, message, place.wish.spec)
    fifo = _open_fifo(place)
    place.channel.send(channel.READY)
    _go(place.channel)

    def start() -> None:
        control.send(sock, {"op": "start", "container": place.identifier})

    loop = Loop()
    if place.waits:
        place.channel.close()
        _on_start(loop, fifo, start)
    else:
        start()
        control.answer(sock)
        place.channel.send("started")
        place.channel.close()
    return serve(sock, signals, 0 if place.slave >= 0 else -1, loop, place.directory)


def asked(directory: str, message: dict[str, Any], document: dict[str, Any]) -> Any:
    """The connection of a process that the monitor has made. Raises the monitor's error."""
    sock = control.connect(directory)
    fd = control.document_fd(document)
    try:
        control.send(sock, message, [fd, 0, 1, 2])
    finally:
        os.close(fd)
    control.answer(sock)
    return sock


def serve(sock: Any, signals: int, terminal: int, loop: Loop | None = None, directory: str = "") -> int:
    """Stand for the process of this connection until it has ended: its exit code. terminal: whose size it
    gets, or -1; directory: its state directory, of a container's first."""
    loop = loop or Loop()
    codes: list[int] = []

    def heard(_events: int) -> None:
        received = control.receive(sock, wait=False)
        if received is None:
            codes.append(_KILLED)
        elif "exit" in received[0]:
            if received[0].get("oom") and directory:
                note_oom(directory)
            codes.append(int(received[0]["exit"]))
        elif "error" in received[0]:
            codes.append(255)

    def arrived(_events: int) -> None:
        for number in process.arrived(os.read(signals, 16 * 128)):
            if number == _SIGWINCH and terminal >= 0:
                control.send(sock, {"resize": list(tty.get_size(terminal))})
            else:
                control.send(sock, {"signal": number})

    loop.watch(sock.fileno(), POLLIN, heard)
    loop.watch(signals, POLLIN, arrived)
    while not codes:
        loop.turn()
    return codes[0]
