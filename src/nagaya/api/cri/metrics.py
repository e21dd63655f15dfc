"""Metrics under cAdvisor's names, for a kubelet that has no cAdvisor of its own.

Values are whole numbers on this interface: seconds lose their fractions. What this kernel, or version of
cgroups, does not count is not there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Lister, Unary
from nagaya.api.cri.stats import swapped
from nagaya.engine.pods_model import Pod
from nagaya.engine.pods_spec import member_of
from nagaya.engine.pods_stats import Interface, Processes, Reading

_BASE = ("id", "name", "image")
_SECOND = 1_000_000_000


class _Source(NamedTuple):
    """All that is known of a container at one moment."""

    reading: Reading
    processes: Processes
    disk: os.statvfs_result


Values = Iterable[tuple[tuple[str, ...], int]]


class _Metric(NamedTuple):
    name: str
    help: str
    counter: bool
    labels: tuple[str, ...]
    values: Callable[[_Source], Values]


def _one(value: Callable[[_Source], int]) -> Callable[[_Source], Values]:
    return lambda source: [((), value(source))]


def _gauge(name: str, text: str, value: Callable[[_Source], int]) -> _Metric:
    return _Metric(name, text, False, (), _one(value))


def _counter(name: str, text: str, value: Callable[[_Source], int]) -> _Metric:
    return _Metric(name, text, True, (), _one(value))


def _stat(*path: str) -> Callable[[_Source], int]:
    return lambda source: source.reading.number(*path)


def _seconds(*path: str) -> Callable[[_Source], int]:
    return lambda source: source.reading.number(*path) // _SECOND


def _raw(*names: str) -> Callable[[_Source], int]:
    return lambda source: source.reading.memory(*names)


def _resource(field: str) -> Callable[[_Source], int]:
    return lambda source: max(
        0, int(getattr(member_of(source.reading.container).config.linux.resources, field))
    )


def _blkio(table: str, operation: str = "") -> Callable[[_Source], Values]:
    def values(source: _Source) -> Values:
        for entry in source.reading.usage.get("blkio", {}).get(table) or ():
            device = f"{entry['major']}:{entry['minor']}"
            if not operation:
                labels = (device, str(entry["major"]), str(entry["minor"]), str(entry["op"]))
                yield labels, int(entry["value"])
            elif entry["op"].lower() == operation:
                yield (device,), int(entry["value"])

    return values


def _waited(kind: str, share: str) -> Callable[[_Source], Values]:
    def values(source: _Source) -> Values:
        found = source.reading.usage.get(kind, {}).get("psi", {}).get(share)
        if found:
            yield (), int(found["total"]) // 1_000_000

    return values


def _pressure(resource: str, kind: str) -> tuple[_Metric, _Metric]:
    """Where the kernel counts it (PSI)."""
    return (
        _Metric(
            f"container_pressure_{resource}_waiting_seconds_total",
            f"Time in which some waited for {resource}.",
            True,
            (),
            _waited(kind, "some"),
        ),
        _Metric(
            f"container_pressure_{resource}_stalled_seconds_total",
            f"Time in which all waited for {resource}.",
            True,
            (),
            _waited(kind, "full"),
        ),
    )


def _huge(field: str) -> Callable[[_Source], Values]:
    return lambda source: [
        ((size,), int(found[field])) for size, found in source.reading.usage.get("hugetlb", {}).items()
    ]


def _failures(source: _Source) -> Values:
    own = (("pgfault", "total_pgfault"), ("pgmajfault", "total_pgmajfault"))
    for kind, total in own:
        yield (kind, "container"), source.reading.memory(kind)
        yield (kind, "hierarchy"), source.reading.memory(total, kind)


_TABLE: tuple[_Metric, ...] = (
    _Metric(
        "container_blkio_device_usage_total",
        "Bytes to and from block devices.",
        True,
        ("device", "major", "minor", "operation"),
        _blkio("ioServiceBytesRecursive"),
    ),
    _counter(
        "container_cpu_cfs_periods_total", "Periods of the quota.", _stat("cpu", "throttling", "periods")
    ),
    _counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the quota was used up.",
        _stat("cpu", "throttling", "throttledPeriods"),
    ),
    _counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Seconds held up by the quota.",
        _seconds("cpu", "throttling", "throttledTime"),
    ),
    _counter(
        "container_cpu_system_seconds_total", "Seconds in the kernel.", _seconds("cpu", "usage", "kernel")
    ),
    _counter("container_cpu_usage_seconds_total", "Processor seconds.", _seconds("cpu", "usage", "total")),
    _counter("container_cpu_user_seconds_total", "Seconds in user mode.", _seconds("cpu", "usage", "user")),
    _gauge("container_file_descriptors", "Open file descriptors.", lambda s: s.processes.files),
    _gauge("container_fs_inodes_free", "Free inodes of the disk.", lambda s: s.disk.f_ffree),
    _gauge("container_fs_inodes_total", "Inodes of the disk.", lambda s: s.disk.f_files),
    _gauge("container_fs_limit_bytes", "Size of the disk.", lambda s: s.disk.f_blocks * s.disk.f_frsize),
    _Metric(
        "container_fs_reads_bytes_total",
        "Bytes read from devices.",
        True,
        ("device",),
        _blkio("ioServiceBytesRecursive", "read"),
    ),
    _Metric(
        "container_fs_reads_total",
        "Reads from devices.",
        True,
        ("device",),
        _blkio("ioServicedRecursive", "read"),
    ),
    _gauge("container_fs_usage_bytes", "Bytes written to the root.", lambda s: s.reading.written[0]),
    _Metric(
        "container_fs_writes_bytes_total",
        "Bytes written to devices.",
        True,
        ("device",),
        _blkio("ioServiceBytesRecursive", "write"),
    ),
    _Metric(
        "container_fs_writes_total",
        "Writes to devices.",
        True,
        ("device",),
        _blkio("ioServicedRecursive", "write"),
    ),
    _Metric("container_hugetlb_max_usage_bytes", "Most huge pages.", False, ("pagesize",), _huge("max")),
    _Metric("container_hugetlb_usage_bytes", "Huge pages.", False, ("pagesize",), _huge("usage")),
    _gauge("container_last_seen", "When it was read.", lambda s: s.reading.time_ns // _SECOND),
    _gauge("container_memory_cache", "Page cache.", _raw("total_cache", "cache", "file")),
    _counter("container_memory_failcnt", "Times at the limit.", _stat("memory", "usage", "failcnt")),
    _Metric("container_memory_failures_total", "Page faults.", True, ("failure_type", "scope"), _failures),
    _gauge("container_memory_kernel_usage", "Memory of the kernel.", _stat("memory", "kernel", "usage")),
    _gauge(
        "container_memory_mapped_file",
        "Mapped files.",
        _raw("total_mapped_file", "mapped_file", "file_mapped"),
    ),
    _gauge("container_memory_max_usage_bytes", "Most memory.", _stat("memory", "usage", "max")),
    _gauge("container_memory_rss", "Anonymous memory.", _raw("total_rss", "rss", "anon")),
    _gauge("container_memory_swap", "Memory in swap.", lambda s: swapped(s.reading)),
    _gauge("container_memory_usage_bytes", "Memory, the page cache too.", _stat("memory", "usage", "usage")),
    _gauge("container_memory_working_set_bytes", "Working set.", lambda s: s.reading.working_set),
    _counter(
        "container_oom_events_total",
        "Kills for want of memory.",
        lambda s: int(s.reading.container.oom_killed),
    ),
    *_pressure("cpu", "cpu"),
    *_pressure("io", "blkio"),
    *_pressure("memory", "memory"),
    _gauge("container_processes", "Processes.", lambda s: s.processes.running),
    _gauge("container_sockets", "Open sockets.", lambda s: s.processes.sockets),
    _gauge("container_spec_cpu_period", "Period of the quota.", _resource("cpu_period")),
    _gauge("container_spec_cpu_quota", "Quota.", _resource("cpu_quota")),
    _gauge("container_spec_cpu_shares", "Shares.", _resource("cpu_shares")),
    _gauge("container_spec_memory_limit_bytes", "Limit of memory.", _resource("memory_limit_in_bytes")),
    _gauge("container_spec_memory_reservation_limit_bytes", "Reserved memory.", lambda _: 0),
    _gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap.",
        _resource("memory_swap_limit_in_bytes"),
    ),
    _gauge(
        "container_start_time_seconds",
        "When it was started.",
        lambda s: s.reading.container.started // _SECOND,
    ),
    _gauge("container_threads", "Threads.", lambda s: s.processes.threads),
    _gauge("container_threads_max", "Limit of threads; 0: none.", _stat("pids", "limit")),
    _Metric(
        "container_ulimits_soft",
        "Soft limits of the first process.",
        False,
        ("ulimit",),
        lambda s: [(("max_open_files",), s.processes.files_soft)],
    ),
)

_NETWORK: tuple[tuple[str, str, Callable[[Interface], int]], ...] = (
    ("container_network_receive_bytes_total", "Bytes received.", lambda i: i.received.bytes),
    ("container_network_receive_errors_total", "Errors in receiving.", lambda i: i.received.errors),
    ("container_network_receive_packets_dropped_total", "Packets dropped.", lambda i: i.received.dropped),
    ("container_network_receive_packets_total", "Packets received.", lambda i: i.received.packets),
    ("container_network_transmit_bytes_total", "Bytes sent.", lambda i: i.sent.bytes),
    ("container_network_transmit_errors_total", "Errors in sending.", lambda i: i.sent.errors),
    ("container_network_transmit_packets_dropped_total", "Packets not sent.", lambda i: i.sent.dropped),
    ("container_network_transmit_packets_total", "Packets sent.", lambda i: i.sent.packets),
)


async def descriptors(
    context: Context, request: cri.ListMetricDescriptorsRequest
) -> cri.ListMetricDescriptorsResponse:
    """Which metrics there are, with the names of their labels."""
    found = [cri.MetricDescriptor(name=m.name, help=m.help, label_keys=[*_BASE, *m.labels]) for m in _TABLE]
    found += [
        cri.MetricDescriptor(name=name, help=text, label_keys=[*_BASE, "interface"])
        for name, text, _ in _NETWORK
    ]
    return cri.ListMetricDescriptorsResponse(descriptors=found)


def _metrics(source: _Source) -> list[cri.Metric]:
    container = source.reading.container
    member = member_of(container)
    base = [container.id, member.config.metadata.name, member.config.image.image]
    now = source.reading.time_ns
    return [
        cri.Metric(
            name=metric.name,
            timestamp=now,
            metric_type=cri.COUNTER if metric.counter else cri.GAUGE,
            label_values=[*base, *labels],
            value=cri.UInt64Value(value=max(0, min(value, 2**64 - 1))),
        )
        for metric in _TABLE
        for labels, value in metric.values(source)
    ]


async def _of_pod(context: Context, pod: Pod) -> cri.PodSandboxMetrics:
    stats = context.pods.stats
    disk = await context.pods.world.job(os.statvfs, context.pods.world.settings.root)
    found = cri.PodSandboxMetrics(pod_sandbox_id=pod.id)
    now = time.time_ns()
    for interface in await stats.interfaces(pod):
        for name, _, value in _NETWORK:
            found.metrics.append(
                cri.Metric(
                    name=name,
                    timestamp=now,
                    metric_type=cri.COUNTER,
                    label_values=[pod.id, pod.config.metadata.name, "", interface.name],
                    value=cri.UInt64Value(value=value(interface)),
                )
            )
    for container in context.pods.containers(pod.id):
        if container.state in ("running", "paused"):
            reading, processes = await asyncio.gather(stats.read(container), stats.processes(container))
            found.container_metrics.append(
                cri.ContainerMetrics(
                    container_id=container.id, metrics=_metrics(_Source(reading, processes, disk))
                )
            )
    return found


async def listed(
    context: Context, request: cri.ListPodSandboxMetricsRequest | cri.StreamPodSandboxMetricsRequest
) -> Sequence[cri.PodSandboxMetrics]:
    """The metrics of all pods that are ready."""
    return await asyncio.gather(*(_of_pod(context, pod) for pod in context.pods.pods() if pod.ready))


async def list_metrics(
    context: Context, request: cri.ListPodSandboxMetricsRequest
) -> cri.ListPodSandboxMetricsResponse:
    """The metrics of all pods that are ready."""
    return cri.ListPodSandboxMetricsResponse(pod_metrics=await listed(context, request))


UNARY: dict[str, Unary] = {"ListMetricDescriptors": descriptors, "ListPodSandboxMetrics": list_metrics}
LISTERS: dict[str, Lister] = {"StreamPodSandboxMetrics": listed}
