"""Start-up: the ledger, the keeper and the kernel are brought to agree before any socket accepts.

1. What the journal says was under way is finished or undone.
2. Containers the ledger calls running are found at the keeper: alive, ended while nobody looked (the
   exit code is there), or gone (reported as unknown, never invented).
3. The network is told which endpoints live; what belongs to none of them goes.
4. Leftovers below RUN and unused snapshots go; restart policies are applied.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress

from nagaya.engine import (
    creation,
    files,
    filling,
    launch,
    links,
    names,
    netchanges,
    networks,
    restart,
    runtimes,
    staging,
    volumes,
    workshop,
)
from nagaya.engine.containers import Containers
from nagaya.engine.journal import Operation
from nagaya.engine.keeper import Exit
from nagaya.engine.model import ContainerConfig
from nagaya.engine.netchanges import NetworkChanges
from nagaya.engine.removal import remove_files
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import NagayaError, NotFound

log = logging.getLogger(__name__)


async def recover(world: World, containers: Containers, changes: NetworkChanges) -> None:
    """Bring everything to agree. Raises what makes work impossible (ledger, supervisor)."""
    await world.job(world.nets.load, world.ledger)
    found = await world.job(world.ledger.containers)
    slots = {container.id: world.roster.add(container) for container in found}
    was_up = {c.id for c in found if c.state in ("running", "paused", "restarting")}

    changed: list[str] = []  # whose networks were being changed
    for operation in await world.job(world.journal.pending):
        changed += await _settle(world, operation, slots)

    entries = dict(world.supervisor.entries)  # what comes from now on was not asked for
    ended: list[tuple[Slot, Exit]] = []
    for slot in list(world.roster):
        container = slot.container
        entry = entries.get(container.id)
        if container.state == "restarting":
            container.state = "exited"
        if entry is not None and container.state != "removing":
            if container.state not in ("running", "paused"):
                if entry.exit is None:
                    await _settle_start(world, slot)  # it came just now
                container.state = "running"
            container.pid = entry.pid
            if entry.exit is not None:
                ended.append((slot, entry.exit))
        elif container.state in ("running", "paused"):
            ended.append((slot, Exit(container.id, -1, 0, time.time_ns(), known=False)))
        elif container.state == "removing":
            await world.job(remove_files, world, container.id, [])
            world.roster.discard(container.id)

    alive = {s.container.id for s in world.roster if s.container.state in ("running", "paused")}
    alive |= world.pods.living()
    await world.job(_settle_network, world, alive - {slot.container.id for slot, _ in ended})
    await changes.heal(changed)
    await world.job(_tell_names, world, alive)
    for slot, exit in ended:
        await containers.exits.container_exited(slot, exit, may_restart=False)
    # after the exits: what they cleaned up is no leftover
    running = {s.container.id for s in world.roster if s.container.state in ("running", "paused")}
    running |= world.pods.living()
    await _sweep(world, running)
    await world.volumes.adopt()
    for token, entry in entries.items():
        if token not in slots and entry.exit is not None:
            await world.supervisor.release(token)  # an exec session of the former daemon
    for token in list(world.supervisor.held):
        kind, _, owner = token.partition("-")
        if kind in ("ports", "dns", "relay") and owner not in running:
            await world.supervisor.unhold(token)
    await world.job(_put_all, world)

    starting: dict[str, asyncio.Task[None]] = {}
    for slot in sorted(world.roster, key=lambda slot: slot.container.created):
        container = slot.container
        containers.watch(slot)
        if container.state not in ("running", "paused", "restarting") and restart.at_daemon_start(
            container, was_up=container.id in was_up
        ):
            peers = _needed(world, container.config)
            before = [starting[peer] for peer in peers if peer in starting]
            starting[container.id] = world.task(
                _start(containers, slot, before), f"start {container.id[:12]}"
            )


def _needed(world: World, config: ContainerConfig) -> list[str]:
    """The ids of containers that must run first: whose namespaces it joins, and to which it has links."""
    found = launch.peers_of(config)
    for link in config.links:
        with suppress(NotFound):
            found.append(world.roster.find(links.parse(link)[0]).container.id)
    return found


async def _start(containers: Containers, slot: Slot, before: Sequence[asyncio.Task[None]]) -> None:
    """Start a container after the daemon's own start; before: those whose namespaces it joins."""
    if before:
        await asyncio.wait(before)
    async with slot.lock:
        if slot.container.state in ("running", "paused", "restarting", "removing", "dead"):
            return
        slot.container.has_been_manually_stopped = False
        try:
            await containers.start_slot(slot)
        except NagayaError as error:
            log.error("container %s was not restarted: %s", slot.container.id[:12], error)


async def _settle(world: World, operation: Operation, slots: dict[str, Slot]) -> list[str]:
    """Finish or undo one operation that a crash interrupted; the ids of containers to be healed."""
    changed: list[str] = []
    log.warning("settling an interrupted %s of %s", operation.kind, operation.subject[:12])
    slot = slots.get(operation.subject)
    anonymous = operation.data.get("volumes", [])
    given = [str(v) for v in anonymous] if isinstance(anonymous, list) else []
    named = operation.data.get("named", [])
    match operation.kind:
        case "pod":
            return changed  # `pods.settle` undoes it, when the network is there
        case "create":
            if slot is None:
                await world.job(creation.undo, world, operation.subject, given)
            for name in named if isinstance(named, list) else ():
                await world.job(_settle_filling, world, str(name))
        case "volume-create":
            if await world.job(world.ledger.volume, operation.subject) is None:
                await world.job(volumes.drop_empty, world.settings.root, operation.subject)
        case "volume-remove":
            await world.job(
                volumes.remove, world.ledger, world.journal, world.settings.root, operation.subject
            )
        case "remove":
            await world.job(remove_files, world, operation.subject, given)
            world.roster.discard(operation.subject)
            slots.pop(operation.subject, None)
        case "start":
            if slot is not None:
                await _settle_start(world, slot)
        case kind if kind in netchanges.KINDS:
            changed.append(await netchanges.settle(world, operation))
    await world.job(world.journal.done, operation.number)
    return changed


async def _settle_start(world: World, slot: Slot) -> None:
    """A start is done when the keeper has the process, else it is undone."""
    container = slot.container
    entry = world.supervisor.entries.get(container.id)
    if entry is not None:
        plans = await world.job(networks.plans, world.ledger, container.id)
        container.endpoints = tuple(networks.endpoint(world, plan) for plan in plans)
        container.state = "running"
        container.pid = entry.pid
        container.error, container.exit_code = "", 0
        container.started = time.time_ns()
    else:
        if container.state in ("running", "paused"):
            container.state = "exited"
        container.endpoints = ()
        container.pid = 0
        try:  # the root of a foreign runtime's container may be mounted, without a state that tells it
            await runtimes.of(world, container).delete(container.id)
        except NagayaError as error:
            log.error("leftover of container %s stays: %s", container.id[:12], error)
    await world.job(world.ledger.put_container, container)


def _settle_filling(world: World, name: str) -> None:
    """A volume that was being filled is empty, or filled. One with options is looked at when it is
    mounted for a container again."""
    row = world.ledger.volume(name)
    if row is not None and not row.options:
        data = volumes.path_of(world.settings.root, name)
        filling.settle(filling.stage_of(data, mounted=False), data)


def _settle_network(world: World, alive: set[str]) -> None:
    """Endpoints of the dead go, those of the living are put back where they were lost."""
    rows = world.ledger.read("SELECT DISTINCT container FROM endpoints")
    owners = {str(owner) for (owner,) in rows}
    living = [plan for owner in owners & alive for plan in networks.plans(world.ledger, owner)]
    missing = world.network.start(living, world.nets.plans())
    for endpoint_id in missing:
        log.warning("endpoint %s of a running container is gone", endpoint_id[:12])
    for owner in owners - alive:
        networks.take_down(world, owner)


def _tell_names(world: World, alive: set[str]) -> None:
    for slot in world.roster:
        if slot.container.id in alive:
            try:
                networks.tell_names(world, slot.container)
            except NagayaError as error:  # a full disk: it runs on without a name
                log.error("names of container %s: %s", slot.container.id[:12], error)


async def _sweep(world: World, running: set[str]) -> None:
    """What lies below RUN for containers that do not run: runtime state with its cgroup, namespace
    pins, bundles; and snapshots and directories without a container."""
    for directory, runtime in runtimes.every(world):
        for name in _ids(directory) - running:
            try:
                await runtime.delete(name)
            except NagayaError as error:
                log.error("leftover of container %s stays: %s", name[:12], error)
    await world.job(_sweep_files, world, running)


async def end_builds(world: World, containers: Containers) -> None:
    """A step of a build goes with the daemon that ran it; its end is heard of only after recovery."""
    for slot in list(world.roster):
        if slot.container.config.build:
            try:
                await containers.remove(slot.container.id, force=True, volumes_too=True)
            except NagayaError as error:
                log.error("container %s of a build stays: %s", slot.container.id[:12], error)
    await world.job(workshop.sweep, world)


def _ids(directory: str) -> set[str]:
    try:
        # runsc's state is files whose names go on after the id
        return {found for name in os.listdir(directory) if names.is_id(found := name.partition("_")[0])}
    except FileNotFoundError:
        return set()


def _sweep_files(world: World, running: set[str]) -> None:
    settings = world.settings
    for name in _ids(f"{settings.run}/ns") - running:
        networks.unpin_all(settings, name)
    for name in _ids(f"{settings.run}/foreign"):
        files.remove_flat(f"{settings.run}/foreign/{name}")  # of an exec session that was being started
    for name in _ids(f"{settings.run}/staged"):
        staging.clear(world, name)
    for name in (_ids(f"{settings.run}/bundles") | _ids(f"{settings.run}/shm")) - running:
        launch.remove_bundle(world, name)
    known = {slot.container.id for slot in world.roster}
    for name in _ids(f"{settings.root}/containers") - known:
        creation.undo(world, name, [])


def _put_all(world: World) -> None:
    with world.ledger.write():
        for slot in world.roster:
            world.ledger.put_container(slot.container)
