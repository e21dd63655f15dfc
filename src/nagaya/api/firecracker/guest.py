"""The guest in QEMU: made of the resources, or of a snapshot, and asked for what the API asks."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from nagaya.api.firecracker import cards, models, snapshots
from nagaya.api.firecracker.console import Console
from nagaya.api.firecracker.faults import Fault, not_supported, os_words
from nagaya.api.firecracker.logs import Log, Metrics
from nagaya.api.firecracker.machine import drive_id, machine, throttle
from nagaya.api.firecracker.mmds import Mmds
from nagaya.api.firecracker.resources import Resources, bucket
from nagaya.api.firecracker.server import Loop, listen_unix
from nagaya.api.firecracker.vsock import Vsock
from nagaya.errors import FailedPrecondition, KernelError, NagayaError
from nagaya.linux import netlink as nl
from nagaya.linux import nftables
from nagaya.vm import accel, boot, probe, qemu
from nagaya.vm.confine import Confinement

_STATS = {
    "stat-swap-in": "swap_in",
    "stat-swap-out": "swap_out",
    "stat-major-faults": "major_faults",
    "stat-minor-faults": "minor_faults",
    "stat-free-memory": "free_memory",
    "stat-total-memory": "total_memory",
    "stat-available-memory": "available_memory",
    "stat-disk-caches": "disk_caches",
    "stat-htlb-pgalloc": "hugetlb_allocations",
    "stat-htlb-pgfail": "hugetlb_failures",
}
_UNKNOWN = (1 << 64) - 1
_STATE = boot.STATE  # where nagaya-vm keeps whether KVM works
_BALLOON = "/machine/peripheral/balloon"
_THROTTLE = ("bps", "iops")


class Surroundings:
    """All that a machine has around QEMU: console, vsock, metadata, rules for its taps."""

    def __init__(
        self,
        loop: Loop,
        resources: Resources,
        mmds: Mmds,
        metrics: Metrics,
        console: Console,
        log: Log,
        hall: cards.Hall | None,
    ) -> None:
        self._loop = loop
        self._resources = resources
        self._mmds = mmds
        self._metrics = metrics
        self.console = console
        self._log = log
        self._hall = hall
        self._directory = ""
        self.vhost = ""
        self._vsock: Vsock | None = None
        self._metadata: cards.MetadataService | None = None
        self._nft: nftables.Nftables | None = None
        self._tables: dict[str, int] = {}

    def prepare(self) -> None:
        """Before QEMU starts. Raises NagayaError, OSError."""
        if vsock := self._resources.vsock:
            self._directory = tempfile.mkdtemp(prefix="nagaya-vmm-")
            self.vhost = f"{self._directory}/vhost"
            listener = listen_unix(self.vhost)
            # QEMU is nobody; only we get through the directory
            os.chmod(self.vhost, 0o666)
            count = self._counter("vsock")
            self._vsock = Vsock(
                vsock.guest_cid, vsock.uds_path, listener, snapshots.is_sealed, count, self._log.error
            )
        if config := self._resources.mmds:
            taps = [
                c.host_dev_name for c in self._resources.networks if c.iface_id in config.network_interfaces
            ]
            self._metadata = cards.MetadataService(
                self._loop, self._mmds, config.ipv4_address or "", taps, self._counter("mmds"), self._hall
            )
        for card in self._resources.networks:
            self.limit(card)

    def limit(self, card: models.NetworkInterfaceConfig) -> None:
        """The rules for a card's tap, anew. Raises NagayaError."""
        config = self._resources.mmds
        address = config.ipv4_address if config and card.iface_id in config.network_interfaces else ""
        name = card.host_dev_name
        if name not in self._tables:
            with nl.Netlink() as route:
                link = route.link(name)
            if link is None:
                raise FailedPrecondition(f"the tap {name} has gone", subject=name)
            text = cards.rules(link.index, name, card, address or "")
            if not text:
                return
            self._tables[name] = link.index
        index = self._tables[name]
        text = cards.rules(index, name, card, address or "") or cards.removal(index)
        if self._nft is None:
            self._nft = nftables.Nftables()
        self._nft.run(text, step=f"limit {name}")

    def started(self) -> None:
        """QEMU has what it was given."""
        self.console.theirs.close()
        self._remove_directory()

    def close(self) -> None:
        """Undo everything."""
        self.console.close()
        if self._vsock:
            self._vsock.close()
        if self._metadata:
            self._metadata.close()
        if self._nft:
            for index in self._tables.values():
                try:
                    self._nft.run(cards.removal(index))
                except KernelError:
                    pass  # the tap has gone, and its rules with it
            self._nft.close()
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""

    def _counter(self, group: str) -> Callable[[str, int], None]:
        return lambda name, by: self._metrics.count(group, name, by)


class QemuGuest:
    """A guest that runs, as controller.Guest."""

    def __init__(self, vm: qemu.Vm, resources: Resources, around: Surroundings) -> None:
        self._vm = vm
        self._resources = resources
        self._around = around

    def pause(self) -> None:
        """No processor of it runs."""
        self._vm.pause()

    def resume(self) -> None:
        """They run again."""
        self._vm.resume()

    def press_ctrl_alt_del(self) -> None:
        """There is no keyboard in the machine, but a power button."""
        self._vm.power_button()

    def set_balloon(self, amount_mib: int) -> None:
        """The balloon's size."""
        # QEMU counts what is left
        self._vm.set_memory(max(1, self._resources.machine.mem_size_mib - amount_mib))

    def set_balloon_polling(self, seconds: int) -> None:
        """How often the guest is asked for its statistics."""
        value = {"path": _BALLOON, "property": "guest-stats-polling-interval", "value": seconds}
        self._vm.qmp.call("qom-set", value)

    def balloon_stats(self) -> dict[str, int]:
        """The last that the guest has told."""
        found = self._vm.qmp.call("qom-get", {"path": _BALLOON, "property": "guest-stats"})
        target = self._resources.balloon.amount_mib if self._resources.balloon else 0
        actual = self._resources.machine.mem_size_mib - self._vm.memory()
        stats = {"target_pages": target * 256, "actual_pages": actual * 256}
        stats |= {"target_mib": target, "actual_mib": actual}
        told = found.get("stats", {}) if isinstance(found, dict) else {}
        for theirs, ours in _STATS.items():
            value = told.get(theirs)
            if isinstance(value, int) and 0 <= value < _UNKNOWN:
                stats[ours] = value
        return stats

    def change_drive(self, drive: models.BlockDeviceConfig) -> None:
        """Another file behind the disk; the guest is told when its size is another."""
        name, path, read_only = (
            drive_id(self._resources, drive),
            drive.path_on_host or "",
            bool(drive.is_read_only),
        )
        old = self._size(name)
        fds: list[int] = []
        try:
            # QEMU takes the one whose flags are those it wants
            for flags in (os.O_RDONLY,) if read_only else (os.O_RDONLY, os.O_RDWR):
                fds.append(os.open(path, flags | os.O_CLOEXEC))
            new = os.lseek(fds[0], 0, os.SEEK_END)
            if read_only and new != old:
                raise FailedPrecondition(
                    f"{path}: {new} bytes, and a read-only drive cannot change its {old}"
                )
            self._reopen(name, fds, read_only=read_only, unsafe=drive.cache_type == "Unsafe")
        except OSError as error:
            raise FailedPrecondition(f"{path}: {os_words(error)}") from None
        finally:
            for fd in fds:
                os.close(fd)
        if new != old:
            self._vm.qmp.call("block_resize", {"node-name": f"disk-{name}", "size": new})

    def _size(self, name: str) -> int:
        for entry in self._vm.qmp.call("query-named-block-nodes", {"flat": True}):
            if entry.get("node-name") == f"disk-{name}":
                return int(entry["image"]["virtual-size"])
        raise FailedPrecondition("QEMU does not know the drive", subject=name)

    def _reopen(self, name: str, fds: list[int], *, read_only: bool, unsafe: bool) -> None:
        qmp, group = self._vm.qmp, -1
        for fd in fds:
            where = {"fdset-id": group} if group >= 0 else {}
            group = int(qmp.call("add-fd", where, fd=fd)["fdset-id"])
        options = {"read-only": read_only, "discard": "unmap", "cache": {"no-flush": unsafe, "direct": False}}
        node, file = f"disk-{name}", f"file-{name}-{group}"
        try:
            source = {
                "driver": "file",
                "node-name": file,
                "filename": f"/dev/fdset/{group}",
                "locking": "off",
            }
            qmp.call("blockdev-add", {**source, **options})
            try:
                raw = {"driver": "raw", "node-name": node, "file": file, **options}
                qmp.call("blockdev-reopen", {"options": [raw]})
            except NagayaError:
                qmp.call("blockdev-del", {"node-name": file})
                raise
        finally:
            qmp.call("remove-fd", {"fdset-id": group})  # from the set; what is open stays so

    def limit_drive(self, drive: models.BlockDeviceConfig) -> None:
        """The disk's limits."""
        given = throttle(drive.rate_limiter)
        value: dict[str, Any] = {"id": f"dev-{drive_id(self._resources, drive)}"}
        for name in _THROTTLE:
            value |= {name: given.get(f"{name}-total", 0), f"{name}_rd": 0, f"{name}_wr": 0}
            value[f"{name}_max"] = given.get(f"{name}-total-max", 0)
        self._vm.qmp.call("block_set_io_throttle", value)

    def limit_network(self, card: models.NetworkInterfaceConfig) -> None:
        """The card's limits."""
        self._around.limit(card)

    def save(self, params: models.CreateSnapshotParams, shown: Mapping[str, Any]) -> None:
        """The machine's state and memory to files, which are removed when that fails."""
        if self._resources.vsock:
            # hw/virtio/vhost-user-vsock.c: unmigratable
            raise not_supported("snapshots of a machine with a vsock device: QEMU cannot save one")
        made: list[str] = []
        fds: list[int] = []
        try:
            for path in (params.snapshot_path, params.mem_file_path):
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                fds.append(os.open(path, flags, 0o600))
                made.append(path)
            state, memory = fds
            snapshots.begin(state, dict(shown))
            self._vm.save(state)
            mib = self._resources.machine.mem_size_mib
            fds.append(snapshots.ram(self._vm.pidfd, mib))
            snapshots.copy(fds[2], memory, mib << 20)
        except (OSError, NagayaError) as error:
            for path in made:
                os.unlink(path)
            if isinstance(error, OSError):
                raise FailedPrecondition(os_words(error), step="write snapshot") from None
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def metrics(self) -> dict[str, dict[str, int]]:
        """What QEMU counts."""
        found: dict[str, dict[str, int]] = {}
        try:
            for number, entry in enumerate(self._vm.qmp.call("query-blockstats", timeout=1)):
                stats = entry.get("stats", {})
                name = self._resources.drives[number].drive_id
                found[f"block_{name}"] = {
                    "read_bytes": int(stats.get("rd_bytes", 0)),
                    "write_bytes": int(stats.get("wr_bytes", 0)),
                    "read_count": int(stats.get("rd_operations", 0)),
                    "write_count": int(stats.get("wr_operations", 0)),
                    "flush_count": int(stats.get("flush_operations", 0)),
                }
        except (NagayaError, IndexError):
            pass  # a machine that ends
        return found

    def close(self) -> int:
        """End it, if it runs, and all around it; QEMU's exit code, 128 and more for a signal."""
        status = self._vm.kill()
        self._vm.close()
        self._around.close()
        return os.waitstatus_to_exitcode(status)


class Host:
    """What is asked of the host while all of it can be seen: from a jail it cannot. hall: see cards."""

    def __init__(self, hall: cards.Hall | None = None) -> None:
        self.accelerator = _accelerator()
        self.clock = accel.clock_words(self.accelerator)
        self.hall = hall


def _accelerator() -> str:
    """What a boot has shown to work here; where none can be tried, what the processor says."""
    try:
        return probe.accelerator(_STATE, confined=None if os.geteuid() else Confinement())
    except (NagayaError, OSError):
        return accel.here()


class QemuMaker:
    """Makes the guest, as controller.Maker. `ended` is called when it has ended by itself."""

    def __init__(
        self,
        loop: Loop,
        mmds: Mmds,
        log: Log,
        metrics: Metrics,
        ended: Callable[[], None],
        host: Host,
        *,
        jailed: bool,
    ) -> None:
        self._loop = loop
        self._mmds = mmds
        self._log = log
        self._metrics = metrics
        self._ended = ended
        self._host = host
        self._jailed = jailed
        self.guest: QemuGuest | None = None

    def start(self, resources: Resources) -> QemuGuest:
        """Boot it."""
        guest = self._launch(resources, incoming=False)
        try:
            self._inflate(guest, resources)
        except BaseException:
            self.close()
            raise
        return guest

    def load(self, config: models.LoadSnapshotConfig, resources: Resources) -> QemuGuest:
        """Make it of a snapshot; it is paused."""
        if config.clock_realtime:
            raise not_supported("clock_realtime")
        if config.huge_pages == "2M":
            raise not_supported("huge_pages 2M")
        memory_path = config.mem_backend.backend_path if config.mem_backend else config.mem_file_path or ""
        fds: list[int] = []
        try:
            fds.append(os.open(config.snapshot_path, os.O_RDONLY | os.O_CLOEXEC))
            fds.append(os.open(memory_path, os.O_RDONLY | os.O_CLOEXEC))
            shown = snapshots.read_beginning(fds[0])
            resources.load(shown)
            _override(resources, config)
            size = resources.machine.mem_size_mib << 20
            if os.fstat(fds[1]).st_size != size:
                raise FailedPrecondition(f"{memory_path}: not {size} bytes", step="load snapshot")
            for card in resources.networks:
                resources.open_tap(card)
            guest = self._launch(resources, incoming=True)
            try:
                fds.append(snapshots.ram(guest._vm.pidfd, size >> 20))
                snapshots.copy(fds[1], fds[2], size)
                guest._vm.load(fds[0])
            except BaseException:
                self.close()
                raise
            return guest
        except msgspec.ValidationError as error:
            raise Fault(f"the snapshot's beginning is broken: {error}") from None
        except OSError as error:
            raise FailedPrecondition(os_words(error), step="load snapshot") from None
        finally:
            for fd in fds:
                os.close(fd)

    def close(self) -> int:
        """End the guest; QEMU's exit code."""
        guest, self.guest = self.guest, None
        if guest is None:
            return 0
        self._loop.forget(guest._vm.pidfd)
        self._loop.forget(guest._vm.qmp.fileno())
        return guest.close()

    def _launch(self, resources: Resources, *, incoming: bool) -> QemuGuest:
        count = self._metrics.count
        try:
            console = Console(
                self._loop,
                resources.serial,
                bucket(resources.serial.rate_limiter),
                lambda name, by: count("uart", name, by),
            )
        except OSError as error:
            raise FailedPrecondition(os_words(error), step="open serial_out_path") from None
        around = Surroundings(
            self._loop, resources, self._mmds, self._metrics, console, self._log, self._host.hall
        )
        try:
            around.prepare()
            made = machine(
                resources,
                accelerator=self._host.accelerator,
                clock=self._host.clock,
                console=console.theirs.fileno(),
                vhost=around.vhost,
                taps=resources.taps,
            )
            vm = qemu.launch(made, incoming=incoming, confined=self._confinement())
        except BaseException as error:
            around.close()
            if isinstance(error, OSError):
                raise FailedPrecondition(os_words(error), step="prepare the machine") from None
            raise
        around.started()
        guest = self.guest = QemuGuest(vm, resources, around)
        self._loop.watch(vm.pidfd, select.EPOLLIN, lambda _: self._ended())
        self._loop.watch(vm.qmp.fileno(), select.EPOLLIN, lambda _: self._hear(vm))
        self._metrics.gather = [guest.metrics]
        return guest

    def _confinement(self) -> Confinement | None:
        if self._jailed:
            return None  # the jail is its confinement
        if os.geteuid():
            self._log.warn("Not root: QEMU has our own rights.")
            return None
        return Confinement()

    def _hear(self, vm: qemu.Vm) -> None:
        try:
            for event in vm.qmp.events():
                self._log.debug(f"QEMU: {str(event.get('event'))[:100]}")
        except NagayaError:
            self._loop.forget(vm.qmp.fileno())  # its end is told by its process

    def _inflate(self, guest: QemuGuest, resources: Resources) -> None:
        if balloon := resources.balloon:
            if balloon.amount_mib:
                guest.set_balloon(balloon.amount_mib)
            if balloon.stats_polling_interval_s:
                guest.set_balloon_polling(balloon.stats_polling_interval_s)


def _override(resources: Resources, config: models.LoadSnapshotConfig) -> None:
    """Other taps and another socket than the snapshot's. Raises Fault."""
    for override in config.network_overrides:
        cards_there = [card.iface_id for card in resources.networks]
        if override.iface_id not in cards_there:
            raise Fault("Failed to get snapshot state from file: Unknown Network Device.")
        at = cards_there.index(override.iface_id)
        resources.networks[at] = replace(resources.networks[at], host_dev_name=override.host_dev_name)
    if config.vsock_override:
        if resources.vsock is None:
            raise Fault("Failed to get snapshot state from file: Unknown Vsock Device.")
        resources.vsock = replace(resources.vsock, uds_path=config.vsock_override.uds_path)
