"""From a container's row to what the runtime is asked: lookups on host and image, then `spec.compose`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from nagaya.engine import (
    apparmor,
    cdi,
    devices,
    files,
    links,
    logoptions,
    microvms,
    nettable,
    privileges,
    propagation,
    remap,
    spec,
    staging,
    user,
    volumes,
)
from nagaya.engine.layered import LayeredRoot
from nagaya.engine.model import Container, ContainerConfig, ExecConfig
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, KernelError, NotFound
from nagaya.linux import mounts, seccomp
from nagaya.network import resolv
from nagaya.oci import defaults, seccomp_default

# runtimes that know the mount option "rro": ours, runc since 1.1, crun since 1.4
_RECURSIVE_RO = ("nagaya", "runc", "crun")
_JOINED = {"network": "net", "pid": "pid", "ipc": "ipc"}
_encode = msgspec.json.Encoder().encode


class Launch(NamedTuple):
    """What is needed to run a container. filter: the spec's seccomp profile, compiled."""

    bundle: str
    spec: dict[str, Any]
    filter: dict[str, Any] | None
    rootfs: dict[str, Any]
    stdio: str
    log: dict[str, Any] | None


def joined_container(mode: str) -> str:
    """The reference in "container:REF", "" for other modes."""
    return mode.partition(":")[2] if mode.startswith("container:") else ""


def peers_of(config: ContainerConfig) -> list[str]:
    """The references of containers whose namespaces it joins."""
    modes = (config.network_mode, config.pid_mode, config.ipc_mode)
    return [reference for mode in modes if (reference := joined_container(mode))]


def namespaces(
    container: Container, peers: Mapping[str, Container], netns: str
) -> tuple[dict[str, str], frozenset[str]]:
    """(namespaces joined by path, kinds shared with the host) of its modes.

    peers: reference -> container, of all its "container:REF" modes; netns: the pinned network
    namespace, "" for a new one. Raises FailedPrecondition when a peer does not run.
    """
    config = container.config
    join: dict[str, str] = {}
    share: set[str] = set()
    modes = {
        "network": config.network_mode,
        "pid": config.pid_mode,
        "ipc": config.ipc_mode,
        "uts": config.uts_mode,
        "cgroup": config.cgroupns_mode,
    }
    for kind, mode in modes.items():
        if mode == "host":
            share.add(kind)
        elif reference := joined_container(mode):
            peer = peers[reference]
            if peer.state not in ("running", "paused") or not peer.pid:
                raise FailedPrecondition(
                    f"cannot join {kind} namespace of a non running container: {peer.id}", subject=kind
                )
            if kind == "ipc" and peer.config.ipc_mode not in ("shareable", "host"):
                raise FailedPrecondition(
                    f"non-shareable IPC (hint: use IpcMode:shareable for the donor container {peer.id})",
                    subject=kind,
                )
            join[kind] = f"/proc/{peer.pid}/ns/{_JOINED[kind]}"
            if kind == "network":
                join["uts"] = f"/proc/{peer.pid}/ns/uts"
    if netns:
        join["network"] = netns
    return join, frozenset(share)


def etc_files(
    world: World, container: Container, peers: Mapping[str, Container], gateway: str
) -> dict[str, str]:
    """Write the container's own /etc files; target -> host path. A container that joined another's
    network has that one's."""
    reference = joined_container(container.config.network_mode)
    owner = peers[reference] if reference else container
    directory = world.settings.container_dir(owner.id)
    if owner is container:
        files.write(f"{directory}/hostname", resolv.hostname_file(container.hostname))
        _write_hosts(world, container, gateway)
        _write_resolv_conf(world, container)
    return {f"/etc/{name}": f"{directory}/{name}" for name in ("resolv.conf", "hostname", "hosts")}


def _write_hosts(world: World, container: Container, gateway: str) -> None:
    config = container.config
    files.write(
        f"{world.settings.container_dir(container.id)}/hosts",
        resolv.hosts(
            addresses=[a for e in container.endpoints for a in (e.address, e.address6) if a],
            hostname=container.hostname,
            domainname=config.domainname,
            extra=config.extra_hosts,
            gateway=gateway,
            links=[
                (linked.address, " ".join(dict.fromkeys((linked.alias, peer.hostname, peer.name))))
                for linked in _linked(world, container)
                for peer in (linked.container,)
            ],
        ),
    )


class Linked(NamedTuple):
    """A container that another one is linked to in the default bridge."""

    alias: str
    container: Container
    address: str


def _linked(world: World, container: Container, *, lenient: bool = False) -> list[Linked]:
    """The containers that `--link` names in the default bridge. Raises NotFound, FailedPrecondition when
    one does not run; lenient: it is left out."""
    found = []
    for link in container.config.links:
        target, alias = links.parse(link)
        try:
            peer = world.roster.find(target).container
            place = next((e for e in peer.endpoints if e.network == "bridge" and e.address), None)
            if place is None:
                raise FailedPrecondition(
                    f"Cannot link to a non running container: /{peer.name} AS /{container.name}/{alias}"
                )
        except (NotFound, FailedPrecondition):
            if not lenient:
                raise
            continue
        found.append(Linked(alias, peer, place.address))
    return found


def _told(container: Container, linked: Sequence[Linked]) -> list[str]:
    """What links put into its environment."""
    return [
        variable
        for alias, peer, address in linked
        for variable in links.environment(
            container.name, alias, address, peer.config.exposed_ports, peer.config.env
        )
    ]


def _write_resolv_conf(world: World, container: Container) -> None:
    config, settings = container.config, world.settings
    names = nettable.has_names(place.network for place in container.endpoints)
    files.write(
        f"{settings.container_dir(container.id)}/resolv.conf",
        resolv.resolv_conf(
            _host_resolv_conf(),
            dns=(resolv.EMBEDDED,) if names else config.dns or settings.dns,
            search=config.dns_search or settings.dns_search,
            options=config.dns_options or settings.dns_options,
            own_network=config.network_mode != "host",
        ),
    )


def rewrite_etc(world: World, container: Container) -> None:
    """The hosts and resolv.conf of a running container whose networks have changed. Blocking."""
    _write_resolv_conf(world, container)
    gateway = next((e.gateway for e in container.endpoints if e.gateway), "")
    if not gateway:  # what was "host-gateway" at its start would be nothing now
        entries = tuple(e for e in container.config.extra_hosts if not e.endswith(":host-gateway"))
        config = msgspec.structs.replace(container.config, extra_hosts=entries)
        container = msgspec.structs.replace(container, config=config)
    _write_hosts(world, container, gateway)


def _host_resolv_conf() -> str:
    text = _read(resolv.HOST_RESOLV_CONF)
    source = resolv.host_source(text)
    return text if source == resolv.HOST_RESOLV_CONF else _read(source)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def capabilities(world: World, container: Container, *, privileged: bool = False) -> list[str]:
    """The capabilities of its processes."""
    config = container.config
    return privileges.capabilities(
        config.cap_add,
        config.cap_drop,
        privileged=privileged or config.privileged,
        default=defaults.CAPABILITIES,
        held=world.held,
    )[0]


class Profile(NamedTuple):
    """A seccomp profile as config.json has it, and as the built-in runtime takes it."""

    document: dict[str, Any] | None
    filter: dict[str, Any] | None


def _profile(document: dict[str, Any] | None) -> Profile:
    return Profile(document, seccomp.precompile(document) if document else None)


@functools.lru_cache(maxsize=64)  # 2 ms of a start; nobody changes what comes out
def default_profile(caps: tuple[str, ...]) -> Profile:
    """The built-in profile for these capabilities."""
    return _profile(seccomp_default.resolve(caps))


def _seccomp(container: Container, caps: list[str]) -> Profile:
    security = privileges.security_options(
        container.config.security_opt, privileged=container.config.privileged
    )
    if security.seccomp == "unconfined":
        return Profile(None, None)
    if security.seccomp == "default":
        return default_profile(tuple(caps))
    return _profile(seccomp_default.resolve_profile(privileges.seccomp_document(security.seccomp), caps))


def apparmor_profile(world: World, config: ContainerConfig) -> str:
    """The name of its AppArmor profile. "": none, or the host knows none: dockerd passes over one there."""
    security = privileges.security_options(config.security_opt, privileged=config.privileged)
    profile = apparmor.chosen(security.apparmor, privileged=config.privileged, default=world.apparmor)
    return profile if profile and apparmor.enabled() else ""


def cgroups_path(world: World, container: Container) -> str:
    """/PARENT/ID, or with systemd "PARENT:nagaya:ID"."""
    parent = container.config.cgroup_parent or world.settings.cgroup_parent
    if world.settings.cgroup_driver == "systemd":
        return f"{parent if parent.endswith('.slice') else 'system.slice'}:nagaya:{container.id}"
    return f"/{parent.strip('/')}/{container.id}"


def _shm(world: World, container: Container, peers: Mapping[str, Container]) -> str:
    """The host's path of a /dev/shm that is not its own; one that others may share is mounted now."""
    mode, settings = container.config.ipc_mode, world.settings
    reference = joined_container(mode)
    if mode == "host" or (reference and peers[reference].config.ipc_mode == "host"):
        return "/dev/shm"
    if reference:
        return settings.shm(reference)
    if mode != "shareable":
        return ""
    path = settings.shm(container.id)
    _unmount(path)
    files.make_directory(path, 0o700)
    flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
    users = remap.of(settings, container.config)
    owner = ",uid={},gid={}".format(*users.root) if users is not None else ""
    mounts.mount("shm", path, "tmpfs", flags, f"mode=1777,size={container.config.shm_size}{owner}")
    return path


def _unmount(path: str) -> None:
    with suppress(KernelError):
        mounts.umount2(path, mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
    with suppress(OSError):
        os.rmdir(path)


def prepare(
    world: World, container: Container, peers: Mapping[str, Container], netns: str, gateway: str
) -> Launch:
    """Look everything up, compose and write config.json. Blocking. Raises InvalidArgument (unknown
    user, bad device), FailedPrecondition."""
    config, settings = container.config, world.settings
    rootfs = world.images.snapshot(container.id)
    for kind, mode in (("network", config.network_mode), ("pid", config.pid_mode), ("ipc", config.ipc_mode)):
        if reference := joined_container(mode):
            microvms.check_joins(world, container, peers[reference], kind)
    points = []
    for index, point in enumerate(container.mount_points):
        source = point.source
        if point.type == "volume":
            volumes.ensure(world.ledger, world.journal, settings.root, source)
            source = volumes.path_of(settings.root, source)
        if staging.is_staged(point):
            source = staging.source(world, container.id, index, point)
        elif point.type == "bind":
            volumes.bind_source(source, create=point.create_source)
            propagation.check(source, point.propagation)
        points.append(msgspec.structs.replace(point, source=source))
    if config.privileged:
        nodes, rules = devices.of_host() + devices.mapped(config.devices), list(devices.PRIVILEGED_RULES)
    else:
        nodes = devices.mapped(config.devices)
        rules = devices.rules(nodes) + [devices.rule(text) for text in config.device_cgroup_rules]
    caps = capabilities(world, container)
    profile = _seccomp(container, caps)
    join, share = namespaces(container, peers, netns)
    own_pid = "pid" not in join and "pid" not in share
    masked = config.masked_paths if config.masked_paths is not None else world.masked_paths
    readonly = config.readonly_paths if config.readonly_paths is not None else defaults.READONLY_PATHS
    if config.privileged:
        masked, readonly = (), ()
    users = remap.of(settings, config)
    document = spec.compose(
        container,
        spec.Surroundings(
            identity=user.resolve(
                config.user, config.group_add, LayeredRoot([rootfs["upper"], *rootfs["lower"]])
            ),
            root=f"{settings.container_dir(container.id)}/rootfs",
            hostname=container.hostname,
            domainname=config.domainname,
            capabilities=caps,
            seccomp=profile.document,
            masked=masked,
            readonly=readonly,
            mounts=points,
            files=etc_files(world, container, peers, gateway),
            devices=nodes,
            device_rules=rules,
            block_io=devices.block_io(config.resources),
            apparmor=apparmor_profile(world, config),
            join=join,
            share=share,
            told=_told(container, _linked(world, container)),
            shm_source=_shm(world, container, peers),
            init=settings.init_path if config.init and own_pid else "",
            cgroups_path=cgroups_path(world, container),
            recursive_ro=(config.runtime or settings.default_runtime) in _RECURSIVE_RO,
            default_sysctls=_default_sysctls(container, users is not None),
            default_ulimits=[
                {"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard}
                for name, (soft, hard) in settings.default_ulimits.items()
            ],
        ),
    )
    if users is not None:
        path = remap.joined(settings, config, peers, netns)
        ours = (f"{settings.root}/volumes/", f"{settings.root}/containers/", f"{settings.run}/staged/")
        binds = [mount["source"] for mount in document["mounts"] if mount["type"] == "bind"]
        mapped = {source for source in binds if source.startswith(ours) and not _is_overlay(source)}
        remap.apply(document, users, path, mapped)
    if config.device_requests:
        cdi.apply(document, cdi.Catalog(settings.cdi_spec_dirs).edits(cdi.names(config.device_requests)))
    slot = world.roster.get(container.id)
    if slot is not None and slot.hidden:
        names = {line.partition("=")[0] for line in slot.hidden}
        env = document["process"]["env"]
        document["process"]["env"] = [*(v for v in env if v.partition("=")[0] not in names), *slot.hidden]
    bundle = settings.bundle(container.id)
    files.make_directory(bundle, 0o700)
    files.write(f"{bundle}/config.json", _encode(document).decode(), 0o600)
    stdio = "pty" if config.tty else "pipes"
    log = logoptions.for_io(settings, container)
    return Launch(bundle, document, profile.filter, rootfs, stdio, log)


def _default_sysctls(container: Container, remapped: bool) -> dict[str, str]:
    """Those that are not somebody else's; the groups that may ping have to be mapped, all of them."""
    if reference_network(container):
        return {}
    return {k: v for k, v in defaults.SYSCTLS.items() if not (remapped and k == "net.ipv4.ping_group_range")}


def _is_overlay(path: str) -> bool:
    """Is it an image's files? The kernel maps no owners in a mount of an overlay, only in its layers."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mounts.filesystem_type(fd) == mounts.OVERLAYFS_SUPER_MAGIC
    finally:
        os.close(fd)


def reference_network(container: Container) -> bool:
    """Does it live in somebody else's network namespace, whose settings are not its own?"""
    mode = container.config.network_mode
    return mode == "host" or mode.startswith("container:")


def prepare_exec(world: World, container: Container, config: ExecConfig) -> dict[str, Any]:
    """The `process` of an exec session. Blocking. Raises InvalidArgument."""
    rootfs = world.images.snapshot(container.id)
    who = user.resolve(
        config.user or container.config.user,
        container.config.group_add if not config.user else (),
        LayeredRoot([rootfs["upper"], *rootfs["lower"]]),
    )
    return spec.exec_process(
        container,
        config,
        who,
        told=_told(container, _linked(world, container, lenient=True)),
        capabilities=capabilities(world, container, privileged=config.privileged),
        apparmor=apparmor_profile(world, container.config),
    )


def remove_bundle(world: World, container_id: str) -> None:
    """Delete RUN/bundles/ID, and the shm that it shared. May be repeated."""
    _unmount(world.settings.shm(container_id))
    files.remove_flat(world.settings.bundle(container_id))
