"""The machine's life: which action may be asked for when, and what it does.

Before the start the resources are filled; the start makes a guest of them, which lives in a process of its
own; after it, actions go to the guest. What a guest can do is the protocol `Guest`: the rules here need none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from nagaya.api.firecracker import faults, models
from nagaya.api.firecracker.faults import Fault
from nagaya.api.firecracker.logs import Log, Metrics
from nagaya.api.firecracker.mmds import Mmds
from nagaya.api.firecracker.requests import ACTIONS, AFTER, BEFORE, Action, parse
from nagaya.api.firecracker.resources import Resources, check_backing_file, updated_limiter
from nagaya.api.firecracker.server import Reply, fault_reply
from nagaya.errors import NagayaError

VERSION = "1.16.0"  # of the API; what runs the guest is another matter
_MISSING = "Failed perform action on device: Device not found"
# of these a snapshot may not be loaded any more
_BOOT = {name for name, when in ACTIONS.items() if name.startswith(("set_", "insert_"))}
_BOOT |= {"configure_boot_source", "update_machine_config"}
_BOOT -= {"set_cpu_config"}
_LATENCIES = {
    "create_snapshot": "full_create_snapshot",
    "load_snapshot": "load_snapshot",
    "pause": "pause_vm",
    "resume": "resume_vm",
}
_GROUPS = {"GET": "get_api_requests", "PUT": "put_api_requests", "PATCH": "patch_api_requests"}


class Guest(Protocol):
    """A machine that runs, or is paused. Each may raise NagayaError."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def press_ctrl_alt_del(self) -> None: ...
    def set_balloon(self, amount_mib: int) -> None: ...
    def set_balloon_polling(self, seconds: int) -> None: ...
    def balloon_stats(self) -> dict[str, int]: ...
    def change_drive(self, drive: models.BlockDeviceConfig) -> None: ...
    def limit_drive(self, drive: models.BlockDeviceConfig) -> None: ...
    def limit_network(self, card: models.NetworkInterfaceConfig) -> None: ...
    def save(self, params: models.CreateSnapshotParams, shown: Mapping[str, Any]) -> None: ...


class Maker(Protocol):
    """Who makes guests. Raises Fault for what a user can mend, NagayaError for the rest."""

    def start(self, resources: Resources) -> Guest: ...
    def load(self, config: models.LoadSnapshotConfig, resources: Resources) -> Guest: ...


class Controller:
    """Answers requests. `maker` makes the guest; `on_fatal` ends the process after an answer that leaves no
    machine behind."""

    def __init__(
        self,
        instance: str,
        maker: Maker,
        resources: Resources,
        mmds: Mmds,
        log: Log,
        metrics: Metrics,
        on_fatal: Callable[[int], None],
    ) -> None:
        self._id = instance
        self._maker = maker
        self._resources = resources
        self._mmds = mmds
        self._log = log
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._guest: Guest | None = None
        self._paused = False
        self._boot_path = False

    def answer(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """The reply to an HTTP request. Whatever is wrong with it, it is a reply."""
        shown = (
            ""
            if body is None or path.startswith("/mmds")
            else f" with body {body[:4096].decode(errors='replace')!r}"
        )
        self._log.info(f"The API server received a {method.capitalize()} request on {path!r}{shown}.")
        begin = time.monotonic_ns()
        kind = path.strip("/").partition("/")[0].replace("-", "_") or "instance_info"
        group = _GROUPS.get(method)
        if group:
            self._metrics.count(group, f"{kind[:40]}_count")
        try:
            action = parse(method, path, body)
            result = self.act(action)
        except Fault as fault:
            if group:
                self._metrics.count(group, f"{kind[:40]}_fails")
            self._log.error(f"Received Error. Status code: {fault.status}. Message: {fault}")
            return fault_reply(fault)
        if name := _LATENCIES.get(action.name):
            self._metrics.store("latencies_us", name, (time.monotonic_ns() - begin) // 1000)
        if action.deprecated:
            self._metrics.count("deprecated_api", "deprecated_http_api_calls")
            self._log.warn(action.deprecated)
        status = 204 if result is None else 200
        self._log.info(f"The request was executed successfully. Status code: {status}.")
        content = b"" if result is None else msgspec.json.encode(result)
        return Reply(status, content, headers={"Deprecation": "true"} if action.deprecated else None)

    def act(self, action: Action) -> Any:
        """What an action yields, None for nothing. Raises Fault."""
        when = ACTIONS[action.name]
        if when == BEFORE and self._guest:
            if action.name.startswith("insert_"):
                raise faults.not_supported("hot-plugging devices")
            raise faults.after_start()
        if when == AFTER and not self._guest:
            raise faults.before_start()
        if action.name in _BOOT:
            self._boot_path = True
        try:
            return getattr(self, f"_{action.name}")(action.argument)
        except NagayaError as error:
            raise Fault(f"Internal VMM error: {error}") from None

    @property
    def state(self) -> str:
        """As GET / shows it."""
        return "Not started" if not self._guest else "Paused" if self._paused else "Running"

    def ended(self) -> None:
        """The guest is gone."""
        self._guest = None

    def _running(self) -> Guest:
        if self._guest is None:
            raise faults.before_start()
        return self._guest

    # what is always there

    def _get_instance_info(self, _: None) -> models.InstanceInfo:
        return models.InstanceInfo(
            id=self._id,
            state=self.state,  # type: ignore[arg-type]
            vmm_version=VERSION,
            app_name="Firecracker",
        )

    def _get_version(self, _: None) -> dict[str, str]:
        return {"firecracker_version": VERSION}

    def _get_vm_config(self, _: None) -> dict[str, Any]:
        return self._resources.view()

    def _get_machine_config(self, _: None) -> Any:
        return self._resources.view()["machine-config"]

    def _get_balloon(self, _: None) -> models.BalloonDeviceConfig:
        if self._resources.balloon is None:
            raise Fault(
                f"Internal VMM error: {_MISSING}"
                if self._guest
                else "Balloon config error: No balloon device found."
            )
        return self._resources.balloon

    def _get_mmds(self, _: None) -> Any:
        self._needs_mmds()
        return self._mmds.get()

    def _put_mmds(self, data: Any) -> None:
        self._needs_mmds()
        self._mmds.put(data)

    def _patch_mmds(self, data: Any) -> None:
        self._needs_mmds()
        self._mmds.patch(data)

    def _needs_mmds(self) -> None:
        if self._guest and self._resources.mmds is None:
            raise Fault("MMDS error: The MMDS data store is not initialized.")

    # before the start

    def _configure_boot_source(self, config: models.BootSourceConfig) -> None:
        self._resources.set_boot_source(config)

    def _configure_logger(self, config: models.LoggerConfig) -> None:
        try:
            self._log.configure(config)
        except OSError as error:
            raise Fault(f"Logger error: Failed to open target file: {faults.os_words(error)}") from None

    def _configure_metrics(self, config: models.MetricsConfig) -> None:
        self._metrics.configure(config)

    def _configure_serial(self, config: models.SerialConfig) -> None:
        self._resources.serial = config

    def _insert_drive(self, config: models.BlockDeviceConfig) -> None:
        self._resources.insert_drive(config)

    def _insert_network_interface(self, config: models.NetworkInterfaceConfig) -> None:
        self._resources.insert_network(config)

    def _insert_pmem(self, _: models.PmemConfig) -> None:
        raise faults.not_supported("pmem devices")

    def _set_balloon(self, config: models.BalloonDeviceConfig) -> None:
        self._resources.set_balloon(config)

    def _set_cpu_config(self, config: models.CustomCpuTemplate) -> None:
        if config != models.CustomCpuTemplate():
            raise faults.not_supported("CPU templates, which need Firecracker's own KVM")

    def _set_entropy(self, config: models.EntropyDeviceConfig) -> None:
        self._resources.set_entropy(config)

    def _set_memory_hotplug(self, _: models.MemoryHotplugConfig) -> None:
        raise faults.not_supported("memory hotplug")

    def _set_mmds_config(self, config: models.MmdsConfig) -> None:
        self._resources.set_mmds(config)
        self._mmds.version, self._mmds.imds_compat = config.version, config.imds_compat

    def _set_vsock(self, config: models.VsockDeviceConfig) -> None:
        self._resources.set_vsock(config)

    def _update_machine_config(self, update: models.MachineConfigUpdate) -> None:
        self._resources.update_machine(update)

    def _start(self, _: None) -> None:
        if self._resources.boot_source is None:
            raise Fault("Start microvm error: Cannot start microvm without kernel configuration.")
        try:
            self._guest = self._maker.start(self._resources)
        except NagayaError as error:
            raise Fault(f"Start microvm error: {error}") from None
        self._boot_path = True

    def _load_snapshot(self, config: models.LoadSnapshotConfig) -> None:
        words = "Load snapshot error:"
        if self._boot_path:
            raise Fault(
                f"{words} Loading a microVM snapshot not allowed after configuring boot-specific resources."
            )
        if config.mem_backend and config.mem_backend.backend_type == "Uffd":
            raise faults.not_supported("memory served by userfaultfd")
        try:
            self._guest = self._maker.load(config, self._resources)
            self._paused = True
            if self._resources.mmds:
                self._mmds.version = self._resources.mmds.version
                self._mmds.imds_compat = self._resources.mmds.imds_compat
            if config.resume_vm:
                self._resume(None)
        except (NagayaError, Fault) as error:
            # as Firecracker has it: who cannot load a snapshot is not asked for another machine
            self._on_fatal(1)
            raise Fault(f"{words} Failed to restore from snapshot: {error}") from None

    # after the start

    def _pause(self, _: None) -> None:
        self._running().pause()
        self._paused = True

    def _resume(self, _: None) -> None:
        self._running().resume()
        self._paused = False

    def _flush_metrics(self, _: None) -> None:
        try:
            self._metrics.flush()
        except OSError as error:
            raise Fault(f"Internal VMM error: Metrics error: {faults.os_words(error)}") from None

    def _send_ctrl_alt_del(self, _: None) -> None:
        self._running().press_ctrl_alt_del()

    def _create_snapshot(self, params: models.CreateSnapshotParams) -> None:
        if params.snapshot_type == "Diff":
            raise faults.not_supported("snapshots of type Diff")
        if not self._paused:
            raise Fault(
                "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore"
                " unavailable while running"
            )
        try:
            self._running().save(params, self._resources.view())
        except NagayaError as error:
            raise Fault(f"Create snapshot error: {error}") from None

    def _balloon(self, words: str) -> models.BalloonDeviceConfig:
        if self._resources.balloon is None:
            raise Fault(f"{words}: {_MISSING}")
        return self._resources.balloon

    def _get_balloon_stats(self, _: None) -> dict[str, int]:
        if not self._balloon("Internal VMM error").stats_polling_interval_s:
            raise Fault("Internal VMM error: Balloon: Received stats query when stats are disabled.")
        return self._running().balloon_stats()

    def _update_balloon(self, update: models.BalloonUpdateConfig) -> None:
        balloon = self._balloon("Balloon update error")
        if update.amount_mib > self._resources.machine.mem_size_mib:
            raise Fault(
                f"Balloon update error: Balloon: Requested memory should be less than {update.amount_mib}MiB"
            )
        self._running().set_balloon(update.amount_mib)
        self._resources.balloon = replace(balloon, amount_mib=update.amount_mib)

    def _update_balloon_stats(self, update: models.BalloonUpdateStatsConfig) -> None:
        balloon = self._balloon("Balloon update error")
        seconds = update.stats_polling_interval_s
        if bool(seconds) != bool(balloon.stats_polling_interval_s):
            raise Fault(
                "Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation."
            )
        if seconds:
            self._running().set_balloon_polling(seconds)
        self._resources.balloon = replace(balloon, stats_polling_interval_s=seconds)

    def _no_hinting(self, _: object) -> None:
        self._balloon("Balloon update error")
        raise Fault("Balloon update error: Balloon: Attempting to use hinting when not enabled")

    _start_hinting = _stop_hinting = _get_hinting_status = _no_hinting

    def _hot_unplug(self, _: tuple[str, str]) -> None:
        raise faults.not_supported("hot-unplugging devices")

    def _update_pmem(self, _: models.PmemDeviceUpdateConfig) -> None:
        words = "Pmem config error: Unable to patch the pmem device:"
        raise Fault(f"{words} {_MISSING} Please verify the request arguments.")

    def _get_memory_hotplug(self, _: None) -> None:
        raise Fault(f"Internal VMM error: {_MISSING}")

    def _update_memory_hotplug(self, _: models.MemoryHotplugSizeUpdate) -> None:
        raise Fault(f"Memory hotplug update error: {_MISSING}")

    def _update_drive(self, update: models.BlockDeviceUpdateConfig) -> None:
        def refused(why: str) -> Fault:
            return Fault(
                f"Drive config error: Unable to patch the block device: {why} Please verify the request"
                " arguments."
            )

        drives = self._resources.drives
        index = next((i for i, drive in enumerate(drives) if drive.drive_id == update.drive_id), None)
        if index is None:
            raise refused(_MISSING)
        if update.path_on_host is None and update.rate_limiter is None:
            raise refused("Block: Running method expected different backend.")
        drive = drives[index]
        try:
            if update.path_on_host is not None:
                check_backing_file(update.path_on_host, read_only=bool(drive.is_read_only))
                drive = replace(drive, path_on_host=update.path_on_host)
                self._running().change_drive(drive)
                drives[index] = drive
            if update.rate_limiter is not None:
                drive = replace(drive, rate_limiter=updated_limiter(drive.rate_limiter, update.rate_limiter))
                self._running().limit_drive(drive)
                drives[index] = drive
        except (NagayaError, Fault) as error:
            raise refused(f"Block: {error}") from None

    def _update_network_interface(self, update: models.NetworkInterfaceUpdateConfig) -> None:
        cards = self._resources.networks
        index = next((i for i, card in enumerate(cards) if card.iface_id == update.iface_id), None)
        words = "Network config error: Unable to update the net device:"
        if index is None:
            raise Fault(f"{words} {_MISSING}")
        old = cards[index]
        card = replace(
            old,
            rx_rate_limiter=updated_limiter(old.rx_rate_limiter, update.rx_rate_limiter),
            tx_rate_limiter=updated_limiter(old.tx_rate_limiter, update.tx_rate_limiter),
        )
        try:
            if card != old:
                self._running().limit_network(card)
        except NagayaError as error:
            raise Fault(f"{words} {error}") from None
        cards[index] = card
