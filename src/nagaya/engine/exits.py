"""What happens when a container's process ends: noted, told, cleaned up, perhaps started again.

The order is the promise: first the exit is in the ledger, then those who wait are told, then the
keeper forgets it. A daemon that dies in between sees the same exit again after the next hello. When
the ledger cannot be written (a full disk) all else goes on, and the keeper forgets it later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nagaya.engine import launch, microvms, networks, oom, pods_spec, restart, runtimes
from nagaya.engine.keeper import Exit
from nagaya.engine.model import Container
from nagaya.engine.nettable import wired
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import NagayaError

log = logging.getLogger(__name__)

UNKNOWN_EXIT = 255
_RETRY = 2.0  # seconds until an exit that could not be written is tried again


class Remove(Protocol):
    """Deletes a container whose lock is held."""

    def __call__(self, slot: Slot, *, volumes_too: bool) -> Awaitable[None]: ...


class Exits:
    """Lives on the event loop."""

    def __init__(
        self,
        world: World,
        start: Callable[[Slot], Awaitable[None]],
        remove: Remove,
        unwatch: Callable[[Slot], None],
    ) -> None:
        self._unwatch = unwatch
        self._world = world
        self._start = start
        self._remove = remove
        self._delays: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Task[Any]] = {}
        self._writer: asyncio.Task[Any] | None = None

    async def container_exited(self, slot: Slot, exit: Exit, *, may_restart: bool = True) -> None:
        """Handle the end of a container's first process. may_restart False: the caller decides of that."""
        world = self._world
        async with slot.lock:
            container = slot.container
            if container.state not in ("running", "paused"):
                await world.supervisor.release(exit.token)
                return
            container.exit_code = exit.code if exit.known else UNKNOWN_EXIT
            container.error = "" if exit.known else "how the process ended is unknown: nobody saw it"
            container.finished = exit.time_ns or time.time_ns()
            container.pid = 0
            self._unwatch(slot)
            former = self._delays.get(container.id, 0.0)
            delay = restart.after_exit(container, former) if may_restart else None
            container.state = "exited" if delay is None else "restarting"
            # before the cgroup goes; a read of cgroupfs waits for no disk
            counted = oom.killed(launch.cgroups_path(world, container))
            container.oom_killed = counted or microvms.oom_killed(world, container)
            world.journal.point("exit: seen")
            cleaning = world.task(self._delete(container), f"delete {container.id[:12]}")
            try:
                try:
                    await world.job(_note_exit, world, container)
                except NagayaError as error:
                    self._write_later(slot, error)
                if container.oom_killed:
                    world.bus.container(container, "oom")
                world.bus.container(container, "die", exitCode=str(container.exit_code))
                if container.endpoints or _pinned(world, container):
                    try:
                        await _clean_network(world, container)
                    except NagayaError as error:
                        log.error("network of container %s stays: %s", container.id[:12], error)
                networks.tell(world, container, "disconnect")
                removal = container.config.auto_remove and not slot.restarts
                if not removal:
                    slot.notify("not-running", "next-exit")
                await cleaning
                await world.volumes.unmount(container)
                if not slot.unwritten:
                    await world.supervisor.release(container.id)
                slot.attached = False
                if delay is not None:
                    self._delays[container.id] = delay
                    self._schedule(slot, delay)
                else:
                    self._delays.pop(container.id, None)
                if removal:
                    await self._remove(slot, volumes_too=True)
            finally:  # whatever could not be cleaned up, nobody waits for ever
                slot.notify("not-running", "next-exit")

    async def _delete(self, container: Container) -> None:
        """What the runtime has of it; what cannot be taken away now, recovery finds."""
        try:
            await runtimes.of(self._world, container).delete(container.id)
            await clear_root(self._world, container)
        except NagayaError as error:
            log.error("leftover of container %s stays: %s", container.id[:12], error)

    def _write_later(self, slot: Slot, error: NagayaError) -> None:
        log.error("the end of container %s cannot be written yet: %s", slot.container.id[:12], error)
        slot.unwritten = True
        if self._writer is None or self._writer.done():
            self._writer = self._world.task(self._write_all(), "write exits")

    async def _write_all(self) -> None:
        while slots := [slot for slot in self._world.roster if slot.unwritten]:
            await asyncio.sleep(_RETRY)
            for slot in slots:
                async with slot.lock:
                    try:
                        await settle(self._world, slot)
                        if slot.container.config.auto_remove and slot.container.state == "exited":
                            await self._remove(slot, volumes_too=True)
                    except NagayaError:
                        break  # it is the same disk for all

    # restart policies

    def _schedule(self, slot: Slot, delay: float) -> None:
        container = slot.container

        async def later() -> None:
            await asyncio.sleep(delay)
            async with slot.lock:
                self._waiting.pop(container.id, None)
                if container.state != "restarting":
                    return
                container.restart_count += 1
                try:
                    await self._start(slot)
                except Exception as error:
                    # a broken start is not tried for ever
                    log.error("container %s was not restarted: %s", container.id[:12], error)
                    container.state = "exited" if self._world.roster.get(container.id) else "dead"

        self._waiting[container.id] = self._world.task(later(), f"restart {container.id[:12]}")

    async def cancel_restart(self, slot: Slot) -> None:
        """A container that waits for its restart stays down."""
        task = self._waiting.pop(slot.container.id, None)
        async with slot.lock:
            if task is not None:
                task.cancel()
            if slot.container.state == "restarting":
                slot.container.state = "exited"
                self._delays.pop(slot.container.id, None)
                await self._world.job(self._world.ledger.put_container, slot.container)
                slot.notify("not-running", "next-exit")

    def stop_restarting(self) -> None:
        """The daemon ends: no more starts. The ledger says "restarting", the next daemon goes on, and
        finds at the keeper what could not be written."""
        for task in (*self._waiting.values(), *([self._writer] if self._writer else [])):
            task.cancel()


async def clean(world: World, container: Container, *, held: bool) -> None:
    """Take away what only a running container has: network, runtime state, cgroup. May be
    repeated. held: reserving sockets may be at the keeper although there is no endpoint."""
    if container.endpoints or held or _pinned(world, container):
        await _clean_network(world, container)
    await runtimes.of(world, container).delete(container.id)
    await clear_root(world, container)
    await world.volumes.unmount(container)


def _pinned(world: World, container: Container) -> bool:
    """Has it a namespace of the network's, be it unplugged from all its networks? RUN is no disk's."""
    return os.path.lexists(world.settings.netns(container.id))


async def clear_root(world: World, container: Container) -> None:
    """Let the root go that was mounted for a container in a pod's user namespace. May be repeated."""
    if container.config.pod is not None:
        await world.job(pods_spec.clear_root, world, container)


async def _clean_network(world: World, container: Container) -> None:
    if not container.endpoints and not wired(container) and not _pinned(world, container):
        return
    await world.job(networks.take_down, world, container.id)
    container.endpoints = ()
    for token in (networks.dns_token(container.id), networks.relay_token(container.id)):
        if token in world.supervisor.held:
            await world.supervisor.unhold(token)
    # only now: until the rules are gone nobody else may bind the ports
    if container.config.ports or container.config.publish_all:
        await world.supervisor.unhold(networks.hold_token(container.id))


async def settle(world: World, slot: Slot) -> None:
    """Write down an end that could not be written when it came, and let the keeper forget it: before
    its token is used again. The lock is held. Raises what the ledger raises."""
    if slot.unwritten:
        await world.job(world.ledger.put_container, slot.container)
        slot.unwritten = False
        await world.supervisor.release(slot.container.id)


def _note_exit(world: World, container: Container) -> None:
    try:
        world.ledger.put_container(container)
        world.journal.point("exit: noted")
    finally:
        launch.remove_bundle(world, container.id)
