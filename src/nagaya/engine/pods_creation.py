"""Making a container in a pod: checked, merged with its image, with a snapshot and a row.

One blocking job, journaled as `creation.make` is; what a crash leaves, `creation.undo` takes away.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from nagaya.engine import (
    apparmor,
    creation,
    files,
    filling,
    merge,
    names,
    pods_files,
    pods_mounts,
    pods_spec,
    pods_users,
    privileges,
    spec_mounts,
    volumes,
)
from nagaya.engine.layered import LayeredRoot
from nagaya.engine.model import Container, ContainerConfig, MountSpec
from nagaya.engine.pods_model import LinuxResources, Pod, PodContainerConfig, PodMember
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument, NotFound, Unimplemented
from nagaya.oci import reference
from nagaya.oci.defaults import CAPABILITIES
from nagaya.oci.imageconfig import ContainerDefaults

_SECURITY = "config.linux.security_context"
_MOST_ENVIRONMENT = 1 << 20


def name_of(pod_id: str, config: PodContainerConfig) -> str:
    """The name in the roster: one for each attempt of a container of a pod, whatever letters it has."""
    text = msgspec.json.encode((pod_id, config.metadata.name, config.metadata.attempt))
    return f"pod-{hashlib.sha256(text).hexdigest()[:40]}"


def check(world: World, pod: Pod, config: PodContainerConfig) -> None:
    """Refuse what cannot run. Raises InvalidArgument with the field, Unimplemented."""
    if not config.metadata.name:
        raise InvalidArgument("config.metadata.name is empty", subject="config.metadata.name")
    if not config.image.image:
        raise InvalidArgument("config.image.image is empty", subject="config.image.image")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(f"{config.working_dir!r} is not absolute", subject="config.working_dir")
    if config.stdin_once and not config.stdin:
        raise InvalidArgument("stdin_once without stdin", subject="config.stdin_once")
    environment(config)
    pods_mounts.check(config.mounts)
    pods_spec.cdi_edits(world, config)
    for index, device in enumerate(config.devices):
        field = f"config.devices[{index}]"
        if not device.host_path.startswith("/"):
            raise InvalidArgument(f"host_path {device.host_path!r} is not absolute", subject=field)
    security = config.security
    options = security.namespace_options
    pods_users.check_member(pod.config, options.userns_options)
    if pods_users.of(pod.config) is not None and any(m.image for m in config.mounts):
        raise Unimplemented("images are not mounted in user namespaces", subject="config.mounts")
    for field in ("network", "ipc"):
        if getattr(options, field) == "TARGET":
            raise InvalidArgument(
                f"a container's {field} is its pod's", subject=f"{_SECURITY}.namespace_options.{field}"
            )
    if profile := pods_spec.apparmor_profile(world, config):
        apparmor.require(profile, f"{_SECURITY}.apparmor")
    privileges.capabilities(
        security.capabilities.add_capabilities,
        security.capabilities.drop_capabilities,
        privileged=security.privileged,
        default=CAPABILITIES,
        held=world.held,
    )
    if security.seccomp is not None and security.seccomp.profile_type == "Localhost":
        pods_spec.read_profile(security.seccomp.localhost_ref)
    log_path(pod, config)
    check_resources(config.linux.resources)


def check_resources(limits: LinuxResources) -> None:
    """Refuse numbers that no cgroup takes. Raises InvalidArgument."""
    field = "linux"
    if limits.memory_limit_in_bytes < -1 or limits.memory_swap_limit_in_bytes < -1:
        raise InvalidArgument("memory limits are not negative", subject=f"{field}.memory_limit_in_bytes")
    swap, memory = limits.memory_swap_limit_in_bytes, limits.memory_limit_in_bytes
    if 0 < swap < memory:
        raise InvalidArgument(
            "memory and swap together cannot be less than memory",
            subject=f"{field}.memory_swap_limit_in_bytes",
        )
    if limits.cpu_shares < 0 or limits.cpu_quota < -1 or limits.cpu_period < 0:
        raise InvalidArgument("cpu limits are not negative", subject=f"{field}.cpu_shares")
    if not -1000 <= limits.oom_score_adj <= 1000:
        raise InvalidArgument("is not between -1000 and 1000", subject=f"{field}.oom_score_adj")


def environment(config: PodContainerConfig) -> tuple[str, ...]:
    """NAME=value of all variables. Raises InvalidArgument for what no environment holds."""
    found = []
    for index, pair in enumerate(config.envs):
        field = f"config.envs[{index}]"
        if not pair.key or "=" in pair.key or "\0" in pair.key:
            raise InvalidArgument(f"{pair.key!r} cannot be a variable's name", subject=f"{field}.key")
        try:
            text = pair.value.decode()
        except UnicodeDecodeError:
            raise InvalidArgument(f"the value of {pair.key} is not UTF-8", subject=f"{field}.value") from None
        if "\0" in text:
            raise InvalidArgument(f"the value of {pair.key} has a null byte", subject=f"{field}.value")
        found.append(f"{pair.key}={text}")
    if sum(map(len, found)) > _MOST_ENVIRONMENT:
        raise InvalidArgument(f"is larger than {_MOST_ENVIRONMENT} bytes", subject="config.envs")
    return tuple(found)


def log_path(pod: Pod, config: PodContainerConfig) -> str:
    """Where the container's output goes, "" for nowhere. Raises InvalidArgument."""
    directory, name = pod.config.log_directory, config.log_path
    if not directory or not name:
        return ""
    path = posixpath.normpath(f"{directory}/{name}")
    if not path.startswith(posixpath.normpath(directory) + "/") or "\0" in name:
        raise InvalidArgument(f"{name!r} is not below the pod's log directory", subject="config.log_path")
    return path


def _translated(world: World, pod: Pod, config: PodContainerConfig, member: PodMember) -> ContainerConfig:
    """The parts that the engine's containers know by other names."""
    security = config.security
    signal = config.stop_signal
    return ContainerConfig(
        image=config.image.image,
        command=config.args or None,
        entrypoint=config.command or None,
        env=environment(config),
        working_dir=config.working_dir,
        tty=config.tty,
        open_stdin=config.stdin,
        stdin_once=config.stdin_once,
        stop_signal="" if signal == "SIGNAL_RUNTIME_DEFAULT" else _signal(signal),
        network_mode="none",  # the pod's
        privileged=security.privileged,
        read_only_rootfs=security.readonly_rootfs,
        cap_add=security.capabilities.add_capabilities,
        cap_drop=security.capabilities.drop_capabilities,
        security_opt=("no-new-privileges",) if security.no_new_privs else (),
        oom_score_adj=pods_spec.oom_score(config.linux.resources.oom_score_adj, world.held),
        cgroup_parent=pods_files.cgroup_parent(world.settings, pod),
        runtime="" if pod.runtime_handler in ("", "nagaya") else pod.runtime_handler,
        pod=member,
    )


def _signal(name: str) -> str:
    """SIGNAL_SIGRTMINPLUS3 as signals.number has it."""
    text = name.removeprefix("SIGNAL_SIG")
    return text.replace("PLUS", "+").replace("MINUS", "-")


def image_names(config: PodContainerConfig, image_id: str, known: Sequence[str]) -> tuple[str, str]:
    """What its status calls the image, which a kubelet asks for by id: the name that the pod has for it, or
    another; and a digest by which the registry knows it, else the id. Pure."""
    found = [reference.parse(name) for name in known]
    wanted = config.image.user_specified_image or config.image.image
    tags = [name for name in found if not name.digest]
    digests = [name for name in found if name.digest]
    with suppress(InvalidArgument):
        asked = reference.parse_tagged(wanted)
        tags.sort(key=lambda name: name.canonical != asked.canonical)
        digests.sort(key=lambda name: name.name != asked.name)
    name = tags[0].canonical if tags else wanted
    return name, digests[0].canonical if digests else image_id


def make(world: World, container_id: str, name: str, pod: Pod, config: PodContainerConfig) -> Container:
    """Make the container, or nothing. Raises NotFound (no such image), InvalidArgument and what the
    rooms raise."""
    check(world, pod, config)
    try:
        image = world.images.resolve(config.image.image)
    except NotFound as error:
        raise NotFound(error.message, subject="config.image.image") from None
    path = log_path(pod, config)
    defaults = image.config or ContainerDefaults()
    made = merge.merge(_translated(world, pod, config, PodMember(pod.id, config, path)), defaults)
    made = msgspec.structs.replace(made, health=None)  # a kubelet has probes of its own
    arguments = merge.argv(made)
    declared = [spec_mounts.clean_target(target) for target in made.image_volumes]
    targets = pods_spec.image_volumes(config, declared)
    points = [MountSpec("volume", target, names.new_id()) for target in targets]
    anonymous = [point.source for point in points]
    points += [pods_mounts.image_point(world, index, m) for index, m in enumerate(config.mounts) if m.image]
    settings, journal = world.settings, world.journal
    operation = journal.begin("create", container_id, {"volumes": anonymous})
    try:
        rootfs = world.images.prepare(container_id, image.id)
        layers = LayeredRoot([rootfs["upper"], *rootfs["lower"]])
        who = pods_spec.identity(config, made.user, layers)
        journal.point("create: snapshot")
        files.make_directory(settings.container_dir(container_id), 0o710)
        if path:
            files.make_directory(os.path.dirname(path), 0o755)
        for point in points:
            if point.type == "volume":
                volumes.ensure(world.ledger, journal, settings.root, point.source, anonymous=True)
                where = volumes.path_of(settings.root, point.source)
                filling.copy_up(layers, point.target, where, point=journal.point)
        user, names_of = (who.uid, who.gid, who.groups), image_names(config, image.id, image.names)
        member = PodMember(pod.id, config, path, user, image=names_of)
        made = msgspec.structs.replace(made, pod=member)
        container = Container(
            id=container_id,
            name=name,
            config=made,
            image_digest=image.id,
            created=time.time_ns(),
            path=arguments[0],
            args=arguments[1:],
            log_path=path,
            hostname=pods_files.hostname(pod),
            env=merge.environment(made.env, hostname="", tty=False),
            working_dir=made.working_dir,
            user=made.user,
            stop_signal=made.stop_signal,
            mount_points=tuple(points),
        )
        with world.ledger.write():
            world.ledger.put_container(container)
            journal.done(operation)
        journal.point("create: done")
    except Exception:
        creation.undo(world, container_id, anonymous)
        journal.done(operation)
        raise
    return container


def unmake(world: World, container: Container) -> None:
    """Take away what `make` made, when plugins do not want it. Blocking."""
    volumes_of = [p.source for p in container.mount_points if p.type == "volume"]
    creation.undo(world, container.id, volumes_of)
