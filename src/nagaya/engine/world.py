"""What all parts of the engine share: rooms, ledger, roster, bus, and the pools blocking work runs in."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from nagaya.engine import devices
from nagaya.engine.events import Bus
from nagaya.engine.history import History
from nagaya.engine.journal import Journal
from nagaya.engine.ledger import Ledger
from nagaya.engine.namefiles import NameFiles
from nagaya.engine.nettable import NetworkTable
from nagaya.engine.pods_plugins import NoPlugins, Plugins
from nagaya.engine.pods_table import PodTable
from nagaya.engine.roster import Roster
from nagaya.engine.settings import Settings
from nagaya.engine.supervisor import Supervisor
from nagaya.engine.volume_life import VolumeLife
from nagaya.errors import DeadlineExceeded
from nagaya.image.store import ImageStore
from nagaya.linux.caps import capget, to_names
from nagaya.network.service import NetworkService
from nagaya.oci import defaults

P = ParamSpec("P")
T = TypeVar("T")

_QUICK_THREADS = 8
_SLOW_THREADS = 4
_REACH = 10.0  # seconds for a local file system to answer
_PULL_THREADS = 64  # nearly all of them wait: for a registry, or for a place among the downloads


class World:
    """Handed to every part at its making; the composition root (daemon.compose) makes it."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        images: ImageStore,
        network: NetworkService,
        supervisor: Supervisor,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.id = ledger.identity()
        self.journal = Journal(ledger)
        self.images = images
        self.network = network
        self.nets = NetworkTable(ipv6=settings.ipv6)
        self.names = NameFiles(settings.run)
        self.supervisor = supervisor
        self.bus = Bus(History(f"{settings.root}/events.jsonl"))
        self.roster = Roster()
        self.volumes = VolumeLife(self)
        self.pods = PodTable()
        self.plugins: Plugins = NoPlugins()
        self.apparmor = ""  # the profile of containers that name none
        self.held = frozenset(to_names(capget()[1]))
        self.cpus = os.sched_getaffinity(0)
        self.abilities = devices.abilities()
        thermal = defaults.thermal_paths(range(os.cpu_count() or 1))
        self.masked_paths = (*defaults.MASKED_PATHS, *(p for p in thermal if os.path.isdir(p)))
        self._quick = ThreadPoolExecutor(_QUICK_THREADS, "engine")
        self._slow = ThreadPoolExecutor(_SLOW_THREADS, "images")
        self._pulls = ThreadPoolExecutor(_PULL_THREADS, "pulls")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._looking: dict[str, asyncio.Future[bool]] = {}

    async def job(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work of a container's life in the quick pool. One job per phase: each costs a
        hop to a thread and back."""
        loop = asyncio.get_running_loop()
        if kwargs:
            return await loop.run_in_executor(self._quick, lambda: work(*args, **kwargs))
        return await loop.run_in_executor(self._quick, work, *args)

    async def slow_job(self, work: Callable[[], T]) -> T:
        """Run work that may take seconds (deleting images, measuring) where it delays no container."""
        return await asyncio.get_running_loop().run_in_executor(self._slow, work)

    async def pull_job(self, work: Callable[[], T]) -> T:
        """Run a pull, where a registry that never answers delays nothing but other pulls, and them
        only by the dozens."""
        return await asyncio.get_running_loop().run_in_executor(self._pulls, work)

    async def reach(self, paths: Iterable[str]) -> None:
        """Look at paths of the host that may be on a file system whose server is gone: where a thread that
        hangs delays nobody else, and only one a path. Raises DeadlineExceeded."""
        for path in paths:
            look = self._looking.get(path)
            if look is None:
                look = asyncio.ensure_future(self.pull_job(functools.partial(os.path.lexists, path)))
                self._looking[path] = look
                look.add_done_callback(lambda _, path=path: self._looking.pop(path, None))  # type: ignore[misc]
            await asyncio.wait([look], timeout=_REACH)
            if not look.done():
                raise DeadlineExceeded(
                    f"the file system of the mount source {path} does not answer", subject=path
                )

    def task(self, work: Any, name: str) -> asyncio.Task[Any]:
        """A background task that is kept alive until it ends."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Let background work end, then the pools."""
        pending = [t for t in self._tasks if not t.done()]
        if pending:
            _, left = await asyncio.wait(pending, timeout=5)
            for task in left:
                task.cancel()
        self._quick.shutdown(wait=True)
        self.bus.close()
        for pool in (self._slow, self._pulls):
            pool.shutdown(wait=False, cancel_futures=True)
