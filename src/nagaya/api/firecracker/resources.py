"""What the machine shall be made of, as the requests before its start say, and the rules among them.

Files are opened here only to complain early, as Firecracker does; taps are opened and kept until the machine
gets them.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from nagaya.api.firecracker import models
from nagaya.api.firecracker.faults import Fault, not_supported, os_words

DEFAULT_MMDS_ADDRESS = "169.254.169.254"
MAX_VCPUS = 32
_CMDLINE_MAX = 2048  # Firecracker's bound on x86_64


def limiter(config: models.RateLimiterConfig | None) -> models.RateLimiterConfig | None:
    """The limiter as it acts: a bucket of size or refill time 0 is none, so is a limiter without buckets."""
    if config is None:
        return None
    found = models.RateLimiterConfig(bandwidth=bucket(config.bandwidth), ops=bucket(config.ops))
    return found if found.bandwidth or found.ops else None


def bucket(config: models.TokenBucketConfig | None) -> models.TokenBucketConfig | None:
    """The same of one bucket."""
    if config is None or not config.size or not config.refill_time:
        return None
    return replace(config, one_time_burst=config.one_time_burst or None)


def updated_limiter(
    old: models.RateLimiterConfig | None, new: models.RateLimiterConfig | None
) -> models.RateLimiterConfig | None:
    """The limiter after an update: a bucket that is not named stays, one of size 0 goes."""
    if new is None:
        return old
    old = old or models.RateLimiterConfig()
    return limiter(
        models.RateLimiterConfig(
            bandwidth=old.bandwidth if new.bandwidth is None else new.bandwidth,
            ops=old.ops if new.ops is None else new.ops,
        )
    )


def check_backing_file(path: str, *, read_only: bool) -> None:
    """That a drive's file can be opened. Raises Fault."""
    try:
        os.close(os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise Fault(
            f"Virtio backend error: Error manipulating the backing file: {os_words(error)} {path}"
        ) from None


class Resources:
    """The configuration; every method raises Fault for what it refuses, and then has changed nothing."""

    def __init__(self, open_tap: Callable[[str], int]) -> None:
        self._open_tap = open_tap
        self.machine = models.MachineConfig(vcpu_count=1, mem_size_mib=128)
        self.boot_source: models.BootSourceConfig | None = None
        self.drives: list[models.BlockDeviceConfig] = []
        self.networks: list[models.NetworkInterfaceConfig] = []
        self.taps: dict[str, int] = {}
        self.balloon: models.BalloonDeviceConfig | None = None
        self.vsock: models.VsockDeviceConfig | None = None
        self.entropy: models.EntropyDeviceConfig | None = None
        self.serial = models.SerialConfig()
        self.mmds: models.MmdsConfig | None = None

    def close(self) -> None:
        """Close the taps."""
        for fd in self.taps.values():
            os.close(fd)
        self.taps.clear()

    def set_boot_source(self, config: models.BootSourceConfig) -> None:
        """Which kernel."""
        for what, path in (
            ("The kernel file cannot be opened:", config.kernel_image_path),
            (
                "The initrd file cannot be opened due to invalid path or invalid permissions.",
                config.initrd_path,
            ),
        ):
            try:
                if path is not None:
                    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise Fault(f"Boot source error: {what} {os_words(error)}") from None
        if config.boot_args is not None:
            wrong = ""
            if len(config.boot_args) >= _CMDLINE_MAX:
                wrong = "command line too large"
            if not all(" " <= character <= "~" for character in config.boot_args):
                wrong = "string contains non-ASCII or non-printable character"
            if wrong:
                raise Fault(f"Boot source error: The kernel command line is invalid: {wrong}")
        self.boot_source = config

    def update_machine(self, update: models.MachineConfigUpdate) -> None:
        """Processors and memory."""
        given = {name: getattr(update, name) for name in update.__struct_fields__}
        new = replace(self.machine, **{name: value for name, value in given.items() if value is not None})
        if not 1 <= new.vcpu_count <= MAX_VCPUS or (new.smt and new.vcpu_count > 1 and new.vcpu_count % 2):
            raise Fault(
                "Machine config error: The number of vCPUs must be greater than 0, less than"
                f" {MAX_VCPUS} and must be 1 or an even number if SMT is enabled."
            )
        if not new.mem_size_mib or (new.huge_pages != "None" and new.mem_size_mib % 2):
            raise Fault(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of the"
                " configured page size."
            )
        if new.huge_pages == "2M":
            raise not_supported("huge_pages 2M")
        if new.cpu_template not in (None, "None"):
            raise not_supported(
                f"the CPU template {new.cpu_template}: CPU templates need Firecracker's own KVM"
            )
        if self.balloon and new.mem_size_mib < self.balloon.amount_mib:
            raise Fault(
                "Machine config error: The memory size (MiB) is smaller than the previously set balloon"
                " device target size."
            )
        self.machine = replace(new, cpu_template=None)

    def insert_drive(self, config: models.BlockDeviceConfig) -> None:
        """A disk, or another one in the place of the one with its id. The root disk is the first."""
        position = next((i for i, drive in enumerate(self.drives) if drive.drive_id == config.drive_id), None)
        if config.is_root_device and position != 0 and self.drives and self.drives[0].is_root_device:
            raise Fault("Drive config error: A root block device already exists!")
        create = "Drive config error: Unable to create the virtio block device:"
        if config.socket is not None and config.path_on_host is None:
            raise not_supported("vhost-user block devices")
        if config.path_on_host is None or config.socket is not None:
            raise Fault(f"{create} Invalid block config.")
        new = replace(
            config,
            is_read_only=bool(config.is_read_only),
            rate_limiter=limiter(config.rate_limiter),
            io_engine=config.io_engine or "Sync",
        )
        try:
            check_backing_file(config.path_on_host, read_only=bool(config.is_read_only))
        except Fault as fault:
            raise Fault(f"{create} {fault}") from None
        if position is None:
            self.drives.insert(0 if config.is_root_device else len(self.drives), new)
            return
        self.drives[position] = new
        if position and config.is_root_device:
            self.drives[0], self.drives[position] = new, self.drives[0]

    def insert_network(self, config: models.NetworkInterfaceConfig) -> None:
        """A network card on a tap."""
        others = [card for card in self.networks if card.iface_id != config.iface_id]
        if config.guest_mac and any(card.guest_mac == config.guest_mac for card in others):
            raise Fault(f"Network config error: The MAC address is already in use: {config.guest_mac}")
        if config.mtu is not None and config.mtu < 68:
            raise Fault(
                f"Network config error: Could not create the network device: MTU {config.mtu} is out of"
                " range [68, 65535]"
            )
        self.networks = others
        self.open_tap(config)
        self.networks.append(
            replace(
                config,
                rx_rate_limiter=limiter(config.rx_rate_limiter),
                tx_rate_limiter=limiter(config.tx_rate_limiter),
            )
        )

    def open_tap(self, config: models.NetworkInterfaceConfig) -> None:
        """A card's tap, in the place of the one it had."""
        create = "Network config error: Could not create the network device:"
        if config.iface_id in self.taps:  # its tap may be the one that is named now
            os.close(self.taps.pop(config.iface_id))
        name = config.host_dev_name
        try:
            self.taps[config.iface_id] = self._open_tap(name)
        except ValueError:
            raise Fault(f"{create} Open tap device failed: Invalid interface name") from None
        except OSError as error:
            raise Fault(
                f"{create} Open tap device failed: Error while creating ifreq structure: {os_words(error)}."
                f" Invalid TUN/TAP Backend provided by {name}. Check our documentation on setting up the"
                " network devices."
            ) from None

    def set_balloon(self, config: models.BalloonDeviceConfig) -> None:
        """The balloon."""
        if config.amount_mib > self.machine.mem_size_mib:
            raise Fault("Balloon config error: Amount of pages requested is too large.")
        if config.free_page_hinting:
            raise not_supported("free page hinting")
        self.balloon = config

    def set_vsock(self, config: models.VsockDeviceConfig) -> None:
        """The vsock device. CIDs below 3 name the host and its kind (vsock(7))."""
        if config.guest_cid < 3 or config.guest_cid == 0xFFFFFFFF:
            raise Fault(
                f"Vsock config error: Cannot create vsock device: invalid guest CID {config.guest_cid}"
            )
        self.vsock = replace(config, vsock_id=None)

    def set_entropy(self, config: models.EntropyDeviceConfig) -> None:
        """The source of random numbers."""
        self.entropy = models.EntropyDeviceConfig(rate_limiter=limiter(config.rate_limiter))

    def set_mmds(self, config: models.MmdsConfig) -> None:
        """On which cards the metadata service answers, and at which address."""
        words = "MMDS config error: "
        if not config.network_interfaces:
            raise Fault(
                f"{words}The list of network interface IDs that allow forwarding MMDS requests is empty."
            )
        if not set(config.network_interfaces) <= {card.iface_id for card in self.networks}:
            raise Fault(
                f"{words}The list of network interface IDs provided contains at least one ID that does not"
                " correspond to any existing network interface."
            )
        address = config.ipv4_address or DEFAULT_MMDS_ADDRESS
        if ipaddress.IPv4Address(address) not in ipaddress.IPv4Network("169.254.0.0/16") or not (
            1 <= int(address.split(".")[2]) <= 254  # RFC 3927: the first and last 256 are reserved
        ):
            raise Fault(f"{words}The MMDS IPv4 address is not link local.")
        self.mmds = replace(config, ipv4_address=address)

    def view(self) -> dict[str, Any]:
        """All of it, as GET /vm/config shows it."""
        shown = msgspec.to_builtins(
            models.VmmConfig(
                balloon=self.balloon,
                drives=self.drives,
                boot_source=self.boot_source or models.BootSourceConfig(kernel_image_path=""),
                machine_config=self.machine,
                mmds_config=self.mmds,
                network_interfaces=self.networks,
                vsock=self.vsock,
                entropy=self.entropy,
            )
        )
        del shown["machine-config"]["cpu_template"]
        if shown["vsock"]:
            del shown["vsock"]["vsock_id"]
        return dict(shown)

    def load(self, shown: dict[str, Any]) -> None:
        """Take what `view` has shown, without opening anything. Raises msgspec.ValidationError."""
        config = msgspec.convert(shown, models.VmmConfig)
        self.machine = config.machine_config or self.machine
        self.boot_source = config.boot_source
        self.drives, self.networks = config.drives, config.network_interfaces
        self.balloon, self.vsock, self.entropy = config.balloon, config.vsock, config.entropy
        self.mmds = config.mmds_config
