"""A machine for containers: chosen, wired, started, and made ready; what it is for each of them."""

from __future__ import annotations

import _stat as stat
from time import time_ns

from nagaya.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidArgument,
    NagayaError,
    ResourceExhausted,
)
from nagaya.linux import namespaces as ns
from nagaya.linux import netlink as nl
from nagaya.linux import os
from nagaya.vm import accel, assets, leavings, network, probe, qemu, rootfs, setup, templates
from nagaya.vm.confine import Confinement
from nagaya.vm.link import Guest
from nagaya.vm.loop import Loop
from nagaya.vm.machine import STUB_SIZE, Drive, Memory, Nic, Port, Rng, Share
from nagaya.vm.machine import Machine as Model
from nagaya.vm.sharing import TAG, Shares

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

STATE = "/var/lib/nagaya-vm"
_POWEROFF = 10.0  # seconds for the last writes
_BOOT = 60.0  # seconds; an emulated machine on a busy host is slow
_SHARED = "/run/nagaya/share"
_SHARE_OPTIONS = "trans=virtio,version=9p2000.L,msize=262144"
POD_DISKS = 14  # what a machine has room for beside the rest
_FIRST_SET = 1000  # of descriptors: smaller ones are those that QEMU was started with


class Wish:
    """What machine is wanted: for a container, or, with pod, for it and the others of its pod. cold: it
    boots; state: the directory of what outlives machines; kernels: where the guests' are, "" for the
    usual places."""

    __slots__ = ("bundle", "cold", "kernels", "mib", "pod", "spec", "state", "vcpus")

    def __init__(
        self,
        spec: dict[str, Any],
        bundle: str,
        mib: int,
        *,
        vcpus: int = 1,
        pod: bool = False,
        cold: bool = False,
        state: str = "",
        kernels: str = "",
    ) -> None:
        self.spec = spec
        self.bundle = bundle
        self.mib = mib
        self.vcpus = vcpus
        self.pod = pod
        self.cold = cold
        self.state = state or STATE
        self.kernels = kernels


class Machine:
    """A running machine with its guest's agent, made ready for containers."""

    def __init__(
        self,
        vm: qemu.Vm,
        guest: Guest,
        wish: Wish,
        shares: Shares | None,
        disks: rootfs.Disks,
        slots: int,
        directory: str,
    ) -> None:
        """slots: how many read-only disks the guest has, before those that it can write to; directory: its
        monitor's."""
        self._directory = directory
        self.guest = guest
        self.hostname = _hostname(wish.spec)
        self._vm = vm
        self._wish = wish
        self._shares = shares
        self._disks = disks
        self._slots = slots
        self._added: dict[str, list[str]] = {}
        self._used: dict[int, str] = {}  # a pod's disks, and whose they are
        self._count = 0
        self._shm = ""

    def root_of(self, identifier: str, spec: dict[str, Any], bundle: str) -> tuple[str, int]:
        """(the container's root in the guest, how many disks it has)."""
        if self._wish.pod:
            images = rootfs.images(_root_path(spec, bundle), f"{self._wish.state}/images", self._directory)
            numbers = [self._insert(identifier, image) for image in images]
            return setup.root(self.guest, identifier, [_disk(n) for n in numbers], ""), len(numbers)
        names = [_disk(number) for number in range(len(self._disks.images))]
        writable = _disk(self._slots) if self._disks.writable else ""
        return setup.root(self.guest, identifier, names, writable), len(names)

    def _insert(self, identifier: str, image: str) -> int:
        """The number of a disk that has this image now. Raises ResourceExhausted."""
        free = next((n for n in range(POD_DISKS) if n not in self._used), None)
        if free is None:
            raise ResourceExhausted(f"a pod's microVM has room for {POD_DISKS} disks", subject="root.path")
        templates.fit(image)
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._count += 1
            self._vm.insert(f"d{free}", fd, _FIRST_SET + self._count)
        finally:
            os.close(fd)
        self._used[free] = identifier
        return free

    def sources_of(self, identifier: str, spec: dict[str, Any]) -> dict[int, str]:
        """Where in the guest the sources of its bind mounts lie, by their index. Raises InvalidArgument."""
        found: dict[int, str] = {}
        for index, source, info in binds(spec):
            if setup.is_content(info):
                found[index] = setup.file(self.guest, identifier, index, source, info)
            elif _is_shm(spec, index):
                found[index] = self._shm or f"{setup.directory(identifier)}/shm"
                if not self._shm:
                    setup.tmpfs(self.guest, found[index], "mode=1777")
                    self._shm = found[index]
            else:
                found[index] = self._share(identifier, index, source, info)
        return found

    def _share(self, identifier: str, index: int, source: str, info: os.stat_result) -> str:
        if self._shares is None:
            raise InvalidArgument(f"{source}: the machine shares nothing", subject=f"mounts[{index}]")
        name = f"{identifier[:200]}-{index}"
        if name not in self._added.setdefault(identifier, []):
            self._shares.add(name, source, file=stat.S_ISREG(info.st_mode))
            self._added[identifier].append(name)
        return f"{_SHARED}/{name}"

    def shared_namespaces(self, linux: dict[str, Any]) -> frozenset[str]:
        """Kinds of namespaces that are the guest's own, for all in it: those that are a pod's."""
        kinds = linux.get("namespaces") or []
        return frozenset(k["type"] for k in kinds if k.get("path") and k["type"] in ("ipc", "pid"))

    def forget(self, identifier: str) -> None:
        """That container is gone."""
        self._used = {number: owner for number, owner in self._used.items() if owner != identifier}
        for name in self._added.pop(identifier, []):
            if self._shares is not None:
                self._shares.remove(name)

    def last_words(self) -> str:
        """The last line on the guest's console that says something."""
        lines = [line.strip() for line in self._vm.console_tail().split("\n") if line.strip()]
        return "".join(c for c in lines[-1] if c.isprintable())[:200] if lines else ""

    def end(self) -> None:
        """End the machine; what its guest wrote to a disk is there then."""
        if self._disks.writable:
            self.guest.last_call("poweroff")
            try:
                self._vm.wait(_POWEROFF)
            except DeadlineExceeded:
                pass
        self._vm.close()


def binds(spec: dict[str, Any]) -> list[tuple[int, str, os.stat_result]]:
    """(index in `mounts`, source, what it is) of the bind mounts. Raises InvalidArgument for what no guest
    can be given."""
    found = []
    for index, mount in enumerate(spec.get("mounts") or []):
        options = mount.get("options") or []
        if mount.get("type") != "bind" and not {"bind", "rbind"} & set(options):
            continue
        source = mount.get("source") or ""
        try:
            info = os.stat(source)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise InvalidArgument(f"stat {source}: {reason}", subject=f"mounts[{index}].source") from None
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            raise InvalidArgument(
                f"{source} is a device or a socket of the host, which a microVM cannot use",
                subject=f"mounts[{index}].source",
            )
        found.append((index, source, info))
    return found


def _disks(wish: Wish, directory: str) -> rootfs.Disks:
    return rootfs.disks(_root_path(wish.spec, wish.bundle), f"{wish.state}/images", directory)


def _pod_disks(wish: Wish) -> rootfs.Disks:
    """Empty ones, which get a container's images when there is one."""
    stub = f"{wish.state}/empty"
    os.makedirs(wish.state, 0o700, exist_ok=True)
    os.close(os.open(stub, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.truncate(stub, STUB_SIZE)
    return rootfs.Disks([stub] * POD_DISKS, "")


def _root_path(spec: dict[str, Any], bundle: str) -> str:
    """Where root.path lies on the host. Raises InvalidArgument."""
    path: str = (spec.get("root") or {}).get("path") or "rootfs"
    path = path if path.startswith("/") else f"{bundle}/{path}"
    try:
        return os.realpath(path)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise InvalidArgument(f"stat {path}: {reason}", subject="root.path") from None


def _disk(number: int) -> str:
    return f"/dev/vd{chr(ord('a') + number)}"


def _is_shm(spec: dict[str, Any], index: int) -> bool:
    """A /dev/shm that the host has for containers that share it: in the guest, another."""
    return bool(spec["mounts"][index].get("destination") == "/dev/shm")


def _wants_shares(wish: Wish) -> bool:
    found = binds(wish.spec)
    return wish.pod or any(not setup.is_content(info) and not _is_shm(wish.spec, i) for i, _, info in found)


def start(
    loop: Loop, directory: str, wish: Wish, *, network_path: str, lost: Callable[[NagayaError], None]
) -> Machine:
    """Start a machine in the network namespace where we are. directory: of its monitor, where it is written
    down what is to be taken away. lost: told once when the machine has ended by itself."""
    disks = _pod_disks(wish) if wish.pod else _disks(wish, directory)
    with nl.Netlink() as route:
        cards = network.cards(route)
    parent, _, name = directory.rpartition("/")
    shared = f"{parent}.share/{name}" if _wants_shares(wish) else ""
    left = {"network": network_path, "cards": [card.to_wire() for card in cards], "mounts": shared}
    leavings.note(directory, left)
    confined, shares, vm = Confinement(), None, None
    try:
        if shared:
            shares = Shares(shared, confined.base)
        network.hand_over(cards)
        started = _launch(wish, cards, disks, shares, confined)
        vm = started.vm
        if vm.agent is None:
            raise InternalError("the machine has no agent's port")
        guest = Guest(loop, vm.agent, lost, ready=started.ready)
        guest.await_ready(_BOOT)
        guest.post("renew", [("time", time_ns()), ("seed", os.urandom(64))])
        setup.connect(guest, cards, started.macs)
        if shares is not None:
            fields: setup.Wanted = [("type", "9p"), ("source", TAG), ("target", _SHARED), ("flags", 0)]
            guest.post("mount", [*fields, ("data", _SHARE_OPTIONS)])
        if disks.writable:
            # so that a kill loses no more than the last second: with the journal's `commit`
            for name in ("dirty_expire_centisecs", "dirty_writeback_centisecs"):
                guest.post("write", [("path", f"/proc/sys/vm/{name}"), ("data", "20")])
        slots = templates.slots(len(disks.images)) if started.ready else len(disks.images)
        return Machine(vm, guest, wish, shares, disks, slots, directory)
    except BaseException:
        if vm is not None:
            vm.close()
        leavings.take_away(left)
        raise
    finally:
        for card in cards:
            if card.tap >= 0:
                os.close(card.tap)


def _launch(
    wish: Wish, cards: list[network.Card], disks: rootfs.Disks, shares: Shares | None, confined: Confinement
) -> templates.Started:
    here = probe.accelerator(wish.state, kernels=wish.kernels, confined=confined)
    asset = assets.find("full" if shares else "cloud", wish.kernels)
    drives = [Drive(f"d{number}", image) for number, image in enumerate(disks.images)]
    if disks.writable:
        drives.append(Drive("rw", disks.writable, read_only=False))
    model = Model(
        kernel=asset.kernel,
        initrd=asset.initrd,
        cmdline=accel.cmdline(here),
        memory=Memory(wish.mib),
        vcpus=wish.vcpus,
        drives=drives,
        nics=[Nic(f"n{number}", fd=card.tap, mac=card.mac) for number, card in enumerate(cards)],
        ports=[Port(qemu.AGENT)],
        shares=[Share(TAG, shares.directory)] if shares else [],
        rng=Rng(),
        accel=here,
    )
    return templates.start(model, directory=f"{wish.state}/templates", confined=confined, cold=wish.cold)


def _hostname(spec: dict[str, Any]) -> str:
    """Of a UTS namespace that is named, its host name: the guest cannot be in it."""
    kinds = (spec.get("linux") or {}).get("namespaces") or []
    path = next((kind.get("path") for kind in kinds if kind["type"] == "uts"), "")
    if not path:
        return ""
    own = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ns.setns(fd, ns.CLONE_NEWUTS)
        return str(os.uname().nodename)
    finally:
        ns.setns(own, ns.CLONE_NEWUTS)
        os.close(fd)
        os.close(own)
