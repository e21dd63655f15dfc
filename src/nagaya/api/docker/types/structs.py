"""Request bodies as clients send them: Docker's field names, every field may be null or absent.

Unknown fields are ignored, as dockerd ignores them. Source: docs.docker.com/reference/api/engine, v1.51.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from nagaya.api.docker.types.casing import canonical
from nagaya.errors import InvalidArgument

Strings = list[str] | None
Objects = list[Any] | None


class RestartPolicyBody(msgspec.Struct):
    Name: str | None = None
    MaximumRetryCount: int | None = None


class LogConfigBody(msgspec.Struct):
    Type: str | None = None
    Config: dict[str, str] | None = None


class PortBindingBody(msgspec.Struct):
    HostIp: str | None = None
    HostPort: str | None = None


class DeviceBody(msgspec.Struct):
    PathOnHost: str | None = None
    PathInContainer: str | None = None
    CgroupPermissions: str | None = None


class UlimitBody(msgspec.Struct):
    Name: str | None = None
    Soft: int | None = None
    Hard: int | None = None


class BindOptionsBody(msgspec.Struct):
    Propagation: str | None = None
    NonRecursive: bool | None = None
    CreateMountpoint: bool | None = None
    ReadOnlyNonRecursive: bool | None = None
    ReadOnlyForceRecursive: bool | None = None


class DriverConfigBody(msgspec.Struct):
    Name: str | None = None
    Options: dict[str, str] | None = None


class VolumeOptionsBody(msgspec.Struct):
    NoCopy: bool | None = None
    Labels: dict[str, str] | None = None
    DriverConfig: DriverConfigBody | None = None
    Subpath: str | None = None


class ImageOptionsBody(msgspec.Struct):
    Subpath: str | None = None


class TmpfsOptionsBody(msgspec.Struct):
    SizeBytes: int | None = None
    Mode: int | None = None
    Options: list[list[str]] | None = None


class MountBody(msgspec.Struct):
    Target: str | None = None
    Source: str | None = None
    Type: str | None = None
    ReadOnly: bool | None = None
    Consistency: str | None = None
    BindOptions: BindOptionsBody | None = None
    VolumeOptions: VolumeOptionsBody | None = None
    TmpfsOptions: TmpfsOptionsBody | None = None
    ImageOptions: ImageOptionsBody | None = None
    ClusterOptions: dict[str, Any] | None = None


class DeviceWeightBody(msgspec.Struct):
    Path: str | None = None
    Weight: int | None = None


class DeviceRateBody(msgspec.Struct):
    Path: str | None = None
    Rate: int | None = None


class DeviceRequestBody(msgspec.Struct):
    Driver: str | None = None
    Count: int | None = None
    DeviceIDs: Strings = None
    Capabilities: list[list[str]] | None = None
    Options: dict[str, str] | None = None


class ResourcesBody(msgspec.Struct):
    """What HostConfig and the update request share."""

    CpuShares: int | None = None
    Memory: int | None = None
    NanoCpus: int | None = None
    CgroupParent: str | None = None
    BlkioWeight: int | None = None
    BlkioWeightDevice: list[DeviceWeightBody] | None = None
    BlkioDeviceReadBps: list[DeviceRateBody] | None = None
    BlkioDeviceWriteBps: list[DeviceRateBody] | None = None
    BlkioDeviceReadIOps: list[DeviceRateBody] | None = None
    BlkioDeviceWriteIOps: list[DeviceRateBody] | None = None
    CpuPeriod: int | None = None
    CpuQuota: int | None = None
    CpuRealtimePeriod: int | None = None
    CpuRealtimeRuntime: int | None = None
    CpusetCpus: str | None = None
    CpusetMems: str | None = None
    Devices: list[DeviceBody] | None = None
    DeviceCgroupRules: Strings = None
    DeviceRequests: list[DeviceRequestBody] | None = None
    MemoryReservation: int | None = None
    MemorySwap: int | None = None
    MemorySwappiness: int | None = None
    OomKillDisable: bool | None = None
    PidsLimit: int | None = None
    Ulimits: list[UlimitBody] | None = None
    CpuCount: int | None = None
    CpuPercent: int | None = None
    IOMaximumIOps: int | None = None
    IOMaximumBandwidth: int | None = None
    Init: bool | None = None


class HostConfigBody(ResourcesBody):
    Binds: Strings = None
    LogConfig: LogConfigBody | None = None
    NetworkMode: str | None = None
    PortBindings: dict[str, list[PortBindingBody] | None] | None = None
    RestartPolicy: RestartPolicyBody | None = None
    AutoRemove: bool | None = None
    VolumeDriver: str | None = None
    VolumesFrom: Strings = None
    CapAdd: Strings = None
    CapDrop: Strings = None
    CgroupnsMode: str | None = None
    Dns: Strings = None
    DnsOptions: Strings = None
    DnsSearch: Strings = None
    ExtraHosts: Strings = None
    GroupAdd: Strings = None
    IpcMode: str | None = None
    Cgroup: str | None = None
    Links: Strings = None
    OomScoreAdj: int | None = None
    PidMode: str | None = None
    Privileged: bool | None = None
    PublishAllPorts: bool | None = None
    ReadonlyRootfs: bool | None = None
    SecurityOpt: Strings = None
    StorageOpt: dict[str, str] | None = None
    Tmpfs: dict[str, str] | None = None
    UTSMode: str | None = None
    UsernsMode: str | None = None
    ShmSize: int | None = None
    Sysctls: dict[str, str] | None = None
    Runtime: str | None = None
    Isolation: str | None = None
    Mounts: list[MountBody] | None = None
    MaskedPaths: Strings = None
    ReadonlyPaths: Strings = None
    Annotations: dict[str, str] | None = None


class EndpointIpamBody(msgspec.Struct):
    IPv4Address: str | None = None
    IPv6Address: str | None = None
    LinkLocalIPs: Strings = None


class EndpointBody(msgspec.Struct):
    IPAMConfig: EndpointIpamBody | None = None
    Links: Strings = None
    Aliases: Strings = None
    MacAddress: str | None = None
    DriverOpts: dict[str, str] | None = None
    GwPriority: int | None = None


class NetworkingConfigBody(msgspec.Struct):
    EndpointsConfig: dict[str, EndpointBody | None] | None = None


class HealthcheckBody(msgspec.Struct):
    Test: Strings = None
    Interval: int | None = None
    Timeout: int | None = None
    StartPeriod: int | None = None
    StartInterval: int | None = None
    Retries: int | None = None


class CreateBody(msgspec.Struct):
    """POST /containers/create: Config, with HostConfig and NetworkingConfig inside."""

    Hostname: str | None = None
    Domainname: str | None = None
    User: str | None = None
    AttachStdin: bool | None = None
    AttachStdout: bool | None = None
    AttachStderr: bool | None = None
    ExposedPorts: dict[str, Any] | None = None
    Tty: bool | None = None
    OpenStdin: bool | None = None
    StdinOnce: bool | None = None
    Env: Strings = None
    Cmd: list[str] | str | None = None
    Healthcheck: HealthcheckBody | None = None
    Image: str | None = None
    Volumes: dict[str, Any] | None = None
    WorkingDir: str | None = None
    Entrypoint: list[str] | str | None = None
    NetworkDisabled: bool | None = None
    MacAddress: str | None = None
    Labels: dict[str, str] | None = None
    StopSignal: str | None = None
    StopTimeout: int | None = None
    HostConfig: HostConfigBody | None = None
    NetworkingConfig: NetworkingConfigBody | None = None


class UpdateBody(ResourcesBody):
    """POST /containers/{id}/update."""

    RestartPolicy: RestartPolicyBody | None = None


class ExecCreateBody(msgspec.Struct):
    """POST /containers/{id}/exec."""

    User: str | None = None
    Privileged: bool | None = None
    Tty: bool | None = None
    ConsoleSize: list[int] | None = None
    AttachStdin: bool | None = None
    AttachStderr: bool | None = None
    AttachStdout: bool | None = None
    DetachKeys: str | None = None
    Env: Strings = None
    WorkingDir: str | None = None
    Cmd: list[str] | str | None = None


class ExecStartBody(msgspec.Struct):
    """POST /exec/{id}/start."""

    Detach: bool | None = None
    Tty: bool | None = None
    ConsoleSize: list[int] | None = None


class VolumeCreateBody(msgspec.Struct):
    """POST /volumes/create."""

    Name: str | None = None
    Driver: str | None = None
    DriverOpts: dict[str, str] | None = None
    Labels: dict[str, str] | None = None
    ClusterVolumeSpec: dict[str, Any] | None = None


class AuthBody(msgspec.Struct):
    """The document inside X-Registry-Auth, and the body of POST /auth."""

    username: str | None = None
    password: str | None = None
    auth: str | None = None
    serveraddress: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


Body = TypeVar("Body")


def decode_body(data: bytes, kind: type[Body]) -> Body:
    """A request's JSON as `kind`, its members' names in any case; an empty body is an empty document. Raises
    InvalidArgument naming the field that has the wrong type."""
    if not data.strip():
        return kind()
    try:
        document = msgspec.json.decode(data)
        if canonical(document, kind):
            data = msgspec.json.encode(document)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"invalid JSON: {error}") from None
