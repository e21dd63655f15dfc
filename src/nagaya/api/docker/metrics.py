"""GET /metrics: figures for Prometheus, in its text format (prometheus.io, "Exposition formats" 0.0.4).

Names and labels are dockerd's where dockerd has the figure; `process_*` are those of every exporter.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import nagaya
from nagaya.api.http.messages import Request, Response
from nagaya.api.http.router import Route
from nagaya.engine.service import EngineService

_CONTENT = b"text/plain; version=0.0.4; charset=utf-8"
_STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_PAGE = os.sysconf("SC_PAGE_SIZE")


async def metrics(engine: EngineService, request: Request) -> Response:
    """GET /metrics"""
    return Response(200, "".join(await _lines(engine)).encode(), content_type=_CONTENT)


async def _lines(engine: EngineService) -> list[str]:
    facts = engine.info()
    states: Counter[str] = Counter(container.state for container in engine.list_containers())
    kernel = os.uname()
    lines: list[str] = []
    lines += _family(
        "engine_daemon_engine_info",
        "gauge",
        "The information related to the engine and the OS it is running on",
        {
            f'architecture="{kernel.machine}",daemon_id="{facts.get("id", "")}",graphdriver="overlay2",'
            f'kernel="{kernel.release}",version="{nagaya.__version__}"': 1
        },
    )
    lines += _family(
        "engine_daemon_container_states_containers",
        "gauge",
        "The count of containers in various states",
        {f'state="{state}"': states[state] for state in _STATES},
    )
    for name, kind, text, value in (
        ("engine_daemon_engine_cpus_cpus", "gauge", "The CPUs that the host has", os.cpu_count() or 1),
        (
            "engine_daemon_engine_memory_bytes",
            "gauge",
            "The bytes of memory that the host has",
            os.sysconf("SC_PHYS_PAGES") * _PAGE,
        ),
        ("engine_daemon_events_total", "counter", "The number of events told", facts.get("events", 0)),
        (
            "engine_daemon_events_subscribers_total",
            "gauge",
            "The number of those who read along",
            facts.get("event_listeners", 0),
        ),
        ("nagaya_images", "gauge", "The number of images", len(await engine.list_images())),
        ("nagaya_volumes", "gauge", "The number of volumes", len(engine.volumes())),
        ("nagaya_networks", "gauge", "The number of networks", len(engine.networks())),
        ("nagaya_tasks", "gauge", "The number of tasks of the event loop", len(asyncio.all_tasks())),
        *_process(),
    ):
        lines += _family(name, kind, text, {"": value})
    return lines


def _process() -> Iterator[tuple[str, str, str, object]]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    yield "process_cpu_seconds_total", "counter", "User and system CPU time spent in seconds", f"{cpu:.6f}"
    yield "process_open_fds", "gauge", "Number of open file descriptors", open_descriptors()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield "process_max_fds", "gauge", "Maximum number of open file descriptors", soft
    with open("/proc/self/statm", encoding="ascii") as file:
        virtual, resident, *_ = file.read().split()
    yield "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes", int(virtual) * _PAGE
    yield "process_resident_memory_bytes", "gauge", "Resident memory size in bytes", int(resident) * _PAGE
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    # proc_pid_stat(5), field 22, in ticks since the boot
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    begun = time.time() - age
    yield "process_start_time_seconds", "gauge", "Start time since the epoch in seconds", f"{begun:.2f}"


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # the listing's own


def _family(name: str, kind: str, text: str, values: Mapping[str, object]) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in values.items():
        yield f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n"


ROUTES = (Route("GET", "/metrics", metrics),)
