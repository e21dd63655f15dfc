"""Pods: namespaces with a network that containers are started in, and that outlive each of them.

The namespaces are pinned by bind mounts and need no process; only a pod whose containers share one pid
namespace has an init of its own in it (catatonit), which the keeper holds under the pod's id. A pod's
row is a fact of the ledger, its files lie below RUN/pods/ID: a reboot leaves it not ready.

What was begun goes on when its caller gives up, and the same request again joins it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from nagaya.engine import names, pods_cni, pods_files, pods_network, pods_users, privileges
from nagaya.engine.events import POD
from nagaya.engine.pods_model import Pod, PodConfig
from nagaya.engine.world import World
from nagaya.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NagayaError,
    NotFound,
)
from nagaya.oci import defaults

log = logging.getLogger(__name__)

AREA = "pods"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Pod).decode


def put(world: World, pod: Pod) -> None:
    """Write a pod's row. Blocking; joins an open transaction."""
    with world.ledger.write() as db:
        db.execute(
            "INSERT OR REPLACE INTO facts(area, key, document) VALUES(?,?,?)", (AREA, pod.id, _encode(pod))
        )


def load(world: World) -> list[Pod]:
    """All rows, oldest first. Blocking."""
    rows = world.ledger.read("SELECT document FROM facts WHERE area=?", (AREA,))
    found = [_decode(d if isinstance(d, bytes) else str(d).encode()) for (d,) in rows]
    return sorted(found, key=lambda pod: pod.created)


def check(world: World, config: PodConfig, handler: str) -> None:
    """Refuse what cannot run. Raises InvalidArgument with the field, Unimplemented, NotFound."""
    meta = config.metadata
    for field in ("name", "uid", "namespace"):
        if not getattr(meta, field):
            raise InvalidArgument(f"metadata.{field} is empty", subject=f"config.metadata.{field}")
    options = config.namespaces
    for field in ("network", "ipc"):
        if getattr(options, field) not in ("POD", "NODE"):
            raise InvalidArgument(
                f"a pod's {field} namespace is POD or NODE, not {getattr(options, field)}",
                subject=f"config.linux.security_context.namespace_options.{field}",
            )
    if options.pid == "TARGET":
        raise InvalidArgument(
            "a pod has no target to share a pid namespace with",
            subject="config.linux.security_context.namespace_options.pid",
        )
    pods_users.check(config, handler)
    if handler and handler != "nagaya" and handler not in world.settings.runtimes:
        raise NotFound(f"no runtime handler {handler!r} is configured", subject="runtime_handler")
    privileges.sysctls(
        config.linux.sysctls, host_network=options.network == "NODE", host_ipc=options.ipc == "NODE"
    )
    pods_network.host_ports(Pod("", config))
    pods_files.check(config)
    if options.pid == "POD" and not world.settings.init_path:
        raise FailedPrecondition(
            "a pod that shares its pid namespace needs catatonit, which was not found on this host",
            subject="config.linux.security_context.namespace_options.pid",
        )


class Pods:
    """What happens to pods as a whole. Lives on the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._locks: dict[str, asyncio.Lock] = {}
        self._making: dict[bytes, asyncio.Task[str]] = {}

    def lock(self, pod_id: str) -> asyncio.Lock:
        """What a change of the pod holds."""
        return self._locks.setdefault(pod_id, asyncio.Lock())

    # run

    async def run(self, config: PodConfig, handler: str) -> str:
        """Make a pod, or nothing; its id. The same request again joins the first, or has its result.

        Raises InvalidArgument, AlreadyExists (another pod of that name and attempt), and what the
        network raises.
        """
        check(self._world, config, handler)
        key = _encode(
            (config.metadata.namespace, config.metadata.name, config.metadata.uid, config.metadata.attempt)
        )
        making = self._making.get(key)
        if making is None:
            same = [p for p in self._world.pods if p.config.metadata == config.metadata]
            for pod in same:
                if pod.ready and pod.config == config and pod.runtime_handler == handler:
                    return pod.id
                raise AlreadyExists(
                    f"pod sandbox {pod.id} has this name, namespace, uid and attempt",
                    subject="config.metadata",
                )
            making = self._world.task(self._run_steadily(config, handler), f"pod {config.metadata.name[:40]}")
            self._making[key] = making
            making.add_done_callback(lambda _: self._making.pop(key, None))
        return await asyncio.shield(making)

    async def _run_steadily(self, config: PodConfig, handler: str) -> str:
        async with self._world.plugins.steady():
            return await self._run(config, handler)

    async def _run(self, config: PodConfig, handler: str) -> str:
        world = self._world
        pod = Pod(names.new_id(), config, handler, time.time_ns())
        await pods_network.choose(world, pod)
        await world.job(_begin, world, pod)
        try:
            await self._make(pod)
            await world.plugins.pod("RunPodSandbox", pod)
            pod.ready = True
            await world.job(_record, world, pod)
        except BaseException:
            pod.ready = False
            try:
                await take_down(world, pod)
                await world.job(pods_files.remove, world.settings, pod.id)
                await world.job(_forget, world, pod.id)
            except NagayaError as error:  # the journal has it: recovery takes it away
                log.error("what pod %s left stays for now: %s", pod.id[:12], error)
            raise
        world.pods.add(pod)
        world.bus.publish(POD, "ready", pod.id, {})
        return pod.id

    async def _make(self, pod: Pod) -> None:
        world, options = self._world, pod.config.namespaces
        await world.job(pods_files.make, world.settings, pod)
        world.journal.point("pod: directory")
        config, pins = pod.config, pods_files.pins(world.settings, pod)
        fds: list[int] = []
        if pins:
            request: dict[str, Any] = {
                "op": "pod-pin",
                "pins": pins,
                "hostname": pods_files.hostname(pod),
                "sysctls": pod.config.linux.sysctls,
                "wishes": wishes(pod, ipv6=world.settings.ipv6),
                "uids": pods_users.mappings(config).get("uidMappings"),
                "gids": pods_users.mappings(config).get("gidMappings"),
            }
            fds = (await world.supervisor.call(request)).fds
            world.journal.point("pod: pinned")
        if options.network == "POD":
            pod.addresses = await pods_network.connect(world, pod, fds[0])
        world.journal.point("pod: wired")
        await world.job(pods_files.write_hosts, world.settings, pod)
        if options.pid == "POD":
            await pods_files.start_init(world, pod)

    # stop and remove

    async def init_exited(self, pod: Pod) -> None:
        """Its init has ended, and with it every process of the namespace: the pod is not ready."""
        async with self.lock(pod.id):
            if pod.ready:
                pod.ready = False
                await self._world.job(put, self._world, pod)
                self._world.bus.publish(POD, "stopped", pod.id, {})

    async def stop(self, pod: Pod) -> None:
        """Take its network and its namespaces; its containers must have been stopped. May be repeated."""
        world = self._world
        async with self.lock(pod.id):
            if world.pods.get(pod.id) is None:
                return
            was_ready, pod.ready = pod.ready, False
            if was_ready:
                await world.plugins.pod("StopPodSandbox", pod)
                await world.job(put, world, pod)
                world.bus.publish(POD, "stopped", pod.id, {})
                world.journal.point("pod stop: noted")
            await take_down(world, pod)
            world.journal.point("pod stop: taken down")
            await world.job(put, world, pod)

    async def remove(self, pod: Pod) -> None:
        """Forget it; it must have been stopped, and have no containers."""
        world = self._world
        async with self.lock(pod.id):
            await world.plugins.pod("RemovePodSandbox", pod)
            await world.job(pods_files.remove, world.settings, pod.id)
            world.journal.point("pod remove: directory")
            await world.job(_forget, world, pod.id)
            world.pods.discard(pod.id)
            world.bus.publish(POD, "removed", pod.id, {})
        self._locks.pop(pod.id, None)


def wishes(pod: Pod, *, ipv6: bool = False) -> dict[str, str]:
    """Sysctls of the pod's network namespace that it did not ask for: anybody may ping and listen on low
    ports; on the built-in bridge, has it IPv6 or not, nobody takes router advertisements
    (CVE-2024-32473). A plugin's addresses are its own affair."""
    if pod.config.namespaces.network != "POD":
        return {}
    found = dict(defaults.SYSCTLS)
    if not pod.cni:
        base = "net.ipv6.conf.default"
        on = {f"{base}.disable_ipv6": "0", f"{base}.accept_ra": "0", f"{base}.accept_dad": "0"}
        found |= on if ipv6 else {f"{base}.disable_ipv6": "1"}
    return {k: v for k, v in found.items() if k not in pod.config.linux.sysctls}


async def take_down(world: World, pod: Pod) -> None:
    """Init, network and namespaces of a pod. May be repeated; addresses stay, for who asks later."""
    await pods_files.end_init(world, pod.id)
    if pod.connected:
        await pods_network.disconnect(world, pod)
        pod.connected = False
    await world.job(pods_files.unpin, world.settings, pod.id)


def _begin(world: World, pod: Pod) -> None:
    pod.connected = pod.config.namespaces.network == "POD"  # a crash finds here what to take down
    with world.ledger.write():
        world.journal.begin("pod", pod.id)
        put(world, pod)


def _record(world: World, pod: Pod) -> None:
    with world.ledger.write():
        put(world, pod)
        world.journal.settle("pod", pod.id)
    world.journal.point("pod: done")


def _forget(world: World, pod_id: str) -> None:
    with world.ledger.write() as db:
        db.execute("DELETE FROM facts WHERE area=? AND key=?", (AREA, pod_id))
        world.journal.settle("pod", pod_id)


async def load_all(world: World) -> None:
    """Show the pods of the ledger, before anything is swept away as nobody's."""
    for pod in await world.job(load, world):
        world.pods.add(pod)


async def settle(world: World) -> None:
    """Undo what a crash left half made, and finish what was being stopped. After a reboot no pod is ready:
    its namespaces are gone."""
    for operation in await world.job(world.journal.pending):
        half = world.pods.get(operation.subject) if operation.kind == "pod" else None
        if half is not None:
            log.warning("undoing pod %s, which was being made", half.id[:12])
            await take_down(world, half)
            await world.job(pods_files.remove, world.settings, half.id)
            await world.job(_forget, world, half.id)
            world.pods.discard(half.id)
    running = {slot.container.id for slot in world.roster if slot.container.state in ("running", "paused")}
    for pod in world.pods:
        await world.job(pods_files.clear_roots, world.settings, pod.id, running)
        if pod.ready and not await world.job(pods_files.alive, world, pod):
            log.warning("pod %s has lost its namespaces", pod.id[:12])
            pod.ready = False
        if not pod.ready:
            try:
                await take_down(world, pod)
            except NagayaError as error:
                log.error("what pod %s left stays for now: %s", pod.id[:12], error)
            await world.job(put, world, pod)
    if any(pod.cni for pod in world.pods):
        world.task(pods_cni.recover(world, list(world.pods)), "CNI after the start")
