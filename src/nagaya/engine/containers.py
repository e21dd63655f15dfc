"""A container's life: created, started, stopped, paused, renamed, removed.

Each transition holds the container's lock; reads and waits hold none. The blocking work of a
transition is batched into as few pool jobs as its waits for the supervisor allow. What must be
undone after a failure is undone here; after kill -9, by recovery.py from the journal.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from nagaya.engine import (
    attachments,
    creation,
    devices,
    health,
    launch,
    limits,
    names,
    networks,
    pods_spec,
    runtimes,
    signals,
    staging,
)
from nagaya.engine.exits import Exits, settle
from nagaya.engine.failures import Failure, start_failure
from nagaya.engine.health import Monitors
from nagaya.engine.launch import Launch
from nagaya.engine.model import (
    Container,
    Created,
    CreateRequest,
    Endpoint,
    MountSpec,
    Resources,
    RestartPolicy,
    Step,
)
from nagaya.engine.nettable import wired
from nagaya.engine.removal import remove_slot
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NagayaError, NotFound, NotModified
from nagaya.linux.pids import pidfd_send_signal
from nagaya.network.model import EndpointPlan

log = logging.getLogger(__name__)

_KILL_PATIENCE = 10.0
_LIVE = ("running", "paused", "restarting")


class Containers:
    """Transitions of containers. Lives on the event loop."""

    def __init__(self, world: World, monitors: Monitors) -> None:
        self._world = world
        self._monitors = monitors
        self._remove = partial(remove_slot, world)
        self._exits = Exits(world, self.start_slot, self._remove, monitors.end)

    def watch(self, slot: Slot) -> None:
        """Go on with the health checks of a container that an earlier daemon started."""
        self._monitors.begin(slot)

    @property
    def exits(self) -> Exits:
        """What happens when a process ends."""
        return self._exits

    # create

    async def create(self, request: CreateRequest) -> Created:
        """Make a container, or nothing. See EngineService."""
        world = self._world
        container_id = names.new_id()
        request = self._resolve_peers(request)
        name = world.roster.reserve(request.name, container_id)
        try:
            async with world.volumes.wanted(request.config.mounts):
                made = await world.job(creation.make, world, container_id, name, request)
                if made.unfilled:
                    await self._fill(made)
                world.roster.add(made.container)
        except BaseException:
            world.roster.release(name, container_id)
            raise
        for volume in made.volumes:
            world.volumes.tell("create", volume)
        world.bus.container(made.container, "create")
        return Created(container_id, tuple(made.warnings))

    async def _fill(self, made: creation.Made) -> None:
        """The files for volumes that have to be mounted for it; then the container is there."""
        world = self._world
        try:
            for point in made.unfilled:
                async with world.volumes.mounted(point.source):
                    await world.job(creation.fill, world, made, point)
        except BaseException:
            await world.job(creation.give_up, world, made)
            raise
        await world.job(creation.commit, world, made)

    def _resolve_peers(self, request: CreateRequest) -> CreateRequest:
        """ "container:NAME" becomes "container:ID": names may change. Raises NotFound, InvalidArgument."""
        changes: dict[str, str] = {}
        for field in ("network_mode", "pid_mode", "ipc_mode"):
            reference = launch.joined_container(getattr(request.config, field))
            if reference:
                changes[field] = f"container:{self._world.roster.find(reference).container.id}"
        inherited = self._inherited(request.config.volumes_from)
        if not changes and not inherited:
            return request
        if "network_mode" in changes:
            if request.config.hostname:
                raise InvalidArgument(
                    "conflicting options: hostname and the network mode", subject="Hostname"
                )
            if request.config.ports or request.config.publish_all:
                raise InvalidArgument(
                    "conflicting options: port publishing and the container type network mode",
                    subject="PortBindings",
                )
        config = msgspec.structs.replace(request.config, **changes)
        return msgspec.structs.replace(request, config=config, inherited=inherited)

    def _inherited(self, sources: Sequence[str]) -> tuple[MountSpec, ...]:
        """The mount points of other containers, as CONTAINER[:MODE] says. Raises InvalidArgument."""
        found: dict[str, MountSpec] = {}
        for text in sources:
            reference, _, mode = text.partition(":")
            if not reference:
                raise InvalidArgument(
                    "volumes-from specification cannot be an empty string", subject="VolumesFrom"
                )
            if mode not in ("", "ro", "rw", "z", "Z"):
                raise InvalidArgument(f"invalid mode: {mode}", subject="VolumesFrom")
            try:
                points = self._world.roster.find(reference).container.mount_points
            except NotFound as error:
                raise InvalidArgument(error.message, subject="VolumesFrom") from None
            for point in points:
                read_only = point.read_only or mode == "ro"
                found[point.target] = msgspec.structs.replace(point, read_only=read_only)
        return tuple(found.values())

    # start

    async def start(self, ref: str) -> None:
        """Start a container that does not run. Raises NotModified when it does."""
        slot = self._world.roster.find(ref)
        async with slot.lock:
            match slot.container.state:
                case "running" | "restarting":
                    raise NotModified("container already started", subject=slot.container.id)
                case "paused":
                    raise FailedPrecondition("cannot start a paused container, try unpause instead")
                case "removing" | "dead":
                    raise FailedPrecondition("container is marked for removal and cannot be started")
            slot.container.has_been_manually_stopped = False
            slot.container.restart_count = 0
            await self.start_slot(slot)

    async def start_slot(self, slot: Slot) -> None:
        """Start it; the lock is held. On failure everything is undone, and code and message stay."""
        world, container = self._world, slot.container
        begun = time.monotonic_ns()
        peers = self._peers(container)
        steps: list[Step] = []
        await settle(world, slot)
        try:
            await world.volumes.mount(container)
            plans, prepared = await self._prepare(container, peers, steps)
        except Exception as error:
            failure = start_failure(error, container.path)
            await self._start_failed(slot, failure)
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
            await self._start_failed(slot, failure)
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

    def _peers(self, container: Container) -> dict[str, Container]:
        found: dict[str, Container] = {}
        config = container.config
        for mode in (config.network_mode, config.pid_mode, config.ipc_mode):
            reference = launch.joined_container(mode)
            if reference:
                found[reference] = self._world.roster.find(reference).container
        return found

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
        if any(plan.address6 for plan in plans):
            request["ipv6"] = True
        reply = await world.supervisor.call(request)
        steps.append(_step("builder", "pin network namespace", world.settings.netns(container.id), mark))
        world.journal.point("start: pinned")
        prepared, container.endpoints, more = await world.job(
            _wire, world, container, peers, plans, reply.fds[0]
        )
        steps += more
        return prepared

    async def _start_failed(self, slot: Slot, failure: Failure) -> None:
        """Take away what the attempt left; keep exit code and message; `--rm` removes it."""
        world, container = self._world, slot.container
        container.exit_code = failure.exit_code
        container.error = failure.message
        container.pid = 0
        if container.state == "restarting":
            container.state = "exited"
        try:
            await self._exits.clean(container, held=True)
            await world.job(_note_failure, world, container)
        except NagayaError as error:  # the journal has it: recovery takes it away
            log.error("after the failed start of container %s: %s", container.id[:12], error)
        attachments.drop(world, slot)
        if container.config.auto_remove:
            slot.notify("not-running", "next-exit")
            await self._remove(slot, volumes_too=True)

    # stop, kill, pause

    async def stop(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """Signal, wait, SIGKILL. Raises NotModified when it does not run."""
        slot = self._world.roster.find(ref)
        if slot.container.state not in _LIVE:
            raise NotModified("container already stopped", subject=slot.container.id)
        await self._stop(slot, timeout, signal)
        self._world.bus.container(slot.container, "stop")

    async def _stop(self, slot: Slot, timeout: int | None, signal: str) -> None:
        container = slot.container
        number = signals.number(signal or container.stop_signal or "TERM")
        if timeout is None:
            timeout = container.config.stop_timeout
        if timeout is None:
            timeout = self._world.settings.stop_timeout
        container.has_been_manually_stopped = True
        if container.state == "restarting":
            await self._exits.cancel_restart(slot)
            if container.state not in _LIVE:  # else it was just being started
                return
        ended = slot.wait("not-running")
        try:
            if container.state == "paused":
                await self._thaw(slot)
            self._signal(slot, number)
            try:
                await asyncio.wait_for(asyncio.shield(ended), None if timeout < 0 else timeout)
                return
            except TimeoutError:
                self._signal(slot, 9)
                if container.state == "paused":  # meanwhile; the frozen do not die (cgroup v1)
                    await self._thaw(slot)
            try:
                await asyncio.wait_for(asyncio.shield(ended), _KILL_PATIENCE)
            except TimeoutError:
                raise FailedPrecondition(
                    f"container {container.id} does not end although it was killed "
                    f"(process {container.pid}: uninterruptible?)",
                    subject=container.id,
                ) from None
        finally:
            ended.cancel()

    async def restart(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        """Stop when it runs, then start."""
        slot = self._world.roster.find(ref)
        container = slot.container
        slot.restarts += 1
        try:
            if container.state in _LIVE:
                await self._stop(slot, timeout, signal)
            async with slot.lock:  # the exit has been cleaned up
                container.has_been_manually_stopped = False
                if container.state in ("removing", "dead"):
                    raise FailedPrecondition("container is marked for removal and cannot be started")
                if container.state not in _LIVE:
                    await self.start_slot(slot)
        finally:
            slot.restarts -= 1
            if container.config.auto_remove and not slot.restarts:
                async with slot.lock:
                    if container.state == "exited" and self._world.roster.get(container.id) is slot:
                        await self._remove(slot, volumes_too=True)
        self._world.bus.container(container, "restart")

    async def kill(self, ref: str, signal: str = "KILL") -> None:
        """Send a signal to the container's first process."""
        world = self._world
        slot = world.roster.find(ref)
        container = slot.container
        number = signals.number(signal or "KILL")
        if container.state == "restarting":
            container.has_been_manually_stopped = True
            await self._exits.cancel_restart(slot)
            if container.state not in _LIVE:
                return
        if container.state not in _LIVE:
            raise FailedPrecondition(
                f"cannot kill container: {ref}: container {container.id} is not running", subject=container.id
            )
        stopping = number == 9 or number == signals.number(container.stop_signal or "TERM")
        if stopping:
            container.has_been_manually_stopped = True
        ended = slot.wait("not-running") if number == 9 else None
        self._signal(slot, number)
        if stopping and container.state == "paused":
            await self._thaw(slot)
        world.bus.container(container, "kill", signal=str(number))
        if ended is not None:
            try:
                await asyncio.wait_for(asyncio.shield(ended), _KILL_PATIENCE)
            except TimeoutError:
                pass
            finally:
                ended.cancel()

    def _signal(self, slot: Slot, number: int) -> None:
        """By pidfd: never another process that got the pid. One that has ended is no error."""
        entry = self._world.supervisor.entries.get(slot.container.id)
        if entry is None or entry.pidfd < 0:
            return  # it ended, and its exit is being handled
        try:
            pidfd_send_signal(entry.pidfd, number)
        except KernelError as error:
            if error.errno != errno.ESRCH:
                raise

    async def _thaw(self, slot: Slot) -> None:
        async with slot.lock:
            if slot.container.state == "paused":
                await self.ask(slot.container, "resume")
                slot.container.state = "running"
                self._monitors.begin(slot)

    async def pause(self, ref: str) -> None:
        """Freeze all processes."""
        slot = self._world.roster.find(ref)
        async with slot.lock:
            container = slot.container
            if container.state == "paused":
                raise FailedPrecondition(f"container {container.id} is already paused")
            if container.state == "restarting":
                raise FailedPrecondition(
                    f"container {container.id} is restarting, wait until the container is running"
                )
            if container.state != "running":
                raise FailedPrecondition(f"container {container.id} is not running")
            await self.ask(container, "pause")
            container.state = "paused"
            self._monitors.end(slot)
            await self._world.job(self._world.ledger.put_container, container)
        self._world.bus.container(container, "pause")

    async def unpause(self, ref: str) -> None:
        """Let all processes go on."""
        slot = self._world.roster.find(ref)
        async with slot.lock:
            container = slot.container
            if container.state != "paused":
                raise FailedPrecondition(f"container {container.id} is not paused")
            await self.ask(container, "resume")
            container.state = "running"
            self._monitors.begin(slot)
            await self._world.job(self._world.ledger.put_container, container)
        self._world.bus.container(container, "unpause")

    async def ask(self, container: Container, op: str, **more: Any) -> Any:
        """One operation of the runtime on the container."""
        world = self._world
        return await runtimes.of_living(
            world, container, runtimes.of(world, container).ask(container, op, **more)
        )

    # the rest

    async def rename(self, ref: str, name: str) -> None:
        """Give it another name. Raises AlreadyExists, InvalidArgument."""
        world = self._world
        slot = world.roster.find(ref)
        async with slot.lock:
            container = slot.container
            if container.state in ("removing", "dead"):  # its row must not come back
                raise NotFound(f"No such container: {ref}", subject=ref)
            old = container.name
            new = names.check_name(name) if name else ""
            if not new:
                raise InvalidArgument("Neither old nor new names may be empty", subject="name")
            if new == old:
                raise InvalidArgument(
                    "Renaming a container with the same name as its current name", subject="name"
                )
            world.roster.reserve(new, container.id)
            container.name = new
            try:
                await world.job(world.ledger.put_container, container)
            except BaseException:
                container.name = old
                world.roster.release(new, container.id)
                raise
            world.roster.release(old, container.id)
        world.bus.container(container, "rename", oldName=f"/{old}")

    async def update(self, ref: str, resources: Resources, restart: RestartPolicy | None) -> Sequence[str]:
        """Change limits, of a running container at once."""
        world = self._world
        slot = world.roster.find(ref)
        async with slot.lock:
            container = slot.container
            if container.state in ("removing", "dead"):
                raise FailedPrecondition("container is marked for removal and cannot be updated")
            merged = _merged(container.config.resources, resources)
            checked = limits.check(merged, cpus=world.cpus, memory_nodes={0})
            checked, warnings = limits.supported(checked, world.abilities)
            changes: dict[str, Any] = {"resources": checked}
            if restart is not None:
                if container.config.auto_remove and restart.name != "no":
                    raise FailedPrecondition("Restart policy cannot be updated because AutoRemove is enabled")
                changes["restart"] = restart
            if container.state in ("running", "paused") and checked != container.config.resources:
                wanted = limits.to_oci(checked)
                if single := devices.block_io(checked):
                    wanted["blockIO"] = {**wanted.get("blockIO", {}), **single}
                await self.ask(container, "update", resources=wanted)
            container.config = msgspec.structs.replace(container.config, **changes)
            await world.job(world.ledger.put_container, container)
        world.bus.container(container, "update")
        return warnings

    async def remove(self, ref: str, *, force: bool = False, volumes_too: bool = False) -> None:
        """Delete it; force kills it first."""
        slot = self._world.roster.find(ref)
        container = slot.container
        while True:
            if container.state in _LIVE:
                if not force:
                    state = "running" if container.state != "paused" else "paused"
                    advice = (
                        "stop the container before removing or force remove"
                        if state == "running"
                        else "unpause and then stop the container before removing or force remove"
                    )
                    raise FailedPrecondition(
                        f'cannot remove container "{ref.removeprefix("/")}": container is {state}: {advice}',
                        subject=container.id,
                    )
                container.has_been_manually_stopped = True
                await self._stop(slot, 0, "KILL")
            async with slot.lock:
                if container.state in _LIVE:
                    continue  # who held the lock has just started it
                if self._world.roster.get(container.id) is slot:  # else `--rm` was faster
                    await self._remove(slot, volumes_too=volumes_too)
                return


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


def _merged(old: Resources, new: Resources) -> Resources:
    """`docker update`: what is not named keeps its value."""
    changes = {
        field: value
        for field in Resources.__struct_fields__
        if (value := getattr(new, field)) != getattr(Resources(), field)
    }
    if "nano_cpus" in changes:
        changes |= {"cpu_quota": 0, "cpu_period": 0}
    elif "cpu_quota" in changes or "cpu_period" in changes:
        changes["nano_cpus"] = 0
    if "memory" in changes and "memory_swap" not in changes and old.memory_swap == 2 * old.memory:
        changes["memory_swap"] = 0
    try:
        return msgspec.structs.replace(old, **changes)
    except TypeError as error:
        raise NagayaError(str(error)) from None
