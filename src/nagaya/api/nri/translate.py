"""Pods and containers as plugins see them, and what plugins answer as plain data."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from nagaya.api.nri import nri_pb2 as nri
from nagaya.engine import pods_files
from nagaya.engine.model import Container
from nagaya.engine.pods_model import LinuxResources, Pod
from nagaya.engine.pods_spec import member_of
from nagaya.engine.world import World

_STATES = {
    "created": nri.CONTAINER_CREATED,
    "running": nri.CONTAINER_RUNNING,
    "paused": nri.CONTAINER_PAUSED,
    "exited": nri.CONTAINER_STOPPED,
}


def pod_message(world: World, pod: Pod) -> nri.PodSandbox:
    """A pod."""
    config, meta = pod.config, pod.config.metadata
    kinds = {"net": "network", "uts": "uts", "ipc": "ipc", "user": "user"}
    found = nri.PodSandbox(
        id=pod.id,
        name=meta.name,
        uid=meta.uid,
        namespace=meta.namespace,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=pod.runtime_handler,
        ips=pod.addresses,
        linux=nri.LinuxPodSandbox(
            cgroup_parent=config.linux.cgroup_parent,
            namespaces=[
                nri.LinuxNamespace(type=kinds[kind], path=path)
                for kind, path in pods_files.pins(world.settings, pod).items()
            ],
        ),
    )
    if config.linux.overhead is not None:
        found.linux.pod_overhead.CopyFrom(resources(config.linux.overhead))
    if config.linux.resources is not None:
        found.linux.pod_resources.CopyFrom(resources(config.linux.resources))
    return found


def container_message(world: World, pod: Pod, container: Container) -> nri.Container:
    """A container, as its kubelet wants it."""
    member = member_of(container)
    config = member.config
    uid, gid, groups = member.user
    options = {
        "PROPAGATION_PRIVATE": "rprivate",
        "PROPAGATION_HOST_TO_CONTAINER": "rslave",
        "PROPAGATION_BIDIRECTIONAL": "rshared",
    }
    return nri.Container(
        id=container.id,
        pod_sandbox_id=member.pod_id,
        name=config.metadata.name,
        state=_STATES.get(container.state, nri.CONTAINER_UNKNOWN),
        labels=config.labels,
        annotations=config.annotations,
        args=[container.path, *container.args],
        env=container.env,
        mounts=[
            nri.Mount(
                destination=mount.container_path,
                type="bind",
                source=mount.host_path,
                options=["rbind", options[mount.propagation], "ro" if mount.readonly else "rw"],
            )
            for mount in config.mounts
            if mount.host_path
        ],
        linux=nri.LinuxContainer(
            resources=resources(config.linux.resources),
            oom_score_adj=nri.OptionalInt(value=container.config.oom_score_adj),
            cgroups_path=pods_files.cgroups_path(world.settings, pod, container.id),
        ),
        pid=container.pid,
        created_at=container.created,
        started_at=container.started,
        finished_at=container.finished,
        exit_code=container.exit_code,
        status_message=container.error,
        CDI_devices=[nri.CDIDevice(name=device.name) for device in config.CDI_devices],
        user=nri.User(uid=uid, gid=gid, additional_gids=groups),
    )


def resources(limits: LinuxResources) -> nri.LinuxResources:
    """Limits; what is not said is absent."""
    found = nri.LinuxResources(unified=limits.unified)
    for section, field, value in (
        (found.memory, "limit", limits.memory_limit_in_bytes),
        (found.memory, "swap", limits.memory_swap_limit_in_bytes),
        (found.cpu, "shares", limits.cpu_shares),
        (found.cpu, "quota", limits.cpu_quota),
        (found.cpu, "period", limits.cpu_period),
    ):
        if value:
            getattr(section, field).value = value
    if limits.cpuset_cpus:
        found.cpu.cpus = limits.cpuset_cpus
    if limits.cpuset_mems:
        found.cpu.mems = limits.cpuset_mems
    for page in limits.hugepage_limits:
        found.hugepage_limits.add(page_size=page.page_size, limit=page.limit)
    return found


def plain(message: Message) -> Any:
    """A message as dicts and lists of what is set in it, its Optional... wrappers unwrapped, its enumerations
    by name."""
    if message.DESCRIPTOR.name.startswith("Optional"):
        return getattr(message, "value")  # noqa: B009  # a field that only these messages have
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = {k: plain(v) if isinstance(v, Message) else v for k, v in value.items()}
        elif isinstance(value, Message):
            found[field.name] = plain(value)
        elif field.enum_type is not None:
            names = {known.number: known.name for known in field.enum_type.values}
            several = [value] if isinstance(value, int) else list(value)
            words = [names.get(number, str(number)) for number in several]
            found[field.name] = words[0] if isinstance(value, int) else words
        elif isinstance(value, int | float | str | bytes | bool):
            found[field.name] = value
        else:
            found[field.name] = [plain(v) if isinstance(v, Message) else v for v in value]
    return found
