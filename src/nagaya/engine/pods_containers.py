"""The containers of pods: what a kubelet does to them, on the engine's containers.

They stand in the roster beside Docker's, hidden from Docker's API: only `config.pod` tells them apart.
A container of a pod runs once; what has ended is removed, and another attempt is made.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from nagaya.engine import (
    attachments,
    files,
    names,
    pods_checkpoints,
    pods_creation,
    pods_execs,
    pods_files,
    pods_network,
    pods_plugins,
    pods_restore,
    pods_spec,
)
from nagaya.engine.containers import Containers
from nagaya.engine.execs import Execs
from nagaya.engine.keeper import Exit
from nagaya.engine.model import AttachRequest, Container, ExecConfig
from nagaya.engine.pods import Pods, put
from nagaya.engine.pods_execs import Output
from nagaya.engine.pods_model import LinuxResources, Pod, PodConfig, PodContainerConfig
from nagaya.engine.pods_network import Condition
from nagaya.engine.pods_stats import PodStats
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotModified,
)
from nagaya.image import trees

_LIVE = ("running", "paused", "restarting")


def failed_to_start(container: Container) -> bool:
    """Has its only start failed?"""
    return container.state == "created" and bool(container.error)


class PodService:
    """Pods and their containers, as `api.cri` asks for them. Lives on the event loop."""

    def __init__(self, world: World, containers: Containers, execs: Execs) -> None:
        self._world = world
        self._containers = containers
        self._execs = execs
        self._pods = Pods(world)
        self._stats = PodStats(world, containers)
        self._told: dict[str, asyncio.Task[None]] = {}  # containers of whose end plugins have heard

    @property
    def world(self) -> World:
        """What all parts share."""
        return self._world

    @property
    def stats(self) -> PodStats:
        """What pods and containers use."""
        return self._stats

    # pods

    async def run_pod(self, config: PodConfig, handler: str) -> str:
        """See `Pods.run`."""
        return await self._pods.run(config, handler)

    def pods(self) -> list[Pod]:
        """All pods, oldest first. Waits for nothing."""
        return list(self._world.pods)

    async def network_condition(self) -> Condition:
        """Can pods have a network now, and by what?"""
        return await pods_network.condition(self._world)

    def pins(self, pod: Pod) -> dict[str, str]:
        """Where the namespaces of a pod are."""
        return pods_files.pins(self._world.settings, pod)

    async def disk_usage(self) -> tuple[int, int]:
        """(bytes, inodes) of the directory of images and writable layers."""
        return await self._world.slow_job(lambda: _usage(f"{self._world.settings.root}/snapshots"))

    async def spec_of(self, container: Container) -> dict[str, Any]:
        """The config.json of a container that runs, {} of another."""
        return await self._world.job(_read_spec, f"{self._world.settings.bundle(container.id)}/config.json")

    def pod(self, pod_id: str) -> Pod:
        """One. Raises NotFound, InvalidArgument."""
        return self._world.pods.find(pod_id)

    async def stop_pod(self, pod_id: str) -> None:
        """Kill its containers, take its network and namespaces; addresses and rows stay. An unknown pod
        is stopped already."""
        pod = self._world.pods.get(pod_id)
        if pod is None:
            return
        slots = [s for s in self._slots(pod.id) if s.container.state in _LIVE]
        results = await asyncio.gather(*(self._stop(s, 0) for s in slots), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        await self._pods.stop(pod)

    async def init_exited(self, exit: Exit) -> None:
        """The first process of a shared pid namespace has ended."""
        pod = self._world.pods.get(exit.token)
        if pod is not None:
            await self._pods.init_exited(pod)
        await self._world.supervisor.release(exit.token)

    async def remove_pod(self, pod_id: str) -> None:
        """Stop it and forget it with its containers. An unknown pod is removed already."""
        pod = self._world.pods.get(pod_id)
        if pod is None:
            return
        await self.stop_pod(pod.id)
        for slot in self._slots(pod.id):
            await self.remove(slot.container.id)
        await self._pods.remove(pod)

    # containers

    def _slots(self, pod_id: str = "") -> list[Slot]:
        found = []
        for slot in self._world.roster:
            member = slot.container.config.pod
            if member is not None and pod_id in ("", member.pod_id):
                found.append(slot)
        return found

    def containers(self, pod_id: str = "") -> Sequence[Container]:
        """Those of one pod, or all. Waits for nothing."""
        return [slot.container for slot in self._slots(pod_id)]

    def get(self, container_id: str) -> Container | None:
        """The container of an id or of an unambiguous beginning of one."""
        slot = self._world.roster.get(container_id)
        if slot is None and container_id:
            near = [s for s in self._slots() if s.container.id.startswith(container_id)]
            slot = near[0] if len(near) == 1 else None
        return slot.container if slot is not None and slot.container.config.pod is not None else None

    def container(self, container_id: str) -> Container:
        """The same. Raises NotFound, InvalidArgument for an empty id."""
        if not container_id:
            raise InvalidArgument("container_id is empty", subject="container_id")
        found = self.get(container_id)
        if found is None:
            raise NotFound(f"no container {container_id}", subject="container_id")
        return found

    async def create(self, pod_id: str, config: PodContainerConfig) -> str:
        """Make a container in a pod that is ready; its id. One that was made from the same request before
        is the answer again. Raises AlreadyExists for another one of that name and attempt."""
        async with self._world.plugins.steady():
            return await self._create(self.pod(pod_id), config)

    async def _create(self, pod: Pod, config: PodContainerConfig) -> str:
        world = self._world
        if not pod.ready:
            raise FailedPrecondition(f"pod sandbox {pod.id} is not ready", subject="pod_sandbox_id")
        container_id = names.new_id()
        name = pods_creation.name_of(pod.id, config)
        try:
            world.roster.reserve(name, container_id)
        except AlreadyExists:
            holder = world.roster.named(name)
            if holder is not None and holder.config.pod and holder.config.pod.config == config:
                return holder.id
            raise AlreadyExists(
                f"the pod has a container {config.metadata.name} of attempt {config.metadata.attempt}",
                subject="config.metadata",
            ) from None
        try:
            made = await world.job(pods_creation.make, world, container_id, name, pod, config)
            try:
                await self._adjust(pod, made)
            except BaseException:
                await world.job(pods_creation.unmake, world, made)
                raise
        except BaseException:
            world.roster.release(name, container_id)
            raise
        world.roster.add(made)
        world.bus.container(made, "create")
        await world.plugins.container("PostCreateContainer", pod, made)
        return made.id

    async def _adjust(self, pod: Pod, made: Container) -> None:
        """Ask the plugins about a container before anybody sees it."""
        adjustment = await self._world.plugins.create(pod, made)
        if adjustment:
            member = msgspec.structs.replace(pods_spec.member_of(made), adjustment=adjustment)
            made.config = msgspec.structs.replace(made.config, pod=member)
            await self._world.job(self._world.ledger.put_container, made)

    async def start(self, container_id: str) -> None:
        """Start a container that was only created; one that runs was started, by who gave up waiting for it.
        Raises FailedPrecondition for one that has ended."""
        container = self.container(container_id)
        if container.state == "running":
            return
        if container.state != "created" or failed_to_start(container):
            state = "exited" if failed_to_start(container) else container.state
            raise FailedPrecondition(
                f"container {container.id} is {state}, and only a created one is started",
                subject="container_id",
            )
        pod = self.pod(pods_spec.member_of(container).pod_id)
        await self._world.plugins.container("StartContainer", pod, container)
        await self._containers.start(container.id)
        if pods_spec.member_of(container).images:
            await self._world.slow_job(functools.partial(pods_restore.forget, self._world, container.id))
        await self._world.plugins.container("PostStartContainer", pod, container)

    async def stopped(self, container: Container) -> None:
        """A container has ended, for whatever reason: plugins hear of it, once."""
        telling = self._told.get(container.id)
        if telling is None:
            pod = self._world.pods.get(pods_spec.member_of(container).pod_id)
            if pod is None:
                return
            work = self._world.plugins.container("StopContainer", pod, container)
            telling = self._told[container.id] = self._world.task(work, f"end of {container.id[:12]}")
        await asyncio.shield(telling)

    async def stop(self, container_id: str, timeout: int) -> None:
        """Signal, wait, SIGKILL. What does not run, or is not there, is stopped already."""
        container = self.get(container_id)
        slot = self._world.roster.get(container.id) if container is not None else None
        if slot is not None and slot.container.state in _LIVE:
            await self._stop(slot, max(0, timeout))

    async def _stop(self, slot: Slot, timeout: int) -> None:
        with suppress(NotModified):
            await self._containers.stop(slot.container.id, timeout)
        async with slot.lock:  # what it had is cleared away
            pass
        await self.stopped(slot.container)

    async def remove(self, container_id: str) -> None:
        """Kill and delete it, not its log. An unknown one is removed already."""
        container = self.get(container_id)
        if container is not None:
            if container.state in _LIVE:
                await self.stop(container.id, 0)
            elif container.started:
                await self.stopped(container)
            pod = self._world.pods.get(pods_spec.member_of(container).pod_id)
            if pod is not None:
                await self._world.plugins.container("RemoveContainer", pod, container)
            self._told.pop(container.id, None)
            with suppress(NotFound):
                await self._containers.remove(container.id, force=True, volumes_too=True)
            if pods_spec.member_of(container).images:
                await self._world.slow_job(functools.partial(pods_restore.forget, self._world, container.id))
            self._execs.forget_container(container.id)

    async def reopen_log(self, container_id: str) -> None:
        """After the kubelet has renamed the log: what is written from now on is in a file of the old name,
        which is there. Raises FailedPrecondition when it does not run."""
        container = self.container(container_id)
        if container.state not in _LIVE:
            raise FailedPrecondition(f"container {container.id} is not running", subject="container_id")
        if container.log_path:
            await self._world.job(files.touch, container.log_path)  # io looks where it is with every write

    async def update(self, container_id: str, limits: LinuxResources, *, ask: bool = True) -> None:
        """Change limits, of a running container at once; what is not said stays. ask: the plugins, too.
        Raises InvalidArgument, FailedPrecondition for one that has ended."""
        world, container = self._world, self.container(container_id)
        pods_creation.check_resources(limits)
        slot = world.roster.find(container.id)
        async with slot.lock:
            member = pods_spec.member_of(container)
            if container.state not in ("created", "running", "paused") or failed_to_start(container):
                raise FailedPrecondition(f"container {container.id} has ended", subject="container_id")
            old = member.config.linux.resources
            new = pods_plugins.amended(old, limits)
            pods_creation.check_resources(new)
            if ask:
                new = await world.plugins.update(self.pod(member.pod_id), container, new)
                pods_creation.check_resources(new)
            if container.state != "created":
                resources = pods_spec.to_oci(new, hugetlb=pods_spec.has_hugetlb())
                await self._containers.ask(container, "update", resources=resources)
            linux = msgspec.structs.replace(member.config.linux, resources=new)
            config = msgspec.structs.replace(member.config, linux=linux)
            container.config = msgspec.structs.replace(
                container.config, pod=msgspec.structs.replace(member, config=config)
            )
            await world.job(world.ledger.put_container, container)
        world.bus.container(container, "update")
        if ask:
            await world.plugins.container("PostUpdateContainer", self.pod(member.pod_id), container)

    # commands

    async def run_command(self, container_id: str, words: Sequence[str], timeout: int) -> Output:
        """Run a command to its end. Raises DeadlineExceeded, ResourceExhausted (too much output)."""
        container = self.running(container_id)
        if not words or not words[0]:
            raise InvalidArgument("cmd is empty", subject="cmd")
        if timeout < 0:
            raise InvalidArgument("timeout is negative", subject="timeout")
        return await pods_execs.run(self._world, self._execs, container, words, timeout)

    def running(self, container_id: str) -> Container:
        """A container that runs. Raises NotFound, FailedPrecondition."""
        container = self.container(container_id)
        if container.state != "running":
            raise FailedPrecondition(f"container {container.id} is not running", subject="container_id")
        return container

    async def begin_command(self, container: Container, config: ExecConfig) -> str:
        """Note a command that a client will be attached to; its id."""
        return await self._execs.create(container.id, config)

    async def start_command(self, exec_id: str, fd: int) -> None:
        """Run it, attached to the socket, which is ours from here: Docker's frames without a terminal."""
        await self._execs.start(exec_id, fd, frames=not self._execs.get(exec_id).config.tty)

    async def end_of_command(self, exec_id: str) -> int:
        """Its exit code, once there is one."""
        return await self._execs.end_of(exec_id)

    def kill_command(self, exec_id: str) -> None:
        """SIGKILL for what still runs of it."""
        pods_execs.kill(self._world, exec_id)

    async def attach(self, container: Container, request: AttachRequest, fd: int) -> None:
        """Join the socket, which is ours from here, to the container's own streams."""
        await attachments.attach(self._world, container.id, request, fd)

    async def resize(self, exec_id: str, container: Container, height: int, width: int) -> None:
        """Set the size of a command's terminal, or of the container's own."""
        if exec_id:
            await self._execs.resize(exec_id, height, width)
        else:
            await self._world.supervisor.resize(container.id, height, width)

    async def dial(self, pod: Pod, port: int) -> socket.socket:
        """A connection to a port on the pod's loopback. Raises OSError, NagayaError."""
        return await pods_network.dial(self._world, pod, port)

    # checkpoints

    async def checkpoint(self, container_id: str, location: str, timeout: int) -> None:
        """See `pods_checkpoints.container`."""
        found = self.container(container_id)
        await pods_checkpoints.container(self._world, self._containers, found, location, timeout)

    async def checkpoint_pod(
        self, pod_id: str, container_ids: Sequence[str], directory: str, patience: float | None
    ) -> None:
        """See `pods_checkpoints.pod`."""
        pod, chosen = self.pod(pod_id), [self.container(name) for name in container_ids]
        await pods_checkpoints.pod(self._world, self._containers, pod, chosen, directory, patience)

    async def restore_pod(
        self, path: str, config: PodConfig, handler: str, containers: Sequence[PodContainerConfig]
    ) -> tuple[str, list[tuple[str, str]]]:
        """A pod of a checkpoint, or nothing: its id, and (name, id) of its containers, which are only
        created. Raises what `pods_restore` and making the pod do."""
        world = self._world
        pods_checkpoints.check_criu()
        archives = await world.job(pods_restore.read, path, containers, handler)
        known = any(pod.config.metadata == config.metadata for pod in world.pods)
        pod_id = await self.run_pod(config, handler)
        made: list[tuple[str, str]] = []
        try:
            for one in containers:
                container_id = await self.create(pod_id, one)
                made.append((one.metadata.name, container_id))
                found, archive = self.container(container_id), archives[one.metadata.name]
                if not pods_spec.member_of(found).images:  # this request was carried out before
                    await world.slow_job(functools.partial(pods_restore.fill, world, found, path, archive))
        except BaseException:
            if not known:
                await self.remove_pod(pod_id)
            raise
        return pod_id, made

    # resources of a pod

    async def update_pod(self, pod_id: str, overhead: LinuxResources, resources: LinuxResources) -> None:
        """A kubelet has changed the pod's cgroup, which is its own: noted, for who asks."""
        pod = self.pod(pod_id)
        await self._world.plugins.update_pod(pod, overhead, resources)
        linux = msgspec.structs.replace(pod.config.linux, overhead=overhead, resources=resources)
        pod.config = msgspec.structs.replace(pod.config, linux=linux)
        await self._world.job(put, self._world, pod)
        await self._world.plugins.pod("PostUpdatePodSandbox", pod)


def _usage(directory: str) -> tuple[int, int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        used, entries = trees.usage(fd)
        return used, entries
    finally:
        os.close(fd)


def _read_spec(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, Any])
    except OSError:
        return {}
