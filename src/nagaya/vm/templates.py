"""Machines that have booted already: saved once for each shape, and cloned for each start.

A template is a directory: `memory` (the guest's RAM, mapped copy-on-write by every clone), `state` (of the
devices), `stub` and `disk*` (empty disks, of the size that all of a clone have). Its key is all that it
depends on: QEMU, kernel, first root, the machine's devices, and this boot of the host, whose clock the
guest's kernel was told of. Who finds none makes it, while others who want the same wait.
"""

from __future__ import annotations

import _socket
from _blake2 import blake2b  # hashlib would load OpenSSL for it
from fcntl import LOCK_EX, flock
from select import POLLIN, poll
from time import monotonic

from nagaya.errors import DeadlineExceeded, FailedPrecondition, KernelError, ResourceExhausted, Unavailable
from nagaya.linux import namespaces as ns
from nagaya.linux import os, seqpacket
from nagaya.linux.tap import open_tap
from nagaya.vm import assets, protocol, qemu
from nagaya.vm.machine import STUB_SIZE, Drive, Machine, Memory, Nic, argv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.vm.confine import Confinement

DRIVES = 8  # read-only ones of every template, at least
_MIN_MEMORY = 128
_KEPT = 8
_WRITTEN = 256  # MiB: more of its memory no guest writes to until it is up
BOOT = 120.0  # seconds, for an emulated machine on a busy host
_REGULAR, _KIND = 0o100000, 0o170000


class Started:
    """A machine that runs. ready: its agent is up, and what the guest holds is as old as its template: call
    `renew`; else the agent's Ready is still to come. macs: which the guest's cards have at this moment."""

    __slots__ = ("macs", "ready", "vm")

    def __init__(self, vm: qemu.Vm, *, ready: bool, macs: list[str]) -> None:
        self.vm = vm
        self.ready = ready
        self.macs = macs


def rounded(mib: int) -> int:
    """The memory of the template that a machine with so much is cloned from: powers of two, so that there
    are few. What a container may have is its cgroup's business."""
    size = _MIN_MEMORY
    while size < mib:
        size *= 2
    return size


def _mac(number: int) -> str:
    return f"02:6e:67:76:6d:{number:02x}"


def slots(read_only: int) -> int:
    """How many read-only disks a clone has that was asked for so many (pure): its others come after them."""
    return DRIVES if read_only <= DRIVES else read_only + -read_only % 4


def shape(machine: Machine, directory: str) -> Machine:
    """The machine that a template for this one is: as many devices or more, with nothing behind them."""
    made, stub = machine.copy(), f"{directory}/stub"
    read_only = sum(drive.read_only for drive in machine.drives)
    made.drives = [Drive(f"stub{number}", stub) for number in range(slots(read_only))]
    writable = len(machine.drives) - read_only
    made.drives += [
        Drive(f"disk{number}", f"{directory}/disk{number}", read_only=False) for number in range(writable)
    ]
    made.nics = [Nic(f"n{number}", mac=_mac(number)) for number in range(len(machine.nics))]
    made.shares = [share.at(f"{directory}/share") for share in machine.shares]
    made.memory = Memory(rounded(machine.memory.mib), path=f"{directory}/memory", shared=True)
    made.console = ""
    return made


def read(path: str) -> bytes:
    """The beginning of a small file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def stamp(path: str) -> str:
    """What tells a file from what was there before. Raises OSError."""
    info = os.stat(path)
    return f"{path} {info.st_ino} {info.st_size} {info.st_mtime_ns}"


def key(machine: Machine, emulator: str) -> str:
    """What a template of this machine is known by. Raises OSError when a file of it is missing."""
    made = shape(machine, "")
    # of the command line only its speed of the clock changes, from one look at it to the next
    made.cmdline = " ".join(
        w for w in made.cmdline.split() if w.partition("=")[0] not in ("tsc_early_khz", "lpj")
    )
    parts = [stamp(emulator), stamp(machine.kernel)]
    parts += [stamp(machine.initrd)] if machine.initrd else []
    parts += [*argv(made, qmp_fd=0), read("/proc/sys/kernel/random/boot_id").decode()]
    return blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def start(
    machine: Machine,
    *,
    directory: str,
    confined: Confinement | None = None,
    cold: bool = False,
) -> Started:
    """Start the machine: as a clone of its template, which is made when there is none, below `directory`; or
    cold. The machine gets the template's memory, and more drives than it names, which are empty.

    The drives' files are grown, sparse, to the size that a template's disks have. Raises NagayaError.
    """
    emulator = assets.find_qemu()
    if cold:
        vm = qemu.launch(machine, confined=confined, qemu=emulator)
        return Started(vm, ready=False, macs=[nic.mac for nic in machine.nics])
    try:
        name = key(machine, emulator)
        os.makedirs(directory, 0o700, exist_ok=True)
        template = f"{directory}/{name}"
        if os.exists(f"{template}/state"):
            try:
                return _clone(machine, template, emulator, confined)
            except (
                FailedPrecondition,
                FileNotFoundError,
            ):  # damaged, or taken away meanwhile: another is made
                _forget(directory, name)
        _make_once(machine, directory, name, emulator, confined)
        return _clone(machine, template, emulator, confined)
    except OSError as error:
        step = "microVM template"
        subject = os.fsdecode(error.filename or directory)
        raise KernelError(f"{subject}: {error.strerror}", step=step, errno=error.errno or 0) from None


def fit(path: str) -> None:
    """Give a disk the size of the stub that the guest has seen in its place."""
    info = os.stat(path)
    if info.st_mode & _KIND == _REGULAR and info.st_size < STUB_SIZE:
        os.truncate(path, STUB_SIZE)


def _clone(machine: Machine, template: str, emulator: str, confined: Confinement | None) -> Started:
    made = shape(machine, template)
    made.memory = Memory(made.memory.mib, path=made.memory.path)
    for group in (True, False):
        free = [number for number, drive in enumerate(made.drives) if drive.read_only is group]
        for number, drive in zip(free, (d for d in machine.drives if d.read_only is group), strict=False):
            fit(drive.path)
            made.drives[number] = drive
    made.nics = [
        Nic(n.id, tap=n.tap, fd=n.fd, mac=m.mac) for n, m in zip(machine.nics, made.nics, strict=True)
    ]
    made.shares = machine.shares
    made.console = machine.console
    state = os.open(f"{template}/state", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.utime(template)
        vm = qemu.launch(made, incoming=True, confined=confined, qemu=emulator)
        try:
            vm.load(state)
            vm.resume()
        except BaseException:
            vm.close()
            raise
    finally:
        os.close(state)
    return Started(vm, ready=True, macs=[nic.mac for nic in made.nics])


def _forget(directory: str, name: str) -> None:
    lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        flock(lock, LOCK_EX)
        _remove(f"{directory}/{name}")
    finally:
        os.close(lock)


def _make_once(
    machine: Machine, directory: str, name: str, emulator: str, confined: Confinement | None
) -> None:
    lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        flock(lock, LOCK_EX)
        if os.exists(f"{directory}/{name}/state"):
            return
        _tidy(directory)
        new = f"{directory}/{name}.new"
        _remove(new)
        try:
            _make(machine, new, emulator, confined)
            os.rename(new, f"{directory}/{name}")
        except BaseException:
            _remove(new)
            raise
    finally:
        os.close(lock)


def _make(machine: Machine, new: str, emulator: str, confined: Confinement | None) -> None:
    os.makedirs(f"{new}/share", 0o755)
    made = shape(machine, new)
    about = os.statvfs(new)
    # memory that has no room when the guest writes to it ends QEMU by SIGBUS, without a word
    if (free := about.f_bavail * about.f_frsize >> 20) < (needed := min(made.memory.mib, _WRITTEN)):
        raise ResourceExhausted(
            f"a template of a microVM needs {needed} MiB below {os.dirname(new)}, and {free} are free",
            subject=os.dirname(new),
            step="microVM template",
        )
    sizes = {drive.path: STUB_SIZE for drive in made.drives} | {made.memory.path: made.memory.mib << 20}
    for path, size in sizes.items():
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, size)
        os.close(fd)
    os.chmod(made.memory.path, 0o666)  # QEMU is nobody; who else is cannot enter the directory
    # cards on taps, though nobody is there: only so the guest's driver learns what a tap can do
    taps = Taps(len(made.nics))
    try:
        for nic, tap in zip(made.nics, taps.fds, strict=True):
            nic.fd = tap
        vm = qemu.launch(made, confined=confined, qemu=emulator)
        try:
            await_ready(vm, BOOT)
            state = os.open(f"{new}/state.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                vm.save(state)
            finally:
                os.close(state)
        finally:
            vm.close()
    finally:
        taps.close()
    os.chmod(made.memory.path, 0o400)
    os.rename(f"{new}/state.new", f"{new}/state")


class Taps:
    """Taps in a network namespace of nobody's, which a process keeps for as long as they are needed."""

    def __init__(self, count: int) -> None:
        self._pid = 0
        self._end, theirs = seqpacket.pair()
        if count:
            self._pid, _ = ns.clone3(ns.CLONE_NEWNET)
            if not self._pid:
                try:
                    self._end.close()
                    seqpacket.send(theirs, b"t", [open_tap(f"tap{number}") for number in range(count)])
                    theirs.recv(1)
                finally:
                    os._exit(0)
        theirs.close()
        packet = seqpacket.receive(self._end, wait=True) if count else None
        self.fds = packet.fds if packet else []
        if len(self.fds) != count:
            self.close()
            raise Unavailable("no tap can be made: is there a /dev/net/tun?", step="microVM template")

    def close(self) -> None:
        """No tap, no process, no namespace is left."""
        seqpacket.close_all(self.fds)
        self._end.close()
        if self._pid:
            os.waitpid(self._pid, 0)


def await_ready(vm: qemu.Vm, patience: float) -> None:
    """Wait until the guest's agent is up. Raises Unavailable with the guest's last words, DeadlineExceeded,
    DataLoss."""
    until, connection = monotonic() + patience, protocol.Connection()
    if vm.agent is None:
        raise Unavailable("the machine has no agent", step="boot microVM")
    poller = poll()
    for end in (vm.agent, vm.console):
        if end is not None:
            poller.register(end.fileno(), POLLIN)
    while (left := until - monotonic()) > 0:
        poller.poll(left * 1000)
        said = vm.console_tail()
        try:
            data = vm.agent.recv(4096, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        if not data:
            lines = [line for line in said.split("\n") if line.strip() and "reboot: " not in line]
            reason = "".join(c for c in lines[-1] if c.isprintable()) if lines else vm.complaint()
            raise Unavailable(f"the guest did not come up: {reason}", step="boot microVM")
        for event in connection.receive(data):
            if isinstance(event, protocol.Ready):
                return
    raise DeadlineExceeded(f"the guest did not come up in {patience:.0f} s", step="boot microVM")


def _remove(path: str) -> None:
    """A template and all in it; none is fine."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    for name in names:
        if name != "share":
            os.unlink(f"{path}/{name}")
    for name in (*(f"{path}/{name}" for name in names if name == "share"), path):
        os.rmdir(name)


def _tidy(directory: str) -> None:
    """Make room for one more: the longest unused go. A clone keeps the files that it has open."""
    kept = []
    for name in os.listdir(directory):
        if name.endswith(".new"):
            _remove(f"{directory}/{name}")
        elif name != "lock":
            kept.append((os.stat(f"{directory}/{name}").st_mtime_ns, name))
    for _, name in sorted(kept)[: max(0, len(kept) - _KEPT + 1)]:
        _remove(f"{directory}/{name}")
