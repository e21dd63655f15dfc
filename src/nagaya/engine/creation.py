"""Making a container: the request checked and merged with the image, its files and its ledger row.

All of it is one blocking job, so that the event loop waits once. The journal's "create" names what
to take away again when the daemon dies in the middle: snapshot, directory, anonymous volumes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from nagaya.engine import (
    cdi,
    devices,
    files,
    filling,
    health,
    limits,
    logoptions,
    logtargets,
    merge,
    names,
    privileges,
    remap,
    spec_mounts,
    volumes,
)
from nagaya.engine.layered import LayeredRoot
from nagaya.engine.model import Container, ContainerConfig, CreateRequest, MountSpec
from nagaya.engine.volume_life import check_driver
from nagaya.engine.world import World
from nagaya.errors import InvalidArgument
from nagaya.network import resolv
from nagaya.oci.defaults import CAPABILITIES
from nagaya.oci.imageconfig import ContainerDefaults


def check(world: World, config: ContainerConfig) -> tuple[ContainerConfig, list[str]]:
    """(the configuration with checked limits, warnings). Raises InvalidArgument for whatever would
    fail at the start: a container that cannot run is not made."""
    settings = world.settings
    checked = limits.check(config.resources, cpus=world.cpus, memory_nodes=_memory_nodes())
    checked, warnings = limits.supported(checked, world.abilities)
    config = msgspec.structs.replace(config, resources=checked)
    devices.block_io(checked)
    for text in config.device_cgroup_rules:
        devices.rule(text)
    cdi.names(config.device_requests)
    _, more = privileges.capabilities(
        config.cap_add,
        config.cap_drop,
        privileged=config.privileged,
        default=CAPABILITIES,
        held=world.held,
    )
    warnings += more
    security = privileges.security_options(config.security_opt, privileged=config.privileged)
    if security.seccomp not in ("default", "unconfined"):
        privileges.seccomp_document(security.seccomp)
    privileges.sysctls(
        config.sysctls, host_network=config.network_mode == "host", host_ipc=config.ipc_mode == "host"
    )
    privileges.rlimits(config.ulimits)
    if config.health is not None:
        health.check(config.health)
    warnings += logoptions.check(config.log, journal=os.path.exists(logtargets.JOURNAL))
    if config.hostname:
        resolv.check_hostname(config.hostname)
    if config.domainname:
        resolv.check_hostname(config.domainname)
    resolv.resolv_conf("", dns=config.dns, search=config.dns_search, options=config.dns_options)
    for entry in config.extra_hosts:
        resolv.parse_extra_host(entry, "0.0.0.0")
    for options in config.tmpfs.values():
        spec_mounts.tmpfs_options(options.split(","))
    if config.network_mode == "host" and config.ports:
        warnings.append("Published ports are discarded when using host network mode")
    for mode, field in (
        (config.pid_mode, "PidMode"),
        (config.ipc_mode, "IpcMode"),
        (config.uts_mode, "UTSMode"),
    ):
        if mode not in ("", "host", "private", "shareable", "none") and not mode.startswith("container:"):
            raise InvalidArgument(f"invalid {field}: {mode}", subject=field)
    if config.cgroupns_mode not in ("", "private", "host"):
        raise InvalidArgument(
            f"invalid cgroup namespace mode: {config.cgroupns_mode}", subject="CgroupnsMode"
        )
    _check_parent(config.cgroup_parent)
    if config.auto_remove and config.restart.name != "no":
        raise InvalidArgument(
            "can't create 'AutoRemove' container with restart policy", subject="RestartPolicy"
        )
    if config.restart.maximum_retry_count < 0 or (
        config.restart.maximum_retry_count and config.restart.name != "on-failure"
    ):
        raise InvalidArgument(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
            subject="RestartPolicy",
        )
    remap.check(settings, config)
    if config.init and not settings.init_path:
        raise InvalidArgument("--init needs catatonit, which was not found on this host", subject="Init")
    if (
        config.runtime
        and config.runtime != settings.default_runtime
        and config.runtime not in settings.runtimes
    ):
        raise InvalidArgument(f"unknown or invalid runtime name: {config.runtime}", subject="Runtime")
    return config, warnings


def _check_parent(parent: str) -> None:
    if any(part == ".." for part in parent.split("/")) or "\0" in parent:
        raise InvalidArgument(f"invalid cgroup parent: {parent}", subject="CgroupParent")


def _memory_nodes() -> set[int]:
    try:
        with open("/sys/devices/system/node/online", encoding="ascii") as file:
            return limits.parse_cpuset(file.read().strip(), "mems")
    except (OSError, InvalidArgument):
        return {0}


class Made(NamedTuple):
    """A container that is made. operation: the journal's, when it is still open because `unfilled`, its
    volumes that must be mounted first, wait for their files; `fill` them, then `commit` or `give_up`.
    volumes: those that were made for it. anonymous: which of its volumes go with it."""

    container: Container
    warnings: list[str]
    operation: int
    unfilled: list[MountSpec]
    volumes: list[str]
    anonymous: list[str]


def _points(world: World, config: ContainerConfig, inherited: Sequence[MountSpec]) -> list[MountSpec]:
    """What will be mounted, anonymous volumes with a name, images by their id, one target each; the
    user's before the image's volumes, and in the place of what comes from other containers. Raises
    InvalidArgument, NotFound."""
    found = {mount.target: mount for mount in inherited if mount.target not in config.tmpfs}
    own: set[str] = set()
    for mount in config.mounts:
        target = spec_mounts.clean_target(mount.target)
        if target in own or target in config.tmpfs:
            raise InvalidArgument(f"Duplicate mount point: {target}", subject="Mounts")
        own.add(target)
        source = mount.source
        if mount.type == "volume":
            source = source or names.new_id()
            volumes.check_name(source)
            volumes.check_options(source, mount.driver_options)
            check_driver(source, mount.driver or config.volume_driver)
        if mount.type == "image":
            source = world.images.resolve(source).id
        found[target] = msgspec.structs.replace(mount, target=target, source=source)
    for path in config.image_volumes:
        target = spec_mounts.clean_target(path)
        if target not in found and target not in config.tmpfs:
            source = names.new_id()
            check_driver(source, config.volume_driver)
            found[target] = MountSpec("volume", target, source)
    return list(found.values())


def make(world: World, container_id: str, name: str, request: CreateRequest) -> Made:
    """Make the container, or nothing. Raises NotFound ("No such image"), InvalidArgument and what
    the rooms raise."""
    image = world.images.resolve(request.config.image, request.platform)
    config, warnings = check(world, merge.merge(request.config, image.config or ContainerDefaults()))
    points = _points(world, config, request.inherited)
    given = {m.source for m in (*config.mounts, *request.inherited) if m.type == "volume"}
    anonymous = [p.source for p in points if p.type == "volume" and p.source not in given]
    hostname = config.hostname
    if not hostname:
        hostname = (
            os.uname().nodename if "host" in (config.network_mode, config.uts_mode) else container_id[:12]
        )
    arguments = merge.argv(config)
    settings, journal = world.settings, world.journal
    directory = settings.container_dir(container_id)
    container = Container(
        id=container_id,
        name=name,
        config=config,
        image_digest=image.id,
        created=time.time_ns(),
        path=arguments[0],
        args=arguments[1:],
        log_path=logoptions.path(settings, container_id, config.log),
        hostname=hostname,
        env=merge.environment(config.env, hostname="", tty=False),
        working_dir=config.working_dir,
        user=config.user,
        labels=config.labels,
        stop_signal=config.stop_signal,
        mount_points=tuple(points),
    )
    for point in points:
        if point.type == "bind":
            volumes.bind_source(point.source, create=point.create_source)
    named = sorted({p.source for p in points if p.type == "volume"}.difference(anonymous))
    operation = journal.begin("create", container_id, {"volumes": anonymous, "named": named})
    made, unfilled = [], []
    try:
        rootfs = world.images.prepare(container_id, image.id)
        # programs tell by it that they run in one of Docker's containers (systemd-detect-virt, installers)
        files.write(f"{rootfs['upper']}/.dockerenv", "", 0o755)
        journal.point("create: snapshot")
        files.make_directory(directory, 0o710)
        journal.point("create: directory")
        layers = LayeredRoot([rootfs["upper"], *rootfs["lower"]])
        for point in points:
            if point.type == "volume":
                fills = not point.no_copy and not point.subpath
                row, new = volumes.ensure(
                    world.ledger,
                    journal,
                    settings.root,
                    point.source,
                    anonymous=point.source in anonymous,
                    labels=point.labels,
                    options=point.driver_options,
                )
                if new:
                    made.append(point.source)
                if row.options:
                    unfilled += [point] if fills and filling.is_something(layers, point.target) else []
                elif fills:
                    path = volumes.path_of(settings.root, point.source)
                    filling.copy_up(layers, point.target, path, point=journal.point)
                journal.point("create: volume")
        result = Made(container, warnings, operation, unfilled, made, anonymous)
        if not unfilled:
            commit(world, result)
    except Exception:
        undo(world, container_id, anonymous)
        journal.done(operation)
        raise
    return result


def fill(world: World, made: Made, point: MountSpec) -> None:
    """Fill one of the volumes that are mounted by now. Blocking."""
    rootfs = world.images.snapshot(made.container.id)
    path = volumes.path_of(world.settings.root, point.source)
    filling.copy_up(LayeredRoot([rootfs["upper"], *rootfs["lower"]]), point.target, path, mounted=True)


def commit(world: World, made: Made) -> None:
    """The container is there. Blocking."""
    with world.ledger.write():
        world.ledger.put_container(made.container)
        world.journal.done(made.operation)
    world.journal.point("create: done")


def give_up(world: World, made: Made) -> None:
    """It is not to be, after all. Blocking."""
    undo(world, made.container.id, made.anonymous)
    world.journal.done(made.operation)


def undo(world: World, container_id: str, anonymous: list[str]) -> None:
    """Take away all that `make` may have left. May be repeated."""
    world.ledger.delete_container(container_id)
    world.images.remove_snapshot(container_id)
    shutil.rmtree(world.settings.container_dir(container_id), ignore_errors=True)
    for name in anonymous:
        volumes.remove(world.ledger, world.journal, world.settings.root, name)
