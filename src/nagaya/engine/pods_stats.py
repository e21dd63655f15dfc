"""What pods and their containers use: readings of cgroups, disks, processes and interfaces.

A container's cgroup is read by its runtime, in the shape of `events --stats`; a pod's network by an
rtnetlink socket that a builder opened inside; processes in /proc. A reading fails for nobody: what has
just ended counts as nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from nagaya.engine.containers import Containers
from nagaya.engine.model import Container
from nagaya.engine.pods_model import Pod
from nagaya.engine.world import World
from nagaya.errors import KernelError, NagayaError
from nagaya.linux.linkstats import Traffic, counters_of
from nagaya.linux.netlink import Netlink

_LIVE = ("running", "paused")


class Interface(NamedTuple):
    """An interface of a pod, and what went through it."""

    name: str
    received: Traffic
    sent: Traffic


class Processes(NamedTuple):
    """What the processes of a container have open. files_soft: the soft limit of the first one."""

    running: int = 0
    threads: int = 0
    files: int = 0
    sockets: int = 0
    files_soft: int = 0


class Reading(NamedTuple):
    """One container at one moment. usage: `events --stats`' data, {} of one that does not run."""

    container: Container
    time_ns: int
    usage: Mapping[str, Any]
    written: tuple[int, int] = (0, 0)  # bytes, inodes
    nano_cores: int | None = None  # since the reading before; None: there was none

    def number(self, *path: str) -> int:
        """A figure of the usage; 0 where there is none."""
        found: Any = self.usage
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, int) else 0

    def memory(self, *names: str) -> int:
        """The first of these lines of memory.stat that is there."""
        raw = self.usage.get("memory", {}).get("raw", {})
        return next((int(raw[name]) for name in names if name in raw), 0)

    @property
    def working_set(self) -> int:
        """Memory that cannot be taken back without pain, as kubelets evict by it."""
        return max(
            0, self.number("memory", "usage", "usage") - self.memory("total_inactive_file", "inactive_file")
        )


class PodStats:
    """Lives on the event loop; remembers the last processor time of each container."""

    def __init__(self, world: World, containers: Containers) -> None:
        self._world = world
        self._containers = containers
        self._before: dict[str, tuple[int, int]] = {}

    async def read(self, container: Container) -> Reading:
        """Read a container. Never raises."""
        world = self._world
        usage: Mapping[str, Any] = {}
        if container.state in _LIVE:
            with suppress(NagayaError):
                usage = await self._containers.ask(container, "stats")
        written = (0, 0)
        with suppress(NagayaError):
            written = await world.job(world.images.written, container.id)
        reading = Reading(container, time.time_ns(), usage, written)
        return reading._replace(nano_cores=self._rate(reading))

    def _rate(self, reading: Reading) -> int | None:
        container_id, total = reading.container.id, reading.number("cpu", "usage", "total")
        before = self._before.get(container_id)
        if not reading.usage:
            self._before.pop(container_id, None)
            return 0
        self._before[container_id] = (reading.time_ns, total)
        if len(self._before) > 2 * len(self._world.roster) + 64:  # of those that are gone
            known = {slot.container.id for slot in self._world.roster}
            self._before = {k: v for k, v in self._before.items() if k in known}
        if before is None or reading.time_ns <= before[0]:
            return None
        return max(0, (total - before[1]) * 1_000_000_000 // (reading.time_ns - before[0]))

    async def interfaces(self, pod: Pod) -> Sequence[Interface]:
        """The pod's interfaces but lo; none of one on the node's network. Never raises."""
        if not pod.ready or pod.config.namespaces.network != "POD":
            return ()
        try:
            request = {"op": "netns-enter", "path": self._world.settings.netns(pod.id)}
            fds = (await self._world.supervisor.call(request)).fds
            return await self._world.job(_interfaces, fds[0])
        except NagayaError:
            return ()

    async def processes(self, container: Container) -> Processes:
        """What its processes have open. Never raises."""
        if container.state not in _LIVE:
            return Processes()
        with suppress(NagayaError):
            pids = await self._containers.ask(container, "ps")
            return await self._world.job(_processes, [int(pid) for pid in pids])
        return Processes()


def _interfaces(fd: int) -> list[Interface]:
    found = []
    try:
        with Netlink(fd) as netlink:
            for link in netlink.links():
                counted = None
                if link.name != "lo":
                    with suppress(KernelError):
                        counted = counters_of(netlink, link.index, link.name)
                if counted is not None:
                    found.append(Interface(link.name, *counted))
    finally:
        os.close(fd)
    return sorted(found)


def _processes(pids: Sequence[int]) -> Processes:
    count = threads = files = sockets = 0
    soft = 0
    for pid in pids:
        with suppress(OSError):
            threads += len(os.listdir(f"/proc/{pid}/task"))
            count += 1
            for name in os.listdir(f"/proc/{pid}/fd"):
                files += 1
                with suppress(OSError):
                    sockets += os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:")
            soft = soft or _soft_limit(pid)
    return Processes(count, threads, files, sockets, soft)


def _soft_limit(pid: int) -> int:
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        for line in file:
            if line.startswith("Max open files"):
                word = line.split()[3]
                return int(word) if word.isdigit() else 2**63 - 1
    return 0
