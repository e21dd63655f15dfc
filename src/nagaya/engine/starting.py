"""A container's start: planned, journaled, wired, composed, run; and undone when it fails.

The blocking work is batched into as few pool jobs as its waits for the supervisor allow. What must be
undone after a failure is undone here; after kill -9, by recovery.py from the journal.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nagaya.engine import (
    attachments,
    health,
    launch,
    networks,
    pods_spec,
    remap,
    runtimes,
    staging,
)
from nagaya.engine.exits import Remove, clean, settle
from nagaya.engine.failures import Failure, start_failure
from nagaya.engine.forwarding import Forwarders
from nagaya.engine.health import Monitors
from nagaya.engine.launch import Launch
from nagaya.engine.logtargets import Target
from nagaya.engine.model import (
    Container,
    Endpoint,
    Step,
)
from nagaya.engine.nettable import wired
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import NagayaError
from nagaya.network.model import DEFAULT, EndpointPlan

log = logging.getLogger(__name__)


class Starts:
    """Lives on the event loop."""

    def __init__(self, world: World, monitors: Monitors, forwarders: Forwarders, remove: Remove) -> None:
        self._world = world
        self._monitors = monitors
        self._forwarders = forwarders
        self._remove = remove

    async def start(self, slot: Slot) -> None:
        """Start it; the lock is held. On failure everything is undone, and code and message stay."""
        world, container = self._world, slot.container
        begun = time.monotonic_ns()
        peers = self._peers(container)
        steps: list[Step] = []
        await settle(world, slot)
        target: Target | None = None
        try:
            target = await self._forwarders.prepare(container)
            await world.reach(p.source for p in container.mount_points if p.type == "bind")
            await world.volumes.mount(container)
            plans, prepared = await self._prepare(container, peers, steps)
        except Exception as error:
            failure = start_failure(error, container.path)
            await self._start_failed(slot, failure, target)
            raise failure.error from error
        try:
            if plans:
                prepared = await self._wire(container, peers, plans, steps)
            networks.tell(world, container, "connect")
            mark = time.monotonic_ns()
            world.journal.point("start: before run")
            started = await runtimes.of(world, container).run(container, prepared)
            world.journal.point("start: ran")
            steps.append(_step("engine", "ask the supervisor", f"pid {started.pid}", mark))
        except Exception as error:
            failure = start_failure(error, container.path)
            await self._start_failed(slot, failure, target)
            raise failure.error from error
        steps += [Step("builder", str(n), str(d), int(s), int(t)) for n, d, s, t in started.trace]
        steps.sort(key=lambda s: s.start_ns)
        steps.insert(0, _step("engine", "start", container.name, begun))
        container.pid = started.pid
        container.state = "running"
        container.exit_code = 0
        container.error = ""
        container.oom_killed = False
        container.started = time.time_ns()
        container.health = health.at_start(container)
        try:
            await world.job(_record_start, world, container, steps)
        except NagayaError as error:  # the journal has the start, the keeper the process: nothing is lost
            log.error("the start of container %s cannot be written: %s", container.id[:12], error)
        world.bus.container(container, "start")
        self._monitors.begin(slot)
        self._forwarders.begin(slot, target)

    def _peers(self, container: Container) -> dict[str, Container]:
        return {
            reference: self._world.roster.find(reference).container
            for reference in launch.peers_of(container.config)
        }

    async def _prepare(
        self, container: Container, peers: Mapping[str, Container], steps: list[Step]
    ) -> tuple[list[EndpointPlan], Launch | Any]:
        """Journal, and either everything that is needed (no network), or the endpoints' plans."""
        world = self._world
        mark = time.monotonic_ns()
        if not wired(container):
            prepared = await world.job(_begin_plain, world, container, peers)
            steps.append(
                _step("engine", "compose config.json", f"{len(prepared.spec['mounts'])} mounts", mark)
            )
            return [], prepared
        plans, fds = await world.job(_begin_wired, world, container)
        addresses = " ".join(plan.address or plan.address6 for plan in plans)
        steps.append(_step("network", "plan endpoint", addresses, mark))
        if fds:
            try:
                await world.supervisor.hold(networks.hold_token(container.id), fds)
            finally:
                for fd in fds:
                    os.close(fd)
        return plans, None

    async def _wire(
        self,
        container: Container,
        peers: Mapping[str, Container],
        plans: Sequence[EndpointPlan],
        steps: list[Step],
    ) -> Launch:
        """Pin a network namespace and put the endpoints into it; then compose."""
        world = self._world
        mark = time.monotonic_ns()
        request: dict[str, Any] = {"op": "netns", "pin": world.settings.netns(container.id)}
        users = remap.of(world.settings, container.config)
        if users is not None:
            request["user"] = {"pin": remap.pin(request["pin"]), **remap.mappings(users)}
        if any(plan.address6 for plan in plans):
            request["ipv6"] = True
        if any(plan.network != DEFAULT for plan in plans):
            request["dns"] = True
        reply = await world.supervisor.call(request)
        steps.append(_step("builder", "pin network namespace", world.settings.netns(container.id), mark))
        world.journal.point("start: pinned")
        prepared, container.endpoints, more = await world.job(
            _wire, world, container, peers, plans, reply.fds[0]
        )
        if len(reply.fds) > 1:
            await networks.hold_resolver(world, container.id, reply.fds[1:])
        if any(world.network.relayed(plan) for plan in plans):
            await networks.relay(world, container.id, plans)
        steps += more
        return prepared

    async def _start_failed(self, slot: Slot, failure: Failure, target: Target | None) -> None:
        """Take away what the attempt left; keep exit code and message; `--rm` removes it."""
        if target is not None:
            target.close()
        world, container = self._world, slot.container
        container.exit_code = failure.exit_code
        container.error = failure.message
        container.pid = 0
        if container.state == "restarting":
            container.state = "exited"
        try:
            await clean(world, container, held=True)
            await world.job(_note_failure, world, container)
        except NagayaError as error:  # the journal has it: recovery takes it away
            log.error("after the failed start of container %s: %s", container.id[:12], error)
        attachments.drop(world, slot)
        if container.config.auto_remove:
            slot.notify("not-running", "next-exit")
            await self._remove(slot, volumes_too=True)


def _begin_plain(world: World, container: Container, peers: Mapping[str, Container]) -> Launch:
    world.journal.begin("start", container.id)
    if container.config.pod is not None:
        prepared = pods_spec.prepare(world, container)
    else:
        prepared = launch.prepare(world, container, peers, "", "")
    world.journal.point("start: composed")
    return prepared


def _begin_wired(world: World, container: Container) -> tuple[list[EndpointPlan], list[int]]:
    world.journal.begin("start", container.id)
    plans, fds = networks.plan(world, container)
    world.journal.point("start: planned")
    return plans, fds


def _wire(
    world: World,
    container: Container,
    peers: Mapping[str, Container],
    plans: Sequence[EndpointPlan],
    netlink_fd: int,
) -> tuple[Launch, tuple[Endpoint, ...], list[Step]]:
    mark = time.monotonic_ns()
    endpoints = networks.connect(world, container, plans, netlink_fd)
    way_out = next((plan for plan in plans if plan.default_route), plans[0])
    steps = [_step("network", "connect endpoint", f"{way_out.host_interface} {way_out.address}", mark)]
    mark = time.monotonic_ns()
    inside = msgspec.structs.replace(container, endpoints=endpoints)
    networks.tell_names(world, inside)
    prepared = launch.prepare(world, inside, peers, world.settings.netns(container.id), way_out.gateway)
    world.journal.point("start: composed")
    steps.append(_step("engine", "compose config.json", f"{len(prepared.spec['mounts'])} mounts", mark))
    return prepared, endpoints, steps


def _record_start(world: World, container: Container, steps: Sequence[Step]) -> None:
    staging.clear(world, container.id)
    with world.ledger.write():
        world.ledger.put_container(container, trace=steps)
        world.journal.settle("start", container.id)
    world.journal.point("start: done")


def _note_failure(world: World, container: Container) -> None:
    launch.remove_bundle(world, container.id)
    staging.clear(world, container.id)
    with world.ledger.write():
        world.ledger.put_container(container)
        world.journal.settle("start", container.id)


def _step(room: str, name: str, detail: str, start: int) -> Step:
    return Step(room, name, detail, start, time.monotonic_ns() - start)
