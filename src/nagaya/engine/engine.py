"""The engine: what the APIs talk to. Each part does its own; this module only joins them.

`create` makes it from its rooms and brings everything to agree (recovery.py); `close` leaves all
containers running.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from nagaya.engine import (
    archives,
    attachments,
    cdi,
    checking,
    logoptions,
    logs,
    microvms,
    networks,
    pods,
    pods_checkpoints,
    recovery,
    top,
    volumes,
)
from nagaya.engine.changes import Change
from nagaya.engine.containers import Containers
from nagaya.engine.copying import PathStat
from nagaya.engine.events import HIDDEN
from nagaya.engine.execs import Execs
from nagaya.engine.exits import clean
from nagaya.engine.forwarding import Forwarders
from nagaya.engine.health import Monitors
from nagaya.engine.images import Images
from nagaya.engine.keeper import Exit
from nagaya.engine.making import Edit, Making
from nagaya.engine.model import (
    Attachment,
    AttachRequest,
    Container,
    Created,
    CreateRequest,
    Event,
    Exec,
    ExecConfig,
    Finding,
    ImageSummary,
    LogLine,
    Network,
    NetworkCreation,
    PullProgress,
    RegistryAuth,
    Resources,
    RestartPolicy,
    Step,
    VolumeSummary,
    WaitResult,
)
from nagaya.engine.netchanges import NetworkChanges
from nagaya.engine.pods_containers import PodService
from nagaya.engine.prune import Prune, Pruned
from nagaya.engine.service import WaitCondition
from nagaya.engine.workshop import Workshop
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, NagayaError, NotFound
from nagaya.linux import cgroup

log = logging.getLogger(__name__)

_REASSERT = 10.0  # seconds between looks at whether somebody flushed our firewall rules


class Engine:
    """Implements `EngineService`. Lives on one event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._execs = Execs(world)
        self._monitors = Monitors(world, self._execs)
        self._forwarders = Forwarders(world)
        self._containers = Containers(world, self._monitors, self._forwarders)
        self._prune = Prune(world, self._containers)
        self._images = Images(world)
        self._making = Making(world, self._containers, self._images)
        self._workshop = Workshop(world, self._containers, self._images)
        self._pods = PodService(world, self._containers, self._execs)
        self._changes = NetworkChanges(world)
        self._early: list[Exit] | None = []  # exits that come while recovery works
        self._unasked: list[str] | None = []  # and processes
        self._guard: asyncio.Task[None] | None = None
        world.supervisor.on_exit = self._exited
        world.supervisor.on_unasked = self._started_unasked

    @classmethod
    async def create(cls, world: World) -> Engine:
        """An engine whose ledger, keeper and kernel agree. The supervisor must be started."""
        engine = cls(world)
        await pods.load_all(world)
        await recovery.recover(world, engine._containers, engine._changes)
        await pods.settle(world)
        await pods_checkpoints.settle(world, engine._containers)
        await networks.relay_all(world)
        await world.job(world.names.sweep)
        early, engine._early = engine._early, None
        for exit in early or ():
            engine._exited(exit)
        unasked, engine._unasked = engine._unasked, None
        for token in unasked or ():
            engine._started_unasked(token)
        await recovery.end_builds(world, engine._containers)
        engine._guard = world.task(engine._watch_network(), "network guard")
        return engine

    async def close(self) -> None:
        """End, leaving all containers as they are; builds end."""
        await self._workshop.close()
        if self._guard is not None:
            self._guard.cancel()
        self._monitors.close()
        self._forwarders.close()
        self._containers.exits.stop_restarting()
        await self._world.close()

    @property
    def pods(self) -> PodService:
        """What kubelets see: pods and their containers."""
        return self._pods

    @property
    def workshop(self) -> Workshop:
        """What builds are made with."""
        return self._workshop

    @property
    def world(self) -> World:
        """What the parts share (for the composition root and tests)."""
        return self._world

    def _exited(self, exit: Exit) -> None:
        """The supervisor's callback: never raises, never waits."""
        if self._early is not None:
            self._early.append(exit)
            return
        self._world.task(self._handle_exit(exit), f"exit of {exit.token[:12]}")

    async def _handle_exit(self, exit: Exit) -> None:
        entry = self._world.supervisor.entries.get(exit.token)
        if entry is None or entry.exit != exit:
            return  # recovery saw it first, and perhaps the container runs again
        try:
            slot = self._world.roster.get(exit.token)
            if slot is not None:
                await self._containers.exits.container_exited(slot, exit)
                if slot.container.config.pod is not None:
                    await self._pods.stopped(slot.container)
            elif self._execs.owns(exit.token):
                await self._execs.exited(exit)
            elif self._world.pods.get(exit.token) is not None:
                await self._pods.init_exited(exit)
            else:
                await self._world.supervisor.release(exit.token)  # an exec session of a former daemon
        except NagayaError as error:
            log.error("after the end of %s: %s", exit.token[:12], error)
        except Exception:
            log.exception("after the end of %s", exit.token[:12])

    def _started_unasked(self, token: str) -> None:
        """A start that outlived its daemon: recovery undid it, or its client has gone."""
        if self._unasked is not None:
            self._unasked.append(token)
            return
        self._world.task(self._end_unasked(token), f"end of {token[:12]}")

    async def _end_unasked(self, token: str) -> None:
        world = self._world
        try:
            slot = world.roster.get(token)
            if slot is None:
                log.warning("process %s came unasked, of a former daemon: ended", token[:12])
                await world.supervisor.abandon(token)
                return
            async with slot.lock:
                if slot.container.state not in ("running", "paused"):
                    log.warning("a start of container %s came to its end unasked: undone", token[:12])
                    await world.supervisor.abandon(token)
                    await clean(world, slot.container, held=True)
        except NagayaError as error:
            log.error("process %s, of a former daemon, stays: %s", token[:12], error)

    async def _watch_network(self) -> None:
        while True:
            await asyncio.sleep(_REASSERT)
            try:
                if await self._world.job(self._world.network.reassert):
                    log.warning("somebody removed rules or links of ours, or changed the host's: put right")
                    await networks.relay_all(self._world)
            except NagayaError as error:
                log.error("network: %s", error)

    # containers

    async def create_container(self, request: CreateRequest) -> Created:
        return await self._containers.create(request)

    async def start_container(self, ref: str) -> None:
        await self._containers.start(ref)

    async def stop_container(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        await self._containers.stop(ref, timeout, signal)

    async def restart_container(self, ref: str, timeout: int | None = None, signal: str = "") -> None:
        await self._containers.restart(ref, timeout, signal)

    async def kill_container(self, ref: str, signal: str = "KILL") -> None:
        await self._containers.kill(ref, signal)

    async def pause_container(self, ref: str) -> None:
        await self._containers.pause(ref)

    async def unpause_container(self, ref: str) -> None:
        await self._containers.unpause(ref)

    async def rename_container(self, ref: str, name: str) -> None:
        await self._containers.rename(ref, name)

    async def update_container(
        self, ref: str, resources: Resources, restart: RestartPolicy | None
    ) -> Sequence[str]:
        return await self._containers.update(ref, resources, restart)

    async def remove_container(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        container_id = self._world.roster.find(ref).container.id
        await self._containers.remove(ref, force=force, volumes_too=volumes)
        self._execs.forget_container(container_id)

    def begin_wait(self, ref: str, condition: WaitCondition) -> Callable[[], AsyncIterator[WaitResult]]:
        future = self._world.roster.find(ref).wait(condition)

        async def results() -> AsyncIterator[WaitResult]:
            try:
                yield await future
            finally:
                future.cancel()

        return results

    async def attach_container(self, ref: str, request: AttachRequest, fd: int) -> None:
        await attachments.attach(self._world, ref, request, fd)

    async def resize_container(self, ref: str, height: int, width: int) -> None:
        container = self._world.roster.find(ref).container
        if container.state not in ("running", "paused"):
            raise FailedPrecondition(f"container {container.id} is not running")
        await self._world.supervisor.resize(container.id, height, width)
        self._world.bus.container(container, "resize", height=str(height), width=str(width))

    def logs(
        self,
        ref: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: int = 0,
        until: int = 0,
        tail: int | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Sequence[LogLine]]:
        slot = self._world.roster.find(ref)
        container_id = slot.container.id

        def now() -> Container | None:
            found = self._world.roster.get(container_id)
            return None if found is None else found.container

        return logs.read(
            self._world,
            now,
            stdout=stdout,
            stderr=stderr,
            since=since,
            until=until,
            tail=tail,
            follow=follow,
        )

    async def top(self, ref: str, ps_args: str) -> tuple[list[str], list[list[str]]]:
        container = self._running(ref)
        if microvms.is_one(self._world, container):
            return top.guest_table(await self._containers.ask(container, "guest-ps"), ps_args)
        pids = await self._containers.ask(container, "ps")
        found = pids.get("pids", ()) if isinstance(pids, dict) else pids
        return await self._world.job(top.table, [int(p) for p in found], ps_args)

    async def stats(self, ref: str) -> Mapping[str, object]:
        container = self._running(ref)
        result = await self._containers.ask(container, "stats")
        found = result if isinstance(result, dict) else {}
        return {
            **found,
            "network_interfaces": await self._world.job(networks.traffic, self._world, container),
        }

    def _running(self, ref: str) -> Container:
        container = self._world.roster.find(ref).container
        if container.state not in ("running", "paused"):
            raise FailedPrecondition(f"container {container.id} is not running")
        return container

    def inspect_container(self, ref: str) -> Container:
        return self._world.roster.find(ref).container

    def list_containers(self) -> Sequence[Container]:
        return [slot.container for slot in self._world.roster if slot.container.config.pod is None]

    async def export_container(self, ref: str) -> archives.Archive:
        return await archives.export(self._world, ref)

    async def container_changes(self, ref: str) -> Sequence[Change]:
        return await archives.changes(self._world, ref)

    async def prune_containers(self, wanted: Callable[[Container], bool]) -> Pruned:
        return await self._prune.containers(lambda found: found.config.pod is None and wanted(found))

    async def container_size(self, ref: str) -> tuple[int, int]:
        container = self._world.roster.find(ref).container
        written = await self._world.job(self._world.images.usage, container.id)
        try:
            image = (await self._images.inspect(container.image_digest)).size
        except NotFound:  # it was removed by force
            image = 0
        return written, written + image

    async def look_at(self, ref: str, path: str) -> PathStat:
        return await archives.look(self._world, ref, path)

    async def read_archive(self, ref: str, path: str) -> tuple[PathStat, archives.Archive]:
        return await archives.read(self._world, ref, path)

    async def write_archive(
        self, ref: str, path: str, body: AsyncIterator[bytes], *, strict: bool, as_user: bool
    ) -> None:
        await archives.write(self._world, ref, path, body, strict=strict, as_user=as_user)

    def container_steps(self, ref: str) -> Sequence[Step]:
        return self._world.ledger.trace(self._world.roster.find(ref).container.id)

    # exec

    async def remove_link(self, name: str) -> None:
        await self._containers.remove_link(name)

    async def create_exec(self, ref: str, config: ExecConfig) -> str:
        return await self._execs.create(ref, config)

    async def start_exec(
        self,
        exec_id: str,
        fd: int | None,
        *,
        preface: bytes = b"",
        console: tuple[int, int] | None = None,
        frames: bool = True,
    ) -> None:
        await self._execs.start(exec_id, fd, preface=preface, console=console, frames=frames)

    def inspect_exec(self, exec_id: str) -> Exec:
        return self._execs.get(exec_id)

    async def settled_exec(self, exec_id: str) -> Exec:
        return await self._execs.settled(exec_id)

    async def resize_exec(self, exec_id: str, height: int, width: int) -> None:
        await self._execs.resize(exec_id, height, width)

    # images

    def pull_image(
        self, reference: str, platform: str, auth: RegistryAuth | None, *, all_tags: bool = False
    ) -> AsyncIterator[PullProgress]:
        return self._images.pull(reference, platform, auth, all_tags=all_tags)

    async def try_login(self, address: str, auth: RegistryAuth) -> None:
        await self._images.login(address, auth)

    async def describe_image(self, reference: str, auth: RegistryAuth | None) -> Mapping[str, Any]:
        return await self._images.describe(reference, auth)

    async def search_images(
        self, term: str, limit: int, auth: RegistryAuth | None
    ) -> Sequence[Mapping[str, Any]]:
        return await self._images.search(term, limit, auth)

    def push_image(self, reference: str, auth: RegistryAuth | None) -> AsyncIterator[PullProgress]:
        return self._images.push(reference, auth)

    async def commit_container(
        self,
        ref: str,
        name: str,
        edit: Edit,
        config: Mapping[str, Any] | None,
        *,
        author: str = "",
        comment: str = "",
        pause: bool = True,
    ) -> str:
        return await self._making.commit(ref, name, edit, config, author=author, comment=comment, pause=pause)

    async def import_image(
        self, body: AsyncIterator[bytes], name: str, edit: Edit, message: str, platform: str
    ) -> str:
        return await self._making.import_files(body, name, edit, message, platform)

    def import_url(
        self, url: str, name: str, edit: Edit, message: str, platform: str
    ) -> AsyncIterator[PullProgress]:
        return self._making.import_url(url, name, edit, message, platform)

    def load_images(self, body: AsyncIterator[bytes]) -> AsyncIterator[PullProgress]:
        return self._images.load(body)

    def save_images(self, names: Sequence[str]) -> archives.Archive:
        return self._images.save(names)

    async def list_images(self) -> Sequence[ImageSummary]:
        return await self._images.list()

    async def inspect_image(self, ref: str) -> ImageSummary:
        return await self._images.inspect(ref)

    async def image_history(self, ref: str) -> Sequence[Mapping[str, object]]:
        return await self._images.history(ref)

    async def tag_image(self, ref: str, target: str) -> None:
        await self._images.tag(ref, target)

    async def remove_image(self, ref: str, *, force: bool = False) -> Sequence[Mapping[str, str]]:
        return await self._images.remove(ref, force=force)

    async def prune_images(
        self, wanted: Callable[[ImageSummary], bool], *, dangling: bool
    ) -> tuple[Sequence[Mapping[str, str]], int]:
        return await self._images.prune(wanted, dangling=dangling)

    async def image_layers(self) -> Sequence[Mapping[str, Any]]:
        return await self._images.layers()

    async def image_usage(self) -> tuple[int, Mapping[str, int]]:
        return await self._images.usage()

    # the daemon

    def events(self, since: int = 0, until: int = 0) -> AsyncIterator[Event]:
        return self._world.bus.subscribe(since, until, hidden=HIDDEN)

    async def check(self, *, repair: bool = False) -> Sequence[Finding]:
        return await checking.check(self._world, repair=repair)

    def info(self) -> Mapping[str, object]:
        settings = self._world.settings
        return {
            "id": self._world.id,
            "root": settings.root,
            "run": settings.run,
            "driver": "overlay2",
            "driver_status": (("Supports d_type", "true"), ("Snapshots", f"{settings.root}/snapshots")),
            "cgroup_driver": settings.cgroup_driver,
            "cgroup_version": str(_cgroup_version()),
            "runtimes": {settings.default_runtime: {"path": "nagaya-oci"}, **settings.runtimes},
            "default_runtime": settings.default_runtime,
            "init_binary": os.path.basename(settings.init_path) or "",
            "security_options": (
                *(["name=apparmor"] if self._world.apparmor else []),
                "name=seccomp,profile=builtin",
                *(["name=userns"] if settings.remap is not None else []),
                "name=cgroupns",
            ),
            "apparmor": self._world.apparmor,
            "warnings": (),
            "log_drivers": logoptions.DRIVERS,
            "cdi_spec_dirs": settings.cdi_spec_dirs,
            "address_pools": settings.address_pools,
            "events": self._world.bus.published,
            "event_listeners": self._world.bus.listeners,
        }

    async def cdi_devices(self) -> Sequence[str]:
        return await self._world.job(lambda: cdi.Catalog(self._world.settings.cdi_spec_dirs).devices())

    def networks(self) -> Sequence[Mapping[str, object]]:
        return networks.documents(self._world)

    async def create_volume(
        self, name: str, *, driver: str = "", labels: dict[str, str], options: dict[str, str]
    ) -> VolumeSummary:
        return await self._world.volumes.create(name, driver=driver, labels=labels, options=options)

    async def remove_volume(self, name: str, *, force: bool = False) -> None:
        await self._world.volumes.remove(name, force=force)

    async def prune_volumes(self, chosen: Callable[[VolumeSummary], bool]) -> tuple[Sequence[str], int]:
        return await self._world.volumes.prune(chosen)

    async def create_network(self, asked: NetworkCreation) -> Network:
        return await self._changes.create(asked)

    async def remove_network(self, ref: str) -> None:
        await self._changes.remove(ref)

    async def prune_networks(self, wanted: Callable[[Network], bool]) -> list[str]:
        return await self._changes.prune(wanted)

    async def connect_network(self, ref: str, container: str, attachment: Attachment) -> None:
        await self._changes.connect(ref, container, attachment)

    async def disconnect_network(self, ref: str, container: str, *, force: bool = False) -> None:
        await self._changes.disconnect(ref, container, force=force)

    def volumes(self) -> Sequence[VolumeSummary]:
        return volumes.summaries(self._world.ledger, self._world.settings.root)

    async def volume_size(self, name: str) -> int:
        return await self._world.slow_job(lambda: volumes.size(self._world.settings.root, name))


@functools.cache
def _cgroup_version() -> int:
    try:
        return cgroup.layout().version
    except NagayaError:
        return 1
