"""Statistics of pods and containers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.containers import chosen
from nagaya.api.cri.context import Context, Lister, Unary
from nagaya.api.cri.wire import fill, struct
from nagaya.engine.model import Container
from nagaya.engine.pods_model import LinuxResources, Pod
from nagaya.engine.pods_spec import member_of
from nagaya.engine.pods_stats import Reading

_NO_LIMIT = 1 << 60  # v1 writes the largest multiple of a page, v2 "max"


def _value(number: int) -> cri.UInt64Value:
    return cri.UInt64Value(value=max(0, number))


def pressure(reading: Reading, kind: str) -> cri.PsiStats | None:
    """How long its processes waited for cpu, memory or blkio; None where the kernel does not count it."""
    found = reading.usage.get(kind, {}).get("psi")
    if not found:
        return None
    stats = cri.PsiStats()
    for name, data in (("some", stats.Some), ("full", stats.Full)):
        if values := found.get(name):
            data.Total = int(values["total"]) * 1000  # microseconds in the kernel's files
            data.Avg10, data.Avg60, data.Avg300 = values["avg10"], values["avg60"], values["avg300"]
    return stats


def _cpu(reading: Reading) -> cri.CpuUsage:
    usage = cri.CpuUsage(
        timestamp=reading.time_ns,
        usage_core_nano_seconds=_value(reading.number("cpu", "usage", "total")),
        psi=pressure(reading, "cpu"),
    )
    if reading.nano_cores is not None:
        usage.usage_nano_cores.value = reading.nano_cores
    return usage


def available(reading: Reading) -> int:
    """Bytes up to the container's limit; 0 without one, as "unknown"."""
    limit = reading.number("memory", "usage", "limit")
    return max(0, limit - reading.working_set) if limit < _NO_LIMIT else 0


def _memory(reading: Reading) -> cri.MemoryUsage:
    return cri.MemoryUsage(
        timestamp=reading.time_ns,
        working_set_bytes=_value(reading.working_set),
        available_bytes=_value(available(reading)),
        usage_bytes=_value(reading.number("memory", "usage", "usage")),
        rss_bytes=_value(reading.memory("total_rss", "rss", "anon")),
        page_faults=_value(reading.memory("total_pgfault", "pgfault")),
        major_page_faults=_value(reading.memory("total_pgmajfault", "pgmajfault")),
        psi=pressure(reading, "memory"),
    )


def swapped(reading: Reading) -> int:
    """Bytes in swap: the counter of both without the one of memory."""
    both, memory = reading.number("memory", "swap", "usage"), reading.number("memory", "usage", "usage")
    return max(0, both - memory)


def _swap(reading: Reading) -> cri.SwapUsage:
    limit = reading.number("memory", "swap", "limit") - reading.number("memory", "usage", "limit")
    free = max(0, limit - swapped(reading)) if limit < _NO_LIMIT else 0
    return cri.SwapUsage(
        timestamp=reading.time_ns,
        swap_available_bytes=_value(free),
        swap_usage_bytes=_value(swapped(reading)),
    )


def container_stats(context: Context, reading: Reading) -> cri.ContainerStats:
    """A reading as a kubelet wants it."""
    container = reading.container
    member = member_of(container)
    return cri.ContainerStats(
        attributes=cri.ContainerAttributes(
            id=container.id,
            metadata=fill(cri.ContainerMetadata(), member.config.metadata),
            labels=member.config.labels,
            annotations=member.config.annotations,
        ),
        cpu=_cpu(reading),
        memory=_memory(reading),
        swap=_swap(reading),
        io=cri.IoUsage(timestamp=reading.time_ns, psi=pressure(reading, "blkio")),
        writable_layer=cri.FilesystemUsage(
            timestamp=reading.time_ns,
            fs_id=cri.FilesystemIdentifier(mountpoint=f"{context.pods.world.settings.root}/snapshots"),
            used_bytes=_value(reading.written[0]),
            inodes_used=_value(reading.written[1]),
        ),
    )


async def one(context: Context, request: cri.ContainerStatsRequest) -> cri.ContainerStatsResponse:
    """A container's."""
    container = context.pods.container(request.container_id)
    reading = await context.pods.stats.read(container)
    return cri.ContainerStatsResponse(stats=container_stats(context, reading))


async def listed(
    context: Context, request: cri.ListContainerStatsRequest | cri.StreamContainerStatsRequest
) -> Sequence[cri.ContainerStats]:
    """Those of the containers that a filter lets through and that run."""
    wanted = request.filter
    found = [
        c
        for c in context.pods.containers()
        if c.state in ("running", "paused")
        and chosen(c, member_of(c), wanted.id, wanted.pod_sandbox_id, wanted.label_selector)
    ]
    readings = await asyncio.gather(*(context.pods.stats.read(c) for c in found))
    return [container_stats(context, reading) for reading in readings]


async def list_stats(
    context: Context, request: cri.ListContainerStatsRequest
) -> cri.ListContainerStatsResponse:
    """Those of the containers that a filter lets through and that run."""
    return cri.ListContainerStatsResponse(stats=await listed(context, request))


# pods


def _running(context: Context, pod: Pod) -> list[Container]:
    return [c for c in context.pods.containers(pod.id) if c.state in ("running", "paused")]


async def _pod_stats(context: Context, pod: Pod) -> cri.PodSandboxStats:
    """The sum of the pod's containers: its cgroup is the kubelet's, who reads it itself."""
    stats = context.pods.stats
    readings, interfaces = await asyncio.gather(
        asyncio.gather(*(stats.read(c) for c in _running(context, pod))), stats.interfaces(pod)
    )
    containers = [container_stats(context, reading) for reading in readings]
    now = time.time_ns()
    network = cri.NetworkUsage(
        timestamp=now,
        interfaces=[
            cri.NetworkInterfaceUsage(
                name=link.name,
                rx_bytes=_value(link.received.bytes),
                rx_errors=_value(link.received.errors),
                tx_bytes=_value(link.sent.bytes),
                tx_errors=_value(link.sent.errors),
            )
            for link in interfaces
        ],
    )
    if network.interfaces:
        network.default_interface.CopyFrom(network.interfaces[0])
        del network.interfaces[0]
    cpu = cri.CpuUsage(
        timestamp=now,
        usage_core_nano_seconds=_value(sum(c.cpu.usage_core_nano_seconds.value for c in containers)),
        usage_nano_cores=_value(sum(c.cpu.usage_nano_cores.value for c in containers)),
    )
    memory = cri.MemoryUsage(timestamp=now)
    for field in ("working_set_bytes", "usage_bytes", "rss_bytes", "page_faults", "major_page_faults"):
        getattr(memory, field).value = sum(getattr(c.memory, field).value for c in containers)
    count = sum(reading.number("pids", "current") for reading in readings)
    return cri.PodSandboxStats(
        attributes=cri.PodSandboxAttributes(
            id=pod.id,
            metadata=fill(cri.PodSandboxMetadata(), pod.config.metadata),
            labels=pod.config.labels,
            annotations=pod.config.annotations,
        ),
        linux=cri.LinuxPodSandboxStats(
            cpu=cpu,
            memory=memory,
            network=network,
            process=cri.ProcessUsage(timestamp=now, process_count=_value(count)),
            containers=containers,
        ),
    )


async def of_pod(context: Context, request: cri.PodSandboxStatsRequest) -> cri.PodSandboxStatsResponse:
    """A pod's."""
    pod = context.pods.pod(request.pod_sandbox_id)
    return cri.PodSandboxStatsResponse(stats=await _pod_stats(context, pod))


async def listed_pods(
    context: Context, request: cri.ListPodSandboxStatsRequest | cri.StreamPodSandboxStatsRequest
) -> Sequence[cri.PodSandboxStats]:
    """Those of the pods that a filter lets through and that are ready."""
    wanted = request.filter
    found = [
        pod
        for pod in context.pods.pods()
        if pod.ready
        and (not wanted.id or pod.id.startswith(wanted.id))
        and all(pod.config.labels.get(key) == value for key, value in wanted.label_selector.items())
    ]
    return await asyncio.gather(*(_pod_stats(context, pod) for pod in found))


async def list_pods(
    context: Context, request: cri.ListPodSandboxStatsRequest
) -> cri.ListPodSandboxStatsResponse:
    """Those of the pods that a filter lets through and that are ready."""
    return cri.ListPodSandboxStatsResponse(stats=await listed_pods(context, request))


async def update_pod(
    context: Context, request: cri.UpdatePodSandboxResourcesRequest
) -> cri.UpdatePodSandboxResourcesResponse:
    """The kubelet has changed the pod's cgroup."""
    await context.pods.update_pod(
        request.pod_sandbox_id,
        struct(request.overhead, LinuxResources, "overhead"),
        struct(request.resources, LinuxResources, "resources"),
    )
    return cri.UpdatePodSandboxResourcesResponse()


UNARY: dict[str, Unary] = {
    "ContainerStats": one,
    "ListContainerStats": list_stats,
    "PodSandboxStats": of_pod,
    "ListPodSandboxStats": list_pods,
    "UpdatePodSandboxResources": update_pod,
}
LISTERS: dict[str, Lister] = {"StreamContainerStats": listed, "StreamPodSandboxStats": listed_pods}
