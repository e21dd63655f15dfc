"""Resources: ranges and messages as dockerd checks them (moby, daemon/daemon_unix.go,
verifyPlatformContainerResources), and the fields that are not supported yet."""

from __future__ import annotations

import re
from typing import Literal, cast

from nagaya.api.docker.types.structs import (
    DeviceBody,
    DeviceRateBody,
    DeviceRequestBody,
    DeviceWeightBody,
    ResourcesBody,
    RestartPolicyBody,
    UlimitBody,
)
from nagaya.engine.model import DeviceLimit, DeviceMapping, DeviceRequest, Resources, RestartPolicy, Ulimit
from nagaya.errors import InvalidArgument

MINIMUM_MEMORY = 6 << 20

_UNSUPPORTED = (
    "CpuCount",
    "CpuPercent",
    "IOMaximumIOps",
    "IOMaximumBandwidth",
)
_CPUSET = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
_ULIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)


def refuse_unsupported(body: object, names: tuple[str, ...], prefix: str) -> None:
    """Raise InvalidArgument for the first of the fields that is set to something."""
    for name in names:
        if getattr(body, name):
            raise InvalidArgument(f"{prefix}{name} is not supported yet", subject=prefix + name)


def resources(body: ResourcesBody, online_cpus: int, prefix: str = "HostConfig.") -> Resources:
    """The limits of a create or update request. Raises InvalidArgument with dockerd's message."""
    refuse_unsupported(body, _UNSUPPORTED, prefix)
    memory, swap, reservation = body.Memory or 0, body.MemorySwap or 0, body.MemoryReservation or 0
    _check_memory(memory, swap, reservation)
    swappiness = body.MemorySwappiness
    if swappiness is not None and swappiness != -1 and not 0 <= swappiness <= 100:
        raise InvalidArgument(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    _check_cpu(body, online_cpus)
    weight = body.BlkioWeight or 0
    if weight and not 10 <= weight <= 1000:
        raise InvalidArgument("Range of blkio weight is from 10 to 1000")
    pids = body.PidsLimit or 0
    return Resources(
        memory=memory,
        # dockerd's rule: without a wish the same amount again may be swapped
        memory_swap=memory * 2 if memory and not swap else swap,
        memory_reservation=reservation,
        memory_swappiness=None if swappiness == -1 else swappiness,
        oom_kill_disable=bool(body.OomKillDisable),
        nano_cpus=body.NanoCpus or 0,
        cpu_shares=body.CpuShares or 0,
        cpu_period=body.CpuPeriod or 0,
        cpu_quota=body.CpuQuota or 0,
        cpuset_cpus=body.CpusetCpus or "",
        cpuset_mems=body.CpusetMems or "",
        pids_limit=max(pids, 0),
        blkio_weight=weight,
        blkio_weight_device=_weights(body.BlkioWeightDevice),
        blkio_read_bps=_rates(body.BlkioDeviceReadBps),
        blkio_write_bps=_rates(body.BlkioDeviceWriteBps),
        blkio_read_iops=_rates(body.BlkioDeviceReadIOps),
        blkio_write_iops=_rates(body.BlkioDeviceWriteIOps),
        cpu_rt_period=body.CpuRealtimePeriod or 0,
        cpu_rt_runtime=body.CpuRealtimeRuntime or 0,
    )


def _weights(bodies: list[DeviceWeightBody] | None) -> tuple[DeviceLimit, ...]:
    for body in bodies or ():
        if not 10 <= (body.Weight or 0) <= 1000:
            raise InvalidArgument("Range of blkio weight is from 10 to 1000", subject="BlkioWeightDevice")
    return tuple(DeviceLimit(body.Path or "", body.Weight or 0) for body in bodies or ())


def _rates(bodies: list[DeviceRateBody] | None) -> tuple[DeviceLimit, ...]:
    for body in bodies or ():
        if (body.Rate or 0) < 0:
            raise InvalidArgument(f"invalid rate for device: {body.Path}: {body.Rate}", subject="BlkioDevice")
    return tuple(DeviceLimit(body.Path or "", body.Rate or 0) for body in bodies or ())


def _check_memory(memory: int, swap: int, reservation: int) -> None:
    if memory < 0 or 0 < memory < MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory limit allowed is 6MB")
    if swap < -1:
        raise InvalidArgument(f"Invalid value: {swap}, valid memory swap limits are -1 (unlimited) and above")
    if memory and 0 < swap < memory:
        raise InvalidArgument("Minimum memoryswap limit should be larger than memory limit, see usage")
    if not memory and swap > 0:
        raise InvalidArgument("You should always set the Memory limit when using Memoryswap limit, see usage")
    if reservation < 0 or 0 < reservation < MINIMUM_MEMORY:
        raise InvalidArgument("Minimum memory reservation allowed is 6MB")
    if memory and reservation > memory:
        raise InvalidArgument("Minimum memory limit can not be less than memory reservation limit, see usage")


def _check_cpu(body: ResourcesBody, online_cpus: int) -> None:
    nano, period, quota = body.NanoCpus or 0, body.CpuPeriod or 0, body.CpuQuota or 0
    if nano and period:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if nano and quota:
        raise InvalidArgument("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if nano < 0 or nano > online_cpus * 1_000_000_000:
        raise InvalidArgument(
            f"range of CPUs is from 0.01 to {online_cpus}.00, as there are only {online_cpus} CPUs available"
        )
    if (body.CpuShares or 0) < 0:
        raise InvalidArgument(f"invalid CPU shares ({body.CpuShares}): value must be a positive integer")
    if period and not 1000 <= period <= 1_000_000:
        raise InvalidArgument(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"
        )
    if 0 < quota < 1000:
        raise InvalidArgument("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    for name in ("cpus", "mems"):
        value = body.CpusetCpus if name == "cpus" else body.CpusetMems
        if value and not _CPUSET.fullmatch(value):
            raise InvalidArgument(f"Invalid value {value} for cpuset {name}")


def restart_policy(body: RestartPolicyBody | None) -> RestartPolicy:
    """A restart policy. Raises InvalidArgument."""
    if body is None:
        return RestartPolicy()
    name, count = body.Name or "no", body.MaximumRetryCount or 0
    if name != "on-failure" and count:
        raise InvalidArgument(
            "invalid restart policy: maximum retry count "
            + ("cannot be negative" if count < 0 else "can only be used with 'on-failure'")
        )
    if count < 0:
        raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")
    if name in ("no", "always", "unless-stopped", "on-failure"):
        return RestartPolicy(cast("Literal['no', 'always', 'unless-stopped', 'on-failure']", name), count)
    raise InvalidArgument(
        f"invalid restart policy: unknown policy '{name}'; "
        "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
    )


def devices(bodies: list[DeviceBody] | None) -> tuple[DeviceMapping, ...]:
    """HostConfig.Devices. Raises InvalidArgument."""
    result: list[DeviceMapping] = []
    for body in bodies or ():
        host = body.PathOnHost or ""
        container = body.PathInContainer or host
        permissions = body.CgroupPermissions or "rwm"
        if not host.startswith("/") or not container.startswith("/"):
            raise InvalidArgument(
                f"{host or container} is not an absolute path", subject="HostConfig.Devices"
            )
        if len(set(permissions)) != len(permissions) or not set(permissions) <= set("rwm"):
            raise InvalidArgument(f"invalid device mode: {permissions}", subject="HostConfig.Devices")
        result.append(DeviceMapping(host, container, permissions))
    return tuple(result)


def device_requests(bodies: list[DeviceRequestBody] | None) -> tuple[DeviceRequest, ...]:
    """HostConfig.DeviceRequests. Raises InvalidArgument."""
    result: list[DeviceRequest] = []
    for body in bodies or ():
        if body.Count and body.DeviceIDs:
            raise InvalidArgument(
                "cannot set both Count and DeviceIDs on device request", subject="HostConfig.DeviceRequests"
            )
        capabilities = tuple(tuple(group) for group in body.Capabilities or ())
        ids = tuple(body.DeviceIDs or ())
        result.append(
            DeviceRequest(body.Driver or "", body.Count or 0, ids, capabilities, body.Options or {})
        )
    return tuple(result)


def ulimits(bodies: list[UlimitBody] | None) -> tuple[Ulimit, ...]:
    """HostConfig.Ulimits. Raises InvalidArgument."""
    result: list[Ulimit] = []
    for body in bodies or ():
        name, soft, hard = body.Name or "", body.Soft or 0, body.Hard or 0
        if name not in _ULIMITS:
            raise InvalidArgument(f"invalid ulimit type: {name}", subject="HostConfig.Ulimits")
        if hard != -1 and (soft > hard or soft == -1):
            raise InvalidArgument(
                f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}",
                subject="HostConfig.Ulimits",
            )
        result.append(Ulimit(name, soft, hard))
    return tuple(result)
