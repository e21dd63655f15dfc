"""A pod's network: the built-in bridge, or CNI plugins where a configuration lies in the CNI directory.

The bridge's part is the one of containers (networks.py), with the pod as owner: plan in the ledger,
ports at the keeper, interface, rules; and back in the reverse order, each step repeatable.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import NamedTuple

from nagaya.engine import microvms, names, networks, pods_cni
from nagaya.engine.pods_model import Pod
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument, NagayaError
from nagaya.network import cni
from nagaya.network.model import EndpointPlan, Protocol, PublishedPort
from nagaya.network.service import close_all

_DIAL = 10.0  # seconds for a connection on loopback
_PROTOCOLS: dict[str, Protocol] = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}


class Condition(NamedTuple):
    """Is there a network for pods, and in one line, which."""

    ready: bool
    reason: str
    message: str


async def condition(world: World) -> Condition:
    """The state of the network for the next pod."""
    try:
        network = await pods_cni.network_of(world)
        if network is not None:
            await pods_cni.status(world, network)
    except NagayaError as error:
        return Condition(False, "NetworkPluginNotReady", str(error))
    if network is not None:
        return Condition(True, "CNI", f"network {network.name} of {network.source}")
    return Condition(True, "BuiltInBridge", f"no CNI configuration: pods are on {world.settings.bridge}")


def host_ports(pod: Pod) -> list[PublishedPort]:
    """The ports that the pod wants on the host. Raises InvalidArgument."""
    found = []
    for index, port in enumerate(pod.config.port_mappings):
        field = f"port_mappings[{index}]"
        if not 0 <= port.host_port <= 65535 or not 0 <= port.container_port <= 65535:
            raise InvalidArgument(f"{field}: a port is between 0 and 65535", subject=field)
        if port.host_port:
            if not port.container_port:
                raise InvalidArgument(f"{field}: a host port needs a container_port", subject=field)
            protocol = _PROTOCOLS[port.protocol]
            found.append(PublishedPort(port.container_port, protocol, port.host_ip, port.host_port))
    return found


async def connect_bridge(world: World, pod: Pod, netlink_fd: int) -> tuple[str, ...]:
    """Put the pod into the built-in bridge; its addresses. The netlink socket is closed. What is there
    after a failure `disconnect_bridge` takes away."""
    try:
        made, fds = await world.job(_plan, world, pod)
        if fds:
            try:
                await world.supervisor.hold(networks.hold_token(pod.id), fds)
            finally:
                close_all(fds)
        await world.job(_connect, world, pod, made, netlink_fd)
        if world.network.relayed(made):
            await networks.relay(world, pod.id, [made])
    finally:
        os.close(netlink_fd)
    return tuple(address for address in (made.address, made.address6) if address)


def _plan(world: World, pod: Pod) -> tuple[EndpointPlan, list[int]]:
    network = world.network
    bound, fds = network.reserve(host_ports(pod), endpoint=f"{pod.config.metadata.name} ({pod.id})")
    try:
        made = network.plan(names.new_id(), bound)
        networks.write(world, pod.id, [made])
    except BaseException:
        close_all(fds)
        raise
    return made, fds


def _connect(world: World, pod: Pod, made: EndpointPlan, netlink_fd: int) -> None:
    world.network.connect(made, world.settings.netns(pod.id), netlink_fd)
    world.journal.point("pod: connected")
    world.network.publish(made)


async def disconnect_bridge(world: World, pod: Pod) -> None:
    """Undo `connect_bridge`, also of half of it. May be repeated."""
    await world.job(networks.take_down, world, pod.id)
    if pod.config.port_mappings:
        await world.supervisor.unhold(networks.relay_token(pod.id))
        await world.supervisor.unhold(networks.hold_token(pod.id))


async def choose(world: World, pod: Pod) -> None:
    """Decide by what the pod will be connected, before anything is done. Raises InvalidArgument for a
    broken configuration, Unavailable for a plugin that is not there."""
    if pod.config.namespaces.network != "POD":
        return
    network = await pods_cni.network_of(world)
    if network is not None:
        for kind in network.types:
            cni.find(kind, world.settings.cni_bin_dir)
        pods_cni.attachment(world, pod)
        pod.cni = pods_cni.encode(network)


async def connect(world: World, pod: Pod, netlink_fd: int) -> tuple[str, ...]:
    """Connect the pod as was decided; its addresses. The netlink socket is closed."""
    if not pod.cni:
        return await connect_bridge(world, pod, netlink_fd)
    os.close(netlink_fd)
    return await pods_cni.add(world, pod)


async def disconnect(world: World, pod: Pod) -> None:
    """Undo `connect`, also of half of it. May be repeated."""
    if pod.cni:
        await pods_cni.delete(world, pod)
    else:
        await disconnect_bridge(world, pod)


async def dial(world: World, pod: Pod, port: int) -> socket.socket:
    """A connection to a port on the pod's loopback, over IPv4 or IPv6: a builder opens the sockets inside,
    nobody of ours enters. To a microVM's it is one to the pod's address. Raises OSError, NagayaError."""
    families = {"inet": (socket.AF_INET, "127.0.0.1"), "inet6": (socket.AF_INET6, "::1")}
    if microvms.is_handler(world, pod.runtime_handler):
        families = {a: (socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in pod.addresses}
        found = [socket.socket(family, socket.SOCK_STREAM) for family, _ in families.values()]
    elif pod.config.namespaces.network == "POD":
        request = {"op": "pod-sockets", "net": world.settings.netns(pod.id), "families": list(families)}
        fds = (await world.supervisor.call(request)).fds
        found = [socket.socket(fileno=fd) for fd in fds]
    else:
        found = [socket.socket(family, socket.SOCK_STREAM) for family, _ in families.values()]
    loop = asyncio.get_running_loop()
    failure: OSError = ConnectionRefusedError("refused")
    chosen: socket.socket | None = None
    try:
        for sock, (_, address) in zip(found, families.values(), strict=True):
            sock.setblocking(False)
            try:
                async with asyncio.timeout(_DIAL):
                    await loop.sock_connect(sock, (address, port))
                chosen = sock
                return sock
            except OSError as error:  # TimeoutError is one
                failure = failure if ":" in address else error
        raise failure
    finally:
        for sock in found:
            if sock is not chosen:
                sock.close()
