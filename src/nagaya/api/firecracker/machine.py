"""A configuration as a machine of QEMU's. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from nagaya.api.firecracker import models
from nagaya.api.firecracker.resources import Resources
from nagaya.vm.machine import Balloon, Drive, Machine, Memory, Nic, Rng, Vsock

# Firecracker's own, but `nomodule`: stock kernels have their virtio drivers as modules
DEFAULT_BOOT_ARGS = "reboot=k panic=1 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"


def drive_id(resources: Resources, drive: models.BlockDeviceConfig) -> str:
    """What QEMU calls a drive: it does not know all letters that Firecracker's ids may have."""
    return f"drive{[other.drive_id for other in resources.drives].index(drive.drive_id)}"


def cmdline(resources: Resources, clock: str) -> str:
    """The kernel's command line: what was given, the root device, and what its clock must be told."""
    source = resources.boot_source
    given = source.boot_args if source and source.boot_args is not None else DEFAULT_BOOT_ARGS
    words = [given]
    root = next((drive for drive in resources.drives if drive.is_root_device), None)
    if root:
        words.append(f"root=PARTUUID={root.partuuid}" if root.partuuid else "root=/dev/vda")
        words.append("ro" if root.is_read_only else "rw")
    return " ".join(word for word in (*words, clock) if word)


def throttle(limiter: models.RateLimiterConfig | None) -> dict[str, int]:
    """A limiter in QEMU's names. Its buckets hold a tenth of a second's rate, or what `-max` says; one that
    is used but once is no different there."""
    found: dict[str, int] = {}
    for name, bucket in (
        ("bps-total", limiter and limiter.bandwidth),
        ("iops-total", limiter and limiter.ops),
    ):
        if bucket:
            rate = max(1, bucket.size * 1000 // bucket.refill_time)
            found[name] = min(rate, 10**15)  # QEMU's own bound
            if bucket.size > rate // 10:
                burst = bucket.size + (bucket.one_time_burst or 0)
                found[f"{name}-max"] = min(max(burst, rate), 10**15)
    return found


def rng(config: models.EntropyDeviceConfig | None) -> Rng | None:
    """The source of random numbers: QEMU limits its bytes only."""
    if config is None:
        return None
    bucket = config.rate_limiter and config.rate_limiter.bandwidth
    if not bucket:
        return Rng()
    return Rng(max_bytes=min(bucket.size, 1 << 62), period=min(bucket.refill_time, 1 << 31))


def machine(
    resources: Resources, *, accelerator: str, clock: str, console: int, vhost: str, taps: Mapping[str, int]
) -> Machine:
    """The machine. clock: what the kernel must be told of it; console: a connected socket; vhost: where the
    vsock's back end listens; taps: by card."""
    source = resources.boot_source
    drives = [
        Drive(
            drive_id(resources, drive),
            drive.path_on_host or "",
            read_only=bool(drive.is_read_only),
            cache="unsafe" if drive.cache_type == "Unsafe" else "writeback",
            throttle=throttle(drive.rate_limiter),
        )
        for drive in resources.drives
    ]
    nics = [
        Nic(f"card{index}", fd=taps[card.iface_id], mac=card.guest_mac or "", mtu=card.mtu or 0)
        for index, card in enumerate(resources.networks)
    ]
    balloon = resources.balloon
    return Machine(
        kernel=source.kernel_image_path if source else "",
        initrd=(source.initrd_path or "") if source else "",
        cmdline=cmdline(resources, clock),
        memory=Memory(resources.machine.mem_size_mib, shared=True),
        vcpus=resources.machine.vcpu_count,
        drives=drives,
        nics=nics,
        vsock=Vsock(resources.vsock.guest_cid, vhost) if resources.vsock else None,
        balloon=Balloon(deflate_on_oom=balloon.deflate_on_oom, reporting=balloon.free_page_reporting)
        if balloon
        else None,
        rng=rng(resources.entropy),
        console=f"fd:{console}",
        accel=accelerator,
    )
