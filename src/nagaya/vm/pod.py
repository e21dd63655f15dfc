"""The machine of a pod: one monitor for all containers of it, which is none of them.

It begins with the first container and ends with the last: whoever makes a container makes sure that there is
one, whoever deletes one lets it go. It has a cgroup of its own beside the containers', for theirs are
emptied with them.
"""

from __future__ import annotations

import select
from fcntl import LOCK_EX, flock

from nagaya.errors import FailedPrecondition, InternalError, NagayaError, Unavailable, from_wire
from nagaya.linux import namespaces as ns
from nagaya.linux import os, process
from nagaya.linux.json import dumps, loads
from nagaya.runtime import cgroups, channel
from nagaya.vm import boot, control, first, leavings
from nagaya.vm.loop import Loop
from nagaya.vm.monitor import Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from nagaya.vm.first import Place

_CGROUP = "cgroup.json"
_IDLE = 60.0  # seconds without a container: whoever wanted one has died
_ENDING = 15.0


def ensure(place: Place) -> str:
    """The directory of the pod's monitor, which runs now. Raises NagayaError."""
    directory = f"{place.root}.pods/{place.pod}"
    os.makedirs(directory, 0o700, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock(lock, LOCK_EX)
        try:
            control.ask(directory, op="hold")
            return directory
        except (FailedPrecondition, Unavailable):
            pass  # none yet, or it has ended
        leavings.take_away(leavings.of(directory))
        _begin(place, directory)
        return directory
    finally:
        os.close(lock)


def _begin(place: Place, directory: str) -> None:
    linux = place.wish.spec.get("linux") or {}
    manager = cgroups.manager(
        beside(linux.get("cgroupsPath") or "", place.pod), container_id=f"vm-{place.pod}"
    )
    manager.create()
    _write(f"{directory}/{_CGROUP}", dumps(manager.to_state()))
    ours, theirs = channel.pair()
    pid, pidfd = ns.clone3(ns.CLONE_PIDFD)
    if not pid:
        _main(place, directory, theirs)
    theirs.close()
    try:
        manager.join(pid)
        ours.send(channel.GO)
        received = ours.receive()
        if received is None:
            raise InternalError("the pod's monitor died while its machine booted", step="monitor")
        if received[0][0] == channel.ERROR:
            raise from_wire(received[0][1])
    finally:
        ours.close()
        os.close(pidfd)


def beside(path: str, pod: str) -> str:
    """The cgroupsPath of the pod's machine, from that of one of its containers (pure)."""
    if ":" in path:
        parent, prefix, _ = path.split(":", 2)
        return f"{parent}:{prefix}:vm-{pod}"
    return f"{os.dirname(path)}/vm-{pod}" if path else ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _main(place: Place, directory: str, end: channel.Channel) -> NoReturn:
    """The monitor: nobody's child, for its containers' processes come and go."""

    def body() -> int:
        # first: a fork that was made before we are in the machine's cgroup would stay in a container's, which
        # could then not be removed
        if end.receive() is None:
            return 1
        if os.fork():
            os._exit(0)
        process.set_name("nagaya-vm-pod")
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in range(3):
            os.dup2(null, number)
        return _serve(place, directory, end)

    first.reported(end, -1, body)


def _serve(place: Place, directory: str, end: channel.Channel) -> int:
    signals = process.signalfd([1, 2, 3, 15])  # a pod ends with its containers
    path = first.enter_network(place.wish.spec)
    loop = Loop()
    ended: list[int] = []
    machine = boot.start(loop, directory, place.wish, network_path=path, lost=lambda _: ended.append(1))
    try:
        monitor = Monitor(loop, machine, control.listen(directory))
        monitor.idle(_IDLE, lambda: ended.append(0))
        end.send(channel.READY)
        end.close()
        while not ended:
            loop.turn()
    finally:
        machine.end()
        leavings.take_away(leavings.of(directory))
        os.close(signals)
    return 0


def release(directory: str, identifier: str) -> None:
    """A container has been deleted; with the last of them, the machine ends. May be repeated."""
    try:
        sock = control.connect(directory)
    except FailedPrecondition:
        _clear(directory)  # it was killed
        return
    try:
        control.send(sock, {"op": "release", "container": identifier})
        left = control.answer(sock)["left"]
        if not left:
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN)
            poll.poll(_ENDING * 1000)  # its end of file is the monitor's end
    except NagayaError:
        left = 0
    finally:
        sock.close()
    if not left:
        _clear(directory)


def _clear(directory: str) -> None:
    leavings.take_away(leavings.of(directory))
    try:
        fd = os.open(f"{directory}/{_CGROUP}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        known: dict[str, Any] = loads(os.read(fd, 65536))
    finally:
        os.close(fd)
    manager = cgroups.from_state(known)
    if manager.exists():
        manager.kill_all()
    manager.delete()
    for name in os.listdir(directory):
        os.unlink(f"{directory}/{name}")
    os.rmdir(directory)
