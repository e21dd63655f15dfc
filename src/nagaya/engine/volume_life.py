"""Volumes while containers come and go: made, mounted, told of, removed when nobody uses them.

A volume with driver options is a mount at its directory for as long as a running container has it; a
builder mounts it, so that a server that never answers holds a process of its own, not the daemon.
Lives on the event loop: a look at who uses a volume and the decision about it are one step.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from nagaya.engine import names, volumes
from nagaya.engine.model import Container, MountSpec, VolumeSummary
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NagayaError, NotFound
from nagaya.linux.mounts import is_mount_point

if TYPE_CHECKING:
    from nagaya.engine.world import World

log = logging.getLogger(__name__)

_LIVE = ("running", "paused")
_MOUNT_PATIENCE = 60.0
_RESOLVED = ("nfs", "nfs4", "cifs")  # file systems whose server the kernel wants as a number


class VolumeLife:
    """One for all containers; part of World."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._wanted: Counter[str] = Counter()  # by containers that are being made
        self._going: dict[str, asyncio.Future[None]] = {}
        self._users: defaultdict[str, set[str]] = defaultdict(set)  # running containers by volume
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # of those with options

    # who uses what

    def users(self, name: str) -> list[str]:
        """The ids of the containers, running or not, that have the volume."""
        return [
            slot.container.id
            for slot in self._world.roster
            if any(p.type == "volume" and p.source == name for p in slot.container.mount_points)
        ]

    def in_use(self) -> set[str]:
        """The volumes that somebody has mounted, or is about to make a container with."""
        return {name for name, users in self._users.items() if users} | set(self._wanted) | set(self._going)

    @asynccontextmanager
    async def wanted(self, mounts: Iterable[MountSpec]) -> AsyncIterator[None]:
        """While a container with these mounts is made, its volumes are in use; one that is just being
        removed is waited for."""
        chosen = [m.source for m in mounts if m.type == "volume" and m.source]
        while going := [self._going[name] for name in chosen if name in self._going]:
            await asyncio.wait(going)
        self._wanted.update(chosen)
        try:
            yield
        finally:
            self._wanted.subtract(chosen)
            self._wanted = +self._wanted

    # made and removed by request

    async def create(
        self, name: str, *, driver: str = "", labels: dict[str, str], options: dict[str, str]
    ) -> VolumeSummary:
        """A volume of that name ("": an anonymous one), the one that is there when there is one.
        Raises InvalidArgument, NotFound for a driver that is not local's."""
        world = self._world
        check_driver(name, driver)
        while name in self._going:
            await asyncio.wait([self._going[name]])
        row, made = await world.job(
            volumes.ensure,
            world.ledger,
            world.journal,
            world.settings.root,
            name or names.new_id(),
            anonymous=not name,
            labels=labels,
            options=options,
        )
        if made:
            self.tell("create", row.name)
        return volumes.summary(row, world.settings.root)

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume that no container has. Raises NotFound unless forced, FailedPrecondition."""
        world = self._world
        if await world.job(world.ledger.volume, name) is None:
            if force:
                return
            raise NotFound(f"get {name}: no such volume", subject=name)
        if users := self.users(name):
            raise FailedPrecondition(f"remove {name}: volume is in use - [{', '.join(users)}]", subject=name)
        if self._wanted[name] or name in self._going:
            raise FailedPrecondition(f"remove {name}: volume is in use", subject=name)
        self._going[name] = asyncio.get_running_loop().create_future()
        try:
            await world.slow_job(
                lambda: volumes.remove(world.ledger, world.journal, world.settings.root, name)
            )
        finally:
            self._going.pop(name).set_result(None)
        self.tell("destroy", name)

    async def prune(self, chosen: Callable[[VolumeSummary], bool]) -> tuple[list[str], int]:
        """Remove the unused ones that are chosen: their names, and how many bytes they had."""
        world = self._world
        root = world.settings.root
        removed, freed = [], 0
        for found in await world.job(volumes.summaries, world.ledger, root):
            if not chosen(found) or self._wanted[found.name] or self.users(found.name):
                continue
            size = await world.slow_job(lambda name=found.name: volumes.size(root, name))  # type: ignore[misc]
            try:
                await self.remove(found.name)
            except NagayaError as error:  # it is used by now, or something is mounted in it
                log.warning("volume %s was not pruned: %s", found.name, error)
                continue
            removed.append(found.name)
            freed += size
        world.bus.publish("volume", "prune", "", {"reclaimed": str(freed)})
        return removed, freed

    def tell(self, action: str, name: str, **more: str) -> None:
        """A volume's event."""
        self._world.bus.publish("volume", action, name, {"driver": "local", **more})

    # mounted while containers run

    async def mount(self, container: Container) -> None:
        """Before its start: its volumes with options are mounted. Raises InvalidArgument, KernelError;
        those that were mounted by then are the container's, and `unmount` lets them go."""
        for point in _volumes_of(container):
            name = point.source
            options = await self._options(name)
            if options:
                async with self._locks[name]:
                    if not self._users[name]:
                        await self._attach(name, options)
                    self._users[name].add(container.id)
            self._users[name].add(container.id)
            self.tell(
                "mount",
                name,
                container=container.id,
                destination=point.target,
                propagation="",
                **{"read/write": "false" if point.read_only else "true"},
            )

    async def unmount(self, container: Container) -> None:
        """After its end: whatever it alone had mounted goes. May be repeated."""
        for point in _volumes_of(container):
            name = point.source
            if container.id not in self._users.get(name, ()):
                continue
            self._users[name].discard(container.id)
            self.tell("unmount", name, container=container.id)
            if not self._users[name]:
                del self._users[name]
                try:
                    await self._detach_unused(name)
                except NagayaError as error:
                    log.error("volume %s stays mounted: %s", name, error)

    @asynccontextmanager
    async def mounted(self, name: str) -> AsyncIterator[None]:
        """The volume, mounted for us if it has options. Raises what `mount` raises."""
        options = await self._options(name)
        if not options:
            yield
            return
        token = names.new_id()
        async with self._locks[name]:
            if not self._users[name]:
                await self._attach(name, options)
            self._users[name].add(token)
        try:
            yield
        finally:
            self._users[name].discard(token)
            if not self._users[name]:
                del self._users[name]
                await self._detach_unused(name)

    @asynccontextmanager
    async def mounted_for(self, container: Container) -> AsyncIterator[None]:
        """All volumes of a stopped container, mounted for us. Raises what `mount` raises."""
        async with AsyncExitStack() as held:
            for point in _volumes_of(container):
                await held.enter_async_context(self.mounted(point.source))
            yield

    async def adopt(self) -> None:
        """At the daemon's start, once it is known who runs: what a former daemon mounted for those
        that do not is unmounted."""
        world = self._world
        for slot in world.roster:
            if slot.container.state in _LIVE:
                for point in _volumes_of(slot.container):
                    self._users[point.source].add(slot.container.id)
        for row in await world.job(world.ledger.volumes):
            if row.options and row.name not in self._users:
                try:
                    await self._detach_unused(row.name)
                except NagayaError as error:
                    log.error("volume %s stays mounted: %s", row.name, error)

    async def _options(self, name: str) -> dict[str, str]:
        row = await self._world.job(self._world.ledger.volume, name)
        return {} if row is None else row.options

    async def _attach(self, name: str, options: dict[str, str]) -> None:
        path = volumes.path_of(self._world.settings.root, name)
        kind, device = options["type"], options["device"]
        words = [word for word in options.get("o", "").split(",") if word]
        if kind in _RESOLVED:
            words = [await self._resolved(word) for word in words]
        try:
            await self._world.supervisor.call(
                {"op": "mount", "target": path, "source": device, "type": kind, "options": words},
                timeout=_MOUNT_PATIENCE,
            )
        except KernelError as error:
            said = [f"mount {device}:{path}", *([f"options: {','.join(words)}"] if words else [])]
            message = (
                f"error while mounting volume '{path}': failed to mount local volume: "
                f"{', '.join(said)}: {error.message}"
            )
            # what was asked for is not there, or makes no sense: else it is the machine's or a server's fault
            kind_of_error = InvalidArgument if error.errno in _ASKED_FOR else KernelError
            raise kind_of_error(message, subject=name, errno=error.errno) from None

    async def _resolved(self, word: str) -> str:
        """addr=NAME with the name's address."""
        key, _, host = word.partition("=")
        if key != "addr":
            return word
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise InvalidArgument(f"error resolving passed in network volume address: {error}") from None
        return f"addr={found[0][4][0]}"

    async def _detach_unused(self, name: str) -> None:
        async with self._locks[name]:
            path = volumes.path_of(self._world.settings.root, name)
            if not self._users.get(name) and await self._world.job(is_mount_point, path):
                await self._world.supervisor.call({"op": "unmount", "target": path})


# ENOENT, ENODEV, ENOTDIR, EINVAL, ENOTBLK, EPERM
_ASKED_FOR = frozenset((2, 19, 20, 22, 15, 1))


def _volumes_of(container: Container) -> list[MountSpec]:
    return [point for point in container.mount_points if point.type == "volume"]


def check_driver(name: str, driver: str) -> None:
    """Raises NotFound for another driver than the one there is."""
    if driver not in ("", "local"):
        raise NotFound(
            f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found',
            subject=driver,
        )
