"""A container's life: created, started (starting.py), stopped, paused, renamed, removed (removal.py).

Each transition holds the container's lock; reads and waits hold none.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from nagaya.engine import (
    creation,
    devices,
    launch,
    limits,
    links,
    names,
    networks,
    runtimes,
    signals,
)
from nagaya.engine.exits import Exits
from nagaya.engine.forwarding import Forwarders
from nagaya.engine.health import Monitors
from nagaya.engine.model import (
    Container,
    Created,
    CreateRequest,
    MountSpec,
    Resources,
    RestartPolicy,
)
from nagaya.engine.removal import remove_slot
from nagaya.engine.roster import Slot
from nagaya.engine.starting import Starts
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError, NagayaError, NotFound, NotModified
from nagaya.linux.pids import pidfd_send_signal

log = logging.getLogger(__name__)

_KILL_PATIENCE = 10.0
_LIVE = ("running", "paused", "restarting")


class Containers:
    """Transitions of containers. Lives on the event loop."""

    def __init__(self, world: World, monitors: Monitors, forwarders: Forwarders) -> None:
        self._world = world
        self._monitors = monitors
        self._forwarders = forwarders
        self._remove = partial(remove_slot, world)
        self._starts = Starts(world, monitors, forwarders, self._remove)
        self._exits = Exits(world, self._starts.start, self._remove, monitors.end)

    def watch(self, slot: Slot) -> None:
        """Go on with what an earlier daemon did for a container: health checks, sending its log on."""
        if slot.container.state == "running":
            self._monitors.begin(slot)
        if slot.container.state != "created":
            self._forwarders.begin(slot)

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
                mounts = (*request.config.mounts, *request.inherited)
                await world.reach(m.source for m in mounts if m.type == "bind" and m.source)
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
                if point.type == "tree":  # it ends with the step of the build that has it
                    continue
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
        """Start it; the lock is held. See `Starts.start`."""
        await self._starts.start(slot)

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
            await world.job(networks.tell_names, world, container)
        world.bus.container(container, "rename", oldName=f"/{old}")

    async def remove_link(self, name: str) -> None:
        """Take "CONTAINER/ALIAS" from its links and its hosts file. Raises NotFound."""
        world = self._world
        owner, _, alias = name.strip("/").rpartition("/")
        slot = world.roster.find(owner)
        async with slot.lock:
            container, config = slot.container, slot.container.config
            kept = tuple(link for link in config.links if links.parse(link)[1] != alias)
            if len(kept) == len(config.links) or container.state in ("removing", "dead"):
                raise NotFound(f"No such link: /{container.name}/{alias}", subject=name)
            container.config = msgspec.structs.replace(config, links=kept)
            try:
                await world.job(world.ledger.put_container, container)
            except BaseException:
                container.config = config
                raise
            await world.job(networks.tell_names, world, container)

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
