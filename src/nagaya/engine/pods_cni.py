"""CNI plugins executed for pods: ADD in the order of the list, DEL in the reverse order, CHECK and GC
when the daemon starts, STATUS when a kubelet asks.

A plugin gets its environment, its input and two minutes; whatever it does meanwhile is its own. DEL is
asked for half of an ADD, too: the specification wants it to succeed then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from nagaya.engine.pods_model import Pod
from nagaya.engine.world import World
from nagaya.errors import DeadlineExceeded, KernelError, NagayaError
from nagaya.network import cni

log = logging.getLogger(__name__)

_PATIENCE = 120.0
_MOST_OUTPUT = 1 << 20
_encode = msgspec.json.Encoder().encode


async def network_of(world: World) -> cni.Network | None:
    """What the next pod is connected by; None: the built-in bridge. Raises InvalidArgument."""
    return await world.job(cni.load, world.settings.cni_conf_dir)


def stored(pod: Pod) -> cni.Network:
    """What a pod was connected by, whatever lies in the directory now."""
    return msgspec.json.decode(pod.cni, type=cni.Network)


def encode(network: cni.Network) -> bytes:
    """For the pod's row."""
    return _encode(network)


def attachment(world: World, pod: Pod) -> cni.Attachment:
    """What the plugins are told of a pod. Raises InvalidArgument."""
    config, meta = pod.config, pod.config.metadata
    capabilities: dict[str, Any] = {}
    ports = [
        (p.host_port, p.container_port, p.protocol.lower(), p.host_ip)
        for p in config.port_mappings
        if p.host_port
    ]
    if ports:
        capabilities["portMappings"] = cni.port_mappings(ports)
    if limits := cni.bandwidth(config.annotations):
        capabilities["bandwidth"] = limits
    if dns := config.dns_config:
        capabilities["dns"] = {
            "servers": dns.servers,
            "searches": dns.searches,
            "options": dns.options,
        }
    capabilities["io.kubernetes.cri.pod-annotations"] = config.annotations
    arguments = (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", meta.namespace),
        ("K8S_POD_NAME", meta.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id),
        ("K8S_POD_UID", meta.uid),
    )
    return cni.Attachment(pod.id, world.settings.netns(pod.id), arguments, capabilities)


async def add(world: World, pod: Pod) -> tuple[str, ...]:
    """Connect a pod; its addresses. The result is the pod's, for DEL. Raises Unavailable and kin."""
    network, told = stored(pod), attachment(world, pod)
    previous: dict[str, Any] | None = None
    for plugin in network.plugins:
        text = await _run(world, network, plugin, "ADD", told, previous)
        previous = cni.result(text, str(plugin["type"]))
        world.journal.point("pod: plugin added")
    pod.cni_result = _encode(previous)
    return cni.addresses(previous or {})


async def delete(world: World, pod: Pod) -> None:
    """Disconnect a pod; every plugin is asked, also after one has failed. Raises the first failure."""
    network, told = stored(pod), attachment(world, pod)
    previous = msgspec.json.decode(pod.cni_result) if pod.cni_result else None
    if not network.at_least("0.4.0"):
        previous = None
    failures: list[NagayaError] = []
    for plugin in reversed(network.plugins):
        try:
            await _run(world, network, plugin, "DEL", told, previous)
        except NagayaError as error:
            failures.append(error)
    if failures:
        raise failures[0]


async def check(world: World, pod: Pod) -> None:
    """Is the pod connected as the plugins left it? Raises Unavailable in their words."""
    network = stored(pod)
    if network.disable_check or not network.at_least("0.4.0") or not pod.cni_result:
        return
    told, previous = attachment(world, pod), msgspec.json.decode(pod.cni_result)
    for plugin in network.plugins:
        await _run(world, network, plugin, "CHECK", told, previous)


async def collect(world: World, network: cni.Network, pods: Sequence[Pod]) -> None:
    """Let the plugins of version 1.1 forget all but these pods. Raises what they say."""
    if network.disable_gc or not network.at_least("1.1.0"):
        return
    valid = [{"containerID": pod.id, "ifname": cni.INTERFACE} for pod in pods]
    for plugin in network.plugins:
        await _run(world, network, plugin, "GC", None, None, {"cni.dev/valid-attachments": valid})


async def status(world: World, network: cni.Network) -> None:
    """Are the plugins there, and, of version 1.1, ready? Raises Unavailable."""
    for kind in network.types:
        cni.find(kind, world.settings.cni_bin_dir)
    if network.at_least("1.1.0"):
        for plugin in network.plugins:
            await _run(world, network, plugin, "STATUS", None, None)


async def _run(
    world: World,
    network: cni.Network,
    plugin: dict[str, Any],
    command: str,
    told: cni.Attachment | None,
    previous: dict[str, Any] | None,
    more: dict[str, Any] | None = None,
) -> bytes:
    directories, kind = world.settings.cni_bin_dir, str(plugin["type"])
    path = cni.find(kind, directories)
    text = cni.plugin_input(network, plugin, told, previous, more)
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=cni.environment(command, told, directories),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}", subject=kind, step=f"CNI {command}") from None
    try:
        async with asyncio.timeout(_PATIENCE):
            output, errors = await process.communicate(text)
    except TimeoutError:
        raise DeadlineExceeded(
            f"CNI plugin {kind}, {command}: no end after {_PATIENCE:g} s", subject=kind
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode or len(output) > _MOST_OUTPUT:
        raise cni.failure(output[:_MOST_OUTPUT], errors, kind, command)
    return output


async def recover(world: World, pods: Sequence[Pod]) -> None:
    """After a start of the daemon: say which pods have lost their network, and let plugins forget pods that
    nobody knows. Failures are told, and nothing more."""
    ours = [pod for pod in pods if pod.cni and pod.connected]
    for pod in ours:
        try:
            await check(world, pod)
        except NagayaError as error:
            log.warning("pod %s: %s", pod.id[:12], error)
    try:
        network = await network_of(world)
        if network is not None:
            await collect(world, network, ours)
    except NagayaError as error:
        log.warning("CNI: %s", error)
