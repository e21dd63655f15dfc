"""Networks made and removed, and running containers plugged in and out: each done or undone, never between.

What a crash interrupts is settled by `settle` before the network room starts: the ledger's rows say what is,
and the room makes the kernel agree with them. A container's default routes are led anew by `heal`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence

import msgspec

from nagaya.engine import launch, microvms, names, netconfig, nettable, networks
from nagaya.engine.journal import Operation
from nagaya.engine.model import Attachment, Container, Network, NetworkCreation
from nagaya.engine.nettable import PREDEFINED, attachments, key_of
from nagaya.engine.roster import Slot
from nagaya.engine.world import World
from nagaya.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NagayaError,
    NotFound,
    PermissionDenied,
)
from nagaya.network.design import NetworkRequest
from nagaya.network.model import EndpointPlan

log = logging.getLogger(__name__)

_NOT_HOST = "container cannot be disconnected from host network or connected to host network"
_LONGEST = 255


class NetworkChanges:
    """Lives on the event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = asyncio.Lock()  # one network is made or removed at a time

    # networks

    async def create(self, asked: NetworkCreation) -> Network:
        """Make a network. Raises AlreadyExists, PermissionDenied, InvalidArgument and kin."""
        world = self._world
        _check_name(asked.name)
        if asked.ipam_driver not in ("", "default"):
            raise NotFound(f'plugin "{asked.ipam_driver}" not found', subject="IPAM.Driver")
        async with self._lock:
            if world.nets.named(asked.name) is not None:
                raise AlreadyExists(f"network with name {asked.name} already exists", subject=asked.name)
            network = await world.job(_create, world, netconfig.completed(world.nets, asked))
            world.nets.add(network)
        networks.tell_of(world, network, "create")
        return network

    async def remove(self, ref: str) -> None:
        """Remove a network that no running container is in. Raises NotFound, PermissionDenied."""
        world = self._world
        async with self._lock:
            network = world.nets.find(ref)
            if network.name in PREDEFINED:
                raise PermissionDenied(f"{network.name} is a pre-defined network and cannot be removed")
            netconfig.check_unused(world.nets, network)
            await self._remove(network)

    async def _remove(self, network: Network) -> None:
        world = self._world
        await world.job(_remove, world, network)
        world.nets.discard(network.id)
        networks.tell_of(world, network, "destroy")

    async def prune(self, wanted: Callable[[Network], bool]) -> list[str]:
        """Remove all wanted networks that nobody is in, running or not; their names."""
        world = self._world
        removed = []
        async with self._lock:
            used = {a.network for slot in world.roster for a in attachments(slot.container)}
            for network in world.nets:
                if network.name in PREDEFINED or {network.name, network.id} & used or not wanted(network):
                    continue
                try:
                    netconfig.check_unused(world.nets, network)
                    await self._remove(network)
                except PermissionDenied:
                    continue  # somebody has just come
                removed.append(network.name)
        world.bus.publish("network", "prune", "", {"reclaimed": "0"})
        return removed

    # containers

    async def connect(self, ref: str, container_ref: str, attachment: Attachment) -> None:
        """Add a container to a network, at once when it runs."""
        world = self._world
        network = world.nets.find(ref)
        slot = world.roster.find(container_ref)
        async with slot.lock:
            container = slot.container
            _check_may_change(container, network)
            microvms.check_networks(world, container)
            present = attachments(container)
            if any(world.nets.get(a.network) is network for a in present):
                raise PermissionDenied(
                    f"endpoint with name {container.name} already exists in network {network.name}"
                )
            if network.name == "none" or any(a.network == "none" for a in present):
                raise PermissionDenied(
                    "container cannot be connected to multiple networks with one of the networks in private "
                    "(none) mode"
                )
            attachment = msgspec.structs.replace(attachment, network=network.name)
            networks.check(attachment, network)
            if container.state in ("running", "paused"):
                await self._plug(slot, network, (*present, attachment), attachment)
            else:
                container.networks = (*present, attachment)
                await world.job(world.ledger.put_container, container)
        networks.tell_of(world, network, "connect", container=container.id)

    async def disconnect(self, ref: str, container_ref: str, *, force: bool = False) -> None:
        """Take a container out of a network, at once when it runs."""
        world = self._world
        network = world.nets.find(ref)
        try:
            slot = world.roster.find(container_ref)
        except NotFound:
            if not force:
                raise
            raise NotFound(f"endpoint {container_ref} not found", subject=container_ref) from None
        async with slot.lock:
            container = slot.container
            if network.name == "host" or container.config.network_mode == "host":
                raise PermissionDenied(_NOT_HOST)
            microvms.check_networks(world, container)
            present = attachments(container)
            left = tuple(a for a in present if world.nets.get(a.network) is not network)
            if left == present:
                raise PermissionDenied(f"container {container.id} is not connected to network {network.name}")
            if container.state in ("running", "paused") and network.name != "none":
                await self._unplug(slot, network, left)
            else:
                container.networks = left
                await world.job(world.ledger.put_container, container)
        networks.tell_of(world, network, "disconnect", container=container.id)

    async def _enter(self, container: Container, network: Network | None = None) -> int:
        """An rtnetlink socket in the container's network namespace; for the first network where containers
        have names also a resolver."""
        world = self._world
        request: dict[str, object] = {"op": "netns-enter", "path": netns_of(world, container)}
        if network is not None:
            request["ipv6"] = network.asked.ipv6
            resolver = network.name not in PREDEFINED and not world.names.has(container.id)
            request["dns"] = resolver and networks.dns_token(container.id) not in world.supervisor.held
        reply = await world.supervisor.call(request)
        if len(reply.fds) > 1:
            await networks.hold_resolver(world, container.id, reply.fds[1:])
        return reply.fds[0]

    async def _plug(
        self, slot: Slot, network: Network, future: tuple[Attachment, ...], attachment: Attachment
    ) -> None:
        world, container = self._world, slot.container
        netlink = await self._enter(container, network)
        try:
            changed = await world.job(_plug, world, container, network, future, attachment, netlink)
        finally:
            os.close(netlink)
        container.networks, container.endpoints = changed.networks, changed.endpoints
        await self._relay(container)

    async def _relay(self, container: Container) -> None:
        """Ports may have moved to another endpoint."""
        world = self._world
        if networks.hold_token(container.id) in world.supervisor.held:
            made = await world.job(networks.plans, world.ledger, container.id)
            await networks.relay(world, container.id, made)

    async def _unplug(self, slot: Slot, network: Network, future: tuple[Attachment, ...]) -> None:
        world, container = self._world, slot.container
        netlink = await self._enter(container)
        try:
            changed = await world.job(_unplug, world, container, network, future, netlink)
        finally:
            os.close(netlink)
        container.networks, container.endpoints = changed.networks, changed.endpoints
        await self._relay(container)

    async def heal(self, container_ids: Sequence[str]) -> None:
        """Lead the default routes of running containers as the ledger has them: after a crash. One that has
        just ended needs none."""
        world = self._world
        for container_id in container_ids:
            slot = world.roster.get(container_id)
            if slot is None or slot.container.state not in ("running", "paused"):
                continue
            try:
                await self._heal(slot.container)
            except NagayaError as error:
                log.error("networks of container %s: %s", container_id[:12], error)

    async def _heal(self, container: Container) -> None:
        world = self._world
        netlink = await self._enter(container)
        try:
            plans = await world.job(networks.plans, world.ledger, container.id)
            await world.job(world.network.route, plans, netlink)
            container.endpoints = tuple(networks.endpoint(world, plan) for plan in plans)
            await world.job(launch.rewrite_etc, world, container)
        finally:
            os.close(netlink)


def netns_of(world: World, container: Container) -> str:
    """A path to a running container's network namespace."""
    pin = world.settings.netns(container.id)
    return pin if os.path.exists(pin) else f"/proc/{container.pid}/ns/net"


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > _LONGEST or not name.isprintable():
        raise InvalidArgument(
            f"invalid name: {name[:300]!r}" if name.strip() else "invalid name: name is empty"
        )
    if name in PREDEFINED or name == "default":
        raise PermissionDenied(f"operation is not permitted on predefined {name} network ")


def _check_may_change(container: Container, network: Network) -> None:
    mode = container.config.network_mode
    if container.state in ("removing", "dead"):
        raise FailedPrecondition(f"container {container.id} is marked for removal")
    if mode.startswith("container:") or (mode == "host" and network.name != "host"):
        raise PermissionDenied(
            "container sharing network namespace with another container or host cannot be connected to any "
            "other network"
        )
    if network.name == "host":
        raise PermissionDenied(_NOT_HOST)


def _create(world: World, asked: NetworkCreation) -> Network:
    request = NetworkRequest(
        names.new_id(), asked.driver, asked.internal, asked.ipv6, asked.ipv4, asked.ipam, asked.options
    )
    if asked.config_only:
        network = Network(request.id, time.time_ns(), asked)
        nettable.put(world.ledger, network)
        return network
    plan = world.network.design(request)
    network = Network(request.id, time.time_ns(), asked, plan)
    number = world.journal.begin("network create", network.id)
    try:
        world.network.add(plan)
        world.journal.point("network create: made")
        with world.ledger.write():
            nettable.put(world.ledger, network)
            world.journal.done(number)
        world.journal.point("network create: done")
    except Exception:
        world.network.remove(network.id)
        world.journal.done(number)
        raise
    return network


def _remove(world: World, network: Network) -> None:
    number = world.journal.begin("network remove", network.id)
    try:
        world.network.remove(network.id)
    except FailedPrecondition as error:
        world.journal.done(number)
        raise PermissionDenied(
            f"error while removing network: network {network.name} id {network.id} {error.message}"
        ) from None
    world.journal.point("network remove: gone")
    _forget_network(world, network.id, number)
    world.journal.point("network remove: done")


def _forget_network(world: World, network_id: str, number: int) -> None:
    with world.ledger.write():
        nettable.delete(world.ledger, network_id)
        world.journal.done(number)


def elect(world: World, container: Container, plans: Sequence[EndpointPlan]) -> list[EndpointPlan]:
    """The plans with the default route, and the published ports, where they belong: on the endpoint that
    `networks.chief` names. Ports move with their sockets."""
    wishes = {}
    for attachment in attachments(container):
        network = world.nets.get(attachment.network)
        if network is not None:
            wishes[key_of(network)] = (attachment, network)
    known = [plan for plan in plans if plan.network in wishes]
    pairs = [wishes[plan.network] for plan in known]
    first = networks.chief(pairs)
    ports = next((plan.ports for plan in plans if plan.ports), ())
    found = []
    for index, plan in enumerate(known):
        here = index == first
        takes = here and bool(networks.ports_of(container, pairs[index][1]))
        found.append(msgspec.structs.replace(plan, default_route=here, ports=ports if takes else ()))
    return found


def _move(world: World, old: Sequence[EndpointPlan], new: Sequence[EndpointPlan], netlink: int) -> None:
    """Lead routes and published ports from the old plans' endpoints to the new ones'."""
    before = {plan.endpoint_id: plan for plan in old}
    for plan in old:
        if plan.ports and not any(p.endpoint_id == plan.endpoint_id and p.ports for p in new):
            world.network.unpublish(plan)
    for plan in new:
        world.network.replace(plan)
        if plan.ports and not before.get(plan.endpoint_id, _NOTHING).ports:
            world.network.publish(plan)
    staying = {plan.endpoint_id for plan in new}
    going = [
        msgspec.structs.replace(plan, default_route=False) for plan in old if plan.endpoint_id not in staying
    ]
    world.network.route([*going, *new], netlink)


_NOTHING = EndpointPlan("", "", 0, "", "", "")


def _plug(
    world: World,
    container: Container,
    network: Network,
    future: tuple[Attachment, ...],
    attachment: Attachment,
    netlink: int,
) -> Container:
    """Make the endpoint; returns the container as it is then."""
    journal = world.journal
    old = networks.plans(world.ledger, container.id)
    number = 1 + max((_number(plan.interface) for plan in old), default=-1)
    after = msgspec.structs.replace(container, networks=future)
    operation = journal.begin("connect", container.id, {"network": key_of(network)})
    made = None
    try:
        made = world.network.plan(
            names.new_id(),
            network=key_of(network),
            wanted=networks.wanted(attachment, f"eth{number}", default_route=False),
        )
        networks.write(world, container.id, [made])
        journal.point("connect: planned")
        world.network.connect(made, netns_of(world, container), netlink)
        journal.point("connect: connected")
        new = elect(world, after, [*old, made])
        _move(world, [*old, made], new, netlink)
        journal.point("connect: routed")
        after.endpoints = tuple(networks.endpoint(world, plan) for plan in new)
        with world.ledger.write():
            networks.rewrite(world, container.id, new)
            world.ledger.put_container(after)
            journal.done(operation)
    except Exception:
        if made is not None:
            _move(world, [*old, made], old, netlink)
            world.network.unplug(made, netlink)
        with world.ledger.write():
            networks.forget(world, container.id, key_of(network))
            journal.done(operation)
        raise
    journal.point("connect: done")
    networks.tell_names(world, after)
    launch.rewrite_etc(world, after)
    return after


def _number(interface: str) -> int:
    digits = interface.removeprefix("eth")
    return int(digits) if digits.isdigit() else -1


def _unplug(
    world: World, container: Container, network: Network, future: tuple[Attachment, ...], netlink: int
) -> Container:
    """Take the endpoint away; returns the container as it is then."""
    journal, key = world.journal, key_of(network)
    old = networks.plans(world.ledger, container.id)
    after = msgspec.structs.replace(container, networks=future)
    operation = journal.begin("disconnect", container.id, {"network": key})
    new = elect(world, after, [plan for plan in old if plan.network != key] or [])
    gone = [plan for plan in old if plan.network == key]
    ports = next((plan.ports for plan in gone if plan.ports), ())
    if ports:
        new = elect(world, after, [msgspec.structs.replace(p, ports=ports) for p in new])
    _move(world, old, new, netlink)
    journal.point("disconnect: routed")
    for plan in gone:
        world.network.unplug(plan, netlink)
    journal.point("disconnect: unplugged")
    after.endpoints = tuple(networks.endpoint(world, plan) for plan in new)
    with world.ledger.write():
        networks.forget(world, container.id, key)
        networks.rewrite(world, container.id, new)
        world.ledger.put_container(after)
        journal.done(operation)
    journal.point("disconnect: done")
    networks.tell_names(world, after)
    launch.rewrite_etc(world, after)
    return after


KINDS = ("network create", "network remove", "connect", "disconnect")


async def settle(world: World, operation: Operation) -> str:
    """Finish or undo what a crash interrupted, in the ledger; the journal's row is the caller's. Returns
    the id of a container that must be healed, or ""."""
    match operation.kind:
        case "network create":
            return ""  # it has no row: the network room removes what it does not know
        case "network remove":
            if not await world.job(_is_used, world, operation.subject):
                await world.job(nettable.delete, world.ledger, operation.subject)
                world.nets.discard(operation.subject)
            return ""
    slot = world.roster.get(operation.subject)
    key = str(operation.data.get("network", ""))
    if slot is None:
        return ""
    container = slot.container
    if operation.kind == "disconnect":
        container.networks = tuple(a for a in attachments(container) if _key(world, a.network) != key)
    await world.job(_settle_endpoint, world, container, key)
    return container.id


def _key(world: World, ref: str) -> str:
    network = world.nets.get(ref)
    return key_of(network) if network is not None else ref


def _is_used(world: World, network_id: str) -> bool:
    return bool(world.ledger.read("SELECT 1 FROM endpoints WHERE network=?", (network_id,)))


def _settle_endpoint(world: World, container: Container, key: str) -> None:
    """The endpoint is not there: its row goes, its ports and its route are another's."""
    plans = networks.plans(world.ledger, container.id)
    ports = next((plan.ports for plan in plans if plan.ports), ())
    left = [msgspec.structs.replace(p, ports=ports) for p in plans if p.network != key]
    try:
        new = elect(world, container, left)
    except NagayaError:
        new = []
    with world.ledger.write():
        networks.forget(world, container.id, key)
        networks.rewrite(world, container.id, new)
        container.endpoints = tuple(networks.endpoint(world, plan) for plan in new)
        world.ledger.put_container(container)
