"""The bodies of Firecracker's API (swagger 1.16) as structs.

Names of classes are those that Firecracker's complaints show; a field without a default is required.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

import msgspec

from nagaya.api.firecracker.serde import Text, Unsigned

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
LEVELS = {"off": "Off", "trace": "Trace", "debug": "Debug", "info": "Info"}
LEVELS |= {"warn": "Warn", "warning": "Warn", "error": "Error"}


def _mac(text: str) -> str:
    if not _MAC.fullmatch(text):
        raise ValueError("The provided MAC address is invalid.")
    return text.lower()


def _level(text: str) -> str:
    if text.lower() not in LEVELS:
        raise ValueError("Invalid LevelFilter")
    return LEVELS[text.lower()]


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError("invalid IPv4 address syntax") from None


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("path contains a NUL byte")
    return text


U8 = Annotated[int, Unsigned(8)]
U16 = Annotated[int, Unsigned(16)]
U32 = Annotated[int, Unsigned(32)]
U64 = Annotated[int, Unsigned(64)]
Usize = Annotated[int, Unsigned(64, "usize")]
Mac = Annotated[str, Text(check=_mac)]
Level = Annotated[str, Text(check=_level)]
IPv4 = Annotated[str, Text("IPv4 address", _ipv4)]
# a String in Firecracker's source, and what is a PathBuf there
Name = Annotated[str, Text(check=_path)]
Path = Annotated[str, Text("path string", _path)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A struct that refuses fields it does not know."""


class TokenBucketConfig(msgspec.Struct, frozen=True, kw_only=True):
    size: U64
    one_time_burst: U64 | None = None
    refill_time: U64


class RateLimiterConfig(Strict, frozen=True, kw_only=True):
    bandwidth: TokenBucketConfig | None = None
    ops: TokenBucketConfig | None = None


class ActionBody(Strict, frozen=True, kw_only=True):
    action_type: Literal["FlushMetrics", "InstanceStart", "SendCtrlAltDel"]


class BalloonDeviceConfig(Strict, frozen=True, kw_only=True):
    amount_mib: U32
    deflate_on_oom: bool
    stats_polling_interval_s: U16 = 0
    free_page_hinting: bool = False
    free_page_reporting: bool = False


class BalloonUpdateConfig(Strict, frozen=True, kw_only=True):
    amount_mib: U32


class BalloonUpdateStatsConfig(Strict, frozen=True, kw_only=True):
    stats_polling_interval_s: U16


class StartHintingCmd(Strict, frozen=True, kw_only=True):
    acknowledge_on_stop: bool = True


class BootSourceConfig(Strict, frozen=True, kw_only=True):
    kernel_image_path: Name
    initrd_path: Name | None = None
    boot_args: str | None = None


class CpuidRegisterModifier(Strict, frozen=True, kw_only=True):
    register: Literal["eax", "ebx", "ecx", "edx"]
    bitmap: str


class CpuidLeafModifier(Strict, frozen=True, kw_only=True):
    leaf: str
    subleaf: str
    flags: U32
    modifiers: list[CpuidRegisterModifier]


class RegisterModifier(Strict, frozen=True, kw_only=True):
    addr: str
    bitmap: str


class CustomCpuTemplate(Strict, frozen=True, kw_only=True):
    kvm_capabilities: list[str] = []
    cpuid_modifiers: list[CpuidLeafModifier] = []
    msr_modifiers: list[RegisterModifier] = []


class BlockDeviceConfig(Strict, frozen=True, kw_only=True):
    drive_id: str
    partuuid: str | None = None
    is_root_device: bool
    cache_type: Literal["Unsafe", "Writeback"] = "Unsafe"
    is_read_only: bool | None = None
    path_on_host: Name | None = None
    rate_limiter: RateLimiterConfig | None = None
    io_engine: Literal["Sync", "Async"] | None = None
    socket: Name | None = None


class BlockDeviceUpdateConfig(Strict, frozen=True, kw_only=True):
    drive_id: str
    path_on_host: Name | None = None
    rate_limiter: RateLimiterConfig | None = None


class EntropyDeviceConfig(Strict, frozen=True, kw_only=True):
    rate_limiter: RateLimiterConfig | None = None


class LoggerConfig(Strict, frozen=True, kw_only=True):
    log_path: Path | None = None
    level: Level | None = None
    show_level: bool | None = None
    show_log_origin: bool | None = None
    module: str | None = None


HugePages = Literal["None", "Transparent", "2M"]
CpuTemplate = Literal["C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"]


class MachineConfig(Strict, frozen=True, kw_only=True):
    vcpu_count: U8
    mem_size_mib: Usize
    smt: bool = False
    cpu_template: CpuTemplate | None = None
    track_dirty_pages: bool = False
    huge_pages: HugePages = "None"


class MachineConfigUpdate(Strict, frozen=True, kw_only=True):
    vcpu_count: U8 | None = None
    mem_size_mib: Usize | None = None
    smt: bool | None = None
    cpu_template: CpuTemplate | None = None
    track_dirty_pages: bool | None = None
    huge_pages: HugePages | None = None


class MemoryHotplugConfig(Strict, frozen=True, kw_only=True):
    total_size_mib: U32
    block_size_mib: U32 = 2
    slot_size_mib: U32 = 128


class MemoryHotplugSizeUpdate(Strict, frozen=True, kw_only=True):
    requested_size_mib: U32


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    metrics_path: Path
    emit_id: bool = False
    properties: dict[str, str] | None = None


class MmdsConfig(Strict, frozen=True, kw_only=True):
    version: Literal["V1", "V2"] = "V1"
    network_interfaces: list[str]
    ipv4_address: IPv4 | None = None
    imds_compat: bool = False


class NetworkInterfaceConfig(Strict, frozen=True, kw_only=True):
    iface_id: str
    host_dev_name: str
    guest_mac: Mac | None = None
    mtu: U16 | None = None
    rx_rate_limiter: RateLimiterConfig | None = None
    tx_rate_limiter: RateLimiterConfig | None = None


class NetworkInterfaceUpdateConfig(Strict, frozen=True, kw_only=True):
    iface_id: str
    rx_rate_limiter: RateLimiterConfig | None = None
    tx_rate_limiter: RateLimiterConfig | None = None


class PmemConfig(Strict, frozen=True, kw_only=True):
    id: str
    path_on_host: Name
    root_device: bool = False
    read_only: bool = False
    rate_limiter: RateLimiterConfig | None = None


class PmemDeviceUpdateConfig(Strict, frozen=True, kw_only=True):
    id: str
    rate_limiter: RateLimiterConfig | None = None


class SerialConfig(Strict, frozen=True, kw_only=True):
    serial_out_path: Path | None = None
    rate_limiter: TokenBucketConfig | None = None


class CreateSnapshotParams(Strict, frozen=True, kw_only=True):
    snapshot_type: Literal["Diff", "Full"] = "Full"
    snapshot_path: Path
    mem_file_path: Path


class NetworkOverride(msgspec.Struct, frozen=True, kw_only=True):
    iface_id: str
    host_dev_name: str


class VsockOverride(msgspec.Struct, frozen=True, kw_only=True):
    uds_path: Name


class MemBackendConfig(Strict, frozen=True, kw_only=True):
    backend_path: Path
    backend_type: Literal["File", "Uffd"]


class LoadSnapshotConfig(Strict, frozen=True, kw_only=True):
    snapshot_path: Path
    mem_file_path: Path | None = None
    mem_backend: MemBackendConfig | None = None
    enable_diff_snapshots: bool = False
    track_dirty_pages: bool = False
    resume_vm: bool = False
    network_overrides: list[NetworkOverride] = []
    vsock_override: VsockOverride | None = None
    clock_realtime: bool = False
    huge_pages: Literal["Snapshot", "None", "Transparent", "2M"] = "Snapshot"


class Vm(Strict, frozen=True, kw_only=True):
    state: Literal["Paused", "Resumed"]


class VsockDeviceConfig(Strict, frozen=True, kw_only=True):
    vsock_id: str | None = None
    guest_cid: U32
    uds_path: Name


class VmmConfig(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `--config-file` holds, and what GET /vm/config shows; keys it does not know are ignored."""

    balloon: BalloonDeviceConfig | None = None
    drives: list[BlockDeviceConfig]
    boot_source: BootSourceConfig
    cpu_config: Any = None
    logger: LoggerConfig | None = None
    machine_config: MachineConfig | None = None
    metrics: MetricsConfig | None = None
    mmds_config: MmdsConfig | None = None
    network_interfaces: list[NetworkInterfaceConfig] = []
    vsock: VsockDeviceConfig | None = None
    entropy: EntropyDeviceConfig | None = None
    pmem: list[PmemConfig] = []
    memory_hotplug: MemoryHotplugConfig | None = None


class InstanceInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    state: Literal["Not started", "Running", "Paused"]
    vmm_version: str
    app_name: str
