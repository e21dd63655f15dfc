"""Removing all containers that do not run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nagaya.engine.containers import Containers
from nagaya.engine.model import Container
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, NagayaError

_STILL = ("created", "exited", "dead")


class Pruned(NamedTuple):
    """Ids of what was removed, and the bytes that it had written."""

    ids: Sequence[str]
    size: int


class Prune:
    """One at a time. Lives on the event loop."""

    def __init__(self, world: World, containers: Containers) -> None:
        self._world = world
        self._containers = containers
        self._lock = asyncio.Lock()

    async def containers(self, wanted: Callable[[Container], bool]) -> Pruned:
        """Remove those that do not run and are wanted; what cannot be removed stays. Raises
        FailedPrecondition when another client is doing it."""
        if self._lock.locked():
            raise FailedPrecondition("a prune operation is already running")
        world, ids, size = self._world, [], 0
        async with self._lock:
            for slot in list(world.roster):
                container = slot.container
                if container.state not in _STILL or slot.lock.locked() or not wanted(container):
                    continue
                try:
                    written = await world.slow_job(lambda c=container: world.images.usage(c.id))  # type: ignore[misc]
                    await self._containers.remove(container.id)
                except NagayaError:
                    continue  # it was started meanwhile, or has gone
                ids.append(container.id)
                size += written
        world.bus.publish("container", "prune", "", {"reclaimed": str(size)})
        return Pruned(ids, size)
