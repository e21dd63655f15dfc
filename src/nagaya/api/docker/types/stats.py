"""A reading of a container's cgroup as GET /containers/{id}/stats shows it.

The engine's readings have the shape of `runc events --stats`; Docker's clients compute CPU percent
from two readings and the machine's CPU time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nagaya.api.docker.types.times import rfc3339_nano
from nagaya.engine.model import Container

Json = dict[str, Any]


class Reading(NamedTuple):
    """The cgroup's numbers, the machine's CPU time and when both were read. Empty data: none."""

    data: Mapping[str, Any]
    system_cpu_ns: int
    time_ns: int


class Machine(NamedTuple):
    """What there is for all containers: CPUs, and bytes of memory."""

    cpus: int
    memory: int


def stats_document(container: Container, before: Reading, now: Reading, machine: Machine) -> Json:
    """One item of the stream. A container that does not run has zeros, as in dockerd."""
    document: Json = {
        "name": "/" + container.name,
        "id": container.id,
        "read": rfc3339_nano(now.time_ns),
        "preread": rfc3339_nano(before.time_ns),
        "pids_stats": _pids(now.data),
        "blkio_stats": _blkio(now.data),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(now, machine.cpus),
        "precpu_stats": _cpu(before, machine.cpus),
        "memory_stats": _memory(now.data, machine.memory),
    }
    networks = _networks(now.data)
    if networks:
        document["networks"] = networks
    return document


def _section(data: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        data = data.get(name) or {}
    return data


def _pids(data: Mapping[str, Any]) -> Json:
    pids = _section(data, "pids")
    shown: Json = {}
    if pids.get("current"):
        shown["current"] = pids["current"]
    if pids.get("limit"):
        shown["limit"] = pids["limit"]
    return shown


def _cpu(reading: Reading, online_cpus: int) -> Json:
    usage = _section(reading.data, "cpu", "usage")
    throttling = _section(reading.data, "cpu", "throttling")
    shown: Json = {
        "cpu_usage": {
            "total_usage": usage.get("total", 0),
            "usage_in_kernelmode": usage.get("kernel", 0),
            "usage_in_usermode": usage.get("user", 0),
        },
        "throttling_data": {
            "periods": throttling.get("periods", 0),
            "throttled_periods": throttling.get("throttledPeriods", 0),
            "throttled_time": throttling.get("throttledTime", 0),
        },
    }
    if usage.get("percpu"):
        shown["cpu_usage"]["percpu_usage"] = list(usage["percpu"])
    if reading.data:
        shown["system_cpu_usage"] = reading.system_cpu_ns
        shown["online_cpus"] = online_cpus
    return shown


def _memory(data: Mapping[str, Any], total: int) -> Json:
    usage = _section(data, "memory", "usage")
    if not usage:
        return {}
    return {
        "usage": usage.get("usage", 0),
        "max_usage": usage.get("max", 0),
        "failcnt": usage.get("failcnt", 0),
        "limit": min(usage.get("limit", total), total),  # the kernel's "none" is 8 EiB or more
        "stats": dict(_section(data, "memory", "raw")),
    }


_BLKIO = {
    "ioServiceBytesRecursive": "io_service_bytes_recursive",
    "ioServicedRecursive": "io_serviced_recursive",
    "ioQueueRecursive": "io_queue_recursive",
    "ioServiceTimeRecursive": "io_service_time_recursive",
    "ioWaitTimeRecursive": "io_wait_time_recursive",
    "ioMergedRecursive": "io_merged_recursive",
    "ioTimeRecursive": "io_time_recursive",
    "sectorsRecursive": "sectors_recursive",
}


def _blkio(data: Mapping[str, Any]) -> Json:
    blkio = _section(data, "blkio")
    return {shown: list(blkio.get(name) or ()) or None for name, shown in _BLKIO.items()}


def _networks(data: Mapping[str, Any]) -> Json:
    return {
        str(interface.get("Name", "")): {
            "rx_bytes": interface.get("RxBytes", 0),
            "rx_packets": interface.get("RxPackets", 0),
            "rx_errors": interface.get("RxErrors", 0),
            "rx_dropped": interface.get("RxDropped", 0),
            "tx_bytes": interface.get("TxBytes", 0),
            "tx_packets": interface.get("TxPackets", 0),
            "tx_errors": interface.get("TxErrors", 0),
            "tx_dropped": interface.get("TxDropped", 0),
        }
        for interface in data.get("network_interfaces") or ()
    }
